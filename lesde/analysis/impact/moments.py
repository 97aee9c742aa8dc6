"""The impact dataset: the effect of single SGD steps on features, reduced to a few numbers per step.

A step at one drawn sample J moves every other sample i by ΔX_i. The estimates of elasticity need only
the mean change of every class, as a vector, and mean squares; the changes themselves are not kept.
No transform H is chosen here, so one measurement serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import (
    bare_array,
    check_choice,
    check_finite_array,
    check_integer,
    check_labels,
    check_real,
    shown,
)

DISTANCES = {
    "r2": "squared distance of features",
    "cosine": "cosine of features",
    "input_r2": "squared distance of inputs",
    "input_cosine": "cosine of inputs",
}
"""Distances by which pairs of samples may be sorted."""

PAIRS = ("same", "other")
"""Relation of the moved sample's class to the drawn sample's."""

VARIABLES = {
    "change": (("class", "feature"), "mean change of the features of a class by one step"),
    "square": (("class",), "mean squared change of the features of a class by one step"),
    "relative": (("class",), "mean of |change| over |change of the drawn sample|"),
    "drawn": (("feature",), "features of the drawn sample before the step"),
    "bin_change": (("pair", "bin", "feature"), "sum of changes over the samples of a bin"),
    "bin_count": (("pair", "bin"), "samples in a bin"),
    "bin_distance": (("pair", "bin"), "sum of distances to the drawn sample over a bin"),
}
"""Dimensions after the draw, and long names."""


# --------------------------------------------------------------------------------------------------
# Pairs of a drawn and a moved sample sorted by the distance between them.


def check_bins(bins: Any) -> int | np.ndarray:
    """The argument ``bins``: how many, or their edges."""
    if not isinstance(bins, Sequence | np.ndarray) or isinstance(bins, str):
        return check_integer("bins", bins, 2, 10**6)
    edges = check_finite_array("bins", bins, [("edges",)])
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(
            f"bins must be a number of bins, or at least 2 increasing edges; got {shown(bins)}."
        )
    return edges


def make_bins(bins: int | np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The edges given, or those of so many bins that hold equal numbers of the distances."""
    if isinstance(bins, int):
        return np.quantile(distances, np.linspace(0, 1, bins + 1))
    return bins


def pair_distances(drawn: np.ndarray, features: np.ndarray, by: str) -> np.ndarray:
    """Squared distances or cosines (..., draw, sample) of (..., draw, feature) to (..., sample, feature).

    ``by`` ends in "r2" or "cosine"; the cosine is 0 where a norm is 0, as in a `lesde.FeatureKernel`.
    """
    drawn, features = np.asarray(drawn, np.float64), np.asarray(features, np.float64)
    if by.endswith("r2"):
        # Around a common origin the products below lose the fewest digits.
        origin = features.mean(-2, keepdims=True)
        drawn, features = drawn - origin, features - origin
    inner = drawn @ features.swapaxes(-1, -2)
    one, other = (np.einsum("...p,...p->...", x, x) for x in (drawn, features))
    if by.endswith("r2"):
        return np.maximum(one[..., :, None] + other[..., None, :] - 2 * inner, 0.0)
    norms = np.sqrt(one[..., :, None] * other[..., None, :])
    return np.clip(inner / np.where(norms > 0, norms, 1.0), -1.0, 1.0)


