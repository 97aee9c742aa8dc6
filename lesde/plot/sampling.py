"""Figures of the difference between SGD and the SDEs that approximate it, as the learning rate grows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.checks import check_choice, check_real, shown
from lesde.paths import check_dataset
from lesde.plot.frames import check_pair, class_average
from lesde.plot.style import (
    INK,
    axis_label,
    check_panels,
    legend_above,
    palette,
    panels,
    positive,
    style,
)
from lesde.plot.ticks import tidy_log

__all__ = ["coarse_steps", "estimates", "process_of", "read_simulated", "sampling_noise", "scheme"]


# --------------------------------------------------------------------------------------------------
# Simulated paths beside the moments of processes: which process they are, and their estimates.

SCHEMES = {"euler": "Euler", "milstein": "Euler", "srk": "SRK"}
"""Noise is additive, so Milstein's scheme is Euler's."""


def process_of(paths: xr.Dataset) -> str | None:
    """The process that paths of `lesde.simulate` follow, from their attributes; None without these."""
    engine = paths.attrs.get("engine")
    if engine == "sgd":
        return "sgd"
    if engine in ("exact", "torchsde"):
        return str(paths.attrs.get("sde", "plain"))
    return None


def read_simulated(simulated: Any, processes: Iterable[str]) -> dict[str, xr.Dataset]:
    """Paths by process, checked."""
    if isinstance(simulated, xr.Dataset):
        given: Any = {process_of(simulated) or "sgd": simulated}
    else:
        given = simulated
    if not isinstance(given, Mapping):
        raise TypeError(
            f"simulated must be a dataset from lesde.simulate, or a mapping from process to such; got "
            f"{shown(simulated)}."
        )
    for name, paths in given.items():
        check_choice("a key of simulated", name, processes)
        known = paths if isinstance(paths, xr.Dataset) and "mean" in paths else None
        variable = "features" if known is None else "mean"
        check_dataset("simulated", paths, [variable], "lesde.simulate")
        own = process_of(paths)
        if own not in (None, name):
            raise ValueError(
                f"simulated[{name!r}] must be paths of that process; its attributes say {own!r}. Give it "
                f"as simulated={{{own!r}: paths}}."
            )
        if paths[variable].sizes.get("replicate", 1) < 3:
            raise ValueError(
                "simulated must have the dimension 'replicate', with at least 3 of them."
            )
        if "learning_rate" not in paths.coords:
            raise ValueError(
                "simulated must hold the coordinate learning_rate; simulate with learning_rate=[...]."
            )
    return dict(given)


def _steps(paths: xr.Dataset, h: np.ndarray) -> np.ndarray | None:
    """Integration steps by learning rate; None for paths that are not integrated in steps."""
    if paths.attrs.get("engine") != "torchsde" or "dt" not in paths.attrs:
        return None
    steps = np.atleast_1d(np.asarray(paths.attrs["dt"], dtype=np.float64))
    # A selection of learning rates leaves the attribute of the dataset unchanged: the largest step is
    # then the safe one to report.
    return steps if len(steps) == len(h) else np.full(len(h), steps.max())


def coarse_steps(paths: xr.Dataset, h: np.ndarray, known: Any = None) -> np.ndarray:
    """Mask of the learning rates at which a step is longer than half the learning rate, (learning_rate,).

    ``known`` is the step for which moments are shown beside them, if any; rates with that step are left out.
    """
    steps = _steps(paths, h)
    if steps is None:
        return np.zeros(len(h), bool)
    coarse = steps > 0.5 * h
    return coarse if known is None else coarse & (np.abs(steps / float(known) - 1) > 0.1)


def scheme(paths: xr.Dataset, h: np.ndarray) -> str:
    """Words for the scheme and its coarse steps; empty for paths without any."""
    steps = _steps(paths, h)
    if steps is None:
        return ""
    name = SCHEMES.get(str(paths.attrs.get("method", "euler")), str(paths.attrs.get("method")))
    ratio = (steps / h)[steps > 0.5 * h]
    return f"{name} step {'h' if (np.abs(ratio - 1) < 0.1).all() else '> h/2'}"


def estimates(
    paths: xr.Dataset, quantity: str, pair: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Learning rates, and the gap or its standard deviation with standard error, at one time."""
    if "learning_rate" not in paths.dims:
        paths = paths.expand_dims("learning_rate")
    if "mean" in paths:
        means = paths["mean"].transpose("learning_rate", "replicate", "class", "feature").values
    else:
        order = ("learning_rate", "replicate", "sample", "feature")
        means = class_average(paths["features"].transpose(*order).values, paths["label"].values)
    gaps = means.astype(np.float64)[:, :, pair[0]] - means[:, :, pair[1]]
    count = gaps.shape[1]
    centre = gaps.mean(1)
    offsets = gaps - centre[:, None]
    if quantity == "gap":
        values = np.linalg.norm(centre, axis=-1)
        along = np.einsum("hri,hi->hr", offsets, centre) / values[:, None]
        error = along.std(1, ddof=1) / np.sqrt(count)
    else:
        squares = (offsets**2).sum(-1)
        values = np.sqrt(squares.sum(1) / (count - 1))
        # The error of a root is that of its square over twice the root.
        error = squares.std(1, ddof=1) / np.sqrt(count) / (2 * values)
    return paths["learning_rate"].values.astype(np.float64), values, error


