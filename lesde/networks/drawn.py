"""Class means of the drawn training samples, over windows of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import check_integer, check_labels
from lesde.paths import check_dataset


def drawn_means(drawn: xr.Dataset, times: int = 50) -> xr.Dataset:
    """Paths with one sample per class: the mean of the logits that each network drew of it in each window of training.

    A step of SGD on one sample shows the logits of that sample only; averages over a window of steps give every
    network a mean per class, for `lesde.fit_elasticity`.

    Parameters
    ----------
    drawn : xarray.Dataset
        The dataset ``"drawn"`` of :func:`record_ensemble`: logits, ``features ([learning_rate,] replicate, draw, feature)``, with
        the coordinates ``label ([learning_rate,] replicate, draw)``, integers 0 to K−1, ``time ([learning_rate,] draw)`` and,
        optionally, ``iteration (draw)``. Learning rates must have the same times.
    times : int, default 50
        Number of windows of equal length from the first to the last draw. They should be short against changes of
        the features: averages over a window are taken for values at its centre.

    Returns
    -------
    xarray.Dataset
        ``features ([learning_rate,] replicate, time, sample, feature)``, float64, sample k being class k; ``drawn_count
        ([learning_rate,] replicate, time, sample)``, the number of draws behind each mean. Coordinates ``label
        (sample)``, 0 to K−1; ``time``, the mean time of the draws in each window; ``time_start``, ``time_end (time)``,
        its edges; where ``drawn`` has it, ``iteration ([learning_rate,] time)``, that of the centre, rounded.

    Raises
    ------
    ValueError
        If a network drew no sample of some class in some window, or features are not finite.

    Examples
    --------
    >>> from lesde.networks import drawn_means, geo_mnist, lenet, record_ensemble
    >>> record = next(record_ensemble(geo_mnist(), lambda: lenet(3), 0.005, 20, [0, 10], drawn=True))  # doctest: +SKIP
    >>> lesde.fit_elasticity(drawn_means(record["drawn"], 20), estimator="averages")  # doctest: +SKIP
    """
    labels, moments = _checked(drawn)
    steps = np.unique(moments)
    W = check_integer("times", times, 1, len(steps))
    # A draw stands for the interval up to the next, so the last window ends one step after it. Edges lie
    # between draws, where rounding cannot move a draw into another window.
    step = (steps[-1] - steps[0]) / (len(steps) - 1)
    cuts = np.rint(np.linspace(0, len(steps), W + 1)).astype(int)
    edges = np.append(steps, steps[-1] + step)[cuts] - step / 2
    window = np.searchsorted(edges, moments) - 1
    features = drawn["features"].values
    lead, p = features.shape[:-2], features.shape[-1]
    # One number for each cell (learning rate and replicate, window, class). Logits have a feature for each
    # class; features of other layers do not determine the number.
    logits = drawn.attrs.get("layer", "logits") == "logits"
    K, series = max(int(labels.max()) + 1, p if logits else 0), int(np.prod(lead))
    own = labels.reshape(series, -1)
    cell = ((np.arange(series)[:, None] * W + window) * K + own).ravel()

    def per_cell(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(cell, weights, minlength=series * W * K).reshape(*lead, W, K)

    count = per_cell()
    if (count == 0).any():
        *_, replicate, w, k = np.argwhere(count == 0)[0]
        raise ValueError(
            f"times must be windows in which every replicate drew every class: from {edges[w]:g} to "
            f"{edges[w + 1]:g}, replicate number {replicate} drew none of class {k}. Give fewer windows, or "
            f"leave out replicates that lack a class."
        )
    values = features.reshape(-1, p).astype(np.float64)
    finite = np.isfinite(values).all(-1).reshape(*lead, -1)
    if not finite.all():
        replicate, draw = np.argwhere(~finite)[0][-2:]
        raise ValueError(
            f"drawn.features must be finite; {int((~finite).sum())} of {finite.size} draws hold NaN or inf, one "
            f"at t = {moments[draw]:g} in replicate number {replicate}. Leave out such replicates or draws."
        )
    means = np.stack([per_cell(column) for column in values.T], -1) / count[..., None]

    def per_window(numbers: np.ndarray) -> np.ndarray:
        return np.bincount(window, numbers) / np.bincount(window)

    dims = drawn["features"].dims[:-2]
    coords: dict[Any, Any] = {d: drawn[d] for d in dims if d in drawn.coords}
    about = {"long_name": "time", "description": "centre of the window"}
    coords |= {
        "time": ("time", per_window(moments), about),
        "time_start": ("time", edges[:-1]),
        "time_end": ("time", edges[1:]),
        "label": ("sample", np.arange(K)),
    }
    if "iteration" in drawn.variables:
        middle = np.rint(per_window(drawn["iteration"].values)).astype(np.int64)
        shape = tuple(drawn.sizes[d] for d in dims[:-1])
        coords["iteration"] = ((*dims[:-1], "time"), np.broadcast_to(middle, (*shape, W)))
    over = (*dims, "time", "sample")
    return xr.Dataset(
        {
            "features": ((*over, "feature"), means),
            "drawn_count": (over, count, {"long_name": "draws in the window"}),
        },
        coords=coords,
        attrs={**drawn.attrs, "reduced": "means over windows of the drawn samples of each class"},
    )


def _checked(drawn: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels (..., replicate, draw) and times (draw,)."""
    source = "record_ensemble(..., drawn=True), as record['drawn'],"
    check_dataset("drawn", drawn, ["features", "label", "time"], source)
    dims = ("replicate", "draw", "feature")
    found = drawn["features"].dims
    if found not in (dims, ("learning_rate", *dims)) or drawn["label"].dims != found[:-1]:
        raise ValueError(
            f"drawn must hold features ([learning_rate,] replicate, draw, feature) and label ([learning_rate,] "
            f"replicate, draw); got {found} and {drawn['label'].dims}. Transpose or rename them."
        )
    labels = drawn["label"].values
    check_labels("drawn.label", labels.ravel())
    moments = np.atleast_2d(drawn["time"].values.astype(np.float64))
    if (moments != moments[0]).any():
        raise ValueError(
            "drawn must hold learning rates that have the same times. Take one at a time, with "
            "drawn.isel(learning_rate=[0])."
        )
    if len(moments[0]) < 2 or (np.diff(moments[0]) < 0).any() or moments[0, 0] == moments[0, -1]:
        raise ValueError("drawn.time must increase along draw, over at least two draws.")
    return labels, moments[0]
