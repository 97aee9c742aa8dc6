"""The published experiments, from training to figures, in resumable steps."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from lesde.analysis.elasticity.published import published_elasticity
from lesde.networks.cifar import CIFAR10_CLASSES
from lesde.networks.geometric import SHAPES
from lesde.studies import reproduce_analysis as analysis
from lesde.studies import reproduce_analysis as tables
from lesde.studies.reproduce_analysis import Crossing, crossing
from lesde.studies.reproduce_figures import (
    draw_dynamics,
    draw_elasticity,
    draw_phases,
    draw_separation,
)
from lesde.studies.reproduce_trainings import FREE, SETTINGS, Protocol, Trainings, duration
from lesde.studies.runner import Report, StudyFolder, settings_of
from lesde.text import format_number, print_rows

__all__ = ["FIGURES", "run"]


FIGURES = ("fig1", "fig3", "fig4", "fig5")
SAMPLES = 240
"""Drawn samples that a panel of figure 1 shows."""


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
        See :func:`lesde.study.reproduce_protocol.load_protocol`.
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
        For a figure that does not exist, a folder that holds trainings with other settings or somebody else's files under
        the names of the figures, one that another run is in, or a missing CIFAR-10.
    """
    unknown = [name for name in figures if name not in FIGURES]
    if unknown or not figures:
        raise ValueError(f"figures must be of {', '.join(FIGURES)}; got {list(figures)}.")
    writes = (
        "report.md",
        *(f"{place}/{name}*" for name in figures for place in ("data", "figures")),
    )
    study = settings_of(protocol, without=FREE)
    folder = StudyFolder(Path(out), "reproduce", f"data/{SETTINGS}", study, writes)
    with folder.taken():
        return _run(figures, protocol, folder, cifar, device)


def _run(
    figures: Sequence[str],
    protocol: Protocol,
    folder: StudyFolder,
    cifar: Path | None,
    device: str | None,
) -> Path:
    trainings = Trainings(protocol, folder.path / "data", cifar, device)
    levels = protocol.noise_levels if "fig4" in figures else (0.0,)
    if "fig4" in figures and levels[-1] <= protocol.critical:
        print(
            f"no noise level is above (K−1)/K = {protocol.critical:.3f}, where theory has the critical one: it cannot be bounded "
            f"from above. Add one to noise_levels."
        )
    _train(trainings, levels)
    study = _Study(protocol, folder, trainings)
    for name in FIGURES:
        if name in figures:
            with study.section(name):
                getattr(study, name)()
    print(f"report: {study.report.path}")
    return study.report.path


def _train(trainings: Trainings, levels: Sequence[float]) -> None:
    """Say how long training takes, and train."""
    missing = trainings.missing(levels)
    if not missing:
        print("all trials are stored; nothing to train")
        return
    everything, left = trainings.estimate(levels)
    trials = sum(len(batch.trials) for batch in missing)
    steps = trials * trainings.protocol.iterations
    print(
        f"to train: {trials} trials, {steps:,} steps, about {duration(left)} of {duration(everything)} in all "
        f"({steps / left:,.0f} trial-steps a second now); Ctrl-C keeps every batch of trials that is done",
        flush=True,
    )
    trainings.run(levels)


