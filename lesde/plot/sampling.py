"""Where SGD and the SDEs that approximate it part, as the learning rate grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.checks import check_choice, check_dataset, check_integer, check_real, shown
from lesde.plot.canvas import axis_label, check_panels, legend_above, panels, positive, tidy_log
from lesde.plot.frames import class_average
from lesde.plot.style import INK, palette, style

__all__ = ["sampling_noise"]

SOURCE = "lesde.moments"


class Look(NamedTuple):
    """How one process is drawn and called."""

    label: str
    colour: str
    line: Any
    marker: str


_BLUE, _RED, _GREEN = palette(3)
LOOKS = {
    "sgd": Look("SGD", INK, "-", "o"),
    "plain": Look("SDE", _BLUE, (0, (4, 2)), "s"),
    "sampling": Look("SDE with sampling noise", _RED, (0, (6, 1.5, 1, 1.5)), "^"),
    "modified": Look("modified SDE", _GREEN, (0, (1, 1)), "D"),
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
        standard errors; or a mapping from process ("sgd", "plain", …) to such. A dataset alone is
        taken for "sgd". Not shown for errors.
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
        For datasets without what is needed, a time or pair they do not hold, errors without "sgd".

    Notes
    -----
    Both axes are logarithmic. What has no logarithm, such as an error of exactly 0, is left out.

    Examples
    --------
    >>> m = lesde.moments(model, [0, 1], means, rates, ["sgd", "plain"])  # doctest: +SKIP
    >>> ax = lesde.plot.sampling_noise(m)  # doctest: +SKIP
    """
    check_choice("quantity", quantity, QUANTITIES)
    check_dataset("moments", moments, ["mean", "covariance"], SOURCE)
    data = _by_process(moments)
    k, l = _pair(pair, data.sizes["class"])
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
    points = {} if simulated is None else _simulated(simulated)
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
        label, colour, line, _ = LOOKS[name]
        handles += target.plot(h, values, color=colour, linestyle=line, label=label, zorder=2)
    rates = list(h)
    for name, paths in points.items():
        rates += _draw_points(target, paths, name, quantity, (k, l), when)
    if points:
        marker = LOOKS[next(iter(points))].marker if len(points) == 1 else "o"
        label = "simulated, ±2 s.e."
        handles.append(Line2D([], [], color=INK, marker=marker, linestyle="none", label=label))
    target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
    target.set_ylabel(QUANTITIES[quantity].format(k, l))
    pad = (max(rates) / min(rates)) ** 0.05 if max(rates) > min(rates) else 2.0
    target.set_xlim(min(rates) / pad, max(rates) * pad)
    tidy_log(target, "x")
    tidy_log(target, "y")
    legend_above(target, handles)
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


def _pair(pair: Any, n_classes: int) -> tuple[int, int]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(f"pair must be two classes (k, l); got {shown(pair)}.")
    k, l = (check_integer("an entry of pair", c, 0) for c in pair)
    if max(k, l) >= n_classes or k == l:
        raise ValueError(
            f"pair must be two different classes from 0 to {n_classes - 1}; got {shown(pair)}."
        )
    return k, l


def _time(dataset: xr.Dataset, time: float | None, name: str) -> int:
    """Position of a time in a dataset."""
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


def _simulated(simulated: Any) -> dict[str, xr.Dataset]:
    given = {"sgd": simulated} if isinstance(simulated, xr.Dataset) else simulated
    if not isinstance(given, Mapping):
        raise TypeError(
            f"simulated must be a dataset from lesde.simulate, or a mapping from process to such; got "
            f"{shown(simulated)}."
        )
    for name, paths in given.items():
        check_choice("a key of simulated", name, LOOKS)
        known = paths if isinstance(paths, xr.Dataset) and "mean" in paths else None
        variable = "features" if known is None else "mean"
        check_dataset("simulated", paths, [variable], "lesde.simulate")
        if paths[variable].sizes.get("replicate", 1) < 3:
            raise ValueError(
                "simulated must have the dimension 'replicate', with at least 3 of them."
            )
        if "learning_rate" not in paths.coords:
            raise ValueError(
                "simulated must hold the coordinate learning_rate; simulate with learning_rate=[...]."
            )
    return dict(given)


def _draw_points(
    ax: Axes, paths: xr.Dataset, name: str, quantity: str, pair: tuple[int, int], when: float
) -> list[float]:
    """Points of a simulation with their bars; returns the learning rates."""
    paths = paths.isel(time=_time(paths, when, "simulated"))
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
    h = paths["learning_rate"].values.astype(np.float64)
    _, colour, _, marker = LOOKS[name]
    ax.errorbar(
        h, positive(values), 2 * error, color=colour, marker=marker, markersize=3,
        linestyle="none", elinewidth=0.9, zorder=3,
    )  # fmt: skip
    return list(h)
