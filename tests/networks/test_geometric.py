"""GeoMNIST against areas and places worked out by hand."""

import numpy as np
import pytest

from lesde.networks import geo_mnist
from lesde.networks.geometric import SHAPES, SIZE, draw_shapes

COUNT = 200
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2


@pytest.fixture(scope="module")
def images():
    return {shape: draw_shapes(shape, COUNT, np.random.default_rng(0)) for shape in SHAPES}


def moments(image):
    """Area, centre (row, column) and second moments about it."""
    area = image.sum(dtype=np.float64)
    row, column = (image * ROWS).sum() / area, (image * COLUMNS).sum() / area
    r, c = ROWS - row, COLUMNS - column
    second = np.array(
        [
            [(image * r * r).sum(), (image * r * c).sum()],
            [(image * r * c).sum(), (image * c * c).sum()],
        ]
    )
    return area, (row, column), second / area


def test_areas(images):
    """Turning and blurring keep the area, within what pixels resolve."""
    ellipse = images["ellipse"].sum(axis=(1, 2))
    wanted = 2 * np.pi * np.linspace(5, 7, COUNT) ** 2
    assert np.abs(ellipse / wanted - 1).max() < 0.06
    assert np.abs((ellipse / wanted).mean() - 1) < 0.01
    rectangle = images["rectangle"].sum(axis=(1, 2))
    assert np.abs(rectangle / 128 - 1).max() < 0.13
    triangle = images["triangle"].sum(axis=(1, 2))
    wanted = 10 * (8 + 8 * np.sqrt(3))
    assert np.abs(triangle / wanted - 1).max() < 0.06


def test_directions_and_angles(images):
    """The first image lies along the columns, and the angle grows evenly to 176°."""
    for shape in ("ellipse", "rectangle"):
        angles = []
        for image in images[shape]:
            _, _, second = moments(image)
            vector = np.linalg.eigh(second)[1][:, -1]
            angles.append(np.degrees(np.arctan2(-vector[0], vector[1])) % 180)
        wanted = np.linspace(0, 176, COUNT)
        off = (np.array(angles) - wanted + 90) % 180 - 90
        assert np.abs(off).max() < 2.5
    # The apex points left: the centre of mass of the first triangle is right of the apex's middle.
    _, (row, column), _ = moments(images["triangle"][0])
    apex, base = -8 * np.sqrt(3), 8.0
    assert abs(column - (apex + 2 * (base - apex) / 3 - 1)) < 0.3  # it is shifted by -1
    assert abs(row + 1) < 0.1


def test_shift_runs_along_the_diagonal(images):
    """Halfway nothing is shifted; at the ends by one pixel, about the centre of the image."""
    for i, shift in ((0, -1.0), (COUNT - 1, 1.0)):
        _, centre, _ = moments(images["rectangle"][i])
        assert np.hypot(*centre) == pytest.approx(abs(shift) * np.sqrt(2), abs=0.1)
    middle = draw_shapes("rectangle", 3, np.random.default_rng(0))[1]
    assert np.hypot(*moments(middle)[1]) < 0.05


def edge_widths(count, seed=3):
    """Standard deviation of the blur of images that are not turned, from a straight edge of the rectangle.

    Across an edge the image is the blur's distribution function, so that differences between neighbouring pixels are
    its density. The first image of each set is not turned; half-sides are at least four times the blur.
    """
    rng = np.random.default_rng(seed)
    widths = []
    for _ in range(count):
        first = draw_shapes("rectangle", 1, rng)[0].astype(np.float64)
        profile = first[
            : SIZE // 2 - 1, SIZE // 2 - 1
        ]  # from above to the middle, which is shifted by -1
        density = np.diff(profile)
        at = np.arange(len(density))
        assert density.sum() == pytest.approx(1, abs=1e-3)
        widths.append(np.sqrt(density @ (at - density @ at / density.sum()) ** 2 / density.sum()))
    return np.array(widths)


