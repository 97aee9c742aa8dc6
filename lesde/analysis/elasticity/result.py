"""The dataset that `lesde.fit_elasticity` returns, built from estimates per interval."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr
from scipy.special import expit, polygamma
from scipy.stats import t as student

from lesde.analysis.class_means import ClassMeans
from lesde.analysis.elasticity.smoothing import MINIMUM_INTERVALS, smooth_rates
from lesde.analysis.elasticity.tails import log_slope, power_tail, tail_window
from lesde.analysis.elasticity.transitions import TransitionFit

TWO_LEVEL = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
"""α, β and α − β in terms of (α, β)."""
RATES = ["alpha", "beta", "alpha_minus_beta"]
TAILS = {"tail_index": "tail index r", "log_slope_index": "1 − d log|A| / d log t"}
FAR_OFF = -1.0
"""r_squared below which rates are noise: they predict twice as badly as "nothing moves"."""
PARTS = {
    "": "",
    "_se": "standard error of ",
    "_lower": "lower limit of ",
    "_upper": "upper limit of ",
}

Total = Callable[[np.ndarray], np.ndarray]
"""Sums over intervals, axis 1: all, none or cumulative."""


def pooled_noise(noise: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise (group, interval) of each interval shrunk toward that of all, as far as their scatter is estimation error.

    Weights made of few degrees of freedom would favour the intervals whose noise happened to come out small. log σ̂² with
    ν degrees of freedom has the variance ψ′(ν/2); what it varies more is kept (Stein's shrinkage). Where the data
    determine none the noise is 1. With it come the degrees of freedom behind it (group,), on average over intervals.
    """
    result, number = np.zeros(noise.shape), np.zeros(len(noise))
    result[(freedom == 0).all(1)] = 1.0
    for g, own in enumerate((freedom > 0) & (noise > 0)):
        if own.any():
            nu, logs = freedom[g, own], 2 * np.log(noise[g, own])
            common = np.log(nu @ np.exp(logs - logs.max()) / nu.sum()) + logs.max()
            scatter = max(float(np.var(logs)), 1e-300)
            keep = max(0.0, 1 - float(polygamma(1, nu / 2).mean()) / scatter)
            result[g] = np.exp(common / 2)
            result[g, own] = np.exp((keep * logs + (1 - keep) * common) / 2)
            number[g] = 1 / (keep / nu.mean() + (1 - keep) / nu.sum())
    return result, number


def _share(left: np.ndarray, moved: np.ndarray) -> np.ndarray:
    return 1 - left / np.where(moved > 0, moved, np.nan)


