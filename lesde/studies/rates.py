"""Collapse of networks on digits against the learning rate, beside the LE-SDE: data, figures, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import lesde
from lesde import plot
from lesde.studies.digits import network_cells, trained_networks
from lesde.studies.folder import StudyFolder
from lesde.studies.learning_rates import NAMES, compare_learning_rates, whole_errors
from lesde.studies.runner import (
    Cell,
    Page,
    Progress,
    Runner,
    Section,
    print_table,
    readable,
    table_of,
)
from lesde.studies.settings import RateConfig


def run(config: RateConfig, out: str | Path) -> Path:
    """Run the study and write data, figures and report.

    Parameters
    ----------
    config : RateConfig
    out : path
        Folder for ``data`` (Zarr, and the table as CSV), ``figures`` (PNG and PDF) and ``report.md``. What an earlier run with the
        same settings stored is read back; training continues learning rate by learning rate.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        For a folder with other settings or somebody else's files.
    """

    def collapse(progress: Progress, network: xr.Dataset) -> xr.Dataset:
        return lesde.neural_collapse(network, ["nc1", "nc2_etf"])

    def compare(progress: Progress, network: xr.Dataset) -> xr.Dataset:
        given = config.model_dump(include={"spread", "draws", "confidence", "seed"})
        return compare_learning_rates(network, start=config.model_start, progress=progress, **given)

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
    folder = StudyFolder(out, "rates", config).begun()
    return Runner(folder, cells).report(template, sections, trained=trained_networks(config))


def networks(page: Page, collapse: xr.Dataset) -> None:
    """NC1 and NC2 of the networks over time."""
    page.figure("networks", plot.collapse(collapse))


def models(page: Page, found: xr.Dataset) -> dict[str, Any]:
    """Figures and table of the comparison with the models; in the report, that of the preferred one."""
    for kernel in map(str, found["kernel"].values):
        page.figure(kernel.replace(" ", "_"), plot.learning_rate_range(found, kernel=kernel))
    order = ["model", "metric", "quantity", "kernel", "learning_rate"]
    table = table_of(found, order, "network", "predicted", "inside").replace({"metric": NAMES})
    page.csv("comparison", table)

    best = found.attrs["preferred"]
    table = table[table["model"] == best]
    shown = readable(table).assign(**{"learning rate": table["learning_rate"]})
    shown["kernel"] = "kernel of " + shown["kernel"]
    shown["predicted"] += np.where(table["inside"], "", ", outside")
    lead = ["metric", "quantity", "learning rate", "network"]
    shown = shown.pivot(index=lead, columns="kernel", values="predicted").reset_index()
    print_table(f"Networks and the {best}", shown)
    return {"best": best, "errors": whole_errors(found), "shown": shown, "names": NAMES}
