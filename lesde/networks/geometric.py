"""GeoMNIST: drawn triangles, rectangles and ellipses."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from lesde.checks import check_choice, check_integer, check_seed
from lesde.networks.data import ImageData, check_split

__all__ = ["SHAPES", "draw_shapes", "geo_mnist"]


SHAPES = ("triangle", "rectangle", "ellipse")
"""The classes, in the order of their labels."""
SIZE = 32
LAST_ANGLE = 176.0
"""Degrees."""


def geo_mnist(
    n_train_per_class: int = 500,
    n_probe_per_class: int = 500,
    *,
    n_drawn: int = 1000,
    probe: str = "held_out",
    seed: int = 0,
) -> ImageData:
    """Three classes of simple geometric shapes, 32 by 32 grey pixels, drawn by program.

    Of ``n_drawn`` images of each class, drawn by ``draw_shapes``, training and probe images are
    taken at random. Source: the data set GeoMNIST of Zhang, Wang and Su, *Imitating Deep Learning
    Dynamics via Locally Elastic Stochastic Differential Equations*, NeurIPS 2021 (arXiv 2110.05960),
    with its 500 training and 500 validation images of each class.

    Parameters
    ----------
    n_train_per_class, n_probe_per_class : int, default 500
        Training images and probe images of each class.
    n_drawn : int, default 1000
        Images drawn of each class.
    probe : {"held_out", "train"}
        Probe images that are not trained on (the validation set of the paper), or the first of the
        training images.
    seed : int, default 0
        Which images are taken, and how much each is blurred.

    Returns
    -------
    ImageData
        ``train_x`` and ``probe_x`` of shape (images, 1, 32, 32), sorted by class: triangle,
        rectangle, ellipse.

    Raises
    ------
    TypeError, ValueError
        If a number is not a positive integer, or more images are asked for than are drawn.

    Examples
    --------
    >>> data = geo_mnist(20, 10, n_drawn=30)
    >>> data.train_x.shape, data.class_names
    ((60, 1, 32, 32), ('triangle', 'rectangle', 'ellipse'))
    """
    n_train = check_integer("n_train_per_class", n_train_per_class)
    n_probe = check_integer("n_probe_per_class", n_probe_per_class)
    n_drawn = check_integer("n_drawn", n_drawn, 1, 10**6)
    check_split(n_train, n_probe, probe)
    seed = check_seed(seed)
    needed = n_train + (n_probe if probe == "held_out" else 0)
    if needed > n_drawn:
        raise ValueError(
            f"n_drawn must be at least the {needed} images of each class that are asked for; got "
            f"{n_drawn}."
        )
    train, probes = [], []
    for label, shape in enumerate(SHAPES):
        blur, choice = np.random.SeedSequence(seed, spawn_key=(label,)).spawn(2)
        images = draw_shapes(shape, n_drawn, np.random.default_rng(blur))[:, None]
        order = np.random.default_rng(choice).permutation(n_drawn)
        train.append(images[order[:n_train]])
        first = n_train if probe == "held_out" else 0
        probes.append(images[order[first : first + n_probe]])
    labels = np.arange(len(SHAPES))
    return ImageData(
        train_x=np.concatenate(train),
        train_y=np.repeat(labels, n_train),
        probe_x=np.concatenate(probes),
        probe_y=np.repeat(labels, n_probe),
        name=f"GeoMNIST, {probe.replace('_', '-')} probe, seed {seed}",
        class_names=SHAPES,
    )


def draw_shapes(shape: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Images of one shape, each of another size or place, turned and blurred.

    Sizes, places and angles run evenly over the images; only the blur is random. Lengths are pixels,
    about the centre of the image:

    - ellipse: semi-axes r over the rows and 2r over the columns, r from 5 to 7;
    - rectangle: 8 by 16, half-sides 4 (rows) and 8 (columns), shifted along the diagonal by -1 to 1;
    - triangle: apex 8√3 to the left, base 8 to the right with half-length 10, shifted in the same way.

    Each is filled with 1 on 0, turned by 0° to 176° (linear interpolation) and blurred by a Gaussian
    of standard deviation uniform in [0.9, 1.1].

    Examples
    --------
    >>> draw_shapes("ellipse", 3, np.random.default_rng(0)).shape
    (3, 32, 32)
    """
    check_choice("shape", shape, SHAPES)
    along = np.linspace(0.0, 1.0, count)
    blurs = rng.uniform(0.9, 1.1, count)
    centre = (SIZE - 1) / 2
    rows, columns = np.mgrid[:SIZE, :SIZE] - centre
    images = np.empty((count, SIZE, SIZE), dtype=np.float32)
    for i, (share, width) in enumerate(zip(along, blurs, strict=True)):
        if shape == "ellipse":
            inside = _ellipse(rows, columns, 5.0 + 2.0 * share)
        else:
            shift = 2.0 * share - 1.0
            fill = _rectangle if shape == "rectangle" else _triangle
            inside = fill(rows - shift, columns - shift)
        turned = ndimage.rotate(
            inside.astype(np.float64), LAST_ANGLE * share, reshape=False, order=1
        )
        images[i] = ndimage.gaussian_filter(turned, width)
    return images


def _ellipse(rows: np.ndarray, columns: np.ndarray, radius: float) -> np.ndarray:
    return (rows / radius) ** 2 + (columns / (2.0 * radius)) ** 2 <= 1.0


def _rectangle(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return (np.abs(rows) <= 4.0) & (np.abs(columns) <= 8.0)


def _triangle(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    apex, base, half = -8.0 * np.sqrt(3.0), 8.0, 10.0
    # Half the height of the triangle at a column grows from the apex to the base.
    reach = half * (columns - apex) / (base - apex)
    return (columns <= base) & (np.abs(rows) <= reach)
