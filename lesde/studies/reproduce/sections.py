"""The published experiments as a study: its cells, and a section with figure and tables for each published figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from lesde.analysis.convergence import ENDS
from lesde.networks.cifar import CIFAR10_CLASSES
from lesde.networks.geometric import SHAPES
from lesde.studies.folder import StudyFolder
from lesde.studies.reproduce import analysis
from lesde.studies.reproduce import figures as draw
from lesde.studies.reproduce.analysis import averages
from lesde.studies.reproduce.crossing import Crossing, crossing, in_words
from lesde.studies.reproduce.trainings import Trainings
from lesde.studies.runner import Cell, Data, Page, Runner, Section, print_table, table_of
from lesde.studies.settings import FREE, Protocol

FIGURES = ("fig1", "fig3", "fig4", "fig5")
SAMPLES = 240
"""Drawn samples that a panel of figure 1 shows."""

PRINTED = {"loss": 1.099815, "accuracy": 0.333333}
"""Of one trial at iteration 0, printed with the authors' code, github.com/zjiayao/le_sde."""


def run(
    figures: Sequence[str],
    protocol: Protocol,
    out: str | Path,
    cifar: Path | None = None,
    device: str | None = None,
) -> Path:
    """Train what is missing, and draw figures with the numbers behind them.

    Parameters
    ----------
    figures : sequence of {"fig1", "fig3", "fig4", "fig5"}
        By their numbers in Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960).
    protocol : Protocol
        See :func:`lesde.studies.reproduce.load_protocol`.
    out : path
        Folder for ``data`` (trainings and numbers as Zarr, tables as CSV), ``figures`` (PNG and PDF) and ``report.md``. Trials that
        an earlier run stored there are read back, and only those that are missing are trained.
    cifar : path, optional
        The local copy of CIFAR-10, where the protocol asks for it and something is to be trained.
    device : str, optional
        Where networks train, such as "cuda"; the CPU by default.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        For a figure that does not exist, a folder that holds other files or trainings with other settings, or a missing CIFAR-10.
    """
    if not figures or not set(figures) <= set(FIGURES):
        raise ValueError(f"figures must be of {', '.join(FIGURES)}; got {list(figures)}.")
    levels = protocol.noise_levels if "fig4" in figures else (0.0,)
    names = (SHAPES if protocol.data == "geomnist" else CIFAR10_CLASSES)[: protocol.classes]
    sections = [
        Section("fig1", partial(_fig1, protocol, names), ("fig1", "clean")),
        Section("fig3", _fig3, ("fig1", "fig3")),
        Section("fig4", partial(_fig4, protocol), ("fig4",)),
        Section("fig5", partial(_fig5, protocol, names), ("fig1", "fig3", "fig5")),
    ]
    template = Path(__file__).with_name("report.md").read_text(encoding="utf-8")
    folder = StudyFolder(out, "reproduce", protocol, FREE, "data/protocol.json").begun()
    trainings = Trainings(protocol, folder.data, cifar, device)
    batches = {level: trainings.cells(level) for level in levels}
    runner = Runner(folder, _cells(protocol, batches))
    _train(trainings, runner)
    return runner.report(template, sections, figures)


def _cells(protocol: Protocol, batches: dict[float, list[Cell]]) -> list[Cell]:
    """Cells of all trainings, and of the data of each figure."""
    levels = {f"p = {p!r}": tuple(cell.names[0] for cell in own) for p, own in batches.items()}
    measure = partial(analysis.measure_level, protocol)
    # A batch of every noise level before a second of any.
    trained = [cell for cell in chain(*zip_longest(*batches.values())) if cell is not None]
    return [
        *trained,
        Cell("clean", partial(analysis.joined, protocol), levels["p = 0.0"], kept=False),
        Cell("fig1", partial(analysis.drawn_paths, protocol), ("clean",), "class means"),
        Cell("fig3", partial(analysis.fits, protocol), ("fig1",), "fits"),
        *(Cell(name, measure, stores, kept=False) for name, stores in levels.items()),
        Cell("fig4", partial(analysis.phases, list(batches)), tuple(levels), "noise levels"),
        Cell("fig5", partial(analysis.odes, protocol), ("fig1", "fig3"), "LE-ODEs"),
    ]