# --------------------------------------------------------------------------------------------------
# The figure.

SOURCE = "lesde.moments"


class Look(NamedTuple):
    """Appearance and name of one process."""

    label: str
    short: str
    colour: str
    line: Any
    marker: str


_BLUE, _RED, _GREEN = palette(3)
LOOKS = {
    "sgd": Look("SGD", "SGD", INK, "-", "o"),
    "plain": Look("SDE", "SDE", _BLUE, (0, (4, 2)), "s"),
    "sampling": Look("SDE with sampling noise", "sampling", _RED, (0, (6, 1.5, 1, 1.5)), "^"),
    "modified": Look("modified SDE", "modified", _GREEN, (0, (1, 1)), "D"),
}
QUANTITIES = {
    "deviation": "s.d. of the gap of classes {0}, {1}",
    "gap": "expected gap of classes {0}, {1}",
    "mean_error": "relative error of the mean",
    "covariance_error": "relative error of the covariance",
}


@style()
def sampling_noise(
    moments: xr.Dataset,
    simulated: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    *,
    quantity: str = "deviation",
    pair: tuple[int, int] = (0, 1),
    time: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Fluctuations, gap or error of the class means against learning rate, by process.

    Parameters
    ----------
    moments : xarray.Dataset
        As `lesde.moments` returns for several learning rates, and one process or several.
    simulated : xarray.Dataset or mapping of str to xarray.Dataset, optional
        Paths with several replicates, as `lesde.simulate` returns, shown as points with bars of two
        standard errors; or a mapping from process ("sgd", "plain", …) to such. Of a dataset alone the
        process is read from its attributes ``engine`` and ``sde``, "sgd" where it has none. Not shown
        for errors.
    quantity : {"deviation", "gap", "mean_error", "covariance_error"}
        "deviation", the default: √(E‖g − E g‖²) for the gap g of two class means. "gap": ‖E g‖.
        "mean_error", "covariance_error": distance of the SDE's mean or covariance of all class means
        from that of "sgd", Frobenius norm, over the norm of the latter.
    pair : (int, int), default (0, 1)
        The two classes of the gap.
    time : float, optional
        One of the dataset's times. Default: the last.
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For datasets without what is needed, a time or pair they do not hold, errors without "sgd",
        paths whose attributes name another process than the one they are given for.

    Notes
    -----
    Both axes are logarithmic. What has no logarithm, such as an error of exactly 0, is left out.

    Lines are the SDEs in continuous time (unless ``moments`` was made with ``dt``). Paths of an SDE are integrated in
    steps, and by default `lesde.simulate` takes steps as long as the learning rate h. Such points do not lie on their
    line; those of ``TorchSDE(noise="sampling")`` lie on the line of SGD, since an Euler step of length h has the first
    two moments of SGD. Points whose step, attribute ``dt``, is more than h/2 are open and the legend names the scheme
    and step, unless ``moments`` was made with the same ``dt``. To have points on the line simulate with a smaller
    ``dt``, say a twentieth of the smallest h; the distance is proportional to ``dt`` for the Euler scheme.

    Examples
    --------
    >>> m = lesde.moments(model, [0, 1], means, rates, ["sgd", "plain"])  # doctest: +SKIP
    >>> ax = lesde.plot.sampling_noise(m)  # doctest: +SKIP
    """
    check_choice("quantity", quantity, QUANTITIES)
    check_dataset("moments", moments, ["mean", "covariance"], SOURCE)
    data = _by_process(moments)
    k, l = check_pair(pair, data.sizes["class"])
    at = _time(data, time, "moments")
    data = data.isel(time=at)
    when = float(data["time"])
    errors = quantity.endswith("_error")
    if errors and "sgd" not in data["process"].values:
        raise ValueError(
            f"quantity={quantity!r} is the distance from 'sgd', which moments does not hold; call "
            f"lesde.moments with process=['sgd', ...]."
        )
    if errors and simulated is not None:
        raise ValueError(
            f"simulated has no place with quantity={quantity!r}, whose values are exact; leave it out, or "
            f"take quantity='deviation' or 'gap'."
        )
    points = {} if simulated is None else read_simulated(simulated, LOOKS)
    check_panels(ax, 1)

    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    target.set_xscale("log")
    target.set_yscale("log")
    h = data["learning_rate"].values
    handles = []
    for name in [n for n in LOOKS if n in data["process"].values]:
        if errors and name == "sgd":
            continue
        values = positive(_exact(data, name, quantity, k, l))
        look = LOOKS[name]
        handles += target.plot(
            h, values, color=look.colour, linestyle=look.line, label=look.label, zorder=2
        )
    rates = list(h)
    for name, paths in points.items():
        paths = paths.isel(time=_time(paths, when, "simulated"))
        found = estimates(paths, quantity, (k, l))
        rates += list(found[0])
        coarse = coarse_steps(paths, found[0], moments.attrs.get("dt"))
        handles += _draw_points(target, LOOKS[name], found, coarse, scheme(paths, found[0]))
    target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
    target.set_ylabel(QUANTITIES[quantity].format(k, l))
    pad = (max(rates) / min(rates)) ** 0.05 if max(rates) > min(rates) else 2.0
    target.set_xlim(min(rates) / pad, max(rates) * pad)
    tidy_log(target, "x")
    tidy_log(target, "y")
    legend_above(target, handles, "points: simulated, ±2 s.e." if points else None)
    return target


def _by_process(moments: xr.Dataset) -> xr.Dataset:
    """The dataset with the dimensions process and learning_rate, rates increasing."""
    if "process" not in moments.dims:
        moments = moments.expand_dims(process=[str(moments.attrs.get("process", "sgd"))])
    if "learning_rate" not in moments["mean"].dims or "learning_rate" not in moments.coords:
        raise ValueError(
            "moments must have the dimension 'learning_rate' with its values; call lesde.moments with "
            "several learning rates, learning_rate=[...]."
        )
    for name in moments["process"].values:
        check_choice("moments.process", str(name), LOOKS)
    return moments.sortby("learning_rate")


def _time(dataset: xr.Dataset, time: float | None, name: str) -> int:
    """Position of a time in a dataset."""
    check_dataset(name, dataset, ["time"], SOURCE)
    times = dataset["time"].values.astype(np.float64)
    if time is None:
        return len(times) - 1
    wanted = check_real("time", time)
    found = np.flatnonzero(np.isclose(times, wanted, rtol=1e-9, atol=1e-12))
    if not len(found):
        some = ", ".join(f"{t:g}" for t in times[:8]) + (", …" if len(times) > 8 else "")
        raise ValueError(f"time must be one of those of {name}, {some}; got {wanted:g}.")
    return int(found[0])


def _exact(data: xr.Dataset, name: str, quantity: str, k: int, l: int) -> np.ndarray:
    """The quantity of one process, (learning_rate,)."""
    own = data.sel(process=name)
    mean = own["mean"].transpose("learning_rate", "class", "feature").values
    order = ("learning_rate", "class", "feature", "class_", "feature_")
    V = own["covariance"].transpose(*order).values
    if quantity == "gap":
        return np.linalg.norm(mean[:, k] - mean[:, l], axis=-1)
    if quantity == "deviation":
        blocks = V[:, k, :, k] + V[:, l, :, l] - V[:, k, :, l] - V[:, l, :, k]
        return np.sqrt(np.trace(blocks, axis1=1, axis2=2).clip(0))
    which = quantity.removesuffix("_error")
    axes = [d for d in own[which].dims if d != "learning_rate"]
    reference = data.sel(process="sgd")[which]
    square = ((own[which] - reference) ** 2).sum(axes)
    return np.sqrt((square / (reference**2).sum(axes)).values)


def _draw_points(
    ax: Axes, look: Look, found: tuple[np.ndarray, ...], coarse: np.ndarray, steps: str
) -> list[Line2D]:
    """Points of a simulation with their bars, open where steps are coarse; their legend entries."""
    handles = []
    for chosen, face, words in ((~coarse, look.colour, "simulated"), (coarse, "white", steps)):
        if not chosen.any():
            continue
        h, values, error = (v[chosen] for v in found)
        ax.errorbar(
            h, positive(values), 2 * error, color=look.colour, marker=look.marker, markersize=3.5,
            markerfacecolor=face, markeredgewidth=0.9, linestyle="none", elinewidth=0.9, zorder=3,
        )  # fmt: skip
        entry = Line2D([], [], color=look.colour, marker=look.marker, linestyle="none")
        entry.set(markersize=3.5, markerfacecolor=face, label=f"{look.short}, {words}")
        handles.append(entry)
    return handles
