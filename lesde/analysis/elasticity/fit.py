"""From a fit back to a kernel, so that what was fitted can be simulated and compared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from lesde.analysis.class_means import ClassMeans, read_class_means
from lesde.analysis.elasticity.rates import (
    MINIMUM_INTERVALS,
    log_slope,
    power_tail,
    smooth_rates,
    tail_window,
)
from lesde.analysis.elasticity.transitions import (
    Steps,
    TransitionFit,
    fit_averages,
    fit_transitions,
    rate_basis,
)
from lesde.checks import (
    check_choice,
    check_finite_array,
    check_flag,
    check_fraction,
    check_real,
    shown,
)
from lesde.model.kernels import ClassMatrix, Kernel, TwoLevel
from lesde.model.transforms import Transform, make_transform
from lesde.paths import check_dataset

__all__ = [
    "TWO_LEVEL",
    "ElasticityResult",
    "choose_transform",
    "fit_elasticity",
    "fitted_kernel",
    "read_steps",
    "warn_of_features",
]


# --------------------------------------------------------------------------------------------------
# What paths record of how they were made, as far as a fit of elasticity has to know it.

# A step h of a method multiplies the expected class means by 1 + x + c x², x = hM: this is c.
CURVATURE = {"euler": 0.0, "milstein": 0.0, "srk": 0.5}


def recorded_model(paths: xr.Dataset) -> dict[str, Any]:
    """The model as `lesde.LESDE.describe` wrote it; empty where there is none."""
    text = paths.attrs.get("model")
    try:
        model = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return {}
    return model if isinstance(model, dict) else {}


def choose_transform(
    paths: xr.Dataset, transform: Any, n_classes: int, n_features: int
) -> Transform:
    """The transform given; without one that of the paths' model, else the identity.

    Warns
    -----
    UserWarning
        Where the transform given is not that of the model.
    """
    recorded = recorded_model(paths).get("transform")
    given = None if transform is None else make_transform(transform, n_classes, n_features)
    if recorded is None:
        return given or make_transform("identity", n_classes, n_features)
    try:
        own = make_transform(recorded, n_classes, n_features)
    except (TypeError, ValueError):
        if given is not None:
            return given
        raise ValueError(
            f"paths were made by a model with transform={_name(recorded)}, which does not fit their "
            f"{n_classes} classes and {n_features} features; give transform."
        ) from None
    if given is None:
        return own
    if not _same(given, own):
        warnings.warn(
            f"transform={_name(transform)} is not that of the model that made these paths, "
            f"transform={_name(recorded)} by their attributes: α and β are then not those of that "
            f"model. Leave transform out to take the recorded one.",
            UserWarning,
            stacklevel=3,
        )
    return given


def _name(value: Any) -> str:
    value = getattr(value, "kind", value)
    return repr(value) if isinstance(value, str) else f"array of shape {np.shape(value)}"


def _same(one: Transform, two: Transform) -> bool:
    if "matrix" not in (one.kind, two.kind):
        return one.kind == two.kind
    return bool(np.allclose(one.array(), two.array(), rtol=1e-6, atol=1e-9))


def warn_of_features(paths: xr.Dataset) -> None:
    """Warn where the paths' model has a strength that depends on the features.

    Warns
    -----
    UserWarning
    """
    kernel = recorded_model(paths).get("kernel")
    if not isinstance(kernel, dict) or kernel.get("kind") != "FeatureKernel":
        return
    from lesde.model.kernels import FeatureKernel

    try:
        if FeatureKernel(kernel["strength"]).class_kernel is not None:
            return
    except (KeyError, TypeError, ValueError):
        pass  # it cannot be read again, so nothing says that it is a kernel of classes
    warnings.warn(
        "these paths were made by a model with a FeatureKernel, whose strength depends on the features: "
        "their class means do not obey the linear law that is fitted. α, β or E are then those of the "
        "linear model that comes closest to the motion of these paths, roughly the strength averaged "
        "over pairs of samples; they change with the initial state and the noise, and their errors hold "
        "for replicates made the same way. r_squared_common tells how well they predict one time from the last.",
        UserWarning,
        stacklevel=3,
    )


def read_steps(paths: xr.Dataset, data: ClassMeans) -> Steps | None:
    """The steps in which the process moved: SGD's iterations, or those of a recorded integration.

    Parameters
    ----------
    paths : xarray.Dataset
    data : ClassMeans
        Of these paths, with ``steps`` read where there is a coordinate ``iteration``.

    Returns
    -------
    Steps, or None for continuous time
        An integration divides every saved interval evenly into steps of at most ``attrs["dt"]``. Of
        paths without some of their times the steps are taken to be those of the times that are left.
    """
    if data.steps is not None:
        return Steps(data.steps, np.zeros(data.steps.shape))
    method = paths.attrs.get("method")
    if paths.attrs.get("engine") != "torchsde" or method not in CURVATURE:
        return None
    rates = _learning_rates(data)
    longest = _longest_steps(paths.attrs.get("dt"), rates, len(data.values))
    modified = paths.attrs.get("sde") == "modified"
    if longest is None or (modified and rates is None):
        warnings.warn(
            "these paths were integrated in steps, but do not tell the step or learning rate of each of "
            "them any more: they are fitted in continuous time, which makes rates too small by the "
            "relative amount ½·step·rate. Keep the coordinate learning_rate.",
            UserWarning,
            stacklevel=3,
        )
        return None
    from lesde.paths import StepGrid

    grids = {dt: np.diff(StepGrid.regular(data.times, dt).saved) for dt in set(longest.tolist())}
    counts = np.stack([grids[dt] for dt in longest.tolist()])
    curvature = np.full(counts.shape, CURVATURE[str(method)])
    if modified:  # drift M − (h/2)M² at learning rate h, where M changes slowly
        assert rates is not None
        curvature = -rates[:, None] / 2 * counts / np.diff(data.times)
    return Steps(counts, curvature)


def _learning_rates(data: ClassMeans) -> np.ndarray | None:
    """Of every group, shape (group,)."""
    if "learning_rate" not in data.coords:
        return None
    values = np.asarray(data.coords["learning_rate"].values, dtype=float)
    dims = list(data.groups)
    if "learning_rate" in dims:
        after = len(dims) - 1 - dims.index("learning_rate")
        values = values.reshape(-1, *[1] * after)
    return np.broadcast_to(values, tuple(data.groups.values())).ravel()


def _longest_steps(dt: Any, rates: np.ndarray | None, groups: int) -> np.ndarray | None:
    """The longest step of every group: one for all, or each its learning rate."""
    try:
        steps = np.unique(np.asarray(dt, dtype=float))
    except (TypeError, ValueError):
        return None
    if steps.size == 1 and steps[0] > 0:
        return np.full(groups, steps[0])
    return rates if rates is not None and np.isin(rates, steps).all() else None


# --------------------------------------------------------------------------------------------------
# The dataset that `lesde.fit_elasticity` returns, built from estimates per interval.

# The rows are α, β and α − β, in terms of (α, β).
TWO_LEVEL = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
RATES = ["alpha", "beta", "alpha_minus_beta"]
INTEGRALS = ["A", "B", "A_minus_B"]
STACK = 4
"""Warnings point at the caller of the fit: beside it a method and a function or method that it calls."""
FAR_OFF = -1.0
"""r_squared below which rates predict so badly that they say nothing: twice as far off as "nothing moves"."""


def pooled_noise(
    noise: np.ndarray, unit: np.ndarray, freedom: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise of each interval drawn toward that of all, as far as their scatter is that of estimates.

    Weights made of few degrees of freedom would favour the intervals whose noise happened to come out small. log σ̂²
    with ν degrees of freedom has bias ψ(ν/2) − log(ν/2) and variance ψ′(ν/2); what it varies more is kept (Stein's shrinkage).

    Parameters
    ----------
    noise, unit, freedom : ndarray, shape (group, interval)

    Returns
    -------
    noise : ndarray, shape (group, interval)
        In ``unit``; where no interval of a group tells any, the same in all of them.
    freedom : ndarray, shape (group,)
        Degrees of freedom behind it, on average over intervals.
    """
    result, number = np.nan_to_num(noise), np.zeros(len(noise))
    for g in range(len(noise)):
        own, nu = freedom[g] > 0, freedom[g]
        relative = np.log(unit[g]) - np.log(unit[g].max())
        if not own.any():
            result[g] = np.exp(-relative)
            continue
        if not (noise[g, own] > 0).all():
            continue
        half = nu[own] / 2
        logs = 2 * (np.log(noise[g, own]) + relative[own])
        unbiased = logs - digamma(half) + np.log(half)
        common = np.log(nu[own] @ np.exp(logs - logs.max()) / nu.sum()) + logs.max()
        scatter = float(np.var(unbiased, ddof=1)) if own.sum() > 1 else 0.0
        keep = max(0.0, 1 - float(polygamma(1, half).mean()) / scatter) if scatter > 0 else 0.0
        drawn = np.full(len(own), common)
        drawn[own] += keep * (unbiased - common)
        result[g] = np.exp(drawn / 2 - relative)
        number[g] = 1 / (keep / nu[own].mean() + (1 - keep) / nu.sum())
    return result, number


