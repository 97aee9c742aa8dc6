"""The figures of the demonstration study: network and model side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lesde.study.folder import StudyFolder
from lesde.study.report import Report

__all__ = ["Drawer"]

Progress = Callable[[int, int], None]
PAGE = 7.0  # inches: two columns of a journal


def _columns(count: int, rows: int, height: float, **keywords: Any) -> Any:
    """A figure of the page's width, and its axes (rows, count)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, count, figsize=(PAGE, height), squeeze=False, layout="constrained", **keywords
    )
    return figure, axes


def _log_time(ax: Any) -> None:
    """A logarithmic time axis with labels that have room."""
    from lesde.plot.canvas import tidy_log

    ax.set_xscale("log")
    tidy_log(ax, "x")


def _same_limits(axes: Any) -> None:
    """Vertical limits that hold those of all axes, so that they can be compared, in one notation."""
    ends = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(ends[:, 0].min(), ends[:, 1].max())


def _one_legend(figure: Any, axes: Any) -> None:
    """Replace the legends of the axes, which say the same, by one above all."""
    legends = [ax.get_legend() for ax in axes.ravel() if ax.get_legend() is not None]
    legends += figure.legends
    if not legends:
        return
    fullest = max(legends, key=lambda legend: len(legend.legend_handles))
    handles = list(fullest.legend_handles)
    labels = [text.get_text() for text in fullest.get_texts()]
    title = fullest.get_title().get_text()
    for legend in legends:
        legend.remove()
    figure.legend(
        handles,
        labels,
        title=title or None,
        loc="outside upper center",
        ncols=len(labels),
        handlelength=fullest.handlelength,
    )


