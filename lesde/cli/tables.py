"""Datasets as tables: on the terminal, and in the files of ``--out``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from lesde.files import Target, target, write
from lesde.text import print_rows

__all__ = ["print_dataset", "print_fit", "table_target", "write_table"]

MAX_ROWS = 24


def print_dataset(
    dataset: xr.Dataset, variables: Sequence[str], title: str, every: bool = False
) -> None:
    """Print variables of a dataset as columns, one row for each combination of their dimensions.

    Unless ``every`` is set, long tables are thinned to about :data:`MAX_ROWS` rows, at even distances
    along their longest dimension, and say so.
    """
    part = _columns(dataset, variables)
    total = math.prod(part.sizes.values())
    if total > MAX_ROWS and not every:
        longest = max(part.sizes, key=lambda dim: part.sizes[dim])
        size = part.sizes[longest]
        part = part.isel({longest: _evenly(size, MAX_ROWS * size // total)})
        title += f" ({math.prod(part.sizes.values())} of {total} rows)"
    print_rows(title, *_table(part, variables))


def print_fit(fit: xr.Dataset, every: bool = False) -> None:
    """Print integrals, rates and tail indices of a two-level fit of :func:`lesde.fit_elasticity`."""
    kind = fit.attrs["transform"]
    print_dataset(fit, ["A", "A_se", "B", "B_se"], f"Fitted elasticity ({kind})", every)
    rates = ["alpha", "alpha_se", "beta", "beta_se"]
    print_dataset(fit, rates, "Rates at the middle of intervals", every)
    first, last = fit.attrs["tail"]
    title = (
        f"Tail index r from t = {first:.4g} to {last:.4g}, {fit.attrs['confidence']:.0%} intervals"
    )
    tail = ["tail_index", "tail_index_lower", "tail_index_upper"]
    print_dataset(fit, tail, title, every)


def _evenly(size: int, most: int) -> list[int]:
    """Indices from 0 to size − 1 at one distance, at most about ``most`` of them, but at least two.

    The last index is added where the distance does not lead there, unless a distance up to half as
    large again does.
    """
    shortest = max(1, math.ceil((size - 1) / max(most - 1, 1)))
    fitting = [step for step in range(shortest, shortest * 3 // 2 + 1) if (size - 1) % step == 0]
    kept = list(range(0, size, fitting[0] if fitting else shortest))
    return kept if kept[-1] == size - 1 else [*kept, size - 1]


def table_target(path: Path, overwrite: bool, paths: Path) -> Target:
    """Where `write_table` is to write what is made of ``paths``; refused before anything is computed."""
    if path.suffix not in (".csv", ".zarr"):
        raise ValueError(f"--out must end in .csv or .zarr; got {path}.")
    if path.suffix == ".zarr":
        place = target(path, "--out", overwrite, [paths])
    else:
        place = Target(path, "--out", overwrite=overwrite, inputs=[paths])
    place.check()
    return place


def write_table(dataset: xr.Dataset, variables: Sequence[str], place: Target) -> None:
    """Write variables as a .csv file with all rows, or the whole dataset as a .zarr store."""
    if place.folder:
        write(dataset, place)
        return
    header, rows = _table(_columns(dataset, variables), variables)
    table = pd.DataFrame(rows, columns=header)
    place.put(lambda new: table.to_csv(new, index=False))


def _columns(dataset: xr.Dataset, variables: Sequence[str]) -> xr.Dataset:
    part = dataset[list(variables)]
    return part.drop_vars([name for name in part.coords if name not in part.dims])


def _table(part: xr.Dataset, variables: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows."""
    header = [*map(str, part.dims), *variables]
    if not part.dims:
        return header, [[part[name].item() for name in variables]]
    return header, part.to_dataframe().reset_index()[header].to_numpy().tolist()
