"""Phase diagram: separation probability over the strength of elasticity and time."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.checks import check_dataset, check_real, shown
from lesde.plot.canvas import axis_label, check_panels, legend_above, panels, tidy_log
from lesde.plot.style import INK, style

__all__ = ["phase_diagram"]

# A coordinate spread over more than this factor is shown on a logarithmic axis.
WIDE = 30.0


@style()
def phase_diagram(
    dataset: xr.Dataset,
    x: str | None = None,
    y: str = "time",
    *,
    critical: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Separation probability as a heat map over a parameter and time, with P = ½ and the critical line.

    Parameters
    ----------
    dataset : xarray.Dataset
        Variable ``probability`` over ``y`` and one other numeric dimension, such as ``c`` of
        α − β = c/t. Optional variable ``transition``, over either dimension: where the probability
        passes ½ in theory, drawn as a dashed line. ``probability`` is what
        `lesde.separation_probability` or `lesde.predict_separation` gave for each parameter.
    x : str, optional
        Dimension on the horizontal axis. Default: the one that is not ``y``.
    y : str, default "time"
        Dimension on the vertical axis.
    critical : float, optional
        Where to draw the critical line on the horizontal axis. Default: the dataset's variable,
        coordinate or attribute ``critical``; else K/2 for a dimension ``c`` with attribute
        ``n_classes``, and ½ for a dimension ``c_over_K``; else none. (With α − β = c/t the classes of
        the I-model separate in the limit iff c > K/2.)
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset without ``probability`` over two numeric dimensions.

    Notes
    -----
    A coordinate that is positive and spans a factor of more than 30 is on a logarithmic axis; a first
    value of 0 (the time of the initial state) is then left out if the rest is so. Cells are bounded
    midway between neighbours, in the scale of the axis.

    Examples
    --------
    >>> runs = [lesde.predict_separation(model(c), times, means) for c in cs]  # doctest: +SKIP
    >>> data = xr.concat(runs, xr.IndexVariable("c", cs)).assign_attrs(n_classes=3)  # doctest: +SKIP
    >>> ax = lesde.plot.phase_diagram(data)  # doctest: +SKIP
    """
    source = "lesde.separation_probability for each parameter, joined with xarray.concat,"
    check_dataset("dataset", dataset, ["probability"], source)
    for argument, dim in (("x", x), ("y", y)):
        if not isinstance(dim, str) and not (argument == "x" and dim is None):
            raise TypeError(f"{argument} must be the name of a dimension; got {shown(dim)}.")
    if np.isnan(dataset["probability"].values).all():
        raise ValueError(
            "dataset.probability holds no number, as where only bounds, or only pairs of classes one by "
            "one, are known. Put those in its place with dataset.assign(probability=...)."
        )
    x = _horizontal(dataset["probability"], x, y)
    check_panels(ax, 1)
    critical = _critical(dataset, x) if critical is None else check_real("critical", critical)
    data = dataset.sortby([x, y])
    logs = {}
    for dim in (x, y):
        values = data[dim].values.astype(np.float64)
        later = values[values > 0]
        logs[dim] = len(later) > 2 and later[-1] > WIDE * later[0] and (values[0] >= 0)
        if logs[dim] and values[0] == 0:
            data = data.isel({dim: slice(1, None)})
        if (values == 0).sum() > 1 or len(np.unique(values)) < len(values):
            raise ValueError(f"dataset must have distinct values of {dim}; some are repeated.")

    target: Axes = panels(ax, 1, 1, 2.6)[0, 0]
    across, up = (data[d].values.astype(np.float64) for d in (x, y))
    values = data["probability"].transpose(y, x).values.astype(np.float64)
    mesh = target.pcolormesh(
        _edges(across, logs[x]), _edges(up, logs[y]), values,
        vmin=0.0, vmax=1.0, cmap="cividis", rasterized=True,
    )  # fmt: skip
    if logs[x]:
        target.set_xscale("log")
        tidy_log(target, "x")
    if logs[y]:
        target.set_yscale("log")
        tidy_log(target, "y")
    handles: list[Artist] = []
    if min(values.shape) > 1 and np.nanmin(values) < 0.5 < np.nanmax(values):
        target.contour(across, up, values, levels=[0.5], colors="white", linewidths=1.2)
        handles.append(Line2D([], [], color="0.6", linewidth=1.2, label="P = ½"))
    if "transition" in data:
        handles.append(_transition(target, data, x, y))
    if critical is not None:
        line = target.axvline(
            critical, color="#D55E00", linestyle=(0, (1, 1)), linewidth=1.6, label="critical"
        )
        handles.append(line)
    # Neither the critical line nor the transition may widen the map.
    target.set_xlim(*_edges(across, logs[x])[[0, -1]])
    target.set_ylim(*_edges(up, logs[y])[[0, -1]])
    target.set_xlabel(axis_label(data.coords[x], "c / K" if x == "c_over_K" else x))
    target.set_ylabel(axis_label(data.coords[y], y))
    bar = target.figure.colorbar(mesh, ax=target, aspect=25, pad=0.02)
    bar.ax.tick_params(labelsize=7, width=0.6, length=2)
    bar.set_label("P(separated)", size=8)
    bar.outline.set_linewidth(0.6)  # type: ignore[operator]
    # White on the white page would not show in the legend, so its entry is grey with an edge.
    _legend(target, handles)
    return target


