"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["format_number", "print_dataset", "print_rows"]

MAX_ROWS = 24


def format_number(value: Any) -> str:
    """Four significant digits; a dash where there is no number; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return "–" if np.isnan(number) else f"{number:.4g}"


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """One table, numbers to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(format_number, row))
    console = Console()
    # A narrow terminal breaks lines; a table must not drop digits.
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def print_dataset(dataset: xr.Dataset, variables: Sequence[str], title: str) -> None:
    """Variables of a dataset as columns, one row for each combination of their dimensions.

    Long tables are thinned to :data:`MAX_ROWS` rows, evenly, and say so.
    """
    part = dataset[list(variables)].drop_vars(
        [name for name, c in dataset.coords.items() if name not in dataset.dims], errors="ignore"
    )
    frame = part.to_dataframe().reset_index()
    header = [*map(str, part.dims), *variables]
    rows = frame[header].to_numpy().tolist()
    if len(rows) > MAX_ROWS:
        kept = np.unique(np.linspace(0, len(rows) - 1, MAX_ROWS).round().astype(int))
        title += f" ({len(kept)} of {len(rows)} rows)"
        rows = [rows[i] for i in kept]
    print_rows(title, header, rows)
