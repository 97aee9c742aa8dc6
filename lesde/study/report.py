"""The report of the demonstration study: Markdown with figures and one table of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from lesde.study.config import DemoConfig
from lesde.study.tables import format_number

__all__ = ["Report", "numbers", "summary", "verdict", "with_error"]


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@dataclass
class Report:
    """Markdown that is written anew after every step, so that an interrupt leaves what is done.

    The paragraphs ``top``, known last, stand below the title. ``put`` writes a text file.
    """

    path: Path
    title: str
    top: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    hold: bool = False
    put: Callable[[Path, str], object] = _put

    def add(self, *paragraphs: str) -> None:
        """Append paragraphs and write the file, unless it is on hold."""
        self.parts += paragraphs
        if self.hold:
            return
        self.put(self.path, "\n\n".join([f"# {self.title}", *self.top, *self.parts]) + "\n")

    def summarise(self, *paragraphs: str) -> None:
        """Put paragraphs below the title and write the file."""
        self.top += paragraphs
        self.add()

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


def with_error(value: float, error: float) -> str:
    """A number with its error, both to the last digit the error tells: two digits of it if it begins with 1."""
    if not math.isfinite(value):
        return "–"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    power = math.floor(math.log10(error))
    # Rounding may carry: 0.0997 is 0.10.
    decimals = 1 - power if float(f"{error:.1e}") < 2 * 10.0**power else -power
    if float(f"{error:.0e}") >= 10.0 ** (power + 1):
        decimals = -power
    size = max(abs(value), error)
    if (decimals > 7 and size < 1e-3) or decimals < -3:
        power = math.floor(math.log10(size))
        return f"({with_error(value / 10.0**power, error / 10.0**power)})e{power}"
    kept = max(decimals, 0)
    rounded = (round(value, decimals), round(error, decimals))
    return f"{rounded[0] + 0.0:.{kept}f} ± {rounded[1]:.{kept}f}"


def plus_minus(dataset: xr.Dataset, name: str) -> str:
    """A number with half the width of its interval, which is symmetric."""
    value, upper = float(dataset[name]), float(dataset[f"{name}_upper"])
    return with_error(value, upper - value)


def lasting_time(probability: xr.DataArray, level: float = 0.5) -> str:
    """The saved time from which a probability is at least the level to the end, or "never"."""
    below = np.flatnonzero(~(probability.values >= level))  # NaN is not at least anything
    if len(below) == 0:
        return format_number(float(probability.time.values[0]))
    if below[-1] == probability.sizes["time"] - 1:
        return "never"
    return format_number(float(probability.time.values[below[-1] + 1]))


def numbers(
    config: DemoConfig,
    comparison: xr.Dataset,
    separation: xr.Dataset,
    rates: xr.Dataset,
    metrics: dict[str, xr.Dataset],
) -> tuple[list[str], list[list[str]]]:
    """The table of the report: one row for each source and learning rate."""
    level = f"{config.confidence:.0%}"
    header = ["features of", "h", f"P(separated) at end [{level}]", "P stays ≥ ½ from t"]
    header += ["NC1 at end", f"NC1 rate ± {level}", "NC2 at end", f"NC2 rate ± {level}"]
    header += ["R² common ± s.e.", "error of means", "inside"]
    rows = []
    for source in [str(name) for name in separation.source.values]:
        for h in config.learning_rates:
            P = separation.sel(source=source, criterion="projection", learning_rate=h)
            last = metrics[source].sel(learning_rate=h).isel(time=-1).median("replicate")
            rate = rates.sel(source=source, learning_rate=h, clock="time")
            row = [source, format_number(h), interval_last(P), lasting_time(P.probability)]
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
    """R² of the common movement, with its standard error."""
    return with_error(float(one.r_squared_common), float(one.r_squared_common_se))


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
            f"networks explain {worst} to {best}, noise counted against them. R² common, the same for the "
            f"movement that the networks have in common, is {common} in the order of the learning rates, "
            f"± one standard error. It is an estimate with the noise taken off, which is 1 on average for a "
            f"right model and by chance can be above 1. The law's class means miss the "
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


def summary(
    config: DemoConfig, comparison: xr.Dataset, separation: xr.Dataset, rates: xr.Dataset
) -> list[str]:
    """What came out, in a few lines."""
    h = config.learning_rates
    span = f"at h = {h[0]:g}" if len(h) == 1 else f"over h = {min(h):g} to {max(h):g}"
    lines = [
        f"Ranges are {span}; P is the probability that all classes are separated at the end.",
        "",
    ]
    for source in [str(name) for name in separation.source.values]:
        P = separation.probability.sel(source=source, criterion="projection").isel(time=-1)
        text = f"- **{source}**: P {_range(P)}"
        if source in comparison.model.values:
            part = comparison.sel(model=source)
            low, high = _percent(part.mean_error)
            text += (
                f"; class means off by {low} to {high}; R² common {_range(part.r_squared_common)}"
            )
        one = rates.sel(source=source, clock="time").rate
        decay = [f"{m.upper()[:3]} {_range(one.sel(metric=m))}" for m in ("nc1", "nc2_etf")]
        lines.append(f"{text}; decay per unit of time: {', '.join(decay)}.")
    errors = comparison.mean_error.mean("learning_rate").values
    best = str(comparison.model.values[int(errors.argmin())])
    closer = "" if comparison.sizes["model"] == 1 else f" The {best} is closer to the class means."
    low, high = _range_ends(comparison.isel(model=0).noise_ratio)
    lines += [
        "",
        f"A negative decay is growth.{closer} The class means' noise is {low} to {high} times what "
        f"one σ for all of the LE-SDE gives.",
    ]
    return ["## Summary", "\n".join(lines)]


def _range_ends(values: xr.DataArray) -> tuple[str, str]:
    return f"{float(values.min()):.2g}", f"{float(values.max()):.2g}"


def _range(values: xr.DataArray) -> str:
    low, high = _range_ends(values)
    return low if low == high else f"{low} to {high}"
