"""Collapse of networks on digits against the learning rate, beside the LE-SDE: data, figures, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import lesde
from lesde import plot
from lesde.studies.digits import network_cells, trained_networks
from lesde.studies.folder import StudyFolder
from lesde.studies.learning_rates import NAMES, compare_learning_rates, whole_errors
from lesde.studies.runner import Cell, Page, Progress, Runner, Section, print_table
from lesde.studies.settings import RateConfig
from lesde.text import with_interval

__all__ = ["RateConfig", "run"]


def run(config: RateConfig, out: str | Path) -> Path:
    """Run the study and write data, figures and report.

    Parameters
    ----------
    config : RateConfig
    out : path
        Folder; ``data`` (Zarr, and the table as CSV), ``figures`` (PNG and PDF), ``report.md``. What an
        earlier run with the same settings stored is read back; training continues learning rate by learning rate.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        When ``out`` holds a study with other settings or somebody else's files under the study's names, when another run is
        in it, or when the time is too short for the model to be fitted.
    Diverged
        When a network does.
    """

    def collapse(progress: Progress, network: xr.Dataset) -> xr.Dataset:
        return lesde.neural_collapse(network, ["nc1", "nc2_etf"])

    def compare(progress: Progress, network: xr.Dataset) -> xr.Dataset:
        return compare_learning_rates(
            network,
            start=config.model_start,
            spread=config.spread,
            draws=config.draws,
            confidence=config.confidence,
            seed=config.seed,
            progress=progress,
        )

    cells = [
        *network_cells(config),
        Cell("collapse", collapse, ("network",), "neural collapse"),
        Cell("comparison", compare, ("network",), "comparing with the LE-SDE"),
    ]
    sections = [
        Section("networks", networks, ("collapse",)),
        Section("models", models, ("comparison",)),
    ]
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    with StudyFolder(out, "rates", config).taken() as folder:
        return Runner(folder, cells).report(template, sections, trained=trained_networks(config))


def networks(page: Page, collapse: xr.Dataset) -> None:
    """NC1 and NC2 of the networks over time."""
    page.figure("networks", plot.collapse(collapse))


def models(page: Page, found: xr.Dataset) -> dict[str, Any]:
    """Figures, table and statements of the comparison with the models."""
    for kernel in map(str, found["kernel"].values):
        page.figure(kernel.replace(" ", "_"), plot.learning_rate_range(found, kernel=kernel))
    table, best = comparison_table(found), found.attrs["preferred"]
    page.csv("comparison", table)
    readable = _readable(table[table["model"] == best])
    print_table(f"Networks and the {best}", readable)
    print("\n".join(map(str, found["statement"].sel(model=best).values.ravel())))
    return {"best": best, "errors": whole_errors(found), "readable": readable}


def comparison_table(found: xr.Dataset) -> pd.DataFrame:
    """Networks and predictions with their limits, one row for each model, metric, quantity, kernel and learning rate."""
    columns = [name + end for name in ("network", "predicted") for end in ("", "_lower", "_upper")]
    order = ["model", "metric", "quantity", "kernel", "learning_rate"]
    table = found[[*columns, "inside"]].to_dataframe(dim_order=order).reset_index()
    table["metric"] = table["metric"].map(lambda name: NAMES.get(name, name))
    return table[[*order, *columns, "inside"]]


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each metric, quantity and learning rate: the networks beside the predictions by each kernel."""
    rows = []
    by = ["metric", "quantity", "learning_rate"]
    for (metric, quantity, h), part in table.groupby(by, sort=False):
        row = {"": metric if quantity == "value" else f"rate of {metric}", "h": f"{h:g}"}
        row["networks"] = _interval(part.iloc[0], "network")
        for _, one in part.iterrows():
            outside = "" if one["inside"] else ", outside"
            row[f"kernel of {one['kernel']}"] = _interval(one, "predicted") + outside
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(row: Any, name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_lower", "_upper"))
    return with_interval(value, low, high) if np.isfinite(value) else "diverges"
