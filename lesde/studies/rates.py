"""Collapse of networks on digits against the learning rate, beside the LE-SDE: data, figures, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import lesde
from lesde import plot
from lesde.studies.digits import bar, digits_folder, trained
from lesde.studies.learning_rates import compare_learning_rates, whole_errors
from lesde.studies.runner import RateConfig, Report, StudyFolder
from lesde.text import print_rows, with_interval

__all__ = ["comparison_table", "run"]


NAMES = {"nc1": "NC1", "nc2_etf": "NC2"}


def run(config: RateConfig, out: str | Path) -> Path:
    """Run the study and write data, figures and report.

    Parameters
    ----------
    config : RateConfig
    out : path
        Folder; ``data`` (Zarr, and the table as CSV), ``figures`` (PNG and PDF), ``report.md``. Training that an
        earlier run with the same settings finished is read back, learning rate by learning rate.

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
    with digits_folder(out, "rates", config) as folder:
        return _run(config, folder)


def _run(config: RateConfig, folder: StudyFolder) -> Path:
    data = folder.path / "data"
    report = Report(
        folder.path / "report.md",
        "Collapse of networks against the learning rate, and the LE-SDE",
        put=folder.put_text,
    )
    report.add(_introduction(config))

    network, _ = trained(config, data)
    metrics = lesde.neural_collapse(network, ["nc1", "nc2_etf"])
    folder.put_store(metrics, data / "collapse.zarr")
    _publish(
        report,
        folder,
        "networks",
        plot.collapse(metrics),
        "NC1 and NC2 of the logits of the networks over time, by learning rate.",
    )

    with bar("comparing with the LE-SDE") as progress:
        found = compare_learning_rates(
            network,
            start=config.model_start,
            spread=config.spread,
            draws=config.draws,
            confidence=config.confidence,
            seed=config.seed,
            progress=progress,
        )
    folder.put_store(found, data / "comparison.zarr")
    best = found.attrs["preferred"]
    tables = {str(m): comparison_table(found.sel(model=m)) for m in found["model"].values}
    together = pd.concat(tables, names=["model", None]).reset_index(level="model")
    folder.put(data / "comparison.csv", lambda new: together.to_csv(new, index=False))
    header, rows = _readable(tables[best])
    report.add("## Networks and models")
    for kernel in found["kernel"].values:
        name = str(kernel).replace(" ", "_")
        axes = plot.learning_rate_range(found, kernel=str(kernel))
        words = (
            f"Values at t = {found.attrs['at']:g} and rates of decay: networks (points) and models (lines, bands "
            f"in which they put the networks), with the kernel of {kernel}. Shaded: where the networks are in it."
        )
        _publish(report, folder, name, axes, words)
    title = f"Networks and the {best}"
    errors = ", ".join(
        f"{name}: {error:.2g}" + (f" (diverges at {number} learning rates)" if number else "")
        for name, (number, error) in whole_errors(found).items()
    )
    words = (
        f"The {best} is nearer to the networks over the whole way. Error of the logarithm of NC1 and NC2, mean over learning "
        f"rates at which no model diverges: {errors}. The table of every model is in `data/comparison.csv`."
    )
    report.add(f"## {title}", words)
    report.table(header, rows)
    print_rows(title, header, rows)
    for kernel in found["kernel"].values:
        lines = [str(words) for words in found["statement"].sel(kernel=kernel).values.ravel()]
        report.add(f"With the kernel of {kernel}:", "\n".join(f"- {line}" for line in lines))
    print("\n".join(map(str, found["statement"].sel(model=best).values.ravel())))
    print(f"report: {report.path}")
    return report.path


def comparison_table(found: xr.Dataset) -> pd.DataFrame:
    """Networks and one model's predictions with their limits, a row for each metric, quantity, kernel and rate."""
    rows = []
    for metric in found["metric"].values:
        for quantity in found["quantity"].values:
            for kernel in found["kernel"].values:
                for h in found["learning_rate"].values:
                    one = found.sel(
                        metric=metric, quantity=quantity, kernel=kernel, learning_rate=h
                    )
                    row: dict[str, Any] = {
                        "metric": NAMES.get(str(metric), str(metric)),
                        "quantity": str(quantity),
                    }
                    row |= {"kernel": str(kernel), "learning_rate": float(h)}
                    for name in ("network", "predicted"):
                        for end in ("", "_lower", "_upper"):
                            row[name + end] = float(one[name + end])
                    rows.append(row | {"inside": bool(one["inside"])})
    return pd.DataFrame(rows)


def _readable(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """A row for each metric, quantity and learning rate: the networks beside both predictions."""
    header = ["", "h", "networks"]
    kernels = list(dict.fromkeys(table["kernel"]))
    header += [f"kernel of {kernel}" for kernel in kernels]
    rows = []
    for (metric, quantity, h), part in table.groupby(
        ["metric", "quantity", "learning_rate"], sort=False
    ):
        lead = metric if quantity == "value" else f"rate of {metric}"
        row = [lead, f"{h:g}", _interval(part.iloc[0], "network")]
        for kernel in kernels:
            one = part[part["kernel"] == kernel].iloc[0]
            row.append(_interval(one, "predicted") + ("" if one["inside"] else ", outside"))
        rows.append(row)
    return header, rows


def _interval(row: Any, name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_lower", "_upper"))
    return with_interval(value, low, high) if np.isfinite(value) else "diverges"


def _publish(report: Report, folder: StudyFolder, name: str, axes: Any, words: str) -> None:
    import matplotlib.pyplot as plt

    folder.put_figure(folder.path / "figures" / name, axes)
    plt.close("all")
    report.figure(f"{name}.png", words)


def _introduction(config: RateConfig) -> str:
    rates = ", ".join(f"{h:g}" for h in config.learning_rates)
    widths = "-".join(map(str, (64, *config.widths, len(config.classes))))
    half = config.replicates // 2
    return (
        f"{config.replicates} networks ({widths}, ReLU) at each of the learning rates {rates}, trained by plain SGD "
        f"with batch size 1 and cross-entropy on {config.train_per_class} images of each of the digits "
        f"{', '.join(map(str, config.classes))} from scikit-learn, all for the time t = learning rate × iteration "
        f"= {config.total_time:g}. Features are the logits of {config.probe_per_class} training images a class. At each "
        f"learning rate the kernel α(t), β(t) and the noise are fitted to {half} networks from t = "
        f"{config.model_start:g} on; from the recorded state of each of the other {config.replicates - half} the discrete "
        f"process then runs, with that kernel or with the mean kernel of all other learning rates. Intervals are "
        f"{config.confidence:.0%}."
    )
