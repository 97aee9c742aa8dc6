"""Runs a study that is declared as cells, sections and a template of its report.

A **cell** is a dataset: the cells it is made from, a function that makes it, and the store that keeps it. A **section** of the report is
a function of datasets that draws figures and returns what the text needs, and a block of its name in the template. The runner computes
what a section needs and what is not stored yet, shows progress, and rewrites the report after every section, so that an
interrupt leaves complete stores and a readable report, and the next run in the folder continues from there.

    with StudyFolder(out, "mine", settings).taken() as folder:
        return Runner(folder, cells).report(template, sections)

To add a study, copy ``rates.py`` and ``rates.md``.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from lesde import plot
from lesde.files import read
from lesde.studies.folder import StudyFolder, damaged_result, read_whole
from lesde.text import format_number, print_rows

__all__ = ["Cell", "Page", "Progress", "Runner", "Section", "bar", "duration", "print_table"]

Progress = Callable[[float, float], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Cell:
    """A dataset of a study, or several that are computed together, each kept as ``data/NAME.zarr``."""

    name: str | tuple[str, ...]
    compute: Callable[..., Any]
    """Takes a `Progress` and the datasets of ``inputs``; returns the dataset, or a mapping of the names to theirs."""
    inputs: tuple[str, ...] = ()
    title: str = ""
    """Of the progress bar, which consecutive cells with one title share."""
    cost: float = 1.0
    """Its share of that bar."""
    words: str = ""
    """Name of the data in the log, where no terminal shows the bar."""
    trained: bool = False
    """For data of trainings: no number may be missing, all runs in the folder share them, and they are not held in memory."""
    check: Callable[[xr.Dataset], str] = lambda _: ""
    """Returns what is wrong with a stored training, if anything is."""
    kept: bool = True
    """False for data that are quickly made again, such as the datasets of several cells joined."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its datasets."""
        return (self.name,) if isinstance(self.name, str) else self.name


@dataclass(frozen=True)
class Section:
    """A section of the report, the block ``name`` of the template.

    ``write`` takes a `Page` and the datasets it ``needs``; it draws figures, and may return more values for the template.
    """

    name: str
    write: Callable[..., Mapping[str, Any] | None]
    needs: tuple[str, ...] = ()


class Page:
    """Saves the figures and tables of a section."""

    def __init__(self, folder: StudyFolder):
        self.folder = folder

    def figure(self, name: str, drawn: Any) -> None:
        """Save a figure, given by itself or by its axes, as PNG and PDF."""
        for ending in ("png", "pdf"):
            self.folder.put(
                self.folder.figures / f"{name}.{ending}",
                lambda new: plot.save(drawn, new, dpi=200),
            )
        first = np.asarray(drawn, dtype=object).ravel()[0]
        plt.close(first if isinstance(first, plt.Figure) else first.get_figure(root=True))

    def csv(self, name: str, table: pd.DataFrame) -> None:
        """Save a table."""
        path = self.folder.data / f"{name}.csv"
        self.folder.put(path, lambda new: table.to_csv(new, index=False))


