"""GeoMNIST: drawn triangles, rectangles and ellipses."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from lesde.checks import check_integer, check_seed
from lesde.networks.data import ImageData, take_images

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

    Of ``n_drawn`` images of each class training and probe images are taken at random. Source: the data
    set GeoMNIST of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960), with its 500 training and 500
    validation images of each class.

    Parameters
    ----------
    n_train_per_class, n_probe_per_class, probe, seed
        As for :func:`digits`; ``seed`` also says how much each image is blurred.
    n_drawn : int, default 1000
        Images drawn of each class.

    Returns
    -------
    ImageData
        ``train_x`` and ``probe_x`` of shape (images, 1, 32, 32), sorted by class: triangle,
        rectangle, ellipse.

    Examples
    --------
    >>> data = geo_mnist(20, 10, n_drawn=30)
    >>> data.train_x.shape, data.class_names
    ((60, 1, 32, 32), ('triangle', 'rectangle', 'ellipse'))
    """
    n_drawn, seed = check_integer("n_drawn", n_drawn), check_seed(seed)
    drawn = [
        draw_shapes(shape, n_drawn, np.random.default_rng([seed, label]))[:, None]
        for label, shape in enumerate(SHAPES)
    ]
    return take_images(
        (np.concatenate(drawn), np.repeat(range(len(SHAPES)), n_drawn)),
        None,
        range(len(SHAPES)),
        n_train_per_class,
        n_probe_per_class,
        probe=probe,
        seed=seed,
        name="GeoMNIST",
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
    """
    along = np.linspace(0.0, 1.0, count)
    blurs = rng.uniform(0.9, 1.1, count)
    centre = (SIZE - 1) / 2
    rows, columns = np.mgrid[:SIZE, :SIZE] - centre
    images = np.empty((count, SIZE, SIZE), dtype=np.float32)
    for i, (share, width) in enumerate(zip(along, blurs, strict=True)):
        shift = 2.0 * share - 1.0
        y, x = rows - shift, columns - shift
        if shape == "ellipse":
            radius = 5.0 + 2.0 * share
            inside = (rows / radius) ** 2 + (columns / (2.0 * radius)) ** 2 <= 1.0
        elif shape == "rectangle":
            inside = (np.abs(y) <= 4.0) & (np.abs(x) <= 8.0)
        else:
            apex, base, half = -8.0 * np.sqrt(3.0), 8.0, 10.0
            # Half the height of the triangle at a column grows from the apex to the base.
            inside = (x <= base) & (np.abs(y) <= half * (x - apex) / (base - apex))
        turned = ndimage.rotate(inside.astype(float), LAST_ANGLE * share, reshape=False, order=1)
        images[i] = ndimage.gaussian_filter(turned, width)
    return images