def test_blur_is_even_from_0_9_to_1_1():
    """Null: widths are uniform in [0.9, 1.1], read to 0.01. 300 images: mean and spread within 5σ, ends near."""
    widths = edge_widths(300)
    assert widths.min() > 0.89
    assert widths.max() < 1.11
    assert widths.min() < 0.91
    assert widths.max() > 1.09
    spread = 0.2 / np.sqrt(12)
    assert abs(widths.mean() - 1) < 5 * spread / np.sqrt(300) + 0.005
    # The fourth moment of a uniform variable is 1.8 of its squared variance.
    assert abs(widths.std() / spread - 1) < 5 * np.sqrt(0.8 / 300) / 2 + 0.02


def named(image):
    """The shape of an image, by area and by the ratio of its second moments about the centre.

    Near 1.6 for the triangle of base 20 and height 21.9, 3.5 or more for the others; the rectangle has area 128 and
    ellipses at least 50π = 157.
    """
    area, _, second = moments(image)
    low, high = np.linalg.eigvalsh(second)
    if high / low < 2.5:
        return "triangle"
    return "rectangle" if area < 147 else "ellipse"


@pytest.mark.parametrize("probe", ["held_out", "train"])
def test_labels_are_those_of_the_shapes(probe):
    data = geo_mnist(30, 20, n_drawn=60, probe=probe, seed=2)
    for x, y in ((data.train_x, data.train_y), (data.probe_x, data.probe_y)):
        assert [named(image[0]) for image in x] == [data.class_names[k] for k in y]


def numbers(images, shape, n_drawn):
    """Which of the drawn images these are, nearly: those that resemble them most, whatever their blur."""
    every = draw_shapes(shape, n_drawn, np.random.default_rng(99)).reshape(n_drawn, -1)
    apart = ((images.reshape(len(images), 1, -1) - every) ** 2).sum(-1)
    return apart.argmin(1)


def test_images_are_taken_at_random_and_in_no_order():
    """Null: a sample without replacement of numbers 0 to N−1, in random order. All within 5σ.

    Its mean has the variance (N²−1)/12 · (1−n/N)/n; order and number have a correlation of variance 1/(n−1).
    """
    N, n = 200, 80
    chosen = {}
    for seed in (0, 1):
        data = geo_mnist(n, n, n_drawn=N, seed=seed)
        for part, x in (("train", data.train_x), ("probe", data.probe_x)):
            for k, shape in enumerate(SHAPES):
                found = numbers(x[n * k : n * (k + 1)], shape, N)
                chosen[seed, part, k] = set(found.tolist())
                error = np.sqrt((N**2 - 1) / 12 * (1 - n / N) / n)
                assert abs(found.mean() - (N - 1) / 2) < 5 * error, (seed, part, shape)
                assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 5 / np.sqrt(n - 1)
    # Another seed takes others: of n of N, n²/N = 32 in common, with variance n²(N−n)²/N²(N−1).
    error = n * (N - n) / N / np.sqrt(N - 1)
    for k in range(3):
        both = len(chosen[0, "train", k] & chosen[1, "train", k])
        assert abs(both - n**2 / N) < 5 * error


def test_data_set():
    data = geo_mnist(30, 20, n_drawn=60, seed=5)
    assert data.train_x.shape == (90, 1, 32, 32)
    assert data.probe_x.shape == (60, 1, 32, 32)
    assert data.class_names == ("triangle", "rectangle", "ellipse")
    assert data.train_x.min() >= 0
    assert data.train_x.max() <= 1 + 1e-6
    both = np.concatenate([data.train_x, data.probe_x]).reshape(150, -1)
    assert len(np.unique(both, axis=0)) == 150  # no image is in both
    again = geo_mnist(30, 20, n_drawn=60, seed=5)
    np.testing.assert_array_equal(data.train_x, again.train_x)
    other = geo_mnist(30, 20, n_drawn=60, seed=6)
    assert (data.train_x != other.train_x).any()
    inside = geo_mnist(30, 20, n_drawn=60, probe="train", seed=5)
    np.testing.assert_array_equal(inside.probe_x[:20], inside.train_x[:20])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train_per_class": 0}, "n_train_per_class"),
        ({"n_drawn": 900}, "500 training images and 500 held-out probe images"),
        ({"probe": "test"}, "probe"),
        ({"probe": "train", "n_probe_per_class": 501}, "at most n_train_per_class"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        geo_mnist(**arguments)