class ElasticityResult:
    """Puts estimates and their errors into ``dataset``, one kind of quantity at a time.

    Arrays have the axes (group, interval, functional), with the replicate before the functional. Warnings about the
    data are collected in ``notes``.
    """

    def __init__(
        self, data: ClassMeans, fit: TransitionFit, kernel: str, robust: bool, confidence: float
    ):
        self.data, self.fit, self.robust, self.confidence = data, fit, robust, confidence
        self.two_level, self.K = kernel == "two-level", len(data.counts)
        self.notes: list[str] = []
        self.widths = np.diff(data.times)
        self.known = np.isfinite(fit.unit_variance)
        self.R = fit.deleted.shape[2]
        self.share = (self.R - 1) / self.R
        self.variance = self._by_model(np.where(fit.freedom > 0, fit.noise, np.inf))
        noise, freedom = pooled_noise(fit.noise, fit.freedom)
        self.likely, ratio = self._by_model(noise), np.ones(self.known.shape[::2])
        if robust:
            # The spread between few replicates is too noisy for weights; the model's variance has the right shape over
            # time, and this the right size: its ratio to what the model says, averaged over intervals.
            use = self.known & (self.likely > 0)
            jackknife = self.share * (fit.deleted**2).sum(2)
            quotient = np.where(use, jackknife, 0.0) / np.where(use, self.likely, 1.0)
            ratio = quotient.sum(1) / np.maximum(use.sum(1), 1)
            ratio = np.where(ratio > 0, ratio, 1.0)
            self.likely *= ratio[:, None]
        self.quantile = self._student(np.full(len(freedom), self.R - 1.0) if robust else freedom)
        root = np.sqrt(ratio)[:, None, : fit.precision.shape[-1]]
        sizes = np.where(noise > 0, noise, np.inf)[..., None] * root
        self.precision = fit.precision / (sizes[..., None] * sizes[..., None, :])
        self.shares = fit.shares * noise[..., None, None] ** 2
        self.dims: tuple[str, ...] = ("level",) if self.two_level else ("class", "class_")
        times = data.times
        self.dataset = xr.Dataset(coords=data.coords).assign_coords(
            time=times,
            interval=(times[1:] + times[:-1]) / 2,
            start=("interval", times[:-1]),
            end=("interval", times[1:]),
            count=("class", data.counts),
            **({"level": RATES} if self.two_level else {d: np.arange(self.K) for d in self.dims}),
        )
        self._note_unknown()

    def _by_model(self, noise: np.ndarray) -> np.ndarray:
        """Variances where σ is this, inf where a rate is not identified."""
        unit = np.where(self.known, self.fit.unit_variance, 1.0)
        return np.where(self.known, noise[..., None] ** 2 * unit, np.inf)

    def _student(self, freedom: np.ndarray | float) -> np.ndarray:
        return student.ppf((1 + self.confidence) / 2, np.fmax(freedom, 1.0))

    def _errors(self, weights: np.ndarray, total: Total) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors and quantiles of Student's t of total(weights × rate), weights (group, interval, functional).

        Replicates that carry unequal shares of the variance count for fewer: (Σ s)²/Σ s² of them. By the model degrees of freedom
        are Satterthwaite's, without the bias of squares of estimated variances: those of the interval for a single one.
        """
        lost = total(np.where(self.known, 0.0, weights**2)) > 0
        if self.robust:
            moved = total(self.fit.deleted * weights[:, :, None])
            variance = self.share * (moved**2).sum(-2)
            shares = total(self.shares * weights[:, :, None] ** 2)
            square = (shares**2).sum(-2)
            some = square > 0
            number = np.where(some, shares.sum(-2) ** 2 / np.where(some, square, 1.0), self.R) - 1
        else:
            finite = np.where(np.isfinite(self.variance), self.variance, 0.0)
            part = finite * weights**2
            lost |= total(np.where(np.isfinite(self.variance), 0.0, weights**2)) > 0
            variance = total(part)
            part = part / np.maximum(part.max(1, keepdims=True), 1e-300)
            square = total(part**2 / (self.fit.freedom[..., None] + 2))
            number = total(part) ** 2 / np.where(square > 0, square, np.inf) - 2
        return np.sqrt(np.where(lost, np.inf, variance)), self._student(number)

    def put(self, name: str, dims: tuple[str, ...], words: str, *parts: np.ndarray) -> None:
        """A variable (group, ...) under its own dimensions; with its error and limits where they are given."""
        groups = self.data.groups
        for (end, of), part in zip(PARTS.items(), parts, strict=False):
            own = (*part.shape[1:-1], self.K, self.K) if "class" in dims else part.shape[1:]
            values = np.reshape(part, (*groups.values(), *own))
            self.dataset[f"{name}{end}"] = ((*groups, *dims), values, {"long_name": of + words})

    def _put_each(self, names: list[str], dim: str, words: str, *parts: np.ndarray) -> None:
        """Values, errors and quantiles (group, time or interval, functional), as three variables or one of matrices."""
        values, error, quantile = parts
        parts = values, error, values - quantile * error, values + quantile * error
        if self.two_level:
            for j, name in enumerate(names):
                self.put(name, (dim,), f"{name}, {words}", *(part[..., j] for part in parts))
        else:
            self.put(names[0], (dim, *self.dims), f"{names[0]}, {words}", *parts)

    def add_integrals(self) -> None:
        width = np.broadcast_to(self.widths[:, None], self.fit.rates.shape)
        values = np.cumsum(self.fit.rates * width, axis=1)
        error, quantile = self._errors(width, partial(np.cumsum, axis=1))
        start = ((0, 0), (1, 0), (0, 0))
        parts = np.pad(values, start), np.pad(error, start), np.pad(quantile, start, "edge")
        names = ["A", "B", "A_minus_B"] if self.two_level else ["E_integral"]
        self._put_each(names, "time", "integral of the rate", *parts)

    def add_rates(self, smoothing: str | None) -> None:
        rates = self.fit.rates
        error, quantile = self._errors(np.ones_like(rates), np.asarray)
        names = RATES if self.two_level else ["E"]
        raw = [f"{name}_raw" for name in names]
        self._put_each(raw, "interval", "mean over interval", rates, error, quantile)
        if smoothing is not None and rates.shape[1] >= MINIMUM_INTERVALS:
            rates, error, quantile = rates.copy(), error.copy(), quantile.copy()
            for g in range(len(rates)):
                if np.isfinite(error[g]).any() and (self.fit.noise[g] != 0).all():
                    rates[g], error[g] = self._smooth(g)
                    quantile[g] = self.quantile[g]
        self._put_each(names, "interval", "smoothed", rates, error, quantile)

    def _smooth(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed rates of a group and their errors: α and β jointly, entries of a matrix one by one."""
        rates, C = self.fit.rates[g], TWO_LEVEL
        if self.two_level:
            precision = np.where(self.fit.converged[g, :, None, None], self.precision[g], 0.0)
            smooth, covariance = smooth_rates(rates[:, :2], precision)
            return smooth @ C.T, np.sqrt(np.einsum("fi,nij,fj->nf", C, covariance, C))
        smooth, error = np.empty((2, *rates.shape))
        for j, precision in enumerate(1.0 / self.likely[g].T):
            at, covariance = smooth_rates(rates[:, [j]], precision[:, None, None])
            smooth[:, j], error[:, j] = at[:, 0], np.sqrt(covariance[:, 0, 0])
        return smooth, error

    def add_tails(self, tail: float | tuple[float, float] | None, offset: float | None) -> None:
        times, widths = self.data.times, self.widths[:, None]
        window = tail_window(times, tail)
        increments, variance = self.fit.rates * widths, self.likely * widths**2
        # Without noise the weights are equal.
        floor = (1e-9 * np.abs(increments).max(1, initial=0.0, keepdims=True)) ** 2
        variance = np.maximum(variance, np.where(floor > 0, floor, 1.0) * 1e-6)
        shape = self.fit.rates.shape[::2]
        for name, words in TAILS.items():
            found, weights = {}, np.zeros_like(increments)
            for g, f in np.ndindex(*shape):
                given = (times, increments[g, :, f], variance[g, :, f], window)
                if name == "tail_index":
                    found[g, f] = power_tail(*given, float(self.quantile[g]), offset)
                else:
                    found[g, f] = log_slope(*given)
                weights[g, :, f] = found[g, f].weights
            index, shifts, gains = (
                np.reshape([getattr(one, part) for one in found.values()], shape)
                for part in ("index", "offset", "gain")
            )
            error, quantile = self._errors(weights * widths, partial(np.sum, axis=1))
            error = np.where(np.isnan(index), np.nan, error)
            low, high = index - quantile * error, index + quantile * error
            failed: dict[str, list[int]] = {}
            for at, one in found.items():
                if one.reason:
                    failed.setdefault(one.reason, []).append(at[1])
                if one.limits is not None:
                    # The error by the variances that the weights are made of, at the best offset.
                    use = one.weights != 0  # elsewhere the variance may be infinite
                    likely = np.sqrt(one.weights[use] ** 2 @ variance[at[0], use, at[1]])
                    low[at], high[at] = one.limits((quantile[at] * error[at] / likely) ** 2)
                    error[at] = (high[at] - low[at]) / (2 * quantile[at])
            self.put(name, self.dims, words, index, error, low, high)
            if name == "tail_index":
                self.put("tail_offset", self.dims, "offset s of the tail (t + s)^−r", shifts)
                if offset is None:
                    words = "Akaike weight of an offset against none"
                    self.put("tail_offset_weight", self.dims, words, expit(gains / 2 - 1))
            for reason, levels in failed.items():
                which = [
                    RATES[f] if self.two_level else f"E[{f // self.K}, {f % self.K}]"
                    for f in sorted({*levels})
                ]
                self.notes.append(
                    f"no {name}: {reason} (for {', '.join(which[:6])}, from t = {window[0]:g} to {window[1]:g}); it is NaN. "
                    f"Give another window with tail=, or longer paths."
                )
        self.dataset.attrs["tail"] = list(window)

    def add_quality(self) -> None:
        fit, words = self.fit, "σ̂ of a sample per √time"
        self.put("residual_scale_interval", ("interval",), words, fit.noise)
        self.put("residual_scale", (), words, np.sqrt((fit.noise**2).mean(1)))
        explained, words = {}, "share of movement explained"
        for name, left, moved in (
            ("r_squared", fit.predicted_residual, fit.moved),
            ("r_squared_in_sample", fit.residual, fit.moved),
            ("r_squared_common", fit.common_residual.sum(-1), fit.common_moved.sum(-1)),
        ):
            explained[name] = _share(left.sum(1), moved.sum(1))
            self.put(f"{name}_interval", ("interval",), words, _share(left, moved))
            self.put(name, (), words, explained[name])
        # Without replicate r, both of its roles in a pair fall out of the sums.
        left, moved = (
            part.sum((1, 2))[:, None] - 2 * part.sum(1)
            for part in (fit.common_residual, fit.common_moved)
        )
        without, share = _share(left, moved), explained["r_squared_common"]
        error = np.sqrt(self.share * ((without - without.mean(-1, keepdims=True)) ** 2).sum(-1))
        error = np.where(np.isfinite(share) & (self.R > 2), error, np.nan)
        reach = self._student(self.R - 1) * error
        self.put("r_squared_common", (), words, share, error, share - reach, share + reach)
        words = "whether the data determine the raw rate"
        self.put("identified", ("interval", *self.dims), words, self.known)
        bad = explained["r_squared"][explained["r_squared"] < FAR_OFF]
        if len(bad):
            self.notes.append(
                f"r_squared = {bad.min():.3g} at worst, below {FAR_OFF:g} in {len(bad)} of {len(share)} fits: the rates "
                f"predict far worse than no motion at all, as where class means are small compared with their noise, "
                f"before the classes stand apart. Leave out the times at which r_squared_interval is low, for example "
                f"with paths.sel(time=slice(t, None))."
            )

    def _note_unknown(self) -> None:
        bare = int((self.fit.freedom == 0).sum(1).max())
        if bare and not self.robust:
            self.notes.append(
                f"in {bare} of {len(self.widths)} intervals there are as many rates as numbers observed: nothing is left to "
                f"estimate the noise from, so standard errors are inf there, and in integrals from there on. Give more "
                f"replicates, or features of more dimensions."
            )
        unknown = ~self.known.all((0, 2))
        if unknown.any():
            what = "α and β apart" if self.two_level else "every entry of E"
            difference = self.two_level and bool(self.known[:, unknown, -1].all())
            self.notes.append(
                f"the paths do not determine {what} in {int(unknown.sum())} of {len(unknown)} intervals (the first starts at "
                f"t = {self.data.times[:-1][unknown][0]:g}): standard errors are inf there, and in integrals from there on. "
                f"{'α − β is still identified. ' * difference}Start the replicates differently, or leave out those times."
            )
