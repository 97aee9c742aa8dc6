"""Figures of the difference between SGD and the SDEs that approximate it, as the learning rate grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.analysis.class_means import read_averages
from lesde.checks import check_choice, check_instance, check_real
from lesde.paths import check_dataset, check_paths
from lesde.plot.frames import check_pair
from lesde.plot.style import (
    INK,
    axis_label,
    legend_above,
    palette,
    panels,
    positive,
    style,
)
from lesde.plot.ticks import tidy_log


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

    Notes
    -----
    Both axes are logarithmic. What has no logarithm, such as an error of exactly 0, is left out.

    Lines are the SDEs in continuous time (unless ``moments`` was made with ``dt``). By default `lesde.simulate`
    integrates an SDE in steps as long as the learning rate h: such points do not lie on their line (an Euler step of
    length h of ``TorchSDE(noise="sampling")`` has the first two moments of SGD). Points whose step, attribute ``dt``, is
    more than h/2 are open, unless ``moments`` was made with the same. A twentieth of the smallest h is short enough.

    Examples
    --------
    >>> m = lesde.moments(model, [0, 1], means, rates, ["sgd", "plain"])  # doctest: +SKIP
    >>> ax = lesde.plot.sampling_noise(m)  # doctest: +SKIP
    """
    check_choice("quantity", quantity, QUANTITIES)
    needed = ["mean", "covariance", "learning_rate"]
    data = check_dataset("moments", moments, needed, "lesde.moments with several learning rates")
    if "learning_rate" not in data.dims:
        data = data.expand_dims("learning_rate")
    if "process" not in data.dims:
        data = data.expand_dims(process=[str(data.attrs.get("process", "sgd"))])
    processes = [check_choice("moments.process", str(p), LOOKS) for p in data["process"].values]
    pair = check_pair(pair, data.sizes["class"])
    data = _at(data, time, "moments").sortby("learning_rate")
    errors = quantity.endswith("_error")
    if errors and "sgd" not in processes:
        raise ValueError(
            f"quantity={quantity!r} is the distance from 'sgd', which moments does not hold; call "
            f"lesde.moments with process=['sgd', ...]."
        )
    given: Any = {} if simulated is None or errors else simulated
    if isinstance(given, xr.Dataset):
        of_sde = given.attrs.get("engine") in ("exact", "torchsde")
        given = {given.attrs.get("sde", "plain") if of_sde else "sgd": given}
    wanted = "a dataset from lesde.simulate, or a mapping to such"
    check_instance("simulated", given, Mapping, wanted)
    points = []
    for name, paths in given.items():
        look = LOOKS[check_choice("a key of simulated", name, LOOKS)]
        check_dataset("simulated", paths, ["learning_rate"], "lesde.simulate with several rates")
        one = _at(paths, float(data["time"]), "simulated")
        points.append((look, paths.attrs.get("dt", 0.0), _estimates(one, quantity, pair)))

    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    target.set(xscale="log", yscale="log")
    handles: list[Any] = []
    for name in [n for n in LOOKS if n in processes and not (errors and n == "sgd")]:
        look, values = LOOKS[name], positive(_exact(data, name, quantity, pair))
        h = data["learning_rate"].values
        handles += target.plot(
            h, values, color=look.colour, linestyle=look.line, label=look.label, zorder=2
        )
    for look, steps, found in points:
        # A selection of learning rates leaves the steps of all: the largest is then the safe one.
        each = steps if np.size(steps) == len(found[0]) else np.max(steps)
        same = np.isclose(each, moments.attrs.get("dt", np.inf), rtol=0.1)
        handles += _draw_points(target, look, found, (each > 0.5 * found[0]) & ~same)
    target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
    target.set_ylabel(QUANTITIES[quantity].format(*pair))
    tidy_log(target, "x")
    tidy_log(target, "y")
    legend_above(target, handles, "points: simulated, ±2 s.e." if points else None)
    return target


def _at(dataset: xr.Dataset, time: float | None, name: str) -> xr.Dataset:
    """A dataset at one of its times."""
    times = dataset["time"].values.astype(np.float64)
    wanted = times[-1] if time is None else check_real("time", time)
    found = np.flatnonzero(np.isclose(times, wanted, rtol=1e-9, atol=1e-12))
    if not len(found):
        some = ", ".join(f"{t:g}" for t in times[:8]) + (", …" if len(times) > 8 else "")
        raise ValueError(f"time must be one of those of {name}, {some}; got {wanted:g}.")
    return dataset.isel(time=int(found[0]))


def _estimates(
    paths: xr.Dataset, quantity: str, pair: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Learning rates, and the gap or its standard deviation with standard error, at one time."""
    if "learning_rate" not in paths.dims:
        paths = paths.expand_dims("learning_rate")
    if "mean" in paths:
        means = paths["mean"]
    else:
        features, labels = check_paths("simulated", paths, ("replicate", "sample", "feature"), 2)
        order = ("learning_rate", "replicate", "sample", "feature")
        means = read_averages("simulated.features", features.transpose(*order), labels)
    count = means.sizes.get("replicate", 1)
    if count < 3:
        raise ValueError("simulated must have the dimension 'replicate', with at least 3 of them.")
    means = means.transpose("class", "learning_rate", "replicate", "feature").astype(np.float64)
    gaps = means.values[pair[0]] - means.values[pair[1]]
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


def _exact(data: xr.Dataset, name: str, quantity: str, pair: tuple[int, int]) -> np.ndarray:
    """The quantity of one process, (learning_rate,)."""
    own, (k, l) = data.sel(process=name), pair
    order = ("learning_rate", "class", "feature", "class_", "feature_")
    mean = own["mean"].transpose(*order[:3]).values
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
    ax: Axes, look: Look, found: tuple[np.ndarray, ...], coarse: np.ndarray
) -> list[Line2D]:
    """Points of a simulation with their bars, open where steps are coarse; their legend entries."""
    handles = []
    points: Any = {"color": look.colour, "marker": look.marker, "linestyle": "none"}
    kinds = ((~coarse, look.colour, "simulated"), (coarse, "white", "steps > h/2"))
    for chosen, face, words in kinds:
        points["markerfacecolor"] = face
        if chosen.any():
            h, values, error = (v[chosen] for v in found)
            ax.errorbar(h, positive(values), 2 * error, elinewidth=0.9, zorder=3, **points)
            handles.append(Line2D([], [], label=f"{look.short}, {words}", **points))
    return handles
