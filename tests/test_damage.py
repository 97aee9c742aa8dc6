"""Damaged stores: the right data or one error that names the store and the file in it, never anything else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from typer.testing import CliRunner, Result

import lesde
from lesde.cli.commands import app
from lesde.files import read, write
from lesde.networks import digits, mlp, open_records

HOW = ("garbage", "text", "one bit", "half", "empty", "gone")
FEW = ("garbage", "half", "gone")


def damage(file: Path, how: str) -> None:
    held = file.read_bytes()
    if how == "garbage":
        file.write_bytes(np.random.default_rng(0).bytes(len(held)))
    elif how == "text":
        file.write_bytes(b"something else")
    elif how == "one bit":
        file.write_bytes(held[:-6] + bytes([held[-6] ^ 1]) + held[-5:])
    elif how in ("half", "empty"):
        file.write_bytes(held[: len(held) // 2 if how == "half" else 0])
    else:
        file.unlink()


def damages(store: Path, place: Path, ways: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """At ``place`` the store with each of its files damaged in turn."""
    for file in sorted(file for file in store.rglob("*") if file.is_file()):
        name = file.relative_to(store).as_posix()
        for how in ways:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(store, place)
            damage(place / name, how)
            yield name, how


def told(error: ValueError, place: Path, name: str) -> bool:
    """Whether the error names the store and the file, in one line that says what to do."""
    said = str(error)
    named = f"{name} " in said.partition("damaged: ")[2]
    root = name == "zarr.json" and "is no Zarr store: zarr.json is missing" in said
    return repr(str(place)) in said and "\n" not in said and "estore" in said and (named or root)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def model(n_features: int = 3) -> lesde.LESDE:
    return lesde.LESDE(lesde.TwoLevel(4, -1), 3, n_features, 8)


@pytest.fixture(scope="module")
def paths() -> xr.Dataset:
    # From zero, so that what is missing could pass for what was there.
    zero = np.zeros((3, 3))
    return lesde.simulate(model(), np.linspace(0, 2, 6), initial=zero, replicates=4, seed=1)


@pytest.fixture(scope="module")
def kinds(paths: xr.Dataset) -> dict[str, xr.Dataset]:
    mixed = xr.Dataset(
        {
            "no": ("t", np.zeros(3, bool)),
            "yes": ("t", [True, False, True], {"about": "flags"}),
            "zeros": (("t", "s"), np.zeros((3, 2), np.float32)),
            "gaps": ("t", np.full(3, np.nan)),
            "bytes": ("t", np.zeros(3, np.int8)),
            "counts": ("t", np.zeros(3, np.uint16)),
            "text": ("t", ["", "", ""]),
            "one": 0.0,
        },
        {"t": [0, 1, 2], "label": ("s", [0, 0])},
        {"seed": 3},
    )
    return {
        "paths": paths,
        "statistics": lesde.simulate(
            model(), [0.0, 1.0, 2.0], replicates=4, seed=1, keep="statistics"
        ),
        "mixed": mixed,
    }


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("paths", HOW),
        ("statistics", FEW),
        ("mixed", FEW),
        pytest.param("mixed", HOW, marks=pytest.mark.slow),
    ],
)
def test_every_damage_of_a_written_store_is_told(kind, ways, kinds, tmp_path):
    store, place = tmp_path / "whole.zarr", tmp_path / "damaged.zarr"
    write(kinds[kind], store)
    xr.testing.assert_identical(read(store), kinds[kind])
    tried = 0
    for name, how in damages(store, place, ways):
        if how == "one bit" and name == "zarr.json":
            continue  # it has no checksum
        tried += 1
        if "/zarr.json" in name and how in ("garbage", "one bit"):
            # The metadata stand in the root too, from where they are read.
            xr.testing.assert_identical(read(place), kinds[kind])
            continue
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(place)
        assert told(caught.value, place, name), (name, how, str(caught.value))
    assert tried >= len(ways) * len(kinds[kind].variables)


def test_what_xarray_writes_from_a_store_is_read(kinds, tmp_path):
    """Its zeros are not taken for missing chunks, whether it was opened by this package or by xarray."""
    write(kinds["mixed"], tmp_path / "one.zarr")
    for number, opened in enumerate(
        (read(tmp_path / "one.zarr"), xr.open_zarr(tmp_path / "one.zarr", consolidated=False))
    ):
        again = tmp_path / f"again{number}.zarr"
        opened.isel(t=slice(2)).to_zarr(again, consolidated=False)
        xr.testing.assert_equal(read(again), kinds["mixed"].isel(t=slice(2)))
    plain = kinds["mixed"].drop_vars("gaps")
    plain.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    xr.testing.assert_identical(read(tmp_path / "plain.zarr"), plain)


@pytest.mark.parametrize("name", ["separation", "collapse", "fit", "plot"])
def test_commands_end_with_one_line(name, paths, tmp_path):
    store, place = tmp_path / "whole.zarr", tmp_path / "damaged.zarr"
    write(paths, store)
    call = ("plot", "fan", place, "--out", tmp_path / "f.png") if name == "plot" else (name, place)
    for file, how in (
        ("features/c/0/0/0/0", "garbage"),
        ("label/c/0", "gone"),
        ("time/c/0", "half"),
        ("features/zarr.json", "text"),
    ):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(store, place)
        damage(place / file, how)
        result = command(*call)
        assert (result.exit_code, result.stdout) == (2, ""), (file, how, result.output)
        assert result.stderr.startswith(f"error: store '{place}' is damaged: {file} ")
        assert result.stderr.count("\n") == 1


def test_what_is_no_store_is_said(paths, tmp_path):
    write(paths, tmp_path / "p.zarr")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name, why in (
        ("empty", "is no Zarr store: zarr.json is missing"),
        ("file", "is no Zarr store: zarr.json is missing"),
        (".", "is no Zarr store: zarr.json is missing"),
        ("p.zarr/features", "cannot be opened"),
    ):
        result = command("collapse", tmp_path / name)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert why in result.stderr
        with pytest.raises(ValueError, match=why):
            read(tmp_path / name)


LAYERS = ("logits", "penultimate")


def recorder(store: Path, **options: object) -> lesde.Recorder:
    import torch

    data = digits(classes=3, n_train_per_class=4, n_probe_per_class=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mlp(64, (4,), 3)
    options = {"every": 1, "store": store} | options
    return lesde.Recorder(net, LAYERS, {"train": data}, **options)  # type: ignore[arg-type]


def records(store: Path) -> dict[str, xr.Dataset]:
    return {layer: open_records(store, layer).load() for layer in LAYERS}


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, dict[str, xr.Dataset]]:
    """A store of four records, and what it holds."""
    store = tmp_path_factory.mktemp("recording") / "run.zarr"
    with recorder(store) as one:
        for _ in range(3):
            one.step()
    return store, records(store)


@pytest.mark.parametrize(
    ("layer", "ways"), [("logits", FEW), pytest.param("penultimate", HOW, marks=pytest.mark.slow)]
)
def test_every_damage_of_records_is_told(layer, ways, recording, tmp_path):
    """The metadata of all layers, the numbers of the one that is opened."""
    (store, whole), place = recording, tmp_path / "damaged.zarr"
    told_of = []
    for name, how in damages(store, place, ways):
        other = name.startswith("train/") and "/c/" in name and layer not in name
        if other:
            xr.testing.assert_identical(open_records(place, layer).load(), whole[layer])
            continue
        if f"/{layer}/" not in name and name != "zarr.json":
            continue
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            open_records(place, layer).load()
        assert repr(str(place)) in str(caught.value) or "checksum" in str(caught.value)
        # Where the size is right Zarr finds the wrong checksum, and does not name the file.
        unnamed = "/c/" in name and how in ("garbage", "one bit")
        unnamed |= name == f"train/{layer}/zarr.json"
        assert unnamed or told(caught.value, place, name), (name, how, str(caught.value))
        told_of.append(name)
    assert len(told_of) >= 3 * 18


@pytest.mark.parametrize(
    "file",
    [
        "train/logits/time/zarr.json",
        "train/penultimate/time/c/0",
        "train/logits/features/c/0/0/0/0",
        "train/logits/iteration/zarr.json",
        "train/logits/label/c/0",
        "train/penultimate/replicate/c/0",
    ],
)
def test_damaged_records_are_not_resumed_and_not_cut(file, recording, tmp_path):
    store, whole = recording
    for how in ("gone", "garbage"):
        place = tmp_path / f"{how}.zarr"
        shutil.copytree(store, place)
        damage(place / file, how)
        left = {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            recorder(place, resume=True)
        unnamed = "/c/" in file and how == "garbage"
        assert repr(str(place)) in str(caught.value)
        assert unnamed or told(caught.value, place, file)
        assert {f: f.read_bytes() for f in place.rglob("*") if f.is_file()} == left
        # Put back, it goes on where it was.
        shutil.copy(store / file, place / file)
        with recorder(place, resume=True) as one:
            assert one.iteration == 3
            one.step()
        for layer, found in records(place).items():
            xr.testing.assert_equal(found.isel(time=slice(4)), whole[layer])
            assert found.iteration.values.tolist() == [0, 1, 2, 3, 4]


def test_an_array_that_was_lost_is_told_by_opening_and_by_resuming(recording, tmp_path):
    store, whole = recording
    assert not any("lesde" in name for name in whole["logits"].attrs if name != "lesde_version")
    held = sorted(file.parent for file in store.glob("train/*/*/zarr.json"))
    assert len(held) == 2 * 8 + 2  # of the penultimate layer also weights and bias
    for number, lost in enumerate(held):
        name, place = lost.relative_to(store).as_posix(), tmp_path / f"{number}.zarr"
        shutil.copytree(store, place)
        shutil.rmtree(place / name)
        left = {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
        for use in (
            lambda place=place, name=name: open_records(place, name.split("/")[1]),
            lambda place=place: recorder(place, resume=True),
        ):
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                use()
            assert told(caught.value, place, f"{name}/zarr.json")
        assert {f: f.read_bytes() for f in place.rglob("*") if f.is_file()} == left


@pytest.mark.parametrize("name", ["train", "train/logits"])
def test_a_layer_that_was_lost_is_told_by_opening_and_by_resuming(name, recording, tmp_path):
    place = tmp_path / "run.zarr"
    shutil.copytree(recording[0], place)
    shutil.rmtree(place / name)
    for use in (records, lambda place: recorder(place, resume=True)):
        with pytest.raises(ValueError, match=r"damaged: train/logits/.*zarr\.json is missing"):
            use(place)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_first_write_that_was_killed_is_not_damage(step, tmp_path, monkeypatch):
    """Wherever it is killed the store is one without records, or whole, and is resumed."""
    wanted = None
    for stop in range(1, 200, step):
        store = tmp_path / f"{stop}.zarr"
        one = recorder(store)
        one.step()
        done = 0
        with monkeypatch.context() as patch:
            real = zarr.storage.LocalStore.set

            async def killed(self, *arguments, real=real, stop=stop):
                nonlocal done
                done += 1
                if done >= stop:
                    raise OSError("killed")
                return await real(self, *arguments)

            patch.setattr(zarr.storage.LocalStore, "set", killed)
            try:
                one.flush()
            except OSError:
                copy = tmp_path / f"left{stop}.zarr"
                shutil.copytree(store, copy, ignore=shutil.ignore_patterns("*.partial"))
            else:
                copy = None
        one.close()
        if copy is None:
            break
        with recorder(copy, resume=True) as again:
            for _ in range(again.iteration, 1):
                again.step()
        wanted = wanted or records(store)
        for layer, found in records(copy).items():
            xr.testing.assert_identical(found, wanted[layer])
    assert stop > 20


def test_stores_of_recorders_that_are_given_to_commands(recording):
    result = command("collapse", recording[0])
    assert result.exit_code == 2
    assert "open a layer with lesde.networks.open_records" in result.stderr