class Runner:
    """Computes the cells of a study that are not stored, and writes its report.

    Cells are declared after those they are made from, and computed in that order.
    """

    def __init__(self, folder: StudyFolder, cells: Sequence[Cell]):
        self.folder, self.cells = folder, cells
        self._cell_of = {name: cell for cell in cells for name in cell.names}
        self._held: dict[str, xr.Dataset] = {}

    def missing(self, names: Sequence[str] | None = None) -> list[Cell]:
        """The cells to be computed for those with these names, by default for all, in order."""
        wanted, missing = set(self._cell_of if names is None else names), set[str]()
        for cell in reversed(self.cells):
            if wanted.intersection(cell.names):
                wanted.update(cell.inputs)
        for cell in self.cells:
            stale = bool(missing.intersection(cell.inputs)) or not self._is_stored(cell)
            if wanted.intersection(cell.names) and stale:
                missing.update(cell.names)
        return [cell for cell in self.cells if cell.kept and missing.intersection(cell.names)]

    def compute(self, names: Sequence[str] | None = None) -> None:
        """Compute and store the missing cells for these names."""
        for title, group in groupby(self.missing(names), key=lambda cell: cell.title):
            cells = list(group)
            done, total, began = 0.0, sum(cell.cost for cell in cells), time.monotonic()
            with bar(title) as shown:
                for cell in cells:
                    self._compute(cell, shown, done, total)
                    done += cell.cost
                    shown(done, total)
                    if cell.words and not sys.stderr.isatty():
                        left = duration((time.monotonic() - began) * (total / done - 1))
                        print(
                            f"stored {cell.words}: {done:g} of {total:g}, about {left} left",
                            flush=True,
                        )

    def get(self, name: str) -> xr.Dataset:
        """A dataset, as it is stored."""
        cell = self._cell_of[name]
        if name in self._held:
            return self._held[name]
        if not cell.kept:
            inputs = (self.get(each) for each in cell.inputs)
            found = cell.compute(lambda done, total: None, *inputs)
        elif cell.trained:
            found = read_whole(self._path(name), self.folder.study)
            why = cell.check(found)
            if why:
                raise damaged_result(self._path(name), why)
            return found
        else:
            found = read(self._path(name))
        self._held[name] = found
        return found

    def report(
        self,
        template: str,
        sections: Sequence[Section],
        only: Sequence[str] | None = None,
        **values: Any,
    ) -> Path:
        """Write the report, section by section, and return its path.

        Blocks of the template that are of no section are written first, with the ``values``. Of sections that are not
        among ``only``, the report holds what an earlier run with these settings wrote.
        """
        path, kept = self.folder.path / "report.md", self.folder.path / ".lesde-sections.json"
        blocks = templates.from_string(template)
        names = [section.name for section in sections]
        written: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads(kept.read_text(encoding="utf-8"))
            if held["settings"] == self.folder.settings:
                written = dict(held["written"])

        def put(block: str, known: Mapping[str, Any]) -> None:
            context = blocks.new_context({"settings": self.folder.chosen, **known})
            written[block] = "".join(blocks.blocks[block](context)).strip()

        def save() -> None:
            text = "\n\n".join(written[block] for block in blocks.blocks if block in written)
            self.folder.put_text(path, text + "\n")

        for block in blocks.blocks:
            if block not in names:
                put(block, values)
        save()
        for section in sections:
            if only is None or section.name in only:
                self.compute(section.needs)
                datasets = {name: self.get(name) for name in section.needs}
                more = section.write(Page(self.folder), *datasets.values())
                put(section.name, datasets | dict(more or {}))
                held = {"settings": self.folder.settings, "written": written}
                self.folder.put_text(kept, json.dumps(held, indent=2))
                save()
        print(f"report: {path}")
        return path

    def _compute(self, cell: Cell, shown: Progress, before: float, all_cells: float) -> None:
        def progress(done: float, total: float) -> None:
            shown(before + cell.cost * done / max(total, 1), all_cells)

        found = cell.compute(progress, *map(self.get, cell.inputs))
        for name in cell.names:
            dataset = found if len(cell.names) == 1 else found[name]
            self.folder.put_store(dataset, self._path(name))
            self._held.pop(name, None)

    def _is_stored(self, cell: Cell) -> bool:
        """Kept with these settings, and none of its inputs is newer."""
        if not cell.kept:
            return True
        files = [self._path(name) / "zarr.json" for name in cell.names]
        if cell.trained or not all(file.exists() for file in files):
            # That trainings have these settings is checked where they are read.
            return all(file.exists() for file in files)
        newest = max(map(self._time, cell.inputs), default=0)
        return all(
            _settings(file) == self.folder.settings and file.stat().st_mtime_ns >= newest
            for file in files
        )

    def _time(self, name: str) -> int:
        """Time at which a dataset was stored, 0 where it is not."""
        cell = self._cell_of[name]
        if not cell.kept:
            return max(map(self._time, cell.inputs), default=0)
        file = self._path(name) / "zarr.json"
        return file.stat().st_mtime_ns if file.exists() else 0

    def _path(self, name: str) -> Path:
        return self.folder.data / f"{name}.zarr"


def _settings(file: Path) -> Any:
    """The settings that a store says it was computed with."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["attributes"]["lesde_settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A progress bar with the time that remains, shown on a terminal only."""
    form = "{l_bar}{bar:24}| {elapsed}<{remaining}"
    # None: only on a terminal.
    with tqdm(desc=f"{title:<28}", bar_format=form, disable=None) as progress:

        def update(done: float, total: float) -> None:
            progress.total, progress.n = total, done
            progress.refresh()

        yield update


def figure(name: str, caption: str) -> str:
    """Markdown for a figure of the folder."""
    return f"![{caption}](figures/{name}.png)\n\n*{caption}* ([PDF](figures/{name}.pdf))"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[format_number(cell) for cell in row] for row in table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(title: str, table: pd.DataFrame) -> None:
    """Print a table on the terminal."""
    print_rows(title, list(table.columns), table.to_numpy().tolist())


def span(values: Any, form: str = ".2g") -> str:
    """Least to greatest of some numbers, such as "0.1 to 0.3"."""
    low, high = format(float(values.min()), form), format(float(values.max()), form)
    return low if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    """A time in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def with_error(value: float, error: float) -> str:
    """A number with its error, both to the last digit the error determines: two digits of it if it begins with 1."""
    if not math.isfinite(value):
        return "–"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    power = math.floor(math.log10(error))
    # Rounding may carry: 0.0997 is 0.10.
    decimals = 1 - power if float(f"{error:.1e}") < 2 * 10.0**power else -power
    if float(f"{error:.0e}") >= 10.0 ** (power + 1):
        decimals = -power
    size = max(abs(value), error)
    if (decimals > 7 and size < 1e-3) or decimals < -3:
        power = math.floor(math.log10(size))
        return f"({with_error(value / 10.0**power, error / 10.0**power)})e{power}"
    kept = max(decimals, 0)
    rounded = (round(value, decimals), round(error, decimals))
    return f"{rounded[0] + 0.0:.{kept}f} ± {rounded[1]:.{kept}f}"


templates = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
)
templates.globals |= {"figure": figure, "table": markdown}
templates.filters |= {
    "fmt": lambda value, form: format(value.item() if hasattr(value, "item") else value, form),
    "number": format_number,
    "span": span,
    "with_error": with_error,
}
