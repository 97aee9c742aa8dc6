"""Any data set of torch as images to train on; label noise and uneven classes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lesde.networks import from_dataset, lenet, record_ensemble, with_class_counts, with_label_noise

COUNTS = {2: 20, 5: 14, 9: 31}


class Tagged(Dataset):
    """Images that hold their label and their number, in any order; names of classes as torchvision has them."""

    classes = tuple(f"thing {label}" for label in range(10))

    def __init__(self, counts=None, first=0):
        labels = np.repeat(*map(list, zip(*(counts or COUNTS).items(), strict=True)))
        self.labels = np.random.default_rng(0).permutation(labels)
        self.first = first

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError
        label = int(self.labels[i])
        return torch.tensor([[[float(label), float(self.first + i)]]]), label


def tags(x):
    return x[:, 0, 0, 0].astype(int), x[:, 0, 0, 1].astype(int)


def check(data, values, counts, n_probe):
    for x, y, expected in (
        (data.train_x, data.train_y, counts),
        (data.probe_x, data.probe_y, [n_probe] * len(values)),
    ):
        labels, numbers = tags(x)
        np.testing.assert_array_equal(labels, np.asarray(values)[y])
        np.testing.assert_array_equal(np.bincount(y), expected)
        assert (np.diff(y) >= 0).all()
        assert len(np.unique(numbers)) == len(numbers)


def test_all_images_but_the_held_out_ones():
    data = from_dataset(Tagged(), n_probe_per_class=4)
    check(data, [2, 5, 9], [16, 10, 27], 4)
    assert not set(tags(data.train_x)[1]) & set(tags(data.probe_x)[1])
    assert data.class_names == ("thing 2", "thing 5", "thing 9")
    assert data.name == "Tagged, held-out probe, seed 0"


def test_probe_of_training_images():
    data = from_dataset(Tagged(), n_train_per_class=10, n_probe_per_class=4, probe="train")
    check(data, [2, 5, 9], [10, 10, 10], 4)
    assert set(tags(data.probe_x)[1]) <= set(tags(data.train_x)[1])
    small = from_dataset(Tagged(), n_train_per_class=6, n_probe_per_class=4, probe="train")
    for k in range(3):  # the beginning of the larger set
        np.testing.assert_array_equal(
            small.train_x[small.train_y == k], data.train_x[data.train_y == k][:6]
        )


def test_a_pair_of_sets_and_some_classes():
    test = Tagged({9: 8, 2: 8, 7: 3}, first=1000)
    data = from_dataset(Tagged(), test, classes=(9, 2), n_probe_per_class=5, seed=3)
    check(data, [9, 2], [31, 20], 5)
    assert tags(data.probe_x)[1].min() >= 1000
    assert tags(data.train_x)[1].max() < 1000
    assert data.class_names == ("thing 9", "thing 2")
    first = from_dataset(Tagged(), classes=2, n_probe_per_class=3)
    assert first.class_names == ("thing 2", "thing 5")
    other = from_dataset(Tagged(), test, classes=(9, 2), n_probe_per_class=5, seed=4)
    assert not np.array_equal(other.train_x, data.train_x)


def test_kinds_of_sets_agree():
    """The order of a loader does not matter to what a class may be, but to which images are drawn."""
    tagged = Tagged()
    x = torch.stack([tagged[i][0] for i in range(len(tagged))])
    y = torch.as_tensor(tagged.labels)
    wanted = from_dataset(tagged, n_probe_per_class=4)
    for source in (TensorDataset(x, y), DataLoader(tagged, batch_size=11), (x.numpy(), y.numpy())):
        found = from_dataset(source, n_probe_per_class=4)
        np.testing.assert_array_equal(found.train_x, wanted.train_x)
        np.testing.assert_array_equal(found.probe_x, wanted.probe_x)
    assert from_dataset(TensorDataset(x, y), n_probe_per_class=4).class_names == ("2", "5", "9")


def test_label_noise_and_uneven_classes():
    data = from_dataset(Tagged({0: 40, 1: 40, 2: 40}), n_probe_per_class=10)
    noisy = with_label_noise(data, 0.2)
    true, _ = tags(noisy.train_x)
    for k in range(3):
        wrong = noisy.train_y[true == k][noisy.train_y[true == k] != k]
        assert len(wrong) == 6
        assert np.bincount(wrong, minlength=3).max() == 3
    np.testing.assert_array_equal(noisy.probe_y, data.probe_y)
    uneven = with_class_counts(data, (30, 9, 3))
    np.testing.assert_array_equal(np.bincount(tags(uneven.train_x)[0]), [30, 9, 3])


def test_it_trains():
    x, y = torch.rand(60, 1, 16, 16), torch.arange(60) % 3
    data = from_dataset(TensorDataset(x, y), n_probe_per_class=5)
    (record,) = record_ensemble(data, lambda: lenet(3, size=16), 0.01, 2, [0.0, 0.1])
    assert record["logits"].features.shape == (1, 2, 2, 15, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": 3}, TypeError, "train must be a DataLoader or Dataset"),
        ({"test": 3}, TypeError, "test must be a DataLoader or Dataset"),
        ({"classes": 4}, ValueError, "at least 2 and at most 3; got 4"),
        ({"classes": (2, 3)}, ValueError, r"different labels of \[2, 5, 9\]; got \(2, 3\)"),
        ({"classes": (2, 2)}, ValueError, "at least two different labels"),
        ({"n_train_per_class": 12}, ValueError, "12 training images and 4 held-out"),
        (
            {"n_probe_per_class": 14},
            ValueError,
            "must leave images to train on; class thing 5 has 14",
        ),
        ({"probe": "test"}, ValueError, "probe must be one of"),
    ],
)
def test_refusals(change, error, message):
    with pytest.raises(error, match=message):
        from_dataset(**({"train": Tagged(), "n_probe_per_class": 4} | change))


def test_images_of_different_shapes():
    images = [(torch.rand(1, 4 + i % 2, 4), i % 2) for i in range(8)]
    loader = DataLoader(images, batch_size=1)
    with pytest.raises(ValueError, match="train must hold inputs of one shape"):
        from_dataset(loader, n_probe_per_class=1)
