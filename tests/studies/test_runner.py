"""A study of one's own, declared on the runner: run, interrupted, resumed, reported, refused."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pydantic import BaseModel

from lesde import plot
from lesde.files import read
from lesde.studies.folder import StudyFolder
from lesde.studies.runner import Cell, Page, Progress, Runner, Section

TIMES = np.linspace(0.1, 2.0, 8)


TEMPLATE = """
{% block title %}
# Decay
{% endblock %}
{% block rates %}
Rates of {{ fit.rate | span }}.

{{ table(rates) }}
{% endblock %}
{% block introduction %}
{{ number }} paths.
{% endblock %}
{% block decay %}
{{ figure("decay", "NC1 over time.") }}
{% endblock %}
"""


class Settings(BaseModel):
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    scale: float = 1.0
    """Of the report alone: it may differ between two runs in a folder."""


def decay(settings: Settings, out: Path, made: list[str]) -> Path:
    """NC1 decays at three rates, and the study finds them: ``made`` lists what is computed."""

    def path(progress: Progress, rate: float) -> xr.Dataset:
        made.append(f"path {rate:g}")
        progress(1, 2)
        return xr.Dataset({"nc1": ("time", np.exp(-rate * TIMES))}, {"time": TIMES})

    def fit(progress: Progress, *paths: xr.Dataset) -> xr.Dataset:
        made.append("fit")
        slopes = [np.polyfit(TIMES, np.log(each.nc1.values), 1)[0] for each in paths]
        return xr.Dataset({"rate": ("path", -settings.scale * np.array(slopes))})

    def draw(page: Page, first: xr.Dataset) -> None:
        page.figure("decay", plot.collapse(first, ["nc1"]))

    def tabulate(page: Page, fit: xr.Dataset) -> dict[str, pd.DataFrame]:
        table = pd.DataFrame({"path": range(fit.sizes["path"]), "rate": fit.rate.values})
        page.csv("rates", table)
        return {"rates": table}

    paths = [
        Cell((f"path_{rate!r}",), partial(path, rate=rate), title="paths", trained=True)
        for rate in settings.rates
    ]  # fmt: skip
    names = tuple(cell.names[0] for cell in paths)
    cells = [*paths, Cell(("fit",), fit, names, "fit")]
    sections = [Section("decay", draw, names[:1]), Section("rates", tabulate, ("fit",))]
    folder = StudyFolder(out, "decay", settings, free=("scale",)).begun()
    return Runner(folder, cells).report(TEMPLATE, sections, number=len(paths))


EVERYTHING = ["path 0.5", "path 1", "path 2", "fit"]


def test_a_study_is_computed_once_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    report = decay(Settings(), tmp_path, made)
    text = report.read_text()
    lines = [line for line in text.splitlines() if line]
    # In the order of the template, though the rates are known last.
    assert lines[:2] == ["# Decay", "Rates of 0.5 to 2."]
    assert lines[2:7] == ["| path | rate |", "| --- | --- |", "| 0 | 0.5 |", "| 1 | 1 |", "| 2 | 2 |"]  # fmt: skip
    assert lines[7:9] == ["3 paths.", "![NC1 over time.](figures/decay.png)"]
    assert pd.read_csv(tmp_path / "data" / "rates.csv")["rate"].tolist() == pytest.approx([0.5, 1, 2])  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        "stored path_1.0: 50% done, about" in printed
    )  # the first was stored for the first section
    assert made == EVERYTHING
    decay(Settings(), tmp_path, made)
    assert made == EVERYTHING
    assert report.read_text() == text


def test_bars_are_shown_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda shown=terminal: shown)
        decay(Settings(rates=(1.0,)), tmp_path / str(terminal), [])
        out, err = capsys.readouterr()
        assert ("paths" in err) is terminal
        assert ("stored path_1.0" in out) is not terminal


def test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on(tmp_path: Path) -> None:
    class Interrupted(list[str]):
        def append(self, name: str) -> None:
            if name == "path 2":
                raise KeyboardInterrupt
            super().append(name)

    first = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        decay(Settings(), tmp_path, first)
    assert first == EVERYTHING[:2]
    kept = {path.name for path in (tmp_path / "data").iterdir()}
    assert kept == {"path_0.5.zarr", "path_1.0.zarr"}
    text = (tmp_path / "report.md").read_text()
    assert "figures/decay.png" in text  # the section that was done
    assert "Rates of" not in text
    made: list[str] = []
    decay(Settings(), tmp_path, made)
    assert made == EVERYTHING[2:]


def test_what_depends_on_a_dataset_that_is_computed_anew_is_too(tmp_path: Path) -> None:
    import shutil

    made: list[str] = []
    decay(Settings(), tmp_path, made)
    shutil.rmtree(tmp_path / "data" / "path_1.0.zarr")
    made.clear()
    decay(Settings(), tmp_path, made)
    assert made == ["path 1", "fit"]


def test_a_free_setting_changes_analyses_and_no_trainings(tmp_path: Path) -> None:
    made: list[str] = []
    decay(Settings(), tmp_path, made)
    made.clear()
    report = decay(Settings(scale=10.0), tmp_path, made)
    assert made == ["fit"]
    assert float(read(tmp_path / "data" / "fit.zarr").rate[0]) == pytest.approx(5.0)
    assert "Rates of 5 to 20." in report.read_text()


def test_other_settings_and_the_folder_of_another_are_refused(tmp_path: Path) -> None:
    made: list[str] = []
    decay(Settings(), tmp_path / "own", made)
    made.clear()
    with pytest.raises(ValueError, match=r"other settings \(rates = \[0.5, 1.0, 2.0\], not"):
        decay(Settings(rates=(1.0, 2.0, 3.0)), tmp_path / "own", made)
    (tmp_path / "report.md").write_text("my notes")
    with pytest.raises(ValueError, match=r"report\.md is there already, and .*config\.json is not"):
        decay(Settings(), tmp_path, made)
    assert made == []
    assert (tmp_path / "report.md").read_text() == "my notes"
