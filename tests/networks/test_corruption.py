import numpy as np
import pytest

from lesde.networks import digits, with_class_counts, with_label_noise


@pytest.fixture(scope="module")
def data():
    return digits(classes=3, n_train_per_class=120)


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 2 / 3, 1.0])
def test_the_share_of_every_class_is_changed_evenly(data, share):
    noisy = with_label_noise(data, share, seed=4)
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (data.train_y, noisy.train_y), 1)
    for k in range(3):
        changed = np.delete(counts[k], k)
        assert changed.sum() == round(share * 120)
        assert np.ptp(changed) <= 1
    np.testing.assert_array_equal(noisy.probe_y, data.probe_y)
    np.testing.assert_array_equal(noisy.train_x, data.train_x)


def test_a_smaller_share_is_part_of_a_larger_one(data):
    some, more = (with_label_noise(data, share).train_y for share in (0.2, 0.6))
    changed = some != data.train_y
    np.testing.assert_array_equal(some[changed], more[changed])
    assert (with_label_noise(data, 0.2, seed=1).train_y != some).any()


def test_class_counts(data):
    few = with_class_counts(data, (100, 20, 5), seed=2)
    assert np.bincount(few.train_y).tolist() == [100, 20, 5]
    fewer = with_class_counts(data, (50, 20, 5), seed=2)
    rows = {image.tobytes() for image in few.train_x}
    assert all(image.tobytes() in rows for image in fewer.train_x)
    labels = {
        image.tobytes(): label for image, label in zip(data.train_x, data.train_y, strict=True)
    }
    assert all(
        labels[image.tobytes()] == label
        for image, label in zip(few.train_x, few.train_y, strict=True)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: with_label_noise(d, 1.2), "in \\[0, 1\\]"),
        (lambda d: with_label_noise(d, "x"), "share"),
        (lambda d: with_class_counts(d, (1, 2)), "one number for each of the 3"),
        (
            lambda d: with_class_counts(d, (1, 2, 200)),
            r"counts\[2\] must be an integer of at least 1 and at most 120",
        ),
    ],
)
def test_refused(data, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(data)