class _Study:
    """The trainings that figures share, and where figures and numbers go."""

    def __init__(self, protocol: Protocol, folder: StudyFolder, trainings: Trainings):
        self.protocol, self.trainings, self.folder = protocol, trainings, folder
        self.data = folder.path / "data"
        self.report = Report(
            folder.path / "report.md", "The published experiments, reproduced", put=folder.put_text
        )
        self._introduction = _introduction(protocol)
        names = SHAPES if protocol.data == "geomnist" else CIFAR10_CLASSES
        self.names = names[: protocol.classes]
        self._kept: dict[str, Any] = {}

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Collect what a figure adds to the report, which holds the figures of earlier runs too, if their settings were these."""
        settings = self.protocol.model_dump_json()
        self.report.parts, self.report.hold = [], True
        try:
            yield
            mine = {"settings": settings, "parts": self.report.parts}
            self.folder.put_text(self.data / f"{name}.json", json.dumps(mine, indent=2))
        finally:
            # Also after an interrupt: the figures that are done.
            sections: list[str] = []
            for other in FIGURES:
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    held = json.loads((self.data / f"{other}.json").read_text(encoding="utf-8"))
                    if held["settings"] == settings:
                        sections += held["parts"]
            self.report.parts, self.report.hold = [self._introduction], False
            self.report.add(*sections)

    def clean(self) -> xr.Dataset:
        """Trials without label noise."""
        if "clean" not in self._kept:
            self._kept["clean"] = self.trainings.load(0.0)
        return self._kept["clean"]

    def paths(self) -> xr.Dataset:
        """Their class means over windows of training."""
        if "paths" not in self._kept:
            self._kept["paths"] = analysis.drawn_paths(self.clean(), self.protocol.windows)
        return self._kept["paths"]

    def fits(self) -> dict[str, xr.Dataset]:
        """Both models' fits to them."""
        if "fits" not in self._kept:
            self._kept["fits"], self._kept["notes"] = analysis.fit_models(
                self.paths(), self.protocol
            )
        return self._kept["fits"]

    def fig1(self) -> None:
        """Separation of logits."""
        paths, last = self.paths(), self.paths().sizes["time"] - 1
        edges = np.array([0, last // 2, last])
        shots = [_shot(self.clean(), paths, int(at)) for at in edges]
        figure = draw_separation(paths, shots, edges, self.names)
        table = tables.separation_table(paths, self.names, self.protocol.confidence)
        words = (
            "Logits of drawn training samples at the start, in the middle and at the end; lines are class means "
            "over windows of training, averaged over trials, and in grey what joins them. Below, projections on the gap of the class means "
            f"of {self.names[1]} → {self.names[0]} at the end: drawn samples, and each trial's class means."
        )
        self._publish("fig1", "Figure 1: separation of logits", figure, words, table, paths)

    def fig3(self) -> None:
        """Estimated elasticities."""
        fits = self.fits()
        with analysis.noted() as said:
            published = {
                name: published_elasticity(self.paths(), transform)
                for transform, name in analysis.MODELS.items()
            }
        start = float(next(iter(fits.values()))["time"].values[0])
        _, known = analysis.first_known(self.paths())
        since = (
            f"from which on the classes' contrast is at least {analysis.SPREAD:g} times its standard deviation between trials"
            if known
            else "the middle of training: the classes' contrast is not known before"
        )
        words = (
            f"Â, B̂ and α̂, β̂ of both models, from the class means over trials, with "
            f"{self.protocol.confidence:.0%} bands from the scatter between trials. Integrals begin at "
            f"t = {start:.3g}, {since}. Dashed: the published inversion of log ratios, shifted to begin at zero there."
        )
        figure = draw_elasticity(fits, published)
        table = tables.elasticity_table(fits, published)
        together = xr.concat(
            [fit.drop_attrs(deep=False) for fit in fits.values()], xr.Variable("model", list(fits))
        )
        self._publish("fig3", "Figure 3: estimated elasticity", figure, words, table, together)
        rates = tables.rate_table(fits)
        self._table("fig3_rates", "Rates", rates)
        notes = self._kept["notes"]
        print("\n".join(notes.get("start", [])), end="\n" if "start" in notes else "")
        self._notes([*said, *(note for each in notes.values() for note in each)])

    def fig4(self) -> None:
        """Label noise, and the transition."""
        parts, seen = [], []
        for level in self.protocol.noise_levels:
            measured, said = analysis.measure_level(self.trainings.load(level), self.protocol)
            parts.append(measured)
            seen += [f"p = {level:.3g}: {note}" for note in said]
        levels = xr.concat(
            parts, xr.Variable("noise_level", list(self.protocol.noise_levels)), join="outer"
        )
        crossings = find_crossings(levels, self.protocol)
        critical, confidence = self.protocol.critical, self.protocol.confidence
        figure = draw_phases(levels, crossings, critical, confidence)
        table = tables.level_table(levels, confidence)
        words = (
            "Validation loss and accuracy over training by the share p of wrong labels; accuracy and the contrast of "
            "class means of the validation images at the end, and the published Â − B̂ and tail indices of α̂, each trial's own, "
            f"against p. Dashed: (K−1)/K = {critical:.3f}. Shaded: the measured interval of the critical p. Bars: {confidence:.0%}."
        )
        self._publish("fig4", "Figure 4: label noise", figure, words, table, levels)
        tails = tables.tail_table(levels, confidence)
        self._table("fig4_tails", "Â − B̂ and tail indices, published inversion", tails)
        found = tables.beside_the_paper(levels, crossings, self.protocol)
        self._table("fig4_beside", "Beside theory and what the authors print", found)
        p = levels["noise_level"].values
        statements = [tables.in_words(q, c, critical, confidence, p) for q, c in crossings.items()]
        statements.append(
            "Intervals are over trials, which share the images; which labels are wrong is drawn anew for each."
        )
        self.report.add("\n".join(f"- {line}" for line in statements))
        print("\n".join(statements))
        self._notes(seen)

    def fig5(self) -> None:
        """The LE-ODE against the networks."""
        fits, paths = self.fits(), self.paths()
        laws = analysis.run_odes(fits, paths)
        figure = draw_dynamics(paths, laws, self.names)
        errors = analysis.ode_errors(paths, laws, self.protocol)
        table = tables.dynamics_table(paths, laws, fits, errors, self.protocol.confidence)
        words = (
            "The LE-ODE with the estimated α̂, β̂ (lines), started at the networks' class means at the beginning of the "
            "fit, against class means over trials (markers, bars of one standard error). Nothing is rescaled."
        )
        together = xr.concat(list(laws.values()), xr.Variable("model", list(laws)))
        self._publish("fig5", "Figure 5: LE-ODE and networks", figure, words, table, together)
        said = []
        for name, fit in fits.items():
            number = analysis.determined(fit)
            if number < fit.sizes["interval"]:
                end = float(fit["time"].values[number])
                said.append(
                    f"{name}: the data do not tell the rates after t = {end:.3g}, where the LE-ODE ends. Train longer, or "
                    f"more trials."
                )
        print("\n".join(said), end="\n" if said else "")
        self._notes(said)

    def _publish(
        self,
        name: str,
        title: str,
        figure: Any,
        words: str,
        table: pd.DataFrame,
        numbers: xr.Dataset,
    ) -> None:
        """Save a figure and what is behind it, and put it into the report."""
        import matplotlib.pyplot as plt

        self.folder.put_figure(self.folder.path / "figures" / name, figure)
        plt.close(figure)
        self.folder.put_store(numbers, self.data / f"{name}.zarr")
        self.report.add(f"## {title}")
        self.report.figure(f"{name}.png", words)
        self._table(name, title, table)

    def _table(self, name: str, title: str, table: pd.DataFrame) -> None:
        self.folder.put(self.data / f"{name}.csv", lambda new: table.to_csv(new, index=False))
        header, rows = tables.readable(table)
        print_rows(title, header, rows)
        self.report.table(header, [[format_number(cell) for cell in row] for row in rows])

    def _notes(self, notes: list[str]) -> None:
        if notes:
            lines = "\n".join(f"- {note}" for note in dict.fromkeys(notes))
            self.report.add("What the estimates warned of:", lines)


def find_crossings(levels: xr.Dataset, protocol: Protocol) -> dict[str, Crossing]:
    """The critical noise level, by validation accuracy, by contrast, and by the tail indices of both models.

    Learning the labels drives validation accuracy from chance up where a right label is likelier than each wrong one, and
    down where it is less likely, and the contrast of class means from zero likewise: the critical level is where they
    cross. The published tail index of α̂ is below 1 where classes part, on both sides of the critical level, as wrong labels
    say something again beyond it: the critical level is between the levels at which the index, over trials, rises to 1 and
    those at which it falls from there, and the interval reaches over both.

    The contrast is of every size from that of untrained networks to thousands of times it, so that it is interpolated and
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


def _shot(trained: xr.Dataset, paths: xr.Dataset, at: int) -> xr.Dataset:
    """Drawn samples of one window of training, evenly over trials and within the window."""
    low, high = (float(paths[name].values[at]) for name in ("time_start", "time_end"))
    inside = np.flatnonzero(
        (trained["draw_time"].values >= low) & (trained["draw_time"].values < high)
    )
    each = math.ceil(SAMPLES / trained.sizes["replicate"])
    chosen = inside[np.unique(np.linspace(0, len(inside) - 1, each).round().astype(int))]
    part = trained[["drawn_logits", "drawn_label"]].isel(draw=chosen)
    logits = part["drawn_logits"].transpose("replicate", "draw", "feature").values
    labels = part["drawn_label"].transpose("replicate", "draw").values
    return xr.Dataset(
        {"features": (("sample", "feature"), logits.reshape(-1, logits.shape[-1]))},
        coords={"label": ("sample", labels.ravel().astype(np.int64))},
    )


def _introduction(protocol: Protocol) -> str:
    levels = ", ".join(f"{p:.3g}" for p in protocol.noise_levels)
    images = (
        "GeoMNIST" if protocol.data == "geomnist" else f"{protocol.classes} classes of CIFAR-10"
    )
    return (
        f"The experiments of Zhang, Wang and Su (NeurIPS 2021, arXiv 2110.05960) on {images}: "
        f"{protocol.train_per_class} training and {protocol.validation_per_class} validation images a class; two "
        f"convolutions and three dense layers; cross-entropy, SGD with batch size 1 and learning rate "
        f"{protocol.learning_rate:g} for {protocol.iterations:,} iterations; shares {levels} of wrong training labels, "
        f"drawn anew for every trial; {protocol.trials} trials at each, {protocol.trials_at(0.0)} without wrong "
        f"labels (the paper: 100). Time is t = learning rate × iteration."
    )