def bin_changes(
    edges: np.ndarray, changes: np.ndarray, distances: np.ndarray, same: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums over the samples of every bin, of the drawn sample's class and of others apart.

    A bin has its lower edge, the last one both. From changes (draw, sample, feature), distances to the drawn sample
    and whether both are of one class (draw, sample): ``bin_change`` (draw, pair, bin, feature), ``bin_count`` and
    ``bin_distance`` (draw, pair, bin).
    """
    draws, _, p = changes.shape
    shape = (draws, 2, len(edges) - 1)
    size = int(np.prod(shape))
    inside = (distances >= edges[0]) & (distances <= edges[-1])
    found = np.digitize(distances, edges[1:-1])
    at = ((np.arange(draws)[:, None] * 2 + ~same) * shape[2] + found)[inside]
    rows = changes[inside]
    sums = np.stack([np.bincount(at, rows[:, j], size) for j in range(p)], axis=-1)
    return {
        "bin_change": sums.reshape(*shape, p),
        "bin_count": np.bincount(at, minlength=size).astype(np.float64).reshape(shape),
        "bin_distance": np.bincount(at, distances[inside], size).reshape(shape),
    }


# --------------------------------------------------------------------------------------------------
# Datasets of impacts.


def reduce_changes(
    changes: np.ndarray, labels: np.ndarray, own: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Effect of some steps on samples, by class, from changes (draw, sample, feature).

    ``change`` (draw, class, feature), ``square`` and, with |ΔX_J| of the drawn samples (draw,), ``relative`` (draw,
    class); the last is NaN where the drawn sample did not move.
    """
    shares = np.eye(labels.max() + 1)[labels].T
    shares /= shares.sum(1, keepdims=True)
    changes = np.asarray(changes, dtype=np.float64)
    squares = np.einsum("dnp,dnp->dn", changes, changes)
    result = {"change": shares @ changes, "square": squares @ shares.T}
    if own is not None:
        result["relative"] = np.sqrt(squares) @ shares.T / np.where(own > 0, own, np.nan)[:, None]
    return result


def impact_from_changes(
    changes: Any,
    labels: Any,
    drawn: Any,
    drawn_labels: Any,
    learning_rate: float,
    *,
    drawn_changes: Any = None,
    features: Any = None,
    by: str | None = None,
    bins: int | Sequence[float] = 12,
    shares: Any = None,
) -> xr.Dataset:
    """The impact dataset of changes that were observed by any other means.

    Parameters
    ----------
    changes : array (..., draw, sample, feature)
        ΔX_i of every sample i by one step at every drawn sample J, each from the same state; leading axes (),
        (time,) or (replicate, time).
    labels : int array (sample,)
        Classes 0 to K−1 of the samples that are moved, each present.
    drawn : array (..., draw, feature)
        X_J, features of the drawn samples before the step.
    drawn_labels : int array (draw,)
        Their classes.
    learning_rate : float
        h, the learning rate of the steps.
    drawn_changes : array (..., draw, feature), optional
        ΔX_J; needed for the relative measure only.
    features : array (..., sample, feature), optional
        X_i before the step; needed to sort pairs by distance.
    by : {"r2", "cosine"}, optional
        Also sort pairs by the squared distance ‖X_i − X_J‖² or the cosine of X_i and X_J.
    bins : int or sequence of float, default 12
        Number of bins, with edges at quantiles of all pairs at each time, or the edges.
    shares : array (class,), optional
        Shares w_k of the classes among the samples that training draws. Default: those of ``labels``.

    Returns
    -------
    xarray.Dataset
        For `lesde.fit_impact` and `lesde.impact_by_distance`: ``change (..., draw, class, feature)``, ``square``, ``relative
        (..., draw, class)``, ``drawn (..., draw, feature)``; ``drawn_label(draw)``, ``count(class)``, ``share(class)``, ``step`` (h).

    Examples
    --------
    >>> import lesde, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels, x = np.repeat([0, 1], 20), rng.normal(size=(40, 3))
    >>> E = np.array([[2.0, -1.0], [-0.5, 1.0]])
    >>> changes = 0.01 * E[labels][:, labels].T[..., None] * x[:, None]     # one step at each sample
    >>> impact = impact_from_changes(changes, labels, x, labels, 0.01)
    >>> lesde.fit_impact(impact).E.values.round(3)
    array([[ 2. , -1. ],
           [-0.5,  1. ]])
    """
    array = check_finite_array("changes", changes)
    if array.ndim not in (3, 4, 5):
        raise ValueError(
            f"changes must have the axes (draw, sample, feature), with (time,) or (replicate, time) before "
            f"them; got shape {array.shape}."
        )
    lead, (D, n, p) = array.shape[:-3], array.shape[-3:]
    labels = check_labels("labels", labels)
    counts = np.bincount(labels)
    of = bare_array("drawn_labels", drawn_labels)
    if len(labels) != n or of.shape != (D,) or not set(of.tolist()) <= set(range(len(counts))):
        raise ValueError(
            f"labels must hold one label for each of the {n} samples, and drawn_labels one of these integers for each of "
            f"the {D} drawn samples; got {len(labels)} and {shown(drawn_labels)}."
        )
    weights = counts / n
    if shares is not None:
        weights = check_finite_array("shares", shares, [(len(counts),)])
        if (weights <= 0).any():
            raise ValueError(f"shares must be positive; got {weights.tolist()}.")
        weights = weights / weights.sum()
    step = check_real("learning_rate", learning_rate, 0.0, open_minimum=True)
    x = check_finite_array("drawn", drawn, [(*lead, D, p)])
    own = edges = None
    if drawn_changes is not None:
        moved = check_finite_array("drawn_changes", drawn_changes, [(*lead, D, p)])
        own = np.linalg.norm(moved, axis=-1).ravel()
    parts = reduce_changes(array.reshape(-1, n, p), labels, own)
    if by is not None:
        check_choice("by", by, ("r2", "cosine"))
        if features is None:
            raise ValueError(f"by={by!r} needs features, those of the samples before the step.")
        at = check_finite_array("features", features, [(*lead, n, p)])
        chosen = check_bins(bins)
        # (replicate, time, ...), with bins of every time's own
        whole = (1,) * (2 - len(lead)) + lead
        distances = pair_distances(x, at, by).reshape(*whole, D, n)
        edges = np.array([make_bins(chosen, distances[:, t]) for t in range(whole[1])])
        every, same = array.reshape(*whole, D, n, p), labels == of[:, None]
        binned = [
            bin_changes(edges[t], every[r, t], distances[r, t], same) for r, t in np.ndindex(*whole)
        ]
        parts |= {name: np.concatenate([one[name] for one in binned]) for name in binned[0]}
        edges = edges if lead else edges[0]
    parts = {name: value.reshape(*lead, D, *value.shape[1:]) for name, value in parts.items()}
    over = ("replicate", "time")[2 - len(lead) :]
    return impact_dataset(
        parts | {"drawn": x}, over, of.astype(np.int64), counts, weights, step, edges=edges, by=by
    )


def impact_dataset(
    parts: Mapping[str, np.ndarray],
    lead: Sequence[str],
    drawn_labels: np.ndarray,
    counts: np.ndarray,
    shares: np.ndarray,
    step: float,
    *,
    edges: np.ndarray | None = None,
    by: str | None = None,
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Put reduced changes under their dimensions, ``lead`` first."""
    variables: dict[str, Any] = {
        name: ((*lead, "draw", *VARIABLES[name][0]), values, {"long_name": VARIABLES[name][1]})
        for name, values in parts.items()
    }
    named: dict[str, Any] = {
        "drawn_label": ("draw", drawn_labels, {"long_name": "class of the drawn sample"}),
        "class": np.arange(len(counts)),
        "count": ("class", counts, {"long_name": "samples that were watched"}),
        "share": ("class", shares, {"long_name": "share of the samples that training draws"}),
        "step": ((), step, {"long_name": "learning rate of the step"}),
    }
    if by is None or edges is None:
        return xr.Dataset(variables, named | dict(coords or {}))
    over = ("learning_rate", "time")[3 - edges.ndim :]
    variables["bin_edges"] = ((*over, "edge"), edges, {"long_name": "edges of the bins"})
    named |= {"pair": list(PAIRS), "bin": np.arange(edges.shape[-1] - 1)}
    return xr.Dataset(variables, named | dict(coords or {}), {"by": by})