class ElasticityResult:
    """Puts estimates and their errors into a dataset, one kind of quantity at a time."""

    def __init__(
        self, data: ClassMeans, fit: TransitionFit, kernel: str, robust: bool, confidence: float
    ):
        self.data, self.fit = data, fit
        self.two_level, self.robust, self.confidence = kernel == "two-level", robust, confidence
        self.widths = np.diff(data.times)
        self.known = np.isfinite(fit.unit_variance)
        R = fit.deleted.shape[2]
        self.share = (R - 1) / R
        jackknife = np.where(self.known, self.share * (fit.deleted**2).sum(2), np.inf)
        self.variance = jackknife
        if not robust:
            self.variance = self._by_model(np.where(fit.freedom > 0, fit.noise, np.inf))
        noise, self.freedom = pooled_noise(fit.noise, fit.unit, fit.freedom)
        self.likely = self._by_model(noise)
        self.ratio = self._ratio(jackknife)
        self.quantile = self._student(np.full(len(self.freedom), R - 1) if robust else self.freedom)
        some = np.where(noise > 0, noise, np.inf)
        self.likely_precision = fit.precision / some[..., None, None] ** 2
        self.shares = fit.shares * noise[..., None, None] ** 2
        times = data.times
        middle = (times[1:] + times[:-1]) / 2
        self.dataset = xr.Dataset(coords=data.coords).assign_coords(
            time=times,
            interval=middle,
            start=("interval", times[:-1]),
            end=("interval", times[1:]),
            count=("class", data.counts),
        )
        if self.two_level:
            self.dataset = self.dataset.assign_coords(level=RATES)
        else:
            K = len(data.counts)
            self.dataset = self.dataset.assign_coords(
                {"class": np.arange(K), "class_": np.arange(K)}
            )
        unknown = ~self.known.all((0, 2))
        bare = int((fit.freedom == 0).sum(1).max())
        if bare and not robust:
            _warn_bare(bare, fit.freedom.shape[1])
        if unknown.any():
            n = int(unknown.sum())
            what = "α and β apart" if self.two_level else "every entry of E"
            # Of groups that tell all rates the difference is known too.
            difference = self.two_level and bool(self.known[:, unknown, -1].all())
            _warn_unknown(n, len(unknown), what, float(times[:-1][unknown][0]), difference)

    def _by_model(self, noise: np.ndarray) -> np.ndarray:
        """Variances (group, interval, f) where σ is this, inf where a rate is not identified."""
        unit = np.where(self.known, self.fit.unit_variance, 1.0)
        return np.where(self.known, noise[..., None] ** 2 * unit, np.inf)

    def _ratio(self, jackknife: np.ndarray) -> np.ndarray:
        """Variance of each rate over what the model says, averaged over intervals: (group, f).

        The spread between few replicates is too noisy for weights; the model's variance has the right
        shape over time, and this the right size.
        """
        use = self.known & (self.likely > 0)
        if not self.robust:
            return np.ones(use.shape[::2])
        quotient = np.where(use, jackknife, 0.0) / np.where(use, self.likely, 1.0)
        number = use.sum(1)
        ratio = np.where(number > 0, quotient.sum(1) / np.maximum(number, 1), 1.0)
        return np.where(ratio > 0, ratio, 1.0)

    def _put(
        self, name: str, values: np.ndarray, dims: tuple[Hashable, ...], long_name: str = ""
    ) -> None:
        """A variable of shape (group, ...) under its own dimensions."""
        groups = self.data.groups
        own = values.shape[1:]
        if "class" in dims:
            own = (*own[:-1], self._K, self._K)
        values = np.reshape(values, (*groups.values(), *own))
        self.dataset[name] = ((*groups, *dims), values)
        if long_name:
            self.dataset[name].attrs["long_name"] = long_name

    def _put_with_errors(
        self,
        name: str,
        values: np.ndarray,
        error: np.ndarray,
        dims: tuple[Hashable, ...],
        long_name: str,
        quantile: np.ndarray | float,
    ) -> None:
        reach = quantile * error
        self._put_with_limits(name, values, error, values - reach, values + reach, dims, long_name)

    def _put_with_limits(
        self,
        name: str,
        values: np.ndarray,
        error: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        dims: tuple[Hashable, ...],
        long_name: str,
    ) -> None:
        self._put(name, values, dims, long_name)
        self._put(f"{name}_se", error, dims, f"standard error of {long_name}")
        self._put(f"{name}_lower", low, dims)
        self._put(f"{name}_upper", high, dims)

    def _quantile(
        self, factor: np.ndarray, total: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Of Student's t, for Σ weight × rate: (group, ..., f).

        ``factor`` is weight² (t, 1) and ``total`` sums over intervals, axis 1. Replicates that carry unequal shares of
        the variance count for fewer: (Σ s)²/Σ s² of them. By the model degrees of freedom are Satterthwaite's, without the bias of
        squares of estimated variances: those of the interval for a single one.
        """
        if self.robust:
            shares = total(self.shares * factor[:, None])
            square = (shares**2).sum(-2)
            R = shares.shape[-2]
            number = np.where(
                square > 0, shares.sum(-2) ** 2 / np.where(square > 0, square, 1.0), R
            )
            return self._student(number - 1)
        part = np.where(np.isfinite(self.variance), self.variance, 0.0) * factor
        part = part / np.maximum(part.max(1, keepdims=True), 1e-300)
        square = total(part**2 / (self.fit.freedom[..., None] + 2))
        number = total(part) ** 2 / np.where(square > 0, square, np.inf)
        return self._student(number - 2)

    def _student(self, freedom: np.ndarray | float) -> np.ndarray:
        return student.ppf((1 + self.confidence) / 2, np.fmax(freedom, 1.0))

    def _spread(
        self,
        names: list[str],
        values: np.ndarray,
        error: np.ndarray,
        quantile: np.ndarray,
        dim: str,
        words: str,
    ) -> None:
        """Values (group, time or interval, f) as three variables, or as one of matrices."""
        if self.two_level:
            for j, name in enumerate(names):
                at = (..., j)
                self._put_with_errors(
                    name, values[at], error[at], (dim,), words % name, quantile[at]
                )
        else:
            self._put_with_errors(
                names[-1], values, error, (dim, "class", "class_"), words % names[-1], quantile
            )

    def add_integrals(self) -> None:
        width = self.widths[:, None]
        zero = np.zeros_like(self.fit.rates[:, :1])
        values = np.concatenate([zero, np.cumsum(self.fit.rates * width, axis=1)], axis=1)
        if self.robust:
            moved = np.cumsum(self.fit.deleted * width[:, None], axis=1)
            variance = self.share * (moved**2).sum(2)
        else:
            variance = np.cumsum(np.where(self.known, self.variance, 0.0) * width**2, axis=1)
        variance = np.where(np.logical_and.accumulate(self.known, axis=1), variance, np.inf)
        error = np.sqrt(np.concatenate([zero, variance], axis=1))
        names = INTEGRALS if self.two_level else ["E_integral"]
        quantile = self._quantile(width**2, partial(np.cumsum, axis=1))
        quantile = np.concatenate([quantile[:, :1], quantile], axis=1)
        self._spread(names, values, error, quantile, "time", "%s, integral of the rate")

    def add_rates(self, smoothing: str | None) -> None:
        raw, error = self.fit.rates, np.sqrt(self.variance)
        names = RATES if self.two_level else ["E"]
        quantile = self._quantile(np.ones((raw.shape[1], 1)), np.asarray)
        raw_names = [f"{name}_raw" for name in names]
        self._spread(raw_names, raw, error, quantile, "interval", "%s, mean over interval")
        if smoothing is not None and raw.shape[1] >= MINIMUM_INTERVALS:
            raw, error = raw.copy(), error.copy()
            for g in range(len(raw)):
                if np.isfinite(error[g]).any() and (self.fit.noise[g] != 0).all():
                    smooth = self._smooth_levels if self.two_level else self._smooth_entries
                    raw[g], error[g] = smooth(g)
                    quantile[g] = self.quantile[g]
        self._spread(names, raw, error, quantile, "interval", "%s, smoothed")

    def _smooth_levels(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        scale = 1.0 / np.sqrt(self.ratio[g, :2])
        precision = self.likely_precision[g] * np.outer(scale, scale)
        precision = np.where(self.fit.converged[g, :, None, None], precision, 0.0)
        smooth, covariance = smooth_rates(self.fit.rates[g, :, :2], precision)
        C = TWO_LEVEL
        return smooth @ C.T, np.sqrt(np.einsum("fi,nij,fj->nf", C, covariance, C))

    def _smooth_entries(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        rates, errors = np.empty_like(self.fit.rates[g]), np.empty_like(self.fit.rates[g])
        precision = 1.0 / (self.likely[g] * self.ratio[g])
        for j in range(rates.shape[-1]):
            smooth, covariance = smooth_rates(
                self.fit.rates[g, :, j : j + 1], precision[:, j, None, None]
            )
            rates[:, j], errors[:, j] = smooth[:, 0], np.sqrt(covariance[:, 0, 0])
        return rates, errors

    def add_tails(self, tail: float | tuple[float, float] | None, offset: float | None) -> None:
        window = tail_window(self.data.times, tail)
        increments = self.fit.rates * self.widths[:, None]
        variance = self.likely * self.ratio[:, None] * self.widths[:, None] ** 2
        # Without noise the weights are equal.
        floor = (1e-9 * np.abs(increments).max(1, initial=0.0, keepdims=True)) ** 2
        variance = np.maximum(variance, np.where(floor > 0, floor, 1.0) * 1e-6)
        dims = ("level",) if self.two_level else ("class", "class_")
        failed: dict[str, list[str]] = {}
        shape = self.fit.rates.shape[::2]
        shifts, evidence = np.full(shape, np.nan), np.full(shape, np.nan)
        for name in ("tail_index", "log_slope_index"):
            index, error, low, high = np.full((4, *shape), np.nan)
            for g, f in np.ndindex(*shape):
                arguments = (self.data.times, increments[g, :, f], variance[g, :, f], window)
                if name == "tail_index":
                    estimate = power_tail(*arguments, float(self.quantile[g]), offset)
                else:
                    estimate = log_slope(*arguments)
                index[g, f] = estimate.index
                if estimate.reason:
                    level = RATES[f] if self.two_level else f"E[{f // self._K}, {f % self._K}]"
                    failed.setdefault(f"{name}: {estimate.reason}", []).append(level)
                    continue
                error[g, f] = self._functional_error(g, f, estimate.weights)
                factor = (estimate.weights * self.widths)[:, None] ** 2
                quantile = self._quantile(factor, partial(np.sum, axis=1))[g, f]
                reach = quantile * error[g, f]
                low[g, f], high[g, f] = index[g, f] - reach, index[g, f] + reach
                if name == "log_slope_index":
                    continue
                shifts[g, f] = estimate.offset
                if estimate.limits is not None:
                    # The error by the variances that the weights are made of, at the best offset.
                    use = estimate.weights != 0  # elsewhere the variance may be infinite
                    likely = np.sqrt((estimate.weights[use] ** 2 * variance[g, use, f]).sum())
                    ratio = error[g, f] / likely
                    low[g, f], high[g, f] = estimate.limits((quantile * ratio) ** 2)
                    error[g, f] = (high[g, f] - low[g, f]) / (2 * quantile)
                    evidence[g, f] = 1 / (1 + np.exp(np.clip(1 - estimate.gain / 2, -700, 700)))
            words = "tail index r" if name == "tail_index" else "1 − d log|A| / d log t"
            self._put_with_limits(name, index, error, low, high, dims, words)
        self._put("tail_offset", shifts, dims, "offset s of the tail (t + s)^−r")
        if offset is None:
            self._put(
                "tail_offset_weight", evidence, dims, "Akaike weight of an offset against none"
            )
        for reason, levels in failed.items():
            names = list(dict.fromkeys(levels))
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            listed = ", ".join(names[:6]) + more
            _warn_tail(reason, listed, window)
        self.dataset.attrs["tail"] = list(window)

    @property
    def _K(self) -> int:
        return len(self.data.counts)

    @property
    def _jackknife_quantile(self) -> float:
        R = self.fit.deleted.shape[2]
        return float(student.ppf((1 + self.confidence) / 2, max(R - 1, 1)))

    def _functional_error(self, g: int, f: int, weights: np.ndarray) -> float:
        """Standard error of Σ weight × increment."""
        use = weights != 0
        factor = (weights * self.widths)[use]
        if self.robust:
            moved = factor @ self.fit.deleted[g, use, :, f]
            return float(np.sqrt(self.share * (moved**2).sum()))
        return float(np.sqrt((factor**2 * self.variance[g, use, f]).sum()))

    def add_quality(self) -> None:
        fit = self.fit
        self._warn_of_noise()
        size = fit.unit.max(1)
        noise = fit.noise * (fit.unit / size[:, None])
        words = "σ̂ of a sample per √time"
        self._put("residual_scale_interval", noise * size[:, None], ("interval",), words)
        self._put("residual_scale", np.sqrt((noise**2).mean(1)) * size, (), words)
        for name, left, moved in (
            ("r_squared", fit.predicted_residual, fit.moved),
            ("r_squared_in_sample", fit.residual, fit.moved),
        ):
            self._put(f"{name}_interval", _share(left, moved), ("interval",), "share explained")
            self._put(name, _share(self._whole(left), self._whole(moved)), (), "share explained")
        left, moved = self._whole(fit.common_residual), self._whole(fit.common_moved)
        share = _share(left.sum(-1), moved.sum(-1))
        # Without replicate r, both of its roles in a pair fall out of the sums.
        without = _share(
            left.sum(-1, keepdims=True) - 2 * left, moved.sum(-1, keepdims=True) - 2 * moved
        )
        apart = without - without.mean(-1, keepdims=True)
        error = np.sqrt(self.share * (apart**2).sum(-1))
        error = np.where(np.isfinite(share) & (without.shape[-1] > 2), error, np.nan)
        words, t = "share of common movement explained", self._jackknife_quantile
        self._put_with_errors("r_squared_common", share, error, (), words, t)
        each = _share(fit.common_residual.sum(-1), fit.common_moved.sum(-1))
        self._put("r_squared_common_interval", each, ("interval",), words)
        dims = ("interval", "level") if self.two_level else ("interval", "class", "class_")
        self._put("identified", self.known, dims, "whether the data tell the raw rate")

    def _whole(self, squares: np.ndarray) -> np.ndarray:
        """Sums over intervals (group, ...) of squares (group, interval, ...), which are in each interval's unit."""
        return np.einsum("gt...,gt->g...", squares, self._squared_units)

    @property
    def _squared_units(self) -> np.ndarray:
        return (self.fit.unit / self.fit.unit.max(1, keepdims=True)) ** 2

    def _warn_of_noise(self) -> None:
        """Warn where the rates of some group predict far worse than that nothing moves."""
        left, moved = self.fit.predicted_residual, self.fit.moved
        share = _share(self._whole(left), self._whole(moved))
        if not (share < FAR_OFF).any():
            return
        g = int(np.nanargmin(share))
        worst = int(np.nanargmax((left[g] - moved[g]) * self._squared_units[g]))
        times = self.data.times
        start, end = float(times[worst]), float(times[worst + 1])
        t = "t" if end == times[-1] else f"{end:g}"
        bad = int((share < FAR_OFF).sum())
        of = (
            "" if len(share) == 1 else f" at worst, below {FAR_OFF:g} in {bad} of {len(share)} fits"
        )
        warnings.warn(
            f"r_squared = {share[g]:.3g}{of}: the rates explain less than nothing by far, most of it from "
            f"t = {start:g} to {end:g}. Rates are relative to class means; where these are hardly known, as before "
            f"the classes stand apart at the start of training, they are noise. Leave those times out, such as "
            f"paths.sel(time=slice({t}, None)).",
            UserWarning,
            stacklevel=STACK,
        )


def _share(left: np.ndarray, moved: np.ndarray) -> np.ndarray:
    return 1 - left / np.where(moved > 0, moved, np.nan)


def _warn_unknown(number: int, of: int, what: str, first: float, difference: bool) -> None:
    why = (
        "α − β is still identified. This is so with H = I where the grand mean of the classes is zero, and with "
        "H of logits where the mean logits of all classes reach equally far along their own directions. "
        if difference
        else ""
    )
    warnings.warn(
        f"the paths do not tell {what} in {number} of {of} intervals (the first starts at t = {first:g}): "
        f"standard errors are inf there, and in integrals from there on. {why}Start the replicates "
        f"differently, or leave out those times.",
        UserWarning,
        stacklevel=STACK,
    )


def _warn_bare(number: int, of: int) -> None:
    warnings.warn(
        f"in {number} of {of} intervals there are as many rates as numbers observed: nothing is left to tell the noise "
        f"by, so standard errors are inf there, and in integrals from there on. Give more replicates, or features of more "
        f"dimensions.",
        UserWarning,
        stacklevel=STACK,
    )


def _warn_tail(reason: str, levels: str, window: tuple[float, float]) -> None:
    warnings.warn(
        f"no {reason} (for {levels}, from t = {window[0]:g} to {window[1]:g}); it is NaN. Give another "
        f"window with tail=, or longer paths.",
        UserWarning,
        stacklevel=STACK,
    )


# --------------------------------------------------------------------------------------------------
# Elasticity from paths: `fit_elasticity`, the kernel that best explains how class means move.

# With fewer replicates a variance between them has too few degrees of freedom to be worth its robustness.
FEWEST_REPLICATES = 8


def fit_elasticity(
    paths: xr.Dataset,
    transform: Any = None,
    kernel: str = "two-level",
    confidence: float = 0.95,
    *,
    smoothing: str | None = "reml",
    tail: float | tuple[float, float] | bool | None = None,
    tail_offset: float | None = None,
    scheme: str = "auto",
    errors: str = "auto",
    estimator: str = "likelihood",
) -> xr.Dataset:
    """Estimate α(t), β(t) and their integrals A, B, or a full matrix E(t), from features.

    The class means of a model with kernel E obey dX̄^k = Σ_l w_l E_kl(t) H_l X̄^l dt + noise. They are
    observed without error, so each interval between saved times is a Gaussian regression whose
    coefficients depend on the rates through the matrix exponential. The rates are those of maximum
    likelihood with E constant within an interval and noise of variance σ²/n_k per unit time.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` with dimensions ``time``, ``sample``, ``feature`` and any others; coordinates ``time`` and
        ``label(sample)``, integers 0 to K−1 with K ≥ 2, in any order, classes of any sizes. The dimension ``replicate`` is
        what the fit averages over; every other (``learning_rate``, …) is fitted separately and kept.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), optional
        The matrices H_l, as for a model. Default: those of the model that the attributes of ``paths`` record, as
        `lesde.simulate` writes them, else "identity".
    kernel : {"two-level", "matrix"}, default "two-level"
        Estimate α and β, or all K² entries E_kl.
    confidence : float, default 0.95
        Level of all intervals.
    smoothing : {"reml"} or None, default "reml"
        How ``alpha``, ``beta``, ``E`` are made of the raw rates, one an interval: a smoothing spline over the number of the
        interval, averaged over its amount by restricted likelihood, with bands that include its bias on average over
        the curve; or the raw rates themselves (also for fewer than 5 intervals). Integrals and tail indices
        never use smoothed rates.
    tail : float, (float, float) or False, optional
        First time, or first and last, of the window for tail indices; False leaves them out. Default: from √(t₁ t_T) to the last
        time t_T, t₁ the first positive time: the second half in log t.
    tail_offset : float, optional
        s of the tail (t + s)^−r: 0 for a pure power of time, 1 for 1/(1+t)^r. Default: left to the data, between 0 and the last time
        of the window. The index is then that of the offset that fits best, where by Akaike's criterion it fits
        better than none; its limits are those over all offsets that the data allow, inf where they set none.
    scheme : {"auto", "exponential", "discrete"}, default "auto"
        Transition over an interval: e^{ΔM}, right for paths in continuous time, or (1 + (Δ/m) M)^m, right for m steps of
        SGD or of Euler's scheme. ``"auto"`` is discrete where ``paths`` has the coordinate ``iteration``, or attributes
        that record an integration by the engine "torchsde": its steps divide every interval evenly and are at most
        ``attrs["dt"]`` long. The steps of its method "srk" are 1 + x + x²/2 with x = (Δ/m) M, those of the modified
        equation at learning rate h are 1 + x − (h m/2Δ) x². Taking exp for such paths makes rates too small by the relative
        amount ½·step·(growth rate); use it where the times were changed after an integration.
    errors : {"auto", "replicate", "model"}, default "auto"
        ``"replicate"``: jackknife over replicates, with quantiles of Student's t (degrees of
        freedom: the effective number of replicates less one, fewer where some carry most of the information). It needs nothing but independent replicates:
        noise may differ between classes, be correlated over classes (sampling noise of SGD) and over time. ``"model"``:
        noise σ²/n_k per unit time, independent over classes, features and intervals, as in the LE-SDE, with quantiles of
        Student's t for the residual degrees of freedom of each interval; with none left, errors are inf. ``"auto"``:
        ``"replicate"`` from 8 replicates on.
    estimator : {"likelihood", "averages"}, default "likelihood"
        ``"likelihood"``: every replicate is a path of the LE-SDE, the best use of the data where that is so. ``"averages"``: class
        means are averaged over replicates first, as Zhang, Wang and Su do, and errors are those of the jackknife over
        replicates, which also takes off the bias of rates that noise in the averages makes (of order 1/R, and by at most half a
        standard error). For recorded networks, where noise is pulled back by the non-linear dynamics, which a fit to single
        networks takes for elasticity, and for class means of few samples, as `lesde.networks.drawn_means` gives. Needs replicates
        with the same expected means.

    Returns
    -------
    xarray.Dataset
        Dimensions: those of the features other than replicate, time, sample and feature, then ``time`` (the saved
        times) or ``interval`` (coordinate: its midpoint; with ``start`` and ``end``). For each variable ``x`` below there are ``x_se``,
        ``x_lower`` and ``x_upper``.

        - ``A``, ``B``, ``A_minus_B (time)``: integrals from the first saved time, never smoothed.
        - ``alpha``, ``beta``, ``alpha_minus_beta (interval)``: smoothed rates; ``alpha_raw``, … are the
          raw ones, averages of the rate over each interval.
        - ``tail_index (level)``: r of the rate ~ (t + s)^{−r}, from the increments of the integral; where s is left to the data
          ``_se`` is half the interval over the quantile. ``tail_offset (level)``: s, without errors; ``tail_offset_weight (level)``:
          Akaike weight of an offset against none, where it is left to the data; ``log_slope_index (level)``: 1 − d log|A|/d log t.
          ``level`` is ``alpha``, ``beta`` or ``alpha_minus_beta``.
        - with ``kernel="matrix"``: ``E``, ``E_raw (interval, class, class_)``, ``E_integral (time, class, class_)`` and tail indices
          ``(class, class_)``; first the class moved, then the class drawn.

        and without errors:

        - ``residual_scale``, ``residual_scale_interval (interval)``: σ̂ of a sample, per √time.
        - ``r_squared``, ``r_squared_interval (interval)``: share of Σ n_k|ΔX̄^k|² that the fitted rates explain in replicates they
          were not fitted to (each is predicted with the rates of the others), NaN for one replicate. At most 1; not above 0
          where the model predicts no better than "nothing moves". Noise counts against it. Far below 0 rates are noise: see Notes.
        - ``r_squared_common``, ``r_squared_common_interval (interval)``: the same share of the movement that replicates have in common,
          with noise and the fit's own use of it taken off: 1 in expectation where the model is right, however large the noise. It
          looks one interval ahead from the observed means: errors that add up along a path are not in it, so a value near 1
          does not say that a simulation with these rates stays with the paths. With ``_se``, ``_lower``, ``_upper`` by jackknife over replicates (without them
          per interval). It needs replicates whose class means move alike (the same start, or logits of
          networks); where they have nothing in common it is a ratio of noises, with an error to match, or NaN.
        - ``r_squared_in_sample``, ``r_squared_in_sample_interval``: the same without leaving a replicate out.
        - ``identified (interval[, level or class, class_])``: whether the data tell the raw rate.

        Attributes say what was fitted and how.

    Warns
    -----
    UserWarning
        When a rate is not identified in some interval (its standard error is inf there, and that of its integral from there
        on), when no tail index can be given (NaN), when ``r_squared`` is below −1 in some group,
        when standard errors rest on the model because replicates are few,
        when ``transform`` is not that of the recorded model, and when that has a kernel that depends on the features.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above, features that are not finite, or a single class.

    Notes
    -----
    Two-level with H = I: α − β acts on differences of class means, α + (K−1)β on the grand mean. Where
    the grand mean is near zero β (and α) are poorly determined alone, and their standard errors say so;
    α − β, on which separation depends, is not affected.

    Rates are relative to class means. Before the classes stand apart, as at the start of training, their means are hardly
    known relative to their noise, rates are noise too (``r_squared`` far below 0), and integrals carry it along. Leave out
    those times: ``paths.sel(time=slice(t, None))``.

    E varying within an interval biases the rates by the order of the squared interval (not at all for
    balanced classes with H = I, where the transitions commute). Errors ``"model"`` take the noise to be
    the same in all directions, which holds while growth within one interval is small.

    A tail index needs a rate that can be told from zero over the window at ``confidence``. ``log_slope_index`` is the
    definition of Zhang, Wang and Su; it is at most 1 for a positive rate, and approaches r slowly. Use
    ``tail_index`` to decide whether r < 1.

    References
    ----------
    Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), for A, B and the tail index; the estimator is the
    Gaussian likelihood of the class means.

    Examples
    --------
    >>> fit = lesde.fit_elasticity(paths, transform="logits")  # doctest: +SKIP
    >>> fit.A.plot(hue="learning_rate")  # doctest: +SKIP
    >>> float(fit.tail_index.sel(level="alpha"))  # doctest: +SKIP
    """
    check_choice("kernel", kernel, ("two-level", "matrix"))
    check_choice("scheme", scheme, ("auto", "exponential", "discrete"))
    check_choice("errors", errors, ("auto", "replicate", "model"))
    check_choice("estimator", estimator, ("likelihood", "averages"))
    if smoothing is not None:
        check_choice("smoothing", smoothing, ("reml",))
    confidence = check_fraction("confidence", confidence)
    window = None if tail is False else _check_tail(tail)
    if tail_offset is not None:
        tail_offset = check_real("tail_offset", tail_offset)
    data = read_class_means(paths, scheme != "exponential")
    steps = read_steps(paths, data) if scheme != "exponential" else None
    if scheme == "discrete" and steps is None:
        raise ValueError(
            "scheme='discrete' needs the coordinate iteration in paths, the number of SGD steps at each "
            "time, or the attributes of an integration by engine='torchsde'; add it, or use "
            "scheme='exponential'."
        )
    R, K, p = data.values.shape[1], *data.values.shape[3:]
    if errors == "replicate" and R < 2:
        raise ValueError(
            "errors='replicate' needs at least 2 replicates; paths has 1. Use errors='model'."
        )
    if estimator == "averages":
        if R < 3:
            raise ValueError(
                f"estimator='averages' needs at least 3 replicates for its errors; paths has {R}. Use "
                f"estimator='likelihood'."
            )
        if errors == "model":
            raise ValueError("errors='model' goes with estimator='likelihood'; leave errors out.")
        errors = "replicate"
    if errors == "auto":
        errors = "replicate" if R >= FEWEST_REPLICATES else "model"
        if errors == "model":
            _warn(
                f"paths has {R} replicate(s), fewer than {FEWEST_REPLICATES}: standard errors assume the "
                f"noise of the LE-SDE. They are too small where other noise acts."
            )
    H = choose_transform(paths, transform, K, p)
    warn_of_features(paths)
    basis = rate_basis(H, data.counts / data.counts.sum(), kernel)
    functionals = TWO_LEVEL if kernel == "two-level" else np.eye(K * K)
    widths = np.diff(data.times)
    fitter = fit_transitions if estimator == "likelihood" else fit_averages
    fit = fitter(basis, functionals, data.values, widths, steps, data.counts)
    result = ElasticityResult(data, fit, kernel, errors == "replicate", confidence)
    result.add_integrals()
    result.add_rates(smoothing)
    if tail is not False:
        result.add_tails(window, tail_offset)
    result.add_quality()
    result.dataset.attrs.update(
        transform=H.kind,
        kernel=kernel,
        method="Gaussian maximum likelihood of the class means, one interval at a time",
        estimator=estimator,
        scheme="exponential" if steps is None else "discrete",
        errors=errors,
        smoothing=smoothing or "none",
        confidence=confidence,
        replicates=R,
    )
    return result.dataset


def _check_tail(tail: Any) -> float | tuple[float, float] | None:
    if tail is None:
        return None
    if isinstance(tail, list | tuple | np.ndarray):
        if len(tail) != 2:
            raise ValueError(f"tail must be one time or a pair of times; got {shown(tail)}.")
        ends = check_finite_array("tail", tail, [(2,)])
        first = check_real("tail[0]", float(ends[0]), 0.0)
        return first, check_real("tail[1]", float(ends[1]), first, open_minimum=True)
    return check_real("tail", tail, 0.0)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)


