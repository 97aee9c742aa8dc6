"""The digits: balance, order, disjointness, nesting, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lesde.networks import ImageData, digits


def rows(x):
    return {row.tobytes() for row in x}


def test_shapes_types_and_order():
    data = digits(classes=4, n_train_per_class=50, n_probe_per_class=20)
    assert data.train_x.shape == (200, 64)
    assert data.probe_x.shape == (80, 64)
    assert data.train_x.dtype == data.probe_x.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(data.train_y), [50] * 4)
    np.testing.assert_array_equal(data.probe_y, np.repeat(np.arange(4), 20))
    assert data.n_classes == 4
    assert data.class_names == ("0", "1", "2", "3")
    assert data.train_x.min() == 0
    assert data.train_x.max() == 1
    assert "[50, 50, 50, 50]" in str(data)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_images_carry_the_labels_of_the_source():
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    source = {
        np.float32(row / 16).tobytes(): int(label)
        for row, label in zip(images, targets, strict=True)
    }
    chosen = (7, 2, 9, 4)
    data = digits(classes=chosen, n_train_per_class=60, n_probe_per_class=30, probe="held_out")
    for x, y in ((data.train_x, data.train_y), (data.probe_x, data.probe_y)):
        assert [source[row.tobytes()] for row in x] == [chosen[k] for k in y]
    assert data.class_names == ("7", "2", "9", "4")


def test_probe_is_part_of_the_training_set_or_apart_from_it():
    inside = digits(classes=5, n_train_per_class=40, n_probe_per_class=15)
    assert rows(inside.probe_x) <= rows(inside.train_x)
    outside = digits(classes=5, n_train_per_class=150, n_probe_per_class=20, probe="held_out")
    assert not rows(outside.probe_x) & rows(outside.train_x)


def test_standard_scaling_is_an_affine_map_of_the_training_pixels():
    unit, standard = digits(classes=4), digits(classes=4, scaling="standard")
    assert abs(standard.train_x.mean()) < 1e-6
    assert abs(standard.train_x.std() - 1) < 1e-6
    mean, spread = unit.train_x.mean(dtype=np.float64), unit.train_x.std(dtype=np.float64)
    np.testing.assert_allclose(standard.probe_x, (unit.probe_x - mean) / spread, atol=1e-5)


def test_seed_digit_and_nothing_else_decides_the_images():
    few = digits(classes=(3, 5), n_train_per_class=30, n_probe_per_class=10)
    many = digits(classes=(1, 5, 3), n_train_per_class=90, n_probe_per_class=10)
    for k, digit in enumerate((3, 5)):
        same = (1, 5, 3).index(digit)
        np.testing.assert_array_equal(
            few.train_x[few.train_y == k], many.train_x[many.train_y == same][:30]
        )
        np.testing.assert_array_equal(
            few.probe_x[few.probe_y == k], many.probe_x[many.probe_y == same]
        )
    other = digits(classes=(3, 5), n_train_per_class=30, n_probe_per_class=10, seed=1)
    assert rows(other.train_x) != rows(few.train_x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_train_per_class": 200}, ValueError, r"200 training images of class 0 .* are 178"),
        (
            {"n_train_per_class": 170, "probe": "held_out"},
            ValueError,
            r"170 training images and 40 held-out probe images of class 0 .* are 178",
        ),
        ({"n_probe_per_class": 101}, ValueError, r'n_probe_per_class .* 101 .*probe="held_out"'),
        (
            {"n_probe_per_class": 1},
            ValueError,
            r"n_probe_per_class must be an integer of at least 2",
        ),
        (
            {"classes": 11},
            ValueError,
            r"classes must be an integer of at least 2 and at most 10; got 11",
        ),
        ({"classes": (1, 1, 2)}, ValueError, r"different digits"),
        ({"classes": 4.0}, TypeError, r"classes must be a number of classes or a sequence"),
        ({"scaling": "units"}, ValueError, r"scaling .* Did you mean 'unit'"),
        ({"probe": "test"}, ValueError, r"probe must be one of 'train', 'held_out'"),
        ({"seed": -1}, ValueError, r"seed must be an integer of at least 0"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        digits(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_x": np.zeros((3, 2))}, ValueError, r"train_x must hold one input per label"),
        ({"probe_x": np.zeros((2, 5))}, ValueError, r"one shape; got \(2,\) and \(5,\)"),
        ({"probe_x": np.full((2, 2), np.nan)}, ValueError, r"probe_x must be finite"),
        ({"train_y": np.array([0, 2, 0, 2])}, ValueError, r"train_y must be the integers 0 to K-1"),
        ({"probe_y": np.array([0, 0])}, ValueError, r"same classes; got 2 and 1"),
        ({"class_names": ("a",)}, ValueError, r"name the 2 classes; got 1"),
    ],
)
def test_image_data_refuses_what_does_not_fit_together(change, error, message):
    fitting = {
        "train_x": np.zeros((4, 2)),
        "train_y": np.array([0, 1, 0, 1]),
        "probe_x": np.zeros((2, 2)),
        "probe_y": np.array([0, 1]),
    }
    ImageData(**fitting)
    with pytest.raises(error, match=message):
        ImageData(**(fitting | change))
