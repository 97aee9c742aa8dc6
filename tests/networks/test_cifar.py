"""The reader of CIFAR-10, on small files of the published formats."""

import pickle
import tarfile

import numpy as np
import pytest

from lesde.networks import cifar10
from lesde.networks.cifar import read_cifar10

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (30, 3072), dtype=np.uint8), rng.permutation(30) % 10)
        for name in NAMES
    }


def write_python(folder, batches):
    for name, (images, labels) in batches.items():
        content = {b"data": images, b"labels": labels.tolist(), b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"num_vis": 3072}, protocol=2))


def write_binary(folder, batches):
    for name, (images, labels) in batches.items():
        rows = np.column_stack([labels.astype(np.uint8), images])
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


@pytest.mark.parametrize("write", [write_python, write_binary])
@pytest.mark.parametrize("packed", [False, True])
def test_both_formats_as_folder_and_archive(tmp_path, batches, write, packed):
    inner = tmp_path / "cifar-10-batches"
    inner.mkdir()
    write(inner, batches)
    place = tmp_path
    if packed:
        place = tmp_path / "cifar.tar.gz"
        with tarfile.open(place, "w:gz") as archive:
            archive.add(inner, arcname=inner.name)
    (images, labels), (test_images, test_labels) = read_cifar10(place)
    assert images.shape == (150, 3, 32, 32)
    # Red first, then rows: number 1024 c + 32 row + column of a record.
    first = batches["data_batch_1"][0][7]
    assert images[7, 2, 5, 9] == np.float32(first[2 * 1024 + 5 * 32 + 9]) / np.float32(255)
    np.testing.assert_array_equal(labels[30:60], batches["data_batch_2"][1])
    np.testing.assert_array_equal(test_labels, batches["test_batch"][1])
    assert test_images.min() >= 0
    assert test_images.max() <= 1


def test_data_set(tmp_path, batches):
    write_binary(tmp_path, batches)
    data = cifar10(tmp_path, classes=(3, 5), n_train_per_class=10, n_probe_per_class=3, seed=1)
    assert data.train_x.shape == (20, 3, 32, 32)
    assert data.class_names == ("cat", "dog")
    known = {
        image.tobytes(): label
        for images, labels in [batches[name] for name in NAMES[:5]]
        for image, label in zip(images, labels, strict=True)
    }
    for image, label in zip(data.train_x, data.train_y, strict=True):
        original = np.rint(image.reshape(-1) * 255).astype(np.uint8).tobytes()
        assert known[original] == (3, 5)[label]


def test_what_is_missing_is_told(tmp_path, batches):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*cifar-10-python.tar.gz"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"complete copy.*data_batch_1.*Download"):
        cifar10(tmp_path)
    write_python(tmp_path, {name: batches[name] for name in NAMES[:4]})
    with pytest.raises(ValueError, match=r"complete copy.*data_batch_5.*Download"):
        cifar10(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("no archive")
    with pytest.raises(ValueError, match=r"complete copy.*Download"):
        cifar10(text)


@pytest.mark.parametrize("write", [write_python, write_binary])
@pytest.mark.parametrize(("kind", "part"), [("gz", 0.5), ("gz", 0.001), ("xz", 0.5), ("", 0.5)])
def test_incomplete_archives(tmp_path, batches, write, kind, part):
    inner = tmp_path / "cifar"
    inner.mkdir()
    write(inner, batches)
    place = tmp_path / "half.tar"
    with tarfile.open(place, f"w:{kind}") as archive:
        archive.add(inner, arcname=inner.name)
    content = place.read_bytes()
    place.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"half\.tar.*complete copy.*Download cifar-10-python"):
        cifar10(place)


@pytest.mark.parametrize(("write", "suffix"), [(write_python, ""), (write_binary, ".bin")])
@pytest.mark.parametrize("part", [0.0, 0.0002, 0.51, 0.99])
def test_incomplete_files_of_a_folder(tmp_path, batches, write, suffix, part):
    write(tmp_path, batches)
    file = tmp_path / f"data_batch_4{suffix}"
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"complete copy.*Download") as caught:
        cifar10(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_what_the_system_refuses_is_left_as_it_is(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    place = tmp_path / "cifar.tar.gz"
    place.write_bytes(b"")
    monkeypatch.setattr(tarfile, "open", refused)
    with pytest.raises(PermissionError):
        cifar10(place)


class Bad:
    def __reduce__(self):
        return print, ("a program ran",)


@pytest.mark.parametrize("content", [Bad(), {b"data": 3}, [1, 2]])
def test_pickles_that_are_no_batches(tmp_path, batches, content, capsys):
    write_python(tmp_path, batches)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="complete copy of CIFAR-10"):
        cifar10(tmp_path)
    assert "a program ran" not in capsys.readouterr().out


@pytest.mark.parametrize("classes", [1, 11, (0, 0), (3, 10), "cats"])
def test_classes_refused(tmp_path, classes):
    with pytest.raises((TypeError, ValueError), match="classes"):
        cifar10(tmp_path, classes=classes)
