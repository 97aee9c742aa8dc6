"""The exact Gaussian law of a linear model: class means, their covariance, spread within classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lesde.checks import check_times
from lesde.errors import Diverged
from lesde.initial import read_initial
from lesde.linear_system import contrast_basis
from lesde.propagator import Transition, to_classes

if TYPE_CHECKING:
    from lesde.derivation.coefficients import Coefficients
    from lesde.model import LESDE

__all__ = ["exact_law"]

LARGEST_RESULT = 4e9  # bytes


def exact_law(model: LESDE, times: Any, initial: Any = None) -> xr.Dataset:
    """The law of a model whose kernel depends on classes and time only.

    Class means and the samples' deviations from them are independent. The means are Gaussian with
    mean Φ(t, t₀) X̄(t₀) and covariance ∫ Φ(t, s) diag(σ_kσ_kᵀ/n_k) Φ(t, s)ᵀ ds. A sample's deviation is
    its initial one plus a Gaussian of covariance ∫ σ_kσ_kᵀ ds, whatever the kernel: σ_kσ_kᵀ (t − t₀)
    for a constant noise.

    Formulas are integrated between the places where they switch, however short a pulse is. A Python
    callable is seen at points only: a pulse in it is found where it lasts at least 1/5000 of the time
    from the first to the last of ``times``; one that may be shorter must contain one of ``times``.

    Parameters
    ----------
    model : LESDE
    times : array, shape (time,)
        Strictly increasing; ``times[0]`` is the time of the initial state.
    initial : None or array, optional
        (class, feature) class means, every sample at its mean; (sample, feature) samples sorted by
        class; None, the default, for random means N(0, I/p), whose covariance is then included.

    Returns
    -------
    xarray.Dataset
        ``mean`` (time, class, feature); ``covariance`` (time, class, feature, class_, feature_) of
        the class means; ``centred_mean`` and ``centred_covariance``, the same of the class means less
        the (unweighted) grand mean: where contrasts do not mix with the grand mean they keep their own
        digits, however much faster that grows, so gaps between classes are to be taken from these;
        ``within`` (time, class, feature, feature_), the covariance of a sample
        about its class's process mean that noise has built up. The empirical covariance of n_k
        samples (divisor n_k) has expectation (1 − 1/n_k) of it, plus that of the initial
        deviations. Coordinates ``label`` (sample) and ``count`` (class). Where ``initial`` gives
        the samples, also their deviations ``offset`` (sample, feature), which do not change. All
        float64, accurate to about 1e-12 relative.

    Raises
    ------
    ValueError, TypeError
        For times or initial states that are not usable, a result beyond 4 GB, or a kernel or noise that
        cannot be integrated, such as one with a pole; names its entry.
    Diverged
        Where the growth overflows.
    """
    times = check_times("times", times, minimum_length=1)
    start = read_initial(model, initial)
    K, p = model.n_classes, model.n_features
    size = 16.0 * len(times) * (K * p) ** 2
    if size > LARGEST_RESULT:
        raise ValueError(
            f"times has {len(times)} entries, for which the covariance of {K * p} class-mean features "
            f"takes {size / 1e9:.0f} GB; give fewer times, or simulate with lesde.simulate."
        )
    coefficients = model.derive().coefficients()
    with np.errstate(over="ignore", invalid="ignore"):
        steps = model.derive().transitions(times)
        basis = contrast_basis(K)
        # Coordinates: grand mean and contrasts, each with its own digits.
        mean = np.zeros((len(times), K, p))
        covariance = np.zeros((len(times), K, p, K, p))
        if start.means is None:
            covariance[0] = np.eye(K * p).reshape(K, p, K, p) / p
        else:
            mean[0] = basis.T @ start.means
        _propagate(steps, mean, covariance)
    for name, values in (("the mean of the law", mean), ("the covariance of the law", covariance)):
        finite = np.isfinite(values.reshape(len(times), -1)).all(1)
        if not finite.all():
            raise Diverged(
                times[np.argmin(finite)], name, "end `times` earlier or weaken the kernel"
            )

    centred = basis[:, 1:]
    within = _within(coefficients, times)
    data: dict[str, Any] = {
        "mean": (("time", "class", "feature"), basis @ mean, {"long_name": "class mean"}),
        "covariance": (
            ("time", "class", "feature", "class_", "feature_"),
            to_classes(covariance, basis),
            {"long_name": "covariance of the class means"},
        ),
        "centred_mean": (
            ("time", "class", "feature"),
            centred @ mean[:, 1:],
            {"long_name": "class mean less the grand mean"},
        ),
        "centred_covariance": (
            ("time", "class", "feature", "class_", "feature_"),
            to_classes(covariance[:, 1:, :, 1:], centred),
            {"long_name": "covariance of the class means less the grand mean"},
        ),
        "within": (
            ("time", "class", "feature", "feature_"),
            within,
            {"long_name": "covariance of a sample about its class's process mean"},
        ),
    }
    if start.offsets is not None:
        data["offset"] = (("sample", "feature"), start.offsets)
    coords = {
        "time": ("time", times, {"long_name": "time"}),
        "label": ("sample", model.labels),
        "count": ("class", model.counts),
    }
    attrs = {
        "model": json.dumps(model.describe()),
        "initial": "random" if start.is_random else "given",
    }
    return xr.Dataset(data, coords, attrs)


def _within(coefficients: Coefficients, times: np.ndarray) -> np.ndarray:
    """∫ σ_kσ_kᵀ from the first time, shape (time, class, feature, feature)."""
    noise = coefficients.noise
    if noise.is_constant:
        noise.check_variance(times)
        return (times - times[0])[:, None, None, None] * coefficients.noise_covariance
    parts = noise.integrated(times)
    return np.concatenate([np.zeros((1, *parts.shape[1:])), parts.cumsum(0)])


def _propagate(steps: list[Transition], mean: np.ndarray, covariance: np.ndarray) -> None:
    """Fill mean and covariance, in contrast coordinates, from their first entries, in place."""
    K, p = mean.shape[1:]
    for i, step in enumerate(steps):
        mean[i + 1] = step.apply(step.phi, mean[i])
        carried = covariance[i].reshape(K * p, K, p)
        carried = step.apply(step.phi, carried).reshape(K * p, K * p)
        carried = step.apply(step.phi, carried.T.reshape(K * p, K, p)).reshape(K, p, K, p)
        covariance[i + 1] = carried + step.contrast_covariance()