def _train(trainings: Trainings, runner: Runner) -> None:
    """Report how long training will take, and train."""
    every = [name for cell in runner.cells if cell.trained for name in cell.names]
    sizes = [int(cell.cost) for cell in runner.missing(every)]
    if not sizes:
        print("all trials are stored; nothing to train")
        return
    trials, iterations = sum(sizes), trainings.protocol.iterations
    each = trainings.seconds(max(sizes)) / max(sizes)
    print(
        f"to train: {trials} trials, {trials * iterations:,} steps, about {tqdm.format_interval(each * trials)} "
        f"({iterations / each:,.0f} trial-steps per second now); Ctrl-C keeps every batch of trials that is done",
        flush=True,
    )
    runner.compute(every)


def _fig1(
    protocol: Protocol, names: Sequence[str], page: Page, paths: Data, clean: Data
) -> dict[str, Any]:
    """Separation of logits."""
    last = paths.sizes["time"] - 1
    edges = np.array([0, last // 2, last])
    shots = [_shot(clean, paths, int(at)) for at in edges]
    page.figure("fig1", draw.draw_separation(paths, shots, edges, names))
    part = paths.isel(time=edges)
    own = analysis.margins(analysis.class_means(part))
    margin = np.concatenate([own, own.mean(-1, keepdims=True)], axis=-1)
    trials = xr.Dataset(
        {"margin": (("replicate", "time", "class"), margin)},
        {"time": part["time"].values, "class": [*names, "all"]},
    )
    table = table_of(averages(trials, protocol.confidence), ["time", "class"], "margin")
    return {"names": names, "margins": _put(page, "fig1", "Figure 1: separation of logits", table)}


def _shot(trained: Data, paths: Data, at: int) -> Data:
    """Drawn samples of one window of training, evenly over trials and within the window."""
    low, high = (float(paths[name].values[at]) for name in ("time_start", "time_end"))
    drawn = trained["draw_time"].values
    inside = np.flatnonzero((drawn >= low) & (drawn < high))
    each = math.ceil(SAMPLES / trained.sizes["replicate"])
    chosen = inside[np.unique(np.linspace(0, len(inside) - 1, each).round().astype(int))]
    part = trained[["drawn_logits", "drawn_label"]].isel(draw=chosen)
    part = part.stack(sample=("replicate", "draw")).transpose("sample", ...)
    return xr.Dataset(
        {"features": (("sample", "feature"), part["drawn_logits"].values)},
        {"label": ("sample", part["drawn_label"].values.astype(np.int64))},
    )


def _fig3(page: Page, paths: Data, fits: Data) -> dict[str, Any]:
    """Estimated elasticities."""
    page.figure("fig3", draw.draw_elasticity(fits))
    ends = {dim: np.linspace(0, fits.sizes[dim] - 1, 8) for dim in ("time", "interval")}
    both = fits.isel({dim: np.unique(places.round().astype(int)) for dim, places in ends.items()})
    columns = [f"{name}{end}" for name in ("A", "B", "A_minus_B") for end in ("", "_published")]
    integrals = table_of(both, ["model", "time"], *columns)
    rates = table_of(both, ["model", "interval"], "alpha", "beta", "alpha_minus_beta")
    rates = rates.rename(columns={"interval": "time"})
    return {
        "known": analysis.first_known(paths)[1],
        "spread": analysis.SPREAD,
        "start": float(fits["time"].values[0]),
        "integrals": _put(page, "fig3", "Figure 3: estimated elasticity", integrals),
        "rates": _put(page, "fig3_rates", "Rates", rates),
    }


def _fig4(protocol: Protocol, page: Page, levels: Data) -> dict[str, Any]:
    """Label noise, and the transition."""
    confidence, critical = protocol.confidence, protocol.critical
    crossings = find_crossings(levels, protocol)
    end = averages(levels.isel(time=-1), confidence)
    page.figure("fig4", draw.draw_phases(levels, end, crossings, critical))
    validation = table_of(end, ["noise_level"], "loss", "accuracy", "contrast")
    wide = {}
    for model in map(str, levels["model"].values):
        one = levels.sel(model=model, drop=True)
        wide[f"A_minus_B_{model[0]}"] = one["A_minus_B"]
        for rate in ("alpha", "beta"):
            wide[f"r_{rate}_{model[0]}"] = one["tail_index"].sel(rate=rate, drop=True)
    tails = table_of(averages(xr.Dataset(wide), confidence), ["noise_level"], *wide)

    start = averages(levels[["loss", "accuracy"]].isel(time=0).sel(noise_level=0.0), confidence)
    printed = PRINTED if protocol.data == "geomnist" else {}
    rows = [
        (f"validation {name} before training", theory, printed.get(name), *(float(start[name + end]) for end in ENDS))
        for name, theory in (("loss", np.log(protocol.classes)), ("accuracy", 1 / protocol.classes))
    ]  # fmt: skip
    rows += [(f"critical p by {name}", critical, None, *found) for name, found in crossings.items()]
    columns = ["quantity", "theory", "published", *(f"ours{end}" for end in ENDS)]
    beside = pd.DataFrame(rows, columns=columns)
    statements = [in_words(name, c, critical, confidence) for name, c in crossings.items()]
    tables = {
        "validation": _put(page, "fig4", "Figure 4: label noise", validation),
        "tails": _put(page, "fig4_tails", "Â − B̂ and tail indices, published inversion", tails),
        "beside": _put(page, "fig4_beside", "Beside theory and the published numbers", beside),
    }
    print("\n".join(statements))
    return {**tables, "statements": statements}


def find_crossings(levels: Data, protocol: Protocol) -> dict[str, Crossing]:
    """The critical noise level, by validation accuracy, by contrast, and by the tail indices of both models.

    Learning the labels raises validation accuracy above chance where a right label is likelier than each wrong one, and
    lowers it where it is less likely; likewise for the contrast of class means and zero. The critical level is where
    they cross. The published tail index of α̂ is below 1 where classes part, on both sides of the critical level, as
    wrong labels carry information again beyond it. The critical level is between the level at which the index, over
    trials, rises to 1 and that at which it falls again, and its interval covers both.

    The contrast ranges in size from that of untrained networks to thousands of times as much, so it is interpolated and
    averaged as arsinh(contrast/s), s being the standard deviation between untrained networks: linear about zero, logarithmic
    beyond.
    """
    p = levels["noise_level"].values
    if len(p) < 2:
        return {}
    confidence = protocol.confidence
    part = levels.transpose("replicate", "noise_level", ...)
    first, last = part.isel(time=0), part.isel(time=-1)
    moved: Any = np.arcsinh((last["contrast"] - first["contrast"]) / first["contrast"].std())
    result = {
        "accuracy": crossing(p, last["accuracy"].values, 1.0 / protocol.classes, confidence),
        "contrast": crossing(p, moved.values, 0.0, confidence),
    }
    for model in levels["model"].values:
        index = part["tail_index"].sel(model=model, rate="alpha").values
        found = crossing(p, index, 1.0, confidence)
        result[f"tail index, {model}"] = found._replace(value=float("nan"))
    return result


def _fig5(
    protocol: Protocol, names: Sequence[str], page: Page, paths: Data, fits: Data, laws: Data
) -> dict[str, Any]:
    """The LE-ODE against the networks."""
    page.figure("fig5", draw.draw_dynamics(paths, laws, names))
    # At its start the LE-ODE is at the networks' means.
    mean = laws["mean"].rename({"class": "sample"}).isel(time=slice(1, None))
    seen = averages(paths[["features"]].sel(time=mean["time"]), protocol.confidence)
    inside = (seen["features_lower"] <= mean) & (mean <= seen["features_upper"])
    known = laws["mean"].notnull().all(("class", "feature"))
    found = laws.drop_vars("mean").merge(fits[[f"r_squared_common{end}" for end in ENDS]])
    found = found.assign(
        from_time=laws["time"][0],
        to_time=laws["time"].where(known).max("time"),
        inside=inside.where(mean.notnull()).mean(("time", "sample", "feature")),
    )
    columns = ("from_time", "to_time", "error", "inside", "r_squared_common")
    table = table_of(found.drop_vars("time"), ["model"], *columns)
    errors = _put(page, "fig5", "Figure 5: LE-ODE and networks", table)
    return {"errors": errors, "end": float(laws["time"][-1])}


def _put(page: Page, name: str, title: str, table: pd.DataFrame) -> pd.DataFrame:
    """Save and print a table."""
    page.csv(name, table)
    for column in {"theory", "published"} & set(table):  # as many digits as the value beside it
        table = table.assign(**{column: table[column].map("{:.5g}".format, na_action="ignore")})
    print_table(title, table)
    return table
