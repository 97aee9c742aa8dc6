"""The study of learning rates on a small scale: what it writes, and that a second run continues."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import lesde.networks
from lesde.cli.commands import app
from lesde.files import read
from lesde.studies import RateConfig, rates
from lesde.text import with_interval
from tests.studies.conftest import RATES

SMALL = RateConfig(**RATES)


def test_report_figures_and_data_are_written(rates_run: Path) -> None:
    text = (rates_run / "report.md").read_text()
    names = ("networks", "the_same_rate", "the_other_rates")
    for name in names:
        assert f"](figures/{name}.png)" in text
        assert all((rates_run / "figures" / f"{name}.{kind}").exists() for kind in ("png", "pdf"))
    found = read(rates_run / "data" / "comparison.zarr")
    assert len(re.findall("^- [IL]-model, .*: inside the interval at ", text, re.MULTILINE)) == 16
    for one in found["predicted"].where(~found["inside"]).values.ravel():
        assert np.isnan(one) or f" against {one:.3g}" in text


def test_the_table_holds_the_comparison(rates_run: Path) -> None:
    found = read(rates_run / "data" / "comparison.zarr")
    every = pd.read_csv(rates_run / "data" / "comparison.csv")
    assert len(every) == found["inside"].size
    for _, row in every.iterrows():
        one = found.sel(
            model=row.model,
            metric={"NC1": "nc1", "NC2": "nc2_etf"}[row.metric],
            quantity=row.quantity,
            kernel=row.kernel,
            learning_rate=row.learning_rate,
        )
        for name in ("network", "predicted_lower", "predicted_upper"):
            np.testing.assert_allclose(row[name], float(one[name]), rtol=1e-9)
        assert row.inside == bool(one["inside"])
    table = every[every.model == found.attrs["preferred"]].reset_index()
    line = with_interval(table.network[0], table.network_lower[0], table.network_upper[0])
    assert line in (rates_run / "report.md").read_text()


def test_a_second_run_trains_nothing(rates_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    before = pd.read_csv(rates_run / "data" / "comparison.csv")
    monkeypatch.setattr(lesde.networks, "record_ensemble", refused)
    rates.run(SMALL, rates_run)
    pd.testing.assert_frame_equal(before, pd.read_csv(rates_run / "data" / "comparison.csv"))


def test_other_settings_need_another_folder(rates_run: Path) -> None:
    with pytest.raises(ValueError, match="holds a study with other settings"):
        rates.run(SMALL.model_copy(update={"seed": 1}), rates_run)


def test_settings_of_the_command(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["rates", "--replicates", "8", "--show-config"])
    assert shown.exit_code == 0
    assert RateConfig.model_validate_json(shown.output) == RateConfig(replicates=8)
    few = CliRunner().invoke(app, ["rates", "--replicates", "4", "--out", str(tmp_path / "no")])
    assert few.exit_code == 2
    assert "replicates: Input should be greater than or equal to 8, got 4" in few.output
    assert not (tmp_path / "no").exists()