# --------------------------------------------------------------------------------------------------


def fitted_kernel(
    fit: xr.Dataset, learning_rate: float | None = None, *, smooth: bool = False
) -> Kernel:
    """The kernel that a fit found, piecewise constant in time.

    Parameters
    ----------
    fit : xarray.Dataset
        As `lesde.fit_elasticity` returns. Dimensions other than ``learning_rate`` must be selected before.
    learning_rate : float, optional
        Which learning rate (the nearest, within 1e-6 relative); needed where the fit has several.
    smooth : bool, default False
        Take the smoothed rates in place of the raw ones. The raw kernel integrates to Â (or the fitted
        ``E_integral``) exactly at every saved time; the smoothed one only within the errors.

    Returns
    -------
    TwoLevel or ClassMatrix
        With callables of t, right-continuous at saved times. They are defined from the first saved time to the last and
        raise ValueError elsewhere: a fit says nothing about other times.

    Raises
    ------
    ValueError
        When a learning rate is needed, or not in the fit; when called outside the fitted times.

    Notes
    -----
    The jumps are at saved times. Laws and the exact engine step from saved time to saved time and never see them,
    if simulated at the times of the fit or a refinement of them; other grids cost more work.

    Examples
    --------
    >>> kernel = fitted_kernel(fit, learning_rate=0.1)  # doctest: +SKIP
    >>> model = lesde.LESDE(kernel, n_classes=3, n_features=3)  # doctest: +SKIP
    """
    check_dataset("fit", fit, [], "lesde.fit_elasticity")
    kind = fit.attrs.get("kernel")
    if kind not in ("two-level", "matrix") or "interval" not in fit.dims:
        raise ValueError("fit must be a dataset from lesde.fit_elasticity.")
    smooth = check_flag("smooth", smooth)
    name = ("alpha" if kind == "two-level" else "E") + ("" if smooth else "_raw")
    check_dataset("fit", fit, [name, "start", "end"], "lesde.fit_elasticity")
    fit = _select(fit, learning_rate)
    own = {"interval"} if kind == "two-level" else {"interval", "class", "class_"}
    extra = [d for d in fit[name].dims if d not in own]
    if extra:
        raise ValueError(
            f"fit must hold one kernel; it has the dimension(s) {', '.join(map(str, extra))}. Select one "
            f"with fit.isel({extra[0]}=0)."
        )
    edges = np.append(fit["start"].values, fit["end"].values[-1])
    if kind == "two-level":
        beta = name.replace("alpha", "beta")
        return TwoLevel(
            _steps("alpha", edges, fit[name].values), _steps("beta", edges, fit[beta].values)
        )
    E = fit[name].transpose("interval", "class", "class_").values
    K = E.shape[-1]
    return ClassMatrix(
        [[_steps(f"E[{k}, {l}]", edges, E[:, k, l]) for l in range(K)] for k in range(K)]
    )


