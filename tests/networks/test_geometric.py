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
        ({"n_drawn": 900}, "at least the 1000 images"),
        ({"probe": "test"}, "probe"),
        ({"probe": "train", "n_probe_per_class": 501}, "at most n_train_per_class"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        geo_mnist(**arguments)
