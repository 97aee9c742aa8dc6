"""Stores are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lesde.files import read, write


def example(value: float = 1.0) -> xr.Dataset:
    return xr.Dataset(
        {"x": (("time",), np.full(3, value)), "law": (("time",), ["a", "bc", "d"])},
        {"time": [0.0, 0.5, 2.0]},
        {"seed": np.int64(3), "note": "text", "odd": {1, 2}},
    )


def test_round_trip(tmp_path: Path) -> None:
    write(example(), tmp_path / "a" / "x.zarr")
    back = read(tmp_path / "a" / "x.zarr")
    xr.testing.assert_equal(back, example())
    assert back.attrs["seed"] == 3
    assert isinstance(back.attrs["odd"], str)


def test_rewriting_replaces(tmp_path: Path) -> None:
    write(example(1.0), tmp_path / "x.zarr")
    write(example(2.0), tmp_path / "x.zarr")
    assert float(read(tmp_path / "x.zarr").x[0]) == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]


def test_a_write_that_breaks_leaves_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(example(1.0), tmp_path / "x.zarr")

    def broken(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_zarr", broken)
    with pytest.raises(KeyboardInterrupt):
        write(example(2.0), tmp_path / "x.zarr")
    assert float(read(tmp_path / "x.zarr").x[0]) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]


def test_an_interrupt_between_the_two_moves_keeps_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "one.zarr"
    write(xr.Dataset({"x": ("i", [1.0])}), target)
    whole = os.replace
    moved: list[str] = []

    def interrupted(old: Path, new: Path) -> None:
        if Path(new) == target and not moved:
            moved.append(str(new))
            raise KeyboardInterrupt
        whole(old, new)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(xr.Dataset({"x": ("i", [2.0])}), target)
    monkeypatch.undo()
    assert moved
    assert read(target).x.values.tolist() == [1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["one.zarr"]