def _select(fit: xr.Dataset, learning_rate: float | None) -> xr.Dataset:
    if "learning_rate" not in fit.dims:
        if learning_rate is not None and "learning_rate" not in fit.coords:
            raise ValueError("learning_rate was given, but fit has no learning_rate; leave it out.")
        if learning_rate is None:
            return fit
        fit = fit.expand_dims("learning_rate")
    rates = fit["learning_rate"].values
    if learning_rate is None:
        if len(rates) > 1:
            raise ValueError(
                f"learning_rate must be given: fit has {', '.join(f'{r:g}' for r in rates)}."
            )
        return fit.isel(learning_rate=0)
    value = check_real("learning_rate", learning_rate, 0.0)
    nearest = int(np.argmin(np.abs(rates - value)))
    if abs(rates[nearest] - value) > 1e-6 * abs(value):
        raise ValueError(
            f"learning_rate must be one that was fitted, {', '.join(f'{r:g}' for r in rates)}; got "
            f"{value:g}."
        )
    return fit.isel(learning_rate=nearest)


def _steps(name: str, edges: np.ndarray, values: np.ndarray) -> Callable[[Any], np.ndarray]:
    """A step function on [edges[0], edges[-1]], right-continuous."""
    # Times that a solver adds up may miss an edge by rounding.
    slack = 1e-9 * max(abs(edges[0]), abs(edges[-1]))

    def rate(t: Any) -> np.ndarray:
        t = np.asarray(t, dtype=np.float64)
        outside = (t < edges[0] - slack) | (t > edges[-1] + slack)
        if outside.any():
            raise ValueError(
                f"{name} was fitted from t = {edges[0]:g} to {edges[-1]:g}; it has no value at "
                f"t = {float(t[outside].flat[0]):g}. Stay within, or fit longer paths."
            )
        index = np.searchsorted(edges, t, side="right") - 1
        return values[np.clip(index, 0, len(values) - 1)]

    return rate
