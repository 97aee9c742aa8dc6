"""The report of the demonstration study: Markdown with figures and one table of numbers."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr

from lesde.study.config import DemoConfig
from lesde.study.tables import format_number

__all__ = ["Report", "numbers", "verdict"]


@dataclass
class Report:
    """Markdown that is written anew after every step, so that an interrupt leaves what is done."""

    path: Path
    title: str
    parts: list[str] = field(default_factory=list)

    def add(self, *paragraphs: str) -> None:
        """Append paragraphs and write the file."""
        self.parts += paragraphs
        handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".md")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("\n\n".join([f"# {self.title}", *self.parts]) + "\n")
        os.chmod(name, 0o644)
        os.replace(name, self.path)

    def figure(self, name: str, caption: str) -> None:
        """Append a figure of the folder ``figures``."""
        self.add(
            f"![{caption}](figures/{name})\n\n*{caption}* ([PDF](figures/{Path(name).stem}.pdf))"
        )

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """Append a table."""
        lines = [" | ".join(header), " | ".join("---" for _ in header)]
        lines += [" | ".join(row) for row in rows]
        self.add("\n".join(f"| {line} |" for line in lines))


def plus_minus(dataset: xr.Dataset, name: str) -> str:
    """A number with half the width of its interval, which is symmetric."""
    value, upper = float(dataset[name]), float(dataset[f"{name}_upper"])
    if value != value:
        return "–"
    return f"{value:.3g} ± {upper - value:.1g}" if upper == upper else f"{value:.3g}"


def first_time(probability: xr.DataArray, level: float = 0.5) -> str:
    """The first saved time at which a probability reaches the level."""
    reached = probability.values >= level
    return format_number(float(probability.time.values[reached.argmax()])) if reached.any() else "–"


def numbers(
    config: DemoConfig,
    comparison: xr.Dataset,
    separation: xr.Dataset,
    rates: xr.Dataset,
    metrics: dict[str, xr.Dataset],
) -> tuple[list[str], list[list[str]]]:
    """The table of the report: one row for each source and learning rate."""
    header = ["features of", "h", "P(separated) at end", "P ≥ ½ from t", "NC1 at end"]
    header += ["NC1 rate", "NC2 at end", "NC2 rate", "R² common", "error of means", "inside"]
    rows = []
    for source in [str(name) for name in separation.source.values]:
        for h in config.learning_rates:
            P = separation.sel(source=source, criterion="projection", learning_rate=h)
            last = metrics[source].sel(learning_rate=h).isel(time=-1).median("replicate")
            rate = rates.sel(source=source, learning_rate=h, clock="time")
            row = [source, format_number(h), interval_last(P), first_time(P.probability)]
            row += [format_number(float(last.nc1)), plus_minus(rate.sel(metric="nc1"), "rate")]
            row += [
                format_number(float(last.nc2_etf)),
                plus_minus(rate.sel(metric="nc2_etf"), "rate"),
            ]
            if source in comparison.model.values:
                fit = comparison.sel(model=source, learning_rate=h)
                row += [_with_error(fit)]
                row += [format_number(float(fit[name])) for name in ("mean_error", "inside")]
            else:
                row += ["", "", ""]
            rows.append(row)
    return header, rows


def _with_error(one: xr.Dataset) -> str:
    """The share of common movement explained, with its standard error."""
    return f"{float(one.r_squared_common):.2f} ± {float(one.r_squared_common_se):.2f}"


def _percent(values: xr.DataArray) -> tuple[str, str]:
    """Least and greatest of some shares."""
    return f"{float(values.min()):.0%}", f"{float(values.max()):.0%}"


def interval_last(P: xr.Dataset) -> str:
    """The probability at the last time with its interval."""
    end = P.isel(time=-1)
    text = [format_number(round(float(end[name]), 3)) for name in ("probability", "lower", "upper")]
    return f"{text[0]} [{text[1]}, {text[2]}]"


def verdict(config: DemoConfig, comparison: xr.Dataset) -> list[str]:
    """Where the linear model fits and where not, in numbers."""
    lines = []
    for model in comparison.model.values:
        part = comparison.sel(model=model)
        worst, best = _percent(part.r_squared)
        common = ", ".join(_with_error(part.sel(learning_rate=h)) for h in config.learning_rates)
        lines.append(
            f"**{model}.** Of the increments of a network's class means, the rates fitted to the other "
            f"networks explain {worst} to {best}; of the movement that the networks have in common, "
            f"noise removed, they explain {common} in the order of the learning rates, ± one standard "
            f"error (a right model explains 1). The law's class means miss the "
            f"networks' average by {float(part.mean_error.min()):.1%} to "
            f"{float(part.mean_error.max()):.1%} (relative root mean square over time), and "
            f"{float(part.inside.min()):.0%} to {float(part.inside.max()):.0%} of its coordinates lie "
            f"inside the law's {config.confidence:.0%} interval, where a right model has "
            f"{config.confidence:.0%}."
        )
    part = comparison.isel(model=0)
    low, high = float(part.noise_ratio.min()), float(part.noise_ratio.max())
    spread = part.within_r_squared.values
    lines.append(
        f"**Noise.** An LE-SDE has one σ for the spread within classes and for the class means. Here "
        f"the class means' noise is {low:.1f} to {high:.1f} times what the spread implies: the "
        f"sampling noise of SGD, which all samples of a class share, is that much larger. Linear "
        f"growth σ²t explains {spread.min():.0%} to {spread.max():.0%} of the change of the "
        f"within-class variance (0% is no better than no change)."
    )
    return lines
