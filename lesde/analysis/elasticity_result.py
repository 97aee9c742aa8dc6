"""The dataset that `lesde.fit_elasticity` returns, built from estimates per interval."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import xarray as xr
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from lesde.analysis.class_means import ClassMeans
from lesde.analysis.rate_smoothing import MINIMUM_INTERVALS, smooth_rates
from lesde.analysis.tail_index import log_slope, power_tail, tail_window
from lesde.analysis.transition_fit import TransitionFit

__all__ = ["TWO_LEVEL", "ElasticityResult"]

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
