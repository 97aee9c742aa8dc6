"""Datasets as tables: on the terminal, and in the files of ``--out``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from lesde.cli.errors import say
from lesde.files import Target, target, write
from lesde.text import print_rows

MAX_ROWS = 24


def print_dataset(
    dataset: xr.Dataset, variables: Sequence[str], title: str, every: bool = False
) -> None:
    """Print variables of a dataset as columns, one row for each combination of their dimensions.

    Unless ``every`` is set, long tables are thinned to about :data:`MAX_ROWS` rows, at even distances along their
    longest dimension and with its last entry, and say so.
    """
    sizes = dataset[list(variables)].sizes
    total = math.prod(sizes.values())
    if total > MAX_ROWS and not every:
        longest = max(sizes, key=lambda dim: sizes[dim])
        last, step = sizes[longest] - 1, math.ceil(total / MAX_ROWS)
        dataset = dataset.isel({longest: sorted({*range(0, last, step), last})})
    table = _table(dataset, variables)
    if len(table) < total:
        title += f" ({len(table)} of {total} rows)"
    print_rows(title, [*table.columns], table.to_numpy(object).tolist())


def _table(dataset: xr.Dataset, variables: Sequence[str]) -> pd.DataFrame:
    """The dimensions and variables as columns."""
    part = dataset[list(variables)]
    return part.expand_dims(row=1).to_dataframe().reset_index()[[*map(str, part.dims), *variables]]


def table_target(path: Path | None, overwrite: bool, paths: Path) -> Target | None:
    """The target for `write_table`, None without a path; an unusable one is refused before anything is computed."""
    if path is None:
        return None
    if path.suffix not in (".csv", ".zarr"):
        raise ValueError(f"--out must end in .csv or .zarr; got {path}.")
    place = Target(path, "--out", overwrite=overwrite, inputs=[paths])
    if path.suffix == ".zarr":
        place = target(path, "--out", overwrite, [paths])
    place.check()
    return place


def write_table(dataset: xr.Dataset, variables: Sequence[str], place: Target | None) -> None:
    """Write variables as a .csv file with all rows, or the whole dataset as a .zarr store, and say so."""
    if place is None:
        return
    if place.folder:
        write(dataset, place)
    else:
        place.put(lambda new: _table(dataset, variables).to_csv(new, index=False))
    say(f"wrote {place.path}")
