"""Fitted kernels with their uncertainty, from fits to resamples of the networks."""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

import lesde
from lesde.initial import class_average
from lesde.study.learning_rates_process import Kernels

__all__ = ["Moments", "average_kernels", "class_moments", "draw_kernels", "fit_quality"]


class Moments:
    """Class means and pooled covariances within classes of each network at one learning rate.

    Attributes
    ----------
    means : ndarray, shape (replicate, time, class, feature)
    within : ndarray, shape (replicate, time, feature, feature)
        Divided by N − K, so that its growth is that of the process.
    times : ndarray, shape (time,)
    iterations : ndarray of int, shape (time,)
    """

    def __init__(self, paths: xr.Dataset, counts: np.ndarray):
        x = paths["features"].transpose("replicate", "time", "sample", "feature").values
        x = x.astype(np.float64)
        self.means = class_average(x, counts)
        away = x - np.repeat(self.means, counts, axis=-2)
        self.within = np.einsum("rtia,rtib->rtab", away, away) / (counts.sum() - len(counts))
        self.times = paths["time"].values.astype(np.float64)
        self.iterations = paths["iteration"].values.astype(np.int64)
        self.counts = counts

    def averages(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and covariances averaged with weights (draw, replicate)."""
        return np.tensordot(weights, self.means, 1), np.tensordot(weights, self.within, 1)


def class_moments(paths: xr.Dataset, counts: np.ndarray) -> list[Moments]:
    """The moments of every learning rate; samples must be sorted by class."""
    return [
        Moments(paths.isel(learning_rate=i), counts) for i in range(paths.sizes["learning_rate"])
    ]


def fit_quality(paths: xr.Dataset, transform: str) -> xr.DataArray:
    """Share of the movement common to the networks that a fit explains, (learning_rate,)."""
    with warnings.catch_warnings():
        # Rates that are not identified show in the share itself.
        warnings.filterwarnings("ignore", message="the paths do not tell")
        fit = lesde.fit_elasticity(
            paths, transform=transform, estimator="averages", tail=False, smoothing=None
        )
    return fit["r_squared_common"]


def draw_kernels(moments: Moments, transform: str, weights: np.ndarray, spread: str) -> Kernels:
    """The kernel fitted to all networks, then one fitted to each resample of them.

    Parameters
    ----------
    moments : Moments
    transform : {"identity", "logits"}
    weights : ndarray, shape (draw, replicate)
        How often each network is in a resample, over their number.
    spread : {"covariance", "constant"}

    Returns
    -------
    Kernels
        With 1 + draw entries, the first that of the fit. Resamples of R networks vary by (R−1)/R of what
        they should; their distances from the fit are stretched accordingly.

    Notes
    -----
    Where the average class means hardly tell a rate (in the L-model the contrasts of scores, if all classes are alike), a
    resample may tell it worse than all networks do: the draws then vary more than the fit.
    """
    R = weights.shape[1]
    means, within = moments.averages(np.concatenate([np.full((1, R), 1 / R), weights]))
    fit = _fit(means, moments, transform)
    stretch = np.sqrt(R / (R - 1))
    alpha, beta, Q = (
        values[:1] + np.concatenate([0 * values[:1], stretch * (values[1:] - values[:1])])
        for values in (
            fit["alpha"].values,
            fit["beta"].values,
            _growth(within, moments.times, spread),
        )
    )
    return Kernels(alpha, beta, _root(Q))


def _root(Q: np.ndarray) -> np.ndarray:
    """S with S Sᵀ = Q; a draw may leave the non-negative matrices, and is taken back to them."""
    values, vectors = np.linalg.eigh(Q)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]


def average_kernels(kernels: list[Kernels]) -> Kernels:
    """One kernel for all learning rates: the weighted mean of theirs, draw by draw.

    The weights are the precisions of α − β, averaged over time: the scatter of the draws grows with
    the learning rate.
    """
    variance = np.array([(k.alpha - k.beta)[1:].var(axis=0).mean() for k in kernels])
    floor = 1e-12 * max(float(variance.max()), 1e-300)
    weights = 1 / np.maximum(variance, floor)
    weights /= weights.sum()
    alpha, beta, Q = (
        np.tensordot(weights, np.stack(values), 1)
        for values in zip(
            *((k.alpha, k.beta, k.noise @ k.noise.swapaxes(-1, -2)) for k in kernels), strict=True
        )
    )
    return Kernels(alpha, beta, _root(Q))


def _fit(means: np.ndarray, moments: Moments, transform: str) -> xr.Dataset:
    """Rates of the LE-ODE through averaged class means (draw, time, class, feature)."""
    K = means.shape[2]
    # Averages of networks are paths with one sample a class, and no other replicates.
    averages = xr.Dataset(
        {"features": (("draw", "replicate", "time", "sample", "feature"), means[:, None])},
        coords={
            "time": moments.times,
            "label": ("sample", np.arange(K)),
            "iteration": ("time", moments.iterations),
        },
    )
    with warnings.catch_warnings():
        # The errors are those of the resamples.
        warnings.filterwarnings("ignore", message="paths has 1 replicate")
        warnings.filterwarnings("ignore", message="the paths do not tell")
        return lesde.fit_elasticity(averages, transform=transform, tail=False)


def _growth(within: np.ndarray, times: np.ndarray, spread: str) -> np.ndarray:
    """Covariance per unit of time of the own noise, (draw, interval, feature, feature)."""
    width = np.diff(times)
    p = within.shape[-1]
    if spread == "constant":
        elapsed = times - times[0]
        grown = np.einsum("btaa->bt", within - within[:, :1]) / p
        slope = np.maximum(grown @ elapsed / (elapsed @ elapsed), 0.0)
        return np.broadcast_to(
            slope[:, None, None, None] * np.eye(p), (len(slope), len(width), p, p)
        )
    # The noise of the LE-SDE only adds. What the networks take back is made up for later, so that
    # the covariance is theirs wherever it can be.
    reached, rates = within[:, 0].copy(), []
    for j, dt in enumerate(width):
        values, vectors = np.linalg.eigh(within[:, j + 1] - reached)
        add = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.swapaxes(-1, -2)
        reached += add
        rates.append(add / dt)
    return np.stack(rates, axis=1)
