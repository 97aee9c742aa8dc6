"""The published experiments as a study: its cells, and a section with figure and tables for each published figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from lesde.analysis.elasticity.published import published_elasticity
from lesde.networks.cifar import CIFAR10_CLASSES
from lesde.networks.geometric import SHAPES
from lesde.studies.folder import StudyFolder
from lesde.studies.reproduce import analysis
from lesde.studies.reproduce.analysis import MODELS, RANGES, mean_interval, noted
from lesde.studies.reproduce.crossing import Crossing, crossing, in_words
from lesde.studies.reproduce.figures import (
    draw_dynamics,
    draw_elasticity,
    draw_phases,
    draw_separation,
)
from lesde.studies.reproduce.protocol import FREE, Protocol
from lesde.studies.reproduce.trainings import Trainings, joined
from lesde.studies.runner import (
    Cell,
    Page,
    Progress,
    Runner,
    Section,
    duration,
    print_table,
    templates,
)
from lesde.text import with_interval

__all__ = ["FIGURES", "find_crossings", "run"]

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
        Folder; ``data`` (trainings and numbers as Zarr, tables as CSV), ``figures`` (PNG and PDF), ``report.md``. Trials that an
        earlier run stored there are read back, and only those that are missing are trained.
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
    unknown = [name for name in figures if name not in FIGURES]
    if unknown or not figures:
        raise ValueError(f"figures must be of {', '.join(FIGURES)}; got {list(figures)}.")
    folder = StudyFolder(out, "reproduce", protocol, FREE, "data/protocol.json")
    levels = protocol.noise_levels if "fig4" in figures else (0.0,)
    with folder.taken():
        trainings = Trainings(protocol, folder.data, cifar, device)
        batches = trainings.cells(levels)
        runner = Runner(folder, _cells(protocol, batches))
        if "fig4" in figures and levels[-1] <= protocol.critical:
            print(
                f"no noise level is above (K−1)/K = {protocol.critical:.3f}, where theory has the critical one: it cannot be bounded "
                f"from above. Add one to noise_levels."
            )
        _train(trainings, runner, levels)
        template = Path(__file__).with_name("report.md").read_text(encoding="utf-8")
        return runner.report(template, _sections(protocol), figures)


def _cells(protocol: Protocol, batches: dict[float, list[Cell]]) -> list[Cell]:
    """Cells of all trainings, of the analyses of those without label noise, and of the data of each figure."""

    def clean(progress: Progress, *trained: xr.Dataset) -> xr.Dataset:
        return joined(protocol, 0.0, *trained)

    def paths(progress: Progress, clean: xr.Dataset) -> xr.Dataset:
        return analysis.drawn_paths(clean, protocol.windows)

    def fit(model: str, progress: Progress, paths: xr.Dataset) -> xr.Dataset:
        return analysis.fit(paths, model, protocol)

    def both(progress: Progress, *fits: xr.Dataset) -> xr.Dataset:
        bare = [fit.drop_attrs(deep=False) for fit in fits]
        return xr.concat(bare, xr.Variable("model", list(MODELS)))

    def odes(progress: Progress, paths: xr.Dataset, *fits: xr.Dataset) -> xr.Dataset:
        laws = [
            analysis.ode_with_error(fit, paths, model, protocol, progress)
            for model, fit in zip(MODELS, fits, strict=True)
        ]
        return xr.concat(laws, xr.Variable("model", list(MODELS)))

    def level(p: float, progress: Progress, *trained: xr.Dataset) -> xr.Dataset:
        return analysis.measure_level(joined(protocol, p, *trained), protocol)

    def phases(progress: Progress, *levels: xr.Dataset) -> xr.Dataset:
        notes = [f"p = {p:.3g}: {note}" for p, one in zip(batches, levels, strict=True) for note in one.attrs["notes"]]  # fmt: skip
        found = xr.concat(
            levels,
            xr.Variable("noise_level", list(batches)),
            join="outer",
            combine_attrs="drop_conflicts",
        )
        return found.assign_attrs(notes=notes)

    # A batch of every noise level before a second of any.
    turns = max(map(len, batches.values()))
    cells = [cells[i] for i in range(turns) for cells in batches.values() if i < len(cells)]
    trained = {p: tuple(cell.names[0] for cell in cells) for p, cells in batches.items()}
    cells += [
        Cell("clean", clean, trained[0.0], kept=False),
        Cell("paths", paths, ("clean",), kept=False),
        Cell("fig1", lambda _, paths: paths, ("paths",), "class means"),
        *(Cell(model, partial(fit, model), ("paths",), kept=False) for model in MODELS),
        Cell("fig3", both, tuple(MODELS), "fits"),
        *(Cell(f"p = {p!r}", partial(level, p), trained[p], kept=False) for p in batches),
        Cell("fig4", phases, tuple(f"p = {p!r}" for p in batches), "noise levels"),
        Cell("fig5", odes, ("paths", *MODELS), "LE-ODEs"),
    ]
    return cells


def _sections(protocol: Protocol) -> list[Section]:
    names = (SHAPES if protocol.data == "geomnist" else CIFAR10_CLASSES)[: protocol.classes]
    return [
        Section("fig1", partial(_fig1, protocol, names), ("fig1", "clean")),
        Section("fig3", partial(_fig3, protocol), ("paths", "fig3", *MODELS)),
        Section("fig4", partial(_fig4, protocol), ("fig4",)),
        Section("fig5", partial(_fig5, protocol, names), ("paths", "fig5", *MODELS)),
    ]


def _train(trainings: Trainings, runner: Runner, levels: Sequence[float]) -> None:
    """Report how long training will take, and train."""
    protocol = trainings.protocol
    every = [name for cell in runner.cells if cell.trained for name in cell.names]
    missing = runner.missing(every)
    if not missing:
        print("all trials are stored; nothing to train")
        return
    trials = int(sum(cell.cost for cell in missing))
    steps = trials * protocol.iterations
    size = int(max(cell.cost for cell in missing))
    each = trainings.seconds(size) / size
    whole = duration(each * sum(protocol.trials_at(level) for level in levels))
    print(
        f"to train: {trials} trials, {steps:,} steps, about {duration(each * trials)} of {whole} in all "
        f"({protocol.iterations / each:,.0f} trial-steps per second now); Ctrl-C keeps every batch of trials that is done",
        flush=True,
    )
    runner.compute(every)


def _fig1(
    protocol: Protocol, names: Sequence[str], page: Page, paths: xr.Dataset, clean: xr.Dataset
) -> dict[str, Any]:
    """Separation of logits."""
    last = paths.sizes["time"] - 1
    edges = np.array([0, last // 2, last])
    shots = [_shot(clean, paths, int(at)) for at in edges]
    page.figure("fig1", draw_separation(paths, shots, edges, names))
    values, K = analysis.class_means(paths), len(names)
    own = np.einsum("rtkk->rtk", values)
    margin = own - (values.sum(-1) - own) / (K - 1)
    rows = []
    for at in edges:
        for k, name in enumerate([*names, "all"]):
            one = margin[:, at].mean(-1) if name == "all" else margin[:, at, k]
            lead = {"time": float(paths["time"].values[at]), "class": name}
            rows.append(lead | _ends("margin", mean_interval(one, protocol.confidence)))
    margins = _table(page, "fig1", "Figure 1: separation of logits", rows)
    return {"names": names, "margins": margins}


def _shot(trained: xr.Dataset, paths: xr.Dataset, at: int) -> xr.Dataset:
    """Drawn samples of one window of training, evenly over trials and within the window."""
    low, high = (float(paths[name].values[at]) for name in ("time_start", "time_end"))
    drawn = trained["draw_time"].values
    inside = np.flatnonzero((drawn >= low) & (drawn < high))
    each = math.ceil(SAMPLES / trained.sizes["replicate"])
    chosen = inside[np.unique(np.linspace(0, len(inside) - 1, each).round().astype(int))]
    part = trained[["drawn_logits", "drawn_label"]].isel(draw=chosen)
    logits = part["drawn_logits"].transpose("replicate", "draw", "feature").values
    labels = part["drawn_label"].transpose("replicate", "draw").values
    return xr.Dataset(
        {"features": (("sample", "feature"), logits.reshape(-1, logits.shape[-1]))},
        coords={"label": ("sample", labels.ravel().astype(np.int64))},
    )


def _fig3(
    protocol: Protocol, page: Page, paths: xr.Dataset, both: xr.Dataset, *fits: xr.Dataset
) -> dict[str, Any]:
    """Estimated elasticities."""
    by_model = dict(zip(MODELS, fits, strict=True))
    with noted() as notes:
        published = {model: published_elasticity(paths, t) for model, t in MODELS.items()}
    _, known = analysis.first_known(paths)
    if not known:
        warning = (
            f"The classes' contrast is not known, at no time in the first half of training is it {analysis.SPREAD:g} standard deviations "
            f"between trials from zero: rates are of the second half, and hardly determined. Train longer, or more trials."
        )
        print(warning)
        notes.append(warning)
    page.figure("fig3", draw_elasticity(by_model, published))
    integrals, rates = [], []
    for model, fit in by_model.items():
        old = published[model].sel(time=fit["time"].values)
        for i in _evenly(fit.sizes["time"]):
            row = {"model": model, "time": float(fit["time"].values[i])}
            for name in ("A", "B", "A_minus_B"):
                row |= _with_ends(fit, name, i)
                row[f"{name}_published"] = float((old[name][i] - old[name][0]).values)
            integrals.append(row)
        for i in _evenly(fit.sizes["interval"]):
            row = {"model": model, "time": float(fit["interval"].values[i])}
            for name in ("alpha", "beta", "alpha_minus_beta"):
                row |= _with_ends(fit, name, i)
            rates.append(row)
    return {
        "known": known,
        "spread": analysis.SPREAD,
        "start": float(fits[0]["time"].values[0]),
        "integrals": _table(page, "fig3", "Figure 3: estimated elasticity", integrals),
        "rates": _table(page, "fig3_rates", "Rates", rates),
        "notes": [*notes, *(note for fit in fits for note in fit.attrs["notes"])],
    }


def _fig4(protocol: Protocol, page: Page, levels: xr.Dataset) -> dict[str, Any]:
    """Label noise, and the transition."""
    crossings = find_crossings(levels, protocol)
    critical, confidence = protocol.critical, protocol.confidence
    page.figure("fig4", draw_phases(levels, crossings, critical, confidence))
    end = levels.isel(time=-1)
    validation = {name: end[name] for name in ("loss", "accuracy", "contrast")}
    tails = {}
    for model in map(str, levels["model"].values):
        tails[f"A_minus_B_{model[0]}"] = levels["A_minus_B"].sel(model=model)
        for rate in levels["rate"].values:
            tails[f"r_{rate}_{model[0]}"] = levels["tail_index"].sel(model=model, rate=rate)
    beside = _beside_the_paper(levels, crossings, protocol)
    published = "Â − B̂ and tail indices, published inversion"
    printed = "Beside theory and the published numbers"
    tables = {
        "validation": _table(
            page, "fig4", "Figure 4: label noise", _by_level(validation, confidence)
        ),
        "tails": _table(page, "fig4_tails", published, _by_level(tails, confidence)),
        "beside": _table(page, "fig4_beside", printed, beside),
    }
    p = levels["noise_level"].values
    statements = [in_words(q, c, critical, confidence, p) for q, c in crossings.items()]
    statements.append(
        "Intervals are over trials, which share the images; which labels are wrong is drawn anew for each."
    )
    print("\n".join(statements))
    return {**tables, "statements": statements, "notes": levels.attrs["notes"]}


def find_crossings(levels: xr.Dataset, protocol: Protocol) -> dict[str, Crossing]:
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
    part = levels.isel(replicate=slice(protocol.trials)).transpose("replicate", "noise_level", ...)
    moved = (part["contrast"].isel(time=-1) - part["contrast"].isel(time=0)).values
    accuracy = part["accuracy"].isel(time=-1).values
    scale = float(part["contrast"].isel(time=0).std())
    result = {
        "accuracy": crossing(p, accuracy, 1.0 / protocol.classes, confidence),
        "contrast": crossing(p, np.arcsinh(moved / scale), 0.0, confidence),
    }
    for model in levels["model"].values:
        index = part["tail_index"].sel(model=model, rate="alpha").values
        found = crossing(p, index, 1.0, confidence)
        result[f"tail index, {model}"] = found._replace(value=float("nan"))
    return result


def _by_level(quantities: dict[str, xr.DataArray], confidence: float) -> list[dict[str, Any]]:
    """Means over trials with their intervals, a row for each noise level."""
    rows = []
    for p in next(iter(quantities.values()))["noise_level"].values:
        row = {"noise_level": float(p)}
        for name, values in quantities.items():
            one = values.sel(noise_level=p).values
            row |= _ends(name, mean_interval(one, confidence, RANGES.get(name, (-np.inf, np.inf))))
        rows.append(row)
    return rows


def _beside_the_paper(
    levels: xr.Dataset, crossings: dict[str, Crossing], protocol: Protocol
) -> list[dict[str, Any]]:
    """Numbers of the paper, its data or its theory, beside the measured ones."""
    start = levels.isel(time=0).sel(noise_level=0.0)
    rows = []
    for name, theory in (("loss", np.log(protocol.classes)), ("accuracy", 1 / protocol.classes)):
        published = PRINTED[name] if protocol.data == "geomnist" else np.nan
        found = mean_interval(start[name].values, protocol.confidence, RANGES[name])
        row = {"quantity": f"validation {name} before training", "theory": theory}
        rows.append(row | {"published": published} | _ends("ours", found))
    for name, level in crossings.items():
        row = {"quantity": f"critical p by {name}", "theory": protocol.critical}
        rows.append(row | {"published": np.nan} | _ends("ours", level))
    return rows


def _fig5(
    protocol: Protocol,
    names: Sequence[str],
    page: Page,
    paths: xr.Dataset,
    laws: xr.Dataset,
    *fits: xr.Dataset,
) -> dict[str, Any]:
    """The LE-ODE against the networks."""
    by_model = {model: laws.sel(model=model, drop=True) for model in MODELS}
    page.figure("fig5", draw_dynamics(paths, by_model, names))
    rows, notes = [], []
    for (model, law), fit in zip(by_model.items(), fits, strict=True):
        part = analysis.reached(law)
        times = part["time"].values
        values = analysis.class_means(paths.sel(time=times))
        row = {"model": model, "from_time": float(times[0]), "to_time": float(times[-1])}
        row |= _with_ends(law, "error", ...)
        # At its start the LE-ODE is at the networks' means.
        _, low, high = (each[1:] for each in mean_interval(values, protocol.confidence))
        expected = part["mean"].transpose("time", "class", "feature").values[1:]
        within = (low <= expected) & (expected <= high)
        row["inside"] = float(within.mean()) if within.size else float("nan")
        rows.append(row | _with_ends(fit, "r_squared_common", ...))
        number = analysis.determined(fit)
        if number < fit.sizes["interval"]:
            end = float(fit["time"].values[number])
            notes.append(
                f"{model}: the data do not determine the rates after t = {end:.3g}, where the LE-ODE ends. Train longer, or "
                f"more trials."
            )
    errors = _table(page, "fig5", "Figure 5: LE-ODE and networks", rows)
    print("\n".join(notes), end="\n" if notes else "")
    return {"errors": errors, "notes": notes}


def _evenly(size: int) -> np.ndarray:
    """Up to eight indices from 0 to size − 1."""
    return np.unique(np.linspace(0, size - 1, 8).round().astype(int))


def _ends(name: str, found: Sequence[Any]) -> dict[str, float]:
    """Columns for a number and the ends of its interval."""
    return {
        f"{name}{end}": float(v) for end, v in zip(("", "_lower", "_upper"), found, strict=True)
    }


def _with_ends(dataset: xr.Dataset, name: str, at: Any) -> dict[str, float]:
    return _ends(name, [dataset[name + end].values[at] for end in ("", "_lower", "_upper")])


def _table(page: Page, name: str, title: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Save and print a table."""
    table = pd.DataFrame(rows)
    page.csv(name, table)
    print_table(title, readable(table))
    return table


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table with columns x, x_lower, x_upper as one: 1.2 [1.1, 1.3]."""
    shown = {}
    for column in table.columns:
        label = column.replace("_", " ")
        if f"{column}_lower" in table:
            ends = table[[column, f"{column}_lower", f"{column}_upper"]].to_numpy()
            shown[label] = [with_interval(*each) for each in ends]
        elif column in ("theory", "published"):
            # As many digits as the value beside it.
            shown[label] = [
                f"{value:.5g}" if np.isfinite(value) else "–" for value in table[column]
            ]
        elif not column.endswith(("_lower", "_upper")):
            shown[label] = list(table[column])
    return pd.DataFrame(shown, dtype=object)


def warned(notes: Sequence[str]) -> str:
    """The warnings of the estimates, each once."""
    lines = "\n".join(f"- {note}" for note in dict.fromkeys(notes))
    return f"Warnings of the estimates:\n\n{lines}" if notes else ""


templates.globals |= {"readable": readable, "warned": warned}