def _legend(ax: Axes, handles: list[Artist]) -> None:
    legend = legend_above(ax, handles)
    if legend is None:
        return
    for drawn in legend.get_lines():
        if drawn.get_label() == "P = ½" or drawn.get_color() == "0.6":
            import matplotlib.patheffects as effects

            drawn.set_color("white")
            drawn.set_path_effects(
                [effects.Stroke(linewidth=2.6, foreground="0.45"), effects.Normal()]
            )


def _horizontal(variable: xr.DataArray, x: str | None, y: str) -> str:
    dims = [str(d) for d in variable.dims]
    if y not in dims:
        raise ValueError(f"y must be a dimension of dataset.probability, {dims}; got {y!r}.")
    others = [d for d in dims if d != y]
    if len(others) != 1 or (x is not None and x not in others):
        raise ValueError(
            f"dataset.probability must have two dimensions, {y!r} and "
            f"{'one other' if x is None else repr(x)}; got {', '.join(map(repr, dims))}. Choose entries "
            f"of others with dataset.isel(...)."
        )
    for dim in (*others, y):
        if dim not in variable.coords or variable[dim].dtype.kind not in "iuf":
            raise ValueError(
                f"dataset must have numbers along {dim!r}; add them with "
                f"dataset.assign_coords({dim}=[...])."
            )
        if variable.sizes[dim] < 2:
            raise ValueError(f"dataset must have at least 2 values of {dim}; got 1.")
    return others[0]


def _critical(dataset: xr.Dataset, x: str) -> float | None:
    if "critical" in dataset.variables and dataset["critical"].ndim == 0:
        return float(dataset["critical"])
    if "critical" in dataset.attrs:
        return float(dataset.attrs["critical"])
    if x == "c" and "n_classes" in dataset.attrs:
        return float(dataset.attrs["n_classes"]) / 2
    return 0.5 if x == "c_over_K" else None


def _edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Bounds of cells around values, midway between them on the axis they are shown on."""
    v = np.log(values) if log else values
    middle = (v[1:] + v[:-1]) / 2
    edges = np.concatenate([[2 * v[0] - middle[0]], middle, [2 * v[-1] - middle[-1]]])
    return np.exp(edges) if log else edges


def _transition(ax: Axes, data: xr.Dataset, x: str, y: str) -> Artist:
    variable = data["transition"]
    if variable.dims not in ((x,), (y,)):
        raise ValueError(
            f"dataset.transition must be over {x!r} or {y!r}; got {', '.join(map(str, variable.dims))}."
        )
    line = variable.values.astype(np.float64)
    along = data[variable.dims[0]].values
    points = (along, line) if variable.dims == (x,) else (line, along)
    (drawn,) = ax.plot(
        *points, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, label="P = ½, theory"
    )
    return drawn
