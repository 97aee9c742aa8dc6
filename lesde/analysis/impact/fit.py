"""Elasticity measured directly: `fit_impact`, from what single SGD steps do to the features."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

from lesde.analysis.class_means import power_of_two
from lesde.checks import check_choice, check_fraction
from lesde.model.transforms import Transform, make_transform
from lesde.paths import check_dataset

__all__ = ["Clusters", "ImpactData", "ImpactFrame", "fit_impact", "read_impact"]


# --------------------------------------------------------------------------------------------------
# Reading an impact dataset, and errors of ratios of sums over its drawn samples.

SOURCE = "lesde.measure_impact"
FEWEST_REPLICATES = 8
"""With fewer, a variance between replicates has too few degrees of freedom to be worth its robustness."""


@dataclass(frozen=True)
class ImpactData:
    """An impact dataset in arrays with the axes (group, replicate, time, ...).

    Attributes
    ----------
    dataset : xarray.Dataset
    groups : dict
        Names and sizes of the dimensions that are neither averaged over nor time.
    labels : int array (draw,)
        Classes of the drawn samples.
    shares : array (class,)
    steps : array (group,)
        Learning rates.
    has_time : bool
    """

    dataset: xr.Dataset
    groups: dict[Hashable, int]
    labels: np.ndarray
    shares: np.ndarray
    steps: np.ndarray
    has_time: bool

    def array(self, name: str, ends: tuple[str, ...]) -> np.ndarray:
        """A variable (group, replicate, time, *ends), float64."""
        variable = self.dataset[name]
        for dim in ("replicate", "time"):
            if dim not in variable.dims:
                variable = variable.expand_dims(dim)
        ordered = variable.transpose(*self.groups, "replicate", "time", *ends)
        shape = ordered.shape[len(self.groups) :]
        return ordered.values.astype(np.float64).reshape(-1, *shape)

    def transform(self, value: Any) -> Transform:
        """The transform asked for, for these classes and features."""
        return make_transform(value, len(self.shares), self.dataset.sizes["feature"])

    def drivers(self, transform: Transform) -> np.ndarray:
        """H_L X_J of the drawn samples, (group, replicate, time, draw, feature)."""
        x = self.array("drawn", ("draw", "feature"))
        if transform.kind == "identity":
            return x
        return np.einsum("dpq,grtdq->grtdp", transform.array()[self.labels], x)

    def scaled_drivers(self, transform: Transform) -> tuple[np.ndarray, np.ndarray]:
        """`drivers` in the power of two at the largest of each group and time, and that unit (group, 1, time, 1, 1)."""
        u = self.drivers(transform)
        unit = power_of_two(np.abs(u).max((1, 3, 4), keepdims=True, initial=0.0))
        return u / unit, unit

    def coords(self) -> dict[Hashable, Any]:
        """Coordinates that results keep."""
        kept: tuple[Hashable, ...] = (*self.groups, "time")
        return {
            name: coord
            for name, coord in self.dataset.coords.items()
            if name in ("class", "count", "share", "step") or (name in kept and coord.ndim)
            or (coord.ndim == 0 and name != "replicate")
        }  # fmt: skip


def read_impact(impact: Any) -> ImpactData:
    """Check an impact dataset.

    Raises
    ------
    TypeError, ValueError
        For what is no such dataset.
    """
    data = check_dataset("impact", impact, ["change", "square", "drawn", "drawn_label"], SOURCE)
    own = ("replicate", "time", "draw", "class", "feature")
    change = data["change"]
    if not {"draw", "class", "feature"} <= set(change.dims) or data["drawn_label"].dims != (
        "draw",
    ):
        raise ValueError(
            f"impact.change must have the dimensions draw, class, feature, and impact.drawn_label draw, as "
            f"{SOURCE} returns them; got {', '.join(map(str, change.dims))}."
        )
    groups: dict[Hashable, int] = {d: n for d, n in change.sizes.items() if d not in own}
    step = data["step"]
    if not set(step.dims) <= set(groups):
        raise ValueError(f"impact.step must be over {tuple(groups)} at most; got {step.dims}.")
    missing = {d: n for d, n in groups.items() if d not in step.dims}
    steps = step.expand_dims(missing).transpose(*groups).values.astype(np.float64).ravel()
    return ImpactData(
        dataset=data,
        groups=groups,
        labels=data["drawn_label"].values,
        shares=data["share"].values.astype(np.float64),
        steps=steps,
        has_time="time" in change.dims,
    )


class Clusters:
    """The independent units of a measurement.

    Parameters
    ----------
    data : ImpactData
    errors : {"auto", "replicate", "draw"}
    confidence : float

    Attributes
    ----------
    kind : {"replicate", "draw"}
    count : int
        How many units.
    """

    def __init__(self, data: ImpactData, errors: str, confidence: float) -> None:
        check_choice("errors", errors, ("auto", "replicate", "draw"))
        self._R = int(data.dataset["change"].sizes.get("replicate", 1))
        self._labels, self._K = data.labels, len(data.shares)
        if errors == "replicate" and self._R < 2:
            raise ValueError(
                f"errors='replicate' needs at least 2 replicates; impact has {self._R}. Use errors='draw'."
            )
        if errors == "auto":
            errors = "replicate" if self._R >= FEWEST_REPLICATES else "draw"
        self.kind, self._confidence = errors, confidence
        D = len(data.labels)
        self._one_hot = (data.labels[:, None] == np.arange(self._K)).astype(np.float64)
        self.count = self._R if errors == "replicate" else self._R * D
        of = np.zeros(self._R, int) if errors == "replicate" else np.tile(data.labels, self._R)
        self._strata = of
        self.n_strata = len(np.unique(of))
        self.known = bool((np.bincount(of)[np.unique(of)] > 1).all())
        if not self.known:
            warnings.warn(
                "impact has a class with a single drawn sample: nothing tells how drawn samples differ, so "
                "errors are NaN. Draw at least 2 samples of every class.",
                UserWarning,
                stacklevel=4,
            )

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums by class of the drawn sample, of everything and without each unit.

        Parameters
        ----------
        values : array (replicate, draw, ...)

        Returns
        -------
        array (1 + unit, drawn class, ...)
        """
        spread = values[:, :, None] * self._one_hot.reshape(
            1, *self._one_hot.shape, *[1] * (values.ndim - 2)
        )
        each = spread.sum(1) if self.kind == "replicate" else spread.reshape(-1, *spread.shape[2:])
        total = each.sum(0, keepdims=True)
        return np.concatenate([total, total - each])

    def error(self, values: np.ndarray) -> np.ndarray:
        """Standard errors of estimates (1 + unit, ...)."""
        return np.sqrt(np.einsum("c...,c...->...", *[self.deviations(values)] * 2))

    def deviations(self, values: np.ndarray) -> np.ndarray:
        """What each unit adds to the estimates, scaled so that squares sum to the variance: (unit, ...)."""
        without = values[1:]
        if not self.known:
            return np.full_like(without, np.nan)
        result = np.empty_like(without)
        for k in np.unique(self._strata):
            at = self._strata == k
            n = int(at.sum())
            result[at] = np.sqrt((n - 1) / n) * (without[at] - without[at].mean(0))
        return result

    def quantile(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Of Student's t; units that carry unequal ``weights`` (unit, ...) count for fewer.

        Units of one class have (Σ w)²/Σ w² less one degrees of freedom ν_k. Where units are draws of several classes,
        those of the sum are Satterthwaite's for parts of the variance as large as the classes' weights W_k,
        (Σ_k W_k)²/Σ_k (W_k²/ν_k): for equal weights as many as units less classes.
        """
        if weights is None:
            freedom = np.asarray(float(self.count - self.n_strata))
        else:
            parts = np.zeros(weights.shape[1:])
            for k in np.unique(self._strata):
                own = weights[self._strata == k]
                total, square = own.sum(0), (own**2).sum(0)
                number = total**2 / np.where(square > 0, square, 1.0)
                # Two units tell a variance with one degree of freedom, however unequal they are.
                parts = parts + total**2 / np.maximum(number - 1, 1.0)
            freedom = weights.sum(0) ** 2 / np.where(parts > 0, parts, np.inf)
        return np.asarray(student.ppf((1 + self._confidence) / 2, np.maximum(freedom, 1.0)))


# --------------------------------------------------------------------------------------------------
# Estimates of elasticity from the impact of single steps at one time, whole and without each unit.


class ImpactFrame:
    """Estimates at one time.

    Parameters
    ----------
    clusters : Clusters
    shares : array (class,)
        w_k.
    change : array (replicate, draw, class, feature)
        Mean changes of the classes.
    u : array (replicate, draw, feature)
        H_L X_J.
    step : float
        Learning rate h.
    estimator : {"draws", "averages"}

    Attributes
    ----------
    values : dict of str to array (1 + unit, ...)
        Estimates, whole and without each unit.
    quantiles : dict of str to array (...)
        For those whose units carry unequal weights.
    """

    def __init__(
        self,
        clusters: Clusters,
        shares: np.ndarray,
        change: np.ndarray,
        u: np.ndarray,
        step: float,
        estimator: str,
    ) -> None:
        self._clusters, self._step = clusters, step
        self._count = clusters.sums(np.ones(u.shape[:2]))  # (1 + unit, drawn class)
        length = np.einsum("rdp,rdp->rd", u, u)
        if estimator == "draws":
            along = np.einsum("rdkp,rdp->rdk", change, u) / step
            self._along = self._mean(clusters.sums(along))
            self._length = self._mean(clusters.sums(length))
            self._square: np.ndarray | None = None
        else:
            kick, driver = self._mean(clusters.sums(change)), self._mean(clusters.sums(u))
            self._along = np.einsum("clkp,clp->clk", kick, driver) / step
            self._length = np.einsum("clp,clp->cl", driver, driver)
            self._square = np.einsum("clkp,clkp->clk", kick, kick)
        # From here on (1 + unit, moved class, drawn class).
        self._along = self._along.swapaxes(1, 2)
        self._weights = np.outer(shares, shares)
        self._same = np.eye(len(shares), dtype=bool)
        self._length = np.broadcast_to(self._length[:, None], self._along.shape)
        with np.errstate(all="ignore"):
            E = self._along / self._length
        alpha, beta = self._level(self._same), self._level(~self._same)
        self.values = {"E": E, "alpha": alpha, "beta": beta, "alpha_minus_beta": alpha - beta}
        self.quantiles: dict[str, np.ndarray] = {}
        if estimator == "draws":
            self._add_quantiles(length)

    def _mean(self, sums: np.ndarray) -> np.ndarray:
        """Means by class; NaN for a class that is not drawn."""
        count = self._count.reshape(*self._count.shape, *[1] * (sums.ndim - 2))
        return sums / np.where(count > 0, count, np.nan)

    def _total(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Σ w_k w_l over some entries, without those of classes never drawn: (1 + unit,)."""
        drawn = self._count[0] > 0
        use = where & drawn
        return (values[:, use] * self._weights[use]).sum(1)

    def _level(self, where: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return self._total(self._along, where) / self._total(self._length, where)

    def _add_quantiles(self, length: np.ndarray) -> None:
        """Units count by the ‖u_J‖² they carry."""
        sums = self._clusters.sums(length)
        carried = sums[:1] - sums[1:]  # (unit, drawn class)
        mean = carried / np.where(self._count[0] > 0, self._count[0], np.nan)
        rows = np.broadcast_to(self._clusters.quantile(carried), self._same.shape)
        self.quantiles["E"] = rows
        for name, where in (("alpha", self._same), ("beta", ~self._same)):
            weight = (self._weights * where).sum(0)
            self.quantiles[name] = self._clusters.quantile(np.nan_to_num(mean * weight).sum(1))
        self.quantiles["alpha_minus_beta"] = np.maximum(
            self.quantiles["alpha"], self.quantiles["beta"]
        )

    def add_explained(self, square: np.ndarray) -> None:
        """Shares of the squared changes, from means (replicate, draw, moved class)."""
        if self._square is None:
            self._square = self._mean(self._clusters.sums(square))
        moved = self._square.swapaxes(1, 2) / self._step**2
        fitted = self._along**2 / self._length
        every = np.ones_like(self._same)
        with np.errstate(all="ignore"):
            self.values["explained"] = fitted / moved
            whole = self._total(moved, every)
            self.values["explained_matrix"] = self._total(fitted, every) / whole
            two = sum(
                self._level(where) ** 2 * self._total(self._length, where)
                for where in (self._same, ~self._same)
            )
            self.values["explained_two_level"] = two / whole

    def add_relative(self, relative: np.ndarray) -> None:
        """Relative changes (replicate, draw, moved class), NaN where the drawn sample did not move."""
        known = np.isfinite(relative)
        number = self._clusters.sums(known.astype(np.float64))
        sums = self._clusters.sums(np.where(known, relative, 0.0))
        mean = (sums / np.where(number > 0, number, np.nan)).swapaxes(1, 2)
        self.values["relative"] = mean
        ones = np.ones_like(mean)
        for name, where in (("relative_within", self._same), ("relative_between", ~self._same)):
            with np.errstate(all="ignore"):
                self.values[name] = self._total(mean, where) / self._total(ones, where)


# --------------------------------------------------------------------------------------------------

LONG = {
    "E": "elasticity between classes",
    "alpha": "within-class elasticity",
    "beta": "between-class elasticity",
    "alpha_minus_beta": "within less between",
    "A": "integral of alpha",
    "B": "integral of beta",
    "A_minus_B": "integral of alpha − beta",
    "relative": "relative change",
    "relative_within": "relative change within classes",
    "relative_between": "relative change between classes",
    "explained": "share of squared change explained",
    "explained_matrix": "share of squared change explained by E",
    "explained_two_level": "share of squared change explained by alpha, beta",
}
MATRICES = ("E", "relative", "explained")
INTEGRALS = {"A": "alpha", "B": "beta", "A_minus_B": "alpha_minus_beta"}


def fit_impact(
    impact: xr.Dataset,
    transform: Any = "identity",
    confidence: float = 0.95,
    *,
    estimator: str = "draws",
    errors: str = "auto",
    kernel: str = "two-level",
) -> xr.Dataset:
    """Estimate E(t), α(t) and β(t) from the changes that single SGD steps make to the features.

    One step at sample J of class L, at learning rate h, moves sample i of class k by ΔX_i = h E_kL H_L X_J +
    noise. With u_J = H_L X_J, the coefficient of the regression of changes on u_J, over drawn samples J of
    class L and moved samples i of class k, is Ê_kL = Σ ⟨ΔX_i, u_J⟩ / (h Σ ‖u_J‖²).

    Parameters
    ----------
    impact : xarray.Dataset
        As `lesde.measure_impact`, :func:`lesde.networks.measure_impact` or
        `lesde.analysis.impact_from_changes` return. Averaged over ``replicate``; every other dimension but
        time (``learning_rate``, …) is kept.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), default "identity"
        The matrices H_l, as for a model.
    confidence : float, default 0.95
        Level of all intervals.
    estimator : {"draws", "averages"}, default "draws"
        ``"draws"``: every drawn sample has its own u_J and its own changes, as above. ``"averages"``: changes and u_J are
        first averaged over the drawn samples of a class and over replicates, Ê_kL = ⟨mean ΔX̄^k, mean u⟩ / (h
        ‖mean u‖²): the coefficient of the drift of the class means, what ``fit_elasticity(...,
        estimator="averages")`` is after. Both are E_kL where the model holds. In a network
        ``"draws"`` gives less: the scatter of u_J about its mean says little of how a step moves others (or even less where u_J
        is large, since of such a sample the network is sure), but counts in ‖u_J‖².
    errors : {"auto", "replicate", "draw"}, default "auto"
        Jackknife over replicates, or over drawn samples (within their class), with quantiles of Student's t. Errors over
        drawn samples are those for these very networks. ``"auto"``: over replicates from 8 on. Neither counts the
        choice of the samples that are watched, which all draws share.
    kernel : {"two-level", "matrix"}, default "two-level"
        Which of them `lesde.fitted_kernel` makes a kernel of; both are estimated.

    Returns
    -------
    xarray.Dataset
        Over ``time`` where ``impact`` has it; with ``_se``, ``_lower`` and ``_upper`` for each variable:

        - ``E (class, class_)``: first the class moved, then the class drawn.
        - ``alpha``, ``beta``, ``alpha_minus_beta``: the two-level kernel nearest to the changes: means of the diagonal of
          Ê and of the rest, each entry with weight w_k w_l mean‖u_J‖² (J of class l), w the shares of the classes in
          training.
        - ``relative (class, class_)``: mean of ‖ΔX_i‖/‖ΔX_J‖, the relative change of He and Su, which needs neither H nor
          h; ``relative_within``, ``relative_between``, its means with weights w_k w_l. Where ``impact`` has it.
        - ``explained (class, class_)``: share of Σ‖ΔX_i‖² that Ê_kL accounts for; of the average changes for
          ``estimator="averages"``. ``explained_matrix``, ``explained_two_level``: over all pairs of classes, with E or with α, β.
        - ``A``, ``B``, ``A_minus_B``: integrals from the first time by the trapezoidal rule, and, without errors,
          ``alpha_raw``, ``beta_raw``, ``E_raw (interval)``, their slopes, which `lesde.fitted_kernel` takes. Where there are several times.

        Attributes say what was fitted and how.

    Warns
    -----
    UserWarning
        When a class has no drawn sample (NaN), or errors cannot be told.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    Notes
    -----
    A drawn sample that is also watched counts among the samples of its class, as in the model. Where training draws
    from N samples and n of them are watched, that happens to one draw in N/n, and then has weight 1/n: on average
    its weight in the class is right.

    References
    ----------
    He, Su, *The Local Elasticity of Neural Networks*, ICLR 2020 (arXiv 1910.06943), for the relative change; Zhang, Wang,
    Su, NeurIPS 2021 (arXiv 2110.05960), for the rule of a step.

    Examples
    --------
    >>> impact = lesde.measure_impact(network, "cross_entropy", (x, y), (x, y), 0.01)  # doctest: +SKIP
    >>> fit = lesde.fit_impact(impact, transform="logits")  # doctest: +SKIP
    >>> float(fit.alpha_minus_beta), float(fit.alpha_minus_beta_se)  # doctest: +SKIP
    """
    confidence = check_fraction("confidence", confidence)
    check_choice("estimator", estimator, ("draws", "averages"))
    check_choice("kernel", kernel, ("two-level", "matrix"))
    data = read_impact(impact)
    H = data.transform(transform)
    clusters = Clusters(data, errors, confidence)
    _warn_of_missing(data)
    found = _estimates(data, clusters, H, estimator)
    result = xr.Dataset(coords=data.coords())
    K = len(data.shares)
    result = result.assign_coords({"class": np.arange(K), "class_": np.arange(K)})
    for name, (values, error, quantile) in found.items():
        _put(result, data, name, values, error, quantile)
    if data.has_time and result.sizes["time"] > 1:
        _add_intervals(result)
    result.attrs.update(
        transform=H.kind,
        kernel=kernel,
        method="regression of one-step changes on the drawn sample's features",
        estimator=estimator,
        errors=clusters.kind,
        confidence=confidence,
        replicates=int(data.dataset["change"].sizes.get("replicate", 1)),
        draws=len(data.labels),
    )
    return result


Found = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def _estimates(data: ImpactData, clusters: Clusters, H: Any, estimator: str) -> Found:
    """Values, errors and quantiles (group, time, ...) of all variables."""
    u, unit = data.scaled_drivers(H)
    change = data.array("change", ("draw", "class", "feature")) / unit[..., None]
    square = data.array("square", ("draw", "class"))
    # A square that left the range of floats says nothing.
    held = (square > np.finfo(float).tiny) & (square < np.inf) | (change == 0).all(-1)
    square = np.where(held, square, np.nan) / unit / unit
    relative = data.array("relative", ("draw", "class")) if "relative" in data.dataset else None
    G, _, T = change.shape[:3]
    frames: list[list[dict[str, np.ndarray]]] = []
    quantiles: list[list[dict[str, np.ndarray]]] = []
    for g in range(G):
        frames.append([])
        quantiles.append([])
        for t in range(T):
            frame = ImpactFrame(
                clusters, data.shares, change[g, :, t], u[g, :, t], data.steps[g], estimator
            )
            frame.add_explained(square[g, :, t])
            if relative is not None:
                frame.add_relative(relative[g, :, t])
            frames[g].append(frame.values)
            quantiles[g].append(frame.quantiles)
    found: Found = {}
    plain = clusters.quantile()
    for name in frames[0][0]:
        values = np.array([[f[name] for f in row] for row in frames])  # (G, T, 1 + unit, ...)
        error = np.array([[clusters.error(v) for v in row] for row in values])
        q = np.array([[f.get(name, plain) for f in row] for row in quantiles])
        q = q.reshape(*q.shape, *[1] * (error.ndim - q.ndim))
        found[name] = values[:, :, 0], error, np.broadcast_to(q, error.shape)
        integral = next((A for A, rate in INTEGRALS.items() if rate == name), None)
        if integral and data.has_time and T > 1:
            sums = _integral(values, data.dataset["time"].values.astype(np.float64))
            error = np.array([[clusters.error(v) for v in row] for row in sums])
            found[integral] = sums[:, :, 0], error, np.broadcast_to(plain, error.shape)
    return found


def _integral(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Integral over time, axis 1, from its start, by the trapezoidal rule."""
    width = np.diff(times).reshape(-1, *[1] * (values.ndim - 2))
    steps = (values[:, 1:] + values[:, :-1]) / 2 * width
    return np.concatenate([np.zeros_like(values[:, :1]), np.cumsum(steps, axis=1)], axis=1)


def _put(
    result: xr.Dataset,
    data: ImpactData,
    name: str,
    values: np.ndarray,
    error: np.ndarray,
    quantile: np.ndarray,
) -> None:
    """A variable with its errors under its own dimensions."""
    over = ("time",) if data.has_time else ()
    dims = (*data.groups, *over, *(("class", "class_") if name in MATRICES else ()))
    own = values.shape[1:] if data.has_time else values.shape[2:]
    shape = (*data.groups.values(), *own)
    parts: Mapping[str, np.ndarray] = {
        "": values,
        "_se": error,
        "_lower": values - quantile * error,
        "_upper": values + quantile * error,
    }
    for end, part in parts.items():
        words = f"standard error of {LONG[name]}" if end == "_se" else LONG[name]
        attrs = {"long_name": words} if end in ("", "_se") else {}
        result[f"{name}{end}"] = (dims, part.reshape(shape), attrs)


def _add_intervals(result: xr.Dataset) -> None:
    """Mean rates between saved times, in the form that `lesde.fitted_kernel` reads."""
    times = result["time"].values.astype(np.float64)
    result.coords["interval"] = (times[1:] + times[:-1]) / 2
    result.coords["start"] = ("interval", times[:-1])
    result.coords["end"] = ("interval", times[1:])
    for name in ("alpha", "beta", "alpha_minus_beta", "E"):
        values = result[name]
        axis = values.dims.index("time")
        v = np.moveaxis(values.values, axis, 0)
        dims = ["interval" if d == "time" else d for d in values.dims]
        result[f"{name}_raw"] = (
            dims,
            np.moveaxis((v[1:] + v[:-1]) / 2, 0, axis),
            {"long_name": f"{LONG[name]}, mean over interval"},
        )


def _warn_of_missing(data: ImpactData) -> None:
    missing = sorted(set(range(len(data.shares))) - set(data.labels.tolist()))
    if missing:
        warnings.warn(
            f"impact has no drawn sample of class {', '.join(map(str, missing))}: what such a step does is "
            f"NaN, and α and β are those of the other classes. Draw samples of every class.",
            UserWarning,
            stacklevel=3,
        )
