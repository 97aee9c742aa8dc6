"""Two-level kernels fitted to recorded networks and to resamples of them, and their discrete process side by side."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

import lesde
from lesde.laws.rule import Transforms, kick
from lesde.model.lesde import class_average
from lesde.model.transforms import Transform


class Kernels(NamedTuple):
    """Several kernels of two levels and their noise, constant within each interval."""

    alpha: np.ndarray  # (draw, interval)
    beta: np.ndarray
    noise: np.ndarray
    """S (draw, interval, feature, feature) with S Sᵀ the covariance per unit of time of a sample's own noise."""


def draw_kernels(
    paths: xr.Dataset, counts: np.ndarray, transform: str, weights: np.ndarray, spread: str
) -> Kernels:
    """The kernel fitted to all networks of one learning rate, then one fitted to each resample of them.

    ``weights (draw, replicate)`` are the counts of each network in a resample, divided by their number R. The variance
    of resamples is too small by the factor (R−1)/R, so their distances from the fit are stretched accordingly. Where
    the average class means hardly determine a rate (in the L-model the contrasts of scores, if all classes are alike),
    a resample may determine it worse than all networks do: the draws then vary more than the fit.
    """
    x = paths["features"].transpose("replicate", "time", "sample", "feature").values.astype(float)
    times, R = paths["time"].values.astype(float), len(x)
    weights = np.concatenate([np.full((1, R), 1 / R), weights])
    means = class_average(x, counts)
    away = x - np.repeat(means, counts, axis=-2)
    # Divided by N − K, so that its growth is that of the process.
    within = np.einsum("rtia,rtib->rtab", away, away) / (counts.sum() - len(counts))
    # Averages of networks are paths with one sample per class, and no other replicates.
    features = np.tensordot(weights, means, 1)[:, None]
    averages = xr.Dataset(
        {"features": (("draw", "replicate", "time", "sample", "feature"), features)},
        {"time": times, "label": ("sample", np.arange(len(counts)))},
    ).assign_coords(iteration=("time", paths["iteration"].values))
    with warnings.catch_warnings():
        # The errors are those of the resamples.
        warnings.simplefilter("ignore", UserWarning)
        fit = lesde.fit_elasticity(averages, transform=transform, tail=False)
    growth = _growth(np.tensordot(weights, within, 1), times, spread)
    alpha, beta, covariance = (
        values[:1] + np.sqrt(R / (R - 1)) * (values - values[:1])
        for values in (fit["alpha"].values, fit["beta"].values, growth)
    )
    return Kernels(alpha, beta, _root(covariance))


def average_kernels(kernels: list[Kernels]) -> Kernels:
    """One kernel for all learning rates: the weighted mean of theirs, draw by draw.

    The weights are the precisions of α − β, averaged over time: the scatter of the draws grows with the learning rate.
    """
    variance = np.array([(k.alpha - k.beta)[1:].var(axis=0).mean() for k in kernels])
    weights = 1 / np.maximum(variance, 1e-12 * max(float(variance.max()), 1e-300))
    covariances = [k.noise @ k.noise.swapaxes(-1, -2) for k in kernels]
    alpha, beta, covariance = (
        np.tensordot(weights / weights.sum(), np.stack(values), 1)
        for values in ([k.alpha for k in kernels], [k.beta for k in kernels], covariances)
    )
    return Kernels(alpha, beta, _root(covariance))


def _root(covariance: np.ndarray) -> np.ndarray:
    """S with S Sᵀ the covariance; a draw that is not a non-negative matrix is replaced by the nearest one."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]


def growth_per_time(variance: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Slope, at least 0, of the line through the first point that fits a variance (…, time) best."""
    elapsed = times - times[0]
    return np.maximum((variance - variance[..., :1]) @ elapsed / (elapsed @ elapsed), 0.0)


def _growth(within: np.ndarray, times: np.ndarray, spread: str) -> np.ndarray:
    """Covariance per unit of time of the own noise, (draw, interval, feature, feature)."""
    width, p = np.diff(times), within.shape[-1]
    if spread == "constant":
        slope = growth_per_time(np.einsum("btaa->bt", within) / p, times)
        return np.broadcast_to(
            slope[:, None, None, None] * np.eye(p), (len(slope), len(width), p, p)
        )
    # The noise of the LE-SDE can only increase the covariance. A decrease in the networks is offset against
    # later increases, so that the covariance matches theirs wherever possible.
    reached, rates = within[:, 0].copy(), []
    for j, dt in enumerate(width):
        values, vectors = np.linalg.eigh(within[:, j + 1] - reached)
        add = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.swapaxes(-1, -2)
        reached += add
        rates.append(add / dt)
    return np.stack(rates, axis=1)


def frames_of_kernels(
    kernels: Kernels,
    transform: Transform,
    starts: np.ndarray,
    counts: np.ndarray,
    iterations: np.ndarray,
    learning_rate: float,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Features (draw, replicate, sample, feature) of the discrete process at each saved time.

    Every kernel runs from every one of the ``starts (replicate, sample, feature)``, sorted by class; ``iterations`` are those
    done at the saved times. A path that overflows continues as inf or NaN.

    One iteration draws a sample, whose kick is common to a class, and adds independent noise to every sample. Of the
    latter only that of the drawn sample is needed before the next saved time, so it is brought up to date when it is
    drawn.
    """
    B, R, (N, p), K = len(kernels.alpha), len(starts), starts.shape[1:], len(counts)
    maps, eye, lanes = Transforms(transform), np.eye(K), torch.arange(B * R)
    label = torch.from_numpy(np.repeat(np.arange(K), counts))
    own = torch.from_numpy(np.tile(starts, (B, 1, 1)))
    shift = torch.zeros(B * R, K, p, dtype=torch.float64)

    def normals(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    yield own.numpy().reshape(B, R, N, p).copy()
    for j, steps in enumerate(np.diff(iterations)):
        alpha, beta = (rates[:, j, None, None] for rates in (kernels.alpha, kernels.beta))
        E = torch.from_numpy(learning_rate * (beta + (alpha - beta) * eye).repeat(R, axis=0))
        S = torch.from_numpy(np.sqrt(learning_rate) * kernels.noise[:, j].repeat(R, axis=0))
        seen = torch.zeros(B * R, N, dtype=torch.float64)
        for m in range(int(steps)):
            drawn = torch.from_numpy(rng.integers(N, size=B * R))
            classes = label[drawn]
            late = normals(B * R, p) * (m - seen[lanes, drawn]).sqrt()[:, None]
            own[lanes, drawn] += (S @ late[:, :, None])[:, :, 0]
            seen[lanes, drawn] = float(m)
            sample = shift[lanes, classes] + own[lanes, drawn]
            shift += kick(maps, E[lanes, :, classes], sample, classes)
        own += (int(steps) - seen).sqrt()[:, :, None] * normals(B * R, N, p) @ S.mT
        yield (own + shift[:, label]).numpy().reshape(B, R, N, p)