def _metric_legend(figure: Any, axes: Any) -> None:
    """One legend for the metrics; slopes are in the text of the report."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for container in (c for ax in axes for c in ax.containers):
        line = container.lines[0]
        entries.setdefault(str(line.get_color()), line)
    handles = [
        Line2D([], [], color=colour, marker=line.get_marker(), linestyle="none")
        for colour, line in entries.items()
    ]
    labels = ["NC1", "NC2 distance to ETF"][: len(handles)]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _snapshots(paths: xr.Dataset) -> list[float]:
    """Times that show the collapse: the start, and evenly in log time to the end."""
    end = float(paths.time[-1])
    return [float(paths.time[0]), end / 16, end / 4, end]


class Drawer:
    """Draws figures into a folder and puts them into the report.

    Parameters
    ----------
    folder : StudyFolder
        Figures go into its folder ``figures``.
    """

    def __init__(self, folder: StudyFolder):
        self.folder = folder

    def _save(self, report: Report, drawn: Any, name: str, caption: str) -> None:
        import matplotlib.pyplot as plt

        self.folder.put_figure(self.folder.path / "figures" / name, drawn)
        plt.close(np.asarray(drawn, dtype=object).ravel()[0].get_figure(root=True))
        report.figure(f"{name}.png", caption)

    def networks(self, report: Report, network: xr.Dataset, progress: Progress) -> None:
        """Fan, snapshots, 3-D view and animation of one network's features."""
        from lesde import plot

        axes: Any
        h = float(network.learning_rate[0])
        named = f"One network at h = {h:g}"
        axes = plot.separation_fan(network, learning_rate=h)
        self._save(report, axes, "fan", f"{named}: logits of the probe images, projected.")
        progress(1, 4)
        axes = plot.simplex(network, times=_snapshots(network), learning_rate=h)
        self._save(report, axes, "simplex", f"{named}: snapshots in the plane of the class means.")
        progress(2, 4)
        axes = plot.simplex3d(network, learning_rate=h)
        self._save(report, axes, "simplex3d", f"{named}: the logits in three dimensions.")
        progress(3, 4)
        import matplotlib.pyplot as plt

        def film(new: Path) -> None:
            made = plot.animate(network, new, learning_rate=h, frames=40, dpi=100)
            plt.close(made._fig)  # type: ignore[attr-defined]

        self.folder.put(self.folder.path / "figures" / "collapse.gif", film)
        report.add("[Animation of the collapse](figures/collapse.gif)")
        progress(4, 4)

    def fits(self, report: Report, fits: dict[str, xr.Dataset]) -> None:
        """Â, B̂, α̂, β̂ of both models."""
        from lesde import plot
        from lesde.study.demo_steps import MODELS

        for transform, fit in fits.items():
            axes = plot.elasticity(fit)
            label = MODELS[transform]
            self._save(report, axes, f"elasticity_{transform}", f"Fitted elasticity, {label}.")

    def models(self, report: Report, network: xr.Dataset, simulated: xr.Dataset, law: Any) -> None:
        """Exact law against the networks' class means; one simulated fan."""
        from lesde import plot

        axes: Any
        for model in map(str, law.model.values):
            short = model.split("-")[0]
            for which, h in (
                ("slow", network.learning_rate[0]),
                ("fast", network.learning_rate[-1]),
            ):
                axes = plot.class_means(
                    network, law.sel(model=model, drop=True), learning_rate=float(h)
                )
                self._save(
                    report,
                    axes,
                    f"class_means_{short}_{which}",
                    f"{model}, h = {float(h):g}: exact law (lines) and networks' class means.",
                )
        last = str(law.model.values[-1])
        axes = plot.separation_fan(
            simulated.sel(model=last, drop=True), learning_rate=float(network.learning_rate[0])
        )
        self._save(
            report, axes, "fan_model", f"The fitted {last}, simulated from a network's start."
        )

    def separation(self, report: Report, separation: xr.Dataset, prediction: xr.Dataset) -> None:
        """Probability over time, by source; and by criterion for the networks."""
        from lesde import plot

        sources = [str(name) for name in separation.source.values]
        rates = separation.learning_rate.values[[0, -1]]
        with plot.style():
            figure, axes = _columns(len(sources), len(rates), 3.9, sharex=True, sharey=True)
            for row, h in enumerate(rates):
                for column, source in enumerate(sources):
                    ax = axes[row, column]
                    predicted = None
                    if source in prediction.model.values:
                        predicted = prediction.sel(model=source, drop=True).sel(learning_rate=h)
                    part = separation.sel(source=source, criterion="projection", drop=True)
                    plot.probability(part.sel(learning_rate=h), predicted, ax=ax)
                    ax.set_title(f"{source}, h = {float(h):g}")
                    _log_time(ax)
                    if column:
                        ax.set_ylabel("")
                    if row + 1 < len(rates):
                        ax.set_xlabel("")
            _one_legend(figure, axes)
        caption = (
            "Probability that all classes are separated: networks, and models with prediction."
        )
        self._save(report, axes, "separation", caption)
        criteria = [str(name) for name in separation.criterion.values]
        with plot.style():
            figure, axes = _columns(len(criteria), 1, 2.3, sharey=True)
            for ax, criterion in zip(axes[0], criteria, strict=True):
                plot.probability(
                    separation.sel(source="network", criterion=criterion, drop=True), ax=ax
                )
                ax.set_title(criterion.replace("_", " "))
                _log_time(ax)
                if criterion != criteria[0]:
                    ax.set_ylabel("")
            _one_legend(figure, axes)
        self._save(report, axes, "separation_criteria", "The networks by three criteria.")

    def collapse(self, report: Report, metrics: dict[str, xr.Dataset], rates: xr.Dataset) -> None:
        """NC1 and NC2 over time, a column for each source; rates against the learning rate."""
        from lesde import plot

        names = ["nc1", "nc2_etf"]
        with plot.style():
            figure, axes = _columns(len(metrics), len(names), 3.9, sharex=True, sharey="row")
            for column, (source, values) in enumerate(metrics.items()):
                plot.collapse(values, names, ax=axes[:, column])
                axes[0, column].set_title(source.replace(", ", ",\n"))
                for ax in axes[:, column]:
                    _log_time(ax)
                    if column:
                        ax.set_ylabel("")
                    if ax is not axes[-1, column]:
                        ax.set_xlabel("")
            _one_legend(figure, axes)
        self._save(report, axes, "collapse", "NC1 and NC2 over time: networks and models.")
        shown = [str(name) for name in rates.source.values]
        with plot.style():
            figure, axes = _columns(len(shown), 1, 2.4)
            for ax, source in zip(axes[0], shown, strict=True):
                plot.collapse_rate(
                    rates.sel(source=source, drop=True), names, clock="iteration", ax=ax
                )
                ax.set_title(source.replace(", ", ",\n"))
                if source != shown[0]:
                    ax.set_ylabel("")
                if ax.get_legend() is not None:
                    ax.get_legend().remove()
                for legend in list(figure.legends):
                    legend.remove()
            _same_limits(axes[0])
            for ax in axes[0, 1:]:
                ax.tick_params(labelleft=False)
            _metric_legend(figure, axes[0])
        self._save(report, axes, "collapse_rate", "Collapse rate per iteration against h.")
