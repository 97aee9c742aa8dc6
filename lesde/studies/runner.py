"""Runs a study that is declared as cells, sections and a template of its report.

A **cell** is a dataset: the cells it is made from, a function that makes it, and the store that keeps it. A **section** of the report is
a function of datasets that draws figures and returns what the text needs, and a block of its name in the template. The runner computes
what a section needs and what is not stored yet, shows progress, and rewrites the report after every section, so that an
interrupt leaves complete stores and a readable report, and the next run in the folder continues from there.

    folder = StudyFolder(out, "mine", settings).begun()
    return Runner(folder, cells).report(template, sections)

To add a study, copy ``rates.py`` and ``rates.md``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from lesde.studies.folder import StudyFolder, read_whole
from lesde.text import format_number, print_rows, with_interval

Data = xr.Dataset
Progress = Callable[[float, float], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Cell:
    """A dataset of a study, or several that are computed together, each kept as ``data/NAME.zarr``.

    Warnings of the computation are kept with it, in the attribute ``warnings``.
    """

    name: str | tuple[str, ...]
    compute: Callable[..., Any]
    """Takes a `Progress` and the datasets of ``inputs``; returns the dataset, or a mapping of the names to theirs."""
    inputs: tuple[str, ...] = ()
    title: str = ""
    """Of the progress bar, which consecutive cells with one title share."""
    cost: float = 1.0
    """Its share of that bar."""
    trained: bool = False
    """For data of trainings: no number may be missing, all runs in the folder share them, and they are not held in memory."""
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
            path = self.folder.figures / f"{name}.{ending}"
            self.folder.put(path, lambda new: plot.save(drawn, new, dpi=200))
        plt.close(np.ravel(drawn)[0].figure)

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

    def missing(self, names: Sequence[str]) -> list[Cell]:
        """The cells to be computed for those with these names, in order."""
        wanted = set(names)
        for cell in reversed(self.cells):
            if wanted.intersection(cell.names):
                wanted.update(cell.inputs)
        chosen = [cell for cell in self.cells if cell.kept and wanted.intersection(cell.names)]
        return [cell for cell in chosen if self._stored(cell) is None]

    def compute(self, names: Sequence[str]) -> None:
        """Compute and store the missing cells for these names, with a bar on a terminal and lines in a log."""
        form = "{l_bar}{bar:24}| {elapsed}<{remaining}"
        for title, group in groupby(self.missing(names), key=lambda cell: cell.title):
            cells, began = list(group), time.monotonic()
            total = sum(cell.cost for cell in cells)
            with tqdm(desc=f"{title:<28}", total=total, bar_format=form, disable=None) as bar:
                for cell in cells:
                    self._compute(cell, bar)
                    if cell.trained and not sys.stderr.isatty():
                        left = (time.monotonic() - began) * (total / bar.n - 1)
                        share, left = bar.n / total, tqdm.format_interval(left)
                        print(
                            f"stored {cell.names[0]}: {share:.0%} done, about {left} left",
                            flush=True,
                        )

    def _compute(self, cell: Cell, bar: tqdm[Any]) -> None:
        before = bar.n

        def progress(done: float, total: float) -> None:
            bar.n = before + cell.cost * done / max(total, 1)
            bar.refresh()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = cell.compute(progress, *map(self.get, cell.inputs))
        said = list(dict.fromkeys(str(warning.message) for warning in caught))
        for name in cell.names:
            dataset = found if len(cell.names) == 1 else found[name]
            self.folder.put_store(dataset.assign_attrs(warnings=said), self._path(name))
            self._held.pop(name, None)
        progress(1, 1)

    def get(self, name: str) -> xr.Dataset:
        """A dataset, as it is stored."""
        cell = self._cell_of[name]
        if cell.trained:
            return read_whole(self._path(name), self.folder.study)
        if name not in self._held and cell.kept:
            self._held[name] = read(self._path(name))
        elif name not in self._held:
            self._held[name] = cell.compute(lambda *_: None, *map(self.get, cell.inputs))
        return self._held[name]

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
        written: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads(kept.read_text(encoding="utf-8"))
            if held["settings"] == self.folder.settings:
                written = dict(held["written"])

        def put(block: str, known: Mapping[str, Any]) -> None:
            context = blocks.new_context({"settings": self.folder.chosen, **known})
            written[block] = "".join(blocks.blocks[block](context)).strip()

        def save() -> None:
            held = {"settings": self.folder.settings, "written": written}
            self.folder.put_text(kept, json.dumps(held, indent=2))
            text = "\n\n".join(written[block] for block in blocks.blocks if block in written)
            self.folder.put_text(path, text + "\n")

        for block in set(blocks.blocks) - {section.name for section in sections}:
            put(block, values)
        save()
        for section in sections:
            if only is None or section.name in only:
                self.compute(section.needs)
                datasets = {name: self.get(name) for name in section.needs}
                more = section.write(Page(self.folder), *datasets.values())
                put(section.name, datasets | dict(more or {}))
                save()
        print(f"report: {path}")
        return path

    def _stored(self, cell: Cell) -> int | None:
        """Time since which a cell is stored as it would be computed now; None where it is not."""
        newest = 0
        for name in cell.inputs:
            at = self._stored(self._cell_of[name])
            if at is None:
                return None
            newest = max(newest, at)
        if not cell.kept:
            return newest
        files = [self._path(name) / "zarr.json" for name in cell.names]
        try:
            written = [file.stat().st_mtime_ns for file in files]
            held = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            settings = {each["attributes"]["lesde_settings"] for each in held}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # That trainings have these settings is checked where they are read.
        whole = cell.trained or (settings == {self.folder.settings} and min(written) >= newest)
        return max(written) if whole else None

    def _path(self, name: str) -> Path:
        return self.folder.data / f"{name}.zarr"


def table_of(dataset: xr.Dataset, dims: Sequence[str], *names: str) -> pd.DataFrame:
    """A table with a row per entry along the dimensions, and a column per variable and for each of its limits."""
    columns = [name + end for name in names for end in ("", "_lower", "_upper")]
    columns = [name for name in columns if name in dataset]
    table = dataset[columns].to_dataframe(dim_order=[*dims]).reset_index()
    return table[[*dims, *columns]]


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table as text: numbers in few digits, columns x, x_lower, x_upper as one, 1.2 [1.1, 1.3]."""
    columns = {}
    for name in table.columns:
        ends = [name, f"{name}_lower", f"{name}_upper"]
        if set(ends) <= set(table.columns):
            columns[name] = [with_interval(*each) for each in table[ends].to_numpy()]
        elif not name.endswith(("_lower", "_upper")):
            columns[name] = [format_number(each) for each in table[name]]
    return pd.DataFrame(columns).rename(columns=lambda name: name.replace("_", " "))


def print_table(title: str, table: pd.DataFrame) -> None:
    """Print a table on the terminal, as `readable` makes it."""
    shown = readable(table)
    print_rows(title, list(shown.columns), shown.to_numpy().tolist())


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    shown = readable(table)
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def figure(name: str, caption: str) -> str:
    """Markdown for a figure of the folder."""
    return f"![{caption}](figures/{name}.png)\n\n*{caption}* ([PDF](figures/{name}.pdf))"


def span(values: Any, form: str = ".2g") -> str:
    """Least to greatest of some numbers, such as "0.1 to 0.3"."""
    low, high = format(float(values.min()), form), format(float(values.max()), form)
    return low if low == high else f"{low} to {high}"


templates = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
)
templates.globals |= {"figure": figure, "table": markdown}
templates.filters |= {
    "fmt": lambda value, form: format(value.item() if hasattr(value, "item") else value, form),
    "number": format_number,
    "span": span,
}
