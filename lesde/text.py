"""Tables on the terminal."""

from __future__ import annotations

import codecs
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from lesde.files import Target, target, write

__all__ = [
    "can_hold",
    "format_number",
    "in_ascii",
    "print_dataset",
    "print_fit",
    "print_rows",
    "put_in_ascii",
    "table_target",
    "that_fits",
    "with_interval",
    "write_table",
]


# --------------------------------------------------------------------------------------------------
# Text for streams that cannot hold all of it: what an encoding lacks is put in ASCII.

_ERRORS = "lesde.ascii"
_WORDS = {
    **{"−": "-", "–": "-", "—": "-", "·": "*", "⋅": "*", "×": "x", "…": "...", "‖": "||", "⊤": "T"},
    **{"√": "sqrt", "∫": "int", "∏": "prod", "∞": "inf", "∝": "~", "≤": "<=", "≥": ">=", "≠": "!="},
    **{"±": "+/-", "→": "->", "←": "<-", "↦": "|->", "⊗": "(x)", "⟨": "<", "⟩": ">", "′": "'"},
    **{"’": "'", "‘": "'", "“": '"', "”": '"', "•": "*", "°": " deg", "ß": "ss", "⁄": "/"},
    **{"\u0302": "hat", "\u0303": "~", "\u0304": "bar", "\u0305": "bar", "\u0307": "dot"},
}


def in_ascii(text: str) -> str:
    """The text with Greek letters by their names, signs as programs write them, and ? for what is left."""
    parts = []
    for mark, run in groupby(text, _script):
        parts.append(mark + "".join(map(_plain, run)))
    return "".join(parts)


def can_hold(text: str, stream: Any = None) -> bool:
    """Whether a stream, standard output where none is given, has all characters of a text."""
    try:
        text.encode(_encoding(sys.stdout if stream is None else stream))
    except UnicodeError:
        return False
    return True


def that_fits(text: str, stream: Any = None) -> str:
    """The text, with what a stream does not have in ASCII."""
    encoding = _encoding(sys.stdout if stream is None else stream)
    return text.encode(encoding, _ERRORS).decode(encoding)


def put_in_ascii() -> None:
    """Have standard output and error take what they cannot hold in ASCII, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


def _encoding(stream: Any) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _script(character: str) -> str:
    """What stands before a run of raised or lowered characters."""
    kind = unicodedata.decomposition(character).partition(">")[0]
    return {"<super": "^", "<sub": "_"}.get(kind, "")


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character in _WORDS:
        return _WORDS[character]
    name = unicodedata.name(character, "")
    if match := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name):
        word = match[2].replace("LAMDA", "LAMBDA")
        return word.lower() if match[1] == "SMALL" else word.capitalize()
    if name.startswith("BOX DRAWINGS"):
        level, upright = "HORIZONTAL" in name, "VERTICAL" in name
        return "+" if level == upright else "-" if level else "|"
    parts = unicodedata.normalize("NFKD", character)
    if parts == character:
        return "" if unicodedata.combining(character) else "?"
    return "".join(map(_plain, parts))


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _replaced)


# --------------------------------------------------------------------------------------------------

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


def with_interval(value: float, low: float, high: float) -> str:
    """A number with its interval in brackets, to three digits, or as many as its width tells."""
    digits = 3
    width, size = high - low, max(abs(low), abs(high))
    if math.isfinite(width) and 0 < width < size:
        digits = max(3, min(6, math.floor(math.log10(size)) - math.floor(math.log10(width)) + 2))
    text = f"{value:.{digits}g}" if math.isfinite(value) else "–"
    both_nan = math.isnan(low) and math.isnan(high)
    return text if both_nan else f"{text} [{low:.{digits}g}, {high:.{digits}g}]"


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """One table, numbers to the right."""
    table = Table(title=that_fits(title), title_justify="left", box=box.SIMPLE)
    for name in header:
        table.add_column(that_fits(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(that_fits(format_number(cell)) for cell in row))
    console = Console()
    # A narrow terminal breaks lines; a table must not drop digits.
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def print_dataset(
    dataset: xr.Dataset, variables: Sequence[str], title: str, every: bool = False
) -> None:
    """Variables of a dataset as columns, one row for each combination of their dimensions.

    Unless ``every`` is set, long tables are thinned to about :data:`MAX_ROWS` rows, at even distances
    along their longest dimension, and say so.
    """
    part = _columns(dataset, variables)
    total = math.prod(part.sizes.values())
    if total > MAX_ROWS and not every:
        longest = max(part.sizes, key=lambda dim: part.sizes[dim])
        size = part.sizes[longest]
        part = part.isel({longest: evenly(size, MAX_ROWS * size // total)})
        title += f" ({math.prod(part.sizes.values())} of {total} rows)"
    print_rows(title, *_table(part, variables))


def print_fit(fit: xr.Dataset, every: bool = False) -> None:
    """Integrals, rates and tail indices of a two-level fit of :func:`lesde.fit_elasticity`."""
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


def evenly(size: int, most: int) -> list[int]:
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
    """Variables as a .csv file with all rows, or the whole dataset as a .zarr store."""
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
