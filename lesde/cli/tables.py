"""Datasets as tables: on the terminal, and in the files of ``--out``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from lesde.files import Target, target, write
from lesde.text import print_rows

__all__ = ["print_dataset", "table_target", "write_table"]

MAX_ROWS = 24


def print_dataset(
    dataset: xr.Dataset, variables: Sequence[str], title: str, every: bool = False
) -> None:
    """Print variables of a dataset as columns, one row for each combination of their dimensions.

    Unless ``every`` is set, long tables are thinned to about :data:`MAX_ROWS` rows, at even distances
    along their longest dimension, and say so.
    """
    total = math.prod(dataset[list(variables)].sizes.values())
    if total > MAX_ROWS and not every:
        sizes = dataset[list(variables)].sizes
        longest = max(sizes, key=lambda dim: sizes[dim])
        dataset = dataset.isel(
            {longest: _evenly(sizes[longest], MAX_ROWS * sizes[longest] // total)}
        )
    table = _table(dataset, variables)
    if len(table) < total:
        title += f" ({len(table)} of {total} rows)"
    print_rows(title, [*table.columns], table.to_numpy(object).tolist())


def _evenly(size: int, most: int) -> list[int]:
    """Indices from 0 to size − 1 at one distance, at most about ``most`` of them, but at least two.

    The last index is added where the distance does not lead there, unless a distance up to half as
    large again does.
    """
    shortest = max(1, math.ceil((size - 1) / max(most - 1, 1)))
    fitting = [step for step in range(shortest, shortest * 3 // 2 + 1) if (size - 1) % step == 0]
    kept = list(range(0, size, fitting[0] if fitting else shortest))
    return kept if kept[-1] == size - 1 else [*kept, size - 1]


def _table(dataset: xr.Dataset, variables: Sequence[str]) -> pd.DataFrame:
    """The dimensions and variables as columns."""
    part = dataset[list(variables)]
    if not part.dims:
        return pd.DataFrame({name: [part[name].item()] for name in variables})
    return part.to_dataframe().reset_index()[[*map(str, part.dims), *variables]]


def table_target(path: Path | None, overwrite: bool, paths: Path) -> Target | None:
    """The target for `write_table`, None without a path; an unusable one is refused before anything is computed."""
    if path is None:
        return None
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
    else:
        place.put(lambda new: _table(dataset, variables).to_csv(new, index=False))
