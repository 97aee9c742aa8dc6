"""Neural collapse of simulated or recorded features: `neural_collapse` and its metrics."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.collapse import frames as class_frames
from lesde.analysis.collapse.frames import (
    LEAST,
    MOST,
    ClassFrames,
    ClassGeometry,
    rounding_of,
    units,
)
from lesde.checks import (
    bare_array,
    check_choice,
    check_finite_array,
    check_labels,
    check_names,
    shown,
)
from lesde.paths import check_paths, check_statistics, is_statistics, need_samples

__all__ = [
    "METRICS",
    "ClassStatistics",
    "Metric",
    "PathCenters",
    "align",
    "batches",
    "evaluate",
    "evaluate_arrays",
    "evaluate_statistics",
    "metric",
    "nc1",
    "nc1_cdnv",
    "nc1_trace",
    "nc2_angle_std",
    "nc2_etf",
    "nc2_norm_cv",
    "nc3",
    "nc3_duality",
    "nc4",
    "ncc_accuracy",
    "neural_collapse",
    "read_centers",
    "refuse",
    "target_of",
]


# --------------------------------------------------------------------------------------------------
# Arrays that go with features, put over the dimensions of the features.


def align(name: str, value: Any, leading: dict[Hashable, int], ends: dict[str, int]) -> np.ndarray:
    """A float64 array over the leading dimensions of the features, and then others.

    Parameters
    ----------
    name : str
        What errors call it.
    value : DataArray or array_like
        A DataArray has the dimensions ``ends`` and any of ``leading``, in any order; an array has the
        shape of ``ends`` after leading dimensions that broadcast.
    leading, ends : dict of dimension to size

    Returns
    -------
    ndarray
        A view that may not be written to, of the sizes of ``leading`` and then ``ends``.
    """
    wanted = ", ".join(f"{dim}: {size}" for dim, size in ends.items())
    if isinstance(value, xr.DataArray):
        renamed = {dim: "feature" for dim in value.dims if dim == "feature_in"}
        variable = value.rename(renamed).variable
        missing = [dim for dim in ends if dim not in variable.dims]
        foreign = [dim for dim in variable.dims if dim not in ends and dim not in leading]
        if missing or foreign:
            raise ValueError(
                f"{name} must have the dimensions {', '.join(map(repr, ends))} and otherwise only "
                f"those of the features ({', '.join(map(repr, leading)) or 'none'}); "
                f"got {', '.join(map(repr, value.dims))}."
            )
        order = [dim for dim in leading if dim in variable.dims]
        variable = variable.transpose(*order, *ends)
        array = check_finite_array(name, variable.values)
        shape = tuple(leading[d] if d in order else 1 for d in leading) + tuple(ends.values())
        fits = array.shape == tuple(leading[d] for d in order) + tuple(ends.values())
        array = array.reshape(shape) if fits else array
    else:
        array = check_finite_array(name, value)
        fits = array.ndim >= len(ends) and array.shape[array.ndim - len(ends) :] == tuple(
            ends.values()
        )
    try:
        if not fits:
            raise ValueError
        return np.broadcast_to(array, (*leading.values(), *ends.values()))
    except ValueError:
        dims = ", ".join(f"{dim}: {size}" for dim, size in leading.items()) or "none"
        raise ValueError(
            f"{name} must fit the features, ({wanted}) after leading dimensions that broadcast to "
            f"({dims}); got shape {shown(np.shape(value))}."
        ) from None


# --------------------------------------------------------------------------------------------------
# Registry of the collapse metrics, and the loop that evaluates them batch by batch.


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    ``compute`` maps a `ClassGeometry` of F frames to F values; ``title`` is the first line of its
    docstring; ``target`` is its value under perfect collapse; ``classifier`` says whether it
    needs weights, ``samples`` whether it needs every sample (``frames.blocks()``), ``centers``
    whether it compares samples to centres that may be those of other samples, ``usual`` whether it
    is computed where no metric is named.
    """

    compute: Callable[[Any], np.ndarray]
    title: str
    target: float = 0.0
    classifier: bool = False
    samples: bool = False
    centers: bool = False
    usual: bool = True


METRICS: dict[str, Metric] = {}


def target_of(variable: Any) -> float:
    """A metric's value under perfect collapse, from a DataArray: its attribute, or else by its name."""
    known = METRICS[variable.name].target if variable.name in METRICS else 0.0
    return float(variable.attrs.get("target", known))


def metric(
    *,
    target: float = 0.0,
    classifier: bool = False,
    samples: bool = False,
    centers: bool = False,
    usual: bool = True,
) -> Callable[[Any], Any]:
    """Register a function of `ClassGeometry` as a metric, and make it a function of arrays.

    Parameters
    ----------
    target : float, default 0
        Value of the metric under perfect collapse; `lesde.convergence` follows the distance to it.
    classifier : bool, default False
        Whether the metric needs the weights of a linear classifier (``frames.weights``,
        ``frames.bias``).
    samples : bool, default False
        Whether the metric reads every sample (``frames.blocks()``, of a `ClassFrames`), so that
        class means and within-class covariances do not suffice.
    centers : bool, default False
        Whether the metric compares samples to class centres (``frames.closeness``), which may be
        given: those of training features for held-out ones.
    usual : bool, default True
        Whether `lesde.neural_collapse` computes the metric where no metric is named.

    Notes
    -----
    Lengths of ``frames`` are in units of two to the power ``frames.exponent``, which is 0 for features
    between about 1e-50 and 1e50 in size.

    Returns
    -------
    decorator
        Gives a function ``(features, labels) -> ndarray`` for ``features`` of shape (..., sample,
        feature), or ``(features, labels, weights, bias=None)`` for a classifier's metric; with the
        keyword ``centers=None`` besides, of shape (..., class, feature), where it has centres.

    Examples
    --------
    >>> @metric()
    ... def largest_norm(frames):
    ...     "Largest distance of a class mean from the centre."
    ...     return np.sqrt(np.einsum("fkk->fk", frames.gram).max(axis=1))
    >>> float(largest_norm(np.array([[3.0, 0.0], [-3.0, 0.0]]), np.array([0, 1])))
    3.0
    >>> del METRICS["largest_norm"]
    """

    def register(compute: Callable[[Any], np.ndarray]) -> Callable[..., np.ndarray]:
        name = compute.__name__
        title = (inspect.getdoc(compute) or name).splitlines()[0]
        METRICS[name] = Metric(compute, title, target, classifier, samples, centers, usual)

        def plain(features: Any, labels: Any) -> np.ndarray:
            return evaluate_arrays(features, labels, [name])[name]

        def centred(features: Any, labels: Any, *, centers: Any = None) -> np.ndarray:
            return evaluate_arrays(features, labels, [name], centers=centers)[name]

        def classified(features: Any, labels: Any, weights: Any, bias: Any = None) -> np.ndarray:
            return evaluate_arrays(features, labels, [name], weights, bias)[name]

        def classified_centred(
            features: Any, labels: Any, weights: Any, bias: Any = None, *, centers: Any = None
        ) -> np.ndarray:
            return evaluate_arrays(features, labels, [name], weights, bias, centers)[name]

        function: Callable[..., np.ndarray]
        if classifier:
            function = classified_centred if centers else classified
        else:
            function = centred if centers else plain
        function.__name__ = function.__qualname__ = name
        function.__doc__, function.__module__ = compute.__doc__, compute.__module__
        return function

    return register


def evaluate_arrays(
    features: Any,
    labels: Any,
    names: Sequence[str],
    weights: Any = None,
    bias: Any = None,
    centers: Any = None,
) -> dict[str, np.ndarray]:
    """Metrics of an array (..., sample, feature), each of the shape of the leading dimensions."""
    array = np.asarray(features)
    if array.ndim < 2:
        raise ValueError(
            f"features must have shape (..., sample, feature); got an array of shape {array.shape}."
        )
    checked = check_labels("labels", labels)
    if len(checked) != array.shape[-2]:
        raise ValueError(
            f"labels must have one entry per sample, {array.shape[-2]} for features of shape "
            f"{array.shape}; got {len(checked)}."
        )
    leading, n_features = array.shape[:-2], array.shape[-1]
    n_classes = int(checked.max()) + 1
    if weights is not None:
        weights = _broadcast("weights", weights, leading, (n_classes, n_features))
    if bias is not None:
        bias = _broadcast("bias", bias, leading, (n_classes,))
    if centers is not None:
        centers = _broadcast("centers", centers, leading, (n_classes, n_features))
    return evaluate(array, checked, names, weights, bias, _plain_place, centers)


def _plain_place(index: tuple[int, ...]) -> str:
    return f"index {index}"


def _broadcast(
    name: str, value: Any, leading: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
    array = bare_array(name, value)
    array = check_finite_array(name, array, [(*array.shape[: -len(shape)], *shape)])
    try:
        return np.broadcast_to(array, (*leading, *shape))
    except ValueError:
        raise ValueError(
            f"{name} must have shape {shape} after leading dimensions that broadcast to {leading}, "
            f"those of the features; got an array of shape {array.shape}."
        ) from None


def evaluate(
    source: Any,
    labels: np.ndarray,
    names: Sequence[str],
    weights: np.ndarray | None,
    bias: np.ndarray | None,
    place: Callable[[tuple[int, ...]], str],
    centers: Any = None,
) -> dict[str, np.ndarray]:
    """Metrics of everything ``source`` holds, in batches of frames of bounded size.

    Parameters
    ----------
    source : array or lazily read variable, shape (..., sample, feature)
        Indexed with slices only; a batch at a time is turned into an array.
    labels : ndarray of int, shape (sample,)
    names : sequence of str
        Registered metrics.
    weights, bias : ndarray or None, shapes (..., class, feature) and (..., class)
        With the leading dimensions of ``source``.
    place : callable
        Words for an index of ``source``, for the error about a non-finite value.
    centers : array or object that gives one when indexed by a batch, shape (..., class, feature), optional
        Class centres of other samples, with the leading dimensions of ``source``.

    Returns
    -------
    dict of ndarray
        float64, of the shape of the leading dimensions.
    """
    *leading, n_samples, n_features = source.shape
    n_classes = int(labels.max()) + 1
    if n_classes < 2:
        raise ValueError(
            "labels must name at least two classes, neural collapse compares classes; got one. "
            "Record samples of another class."
        )
    if n_features == 0:
        raise ValueError("features must have at least one feature; got none.")
    if not np.issubdtype(source.dtype, np.integer) and not np.issubdtype(source.dtype, np.floating):
        raise TypeError(f"features must hold real numbers; got dtype {shown(str(source.dtype))}.")
    results = {name: np.empty(leading) for name in names}
    most = max(1, class_frames.BLOCK_VALUES // (n_samples * n_features))
    for batch in batches(tuple(leading), most):
        shape = tuple(s.stop - s.start for s in batch)
        size = int(np.prod(shape, dtype=int))

        def read(block: slice, batch=batch, size=size) -> np.ndarray:
            return np.asarray(source[(*batch, block)]).reshape(size, -1, n_features)

        frames = ClassFrames(
            read,
            (size, n_samples, n_features),
            labels,
            None if weights is None else weights[batch].reshape(size, n_classes, n_features),
            None if bias is None else bias[batch].reshape(size, n_classes),
            None if centers is None else centers[batch].reshape(size, n_classes, n_features),
        )
        if not np.isfinite(frames.means).all():
            refuse(source, batch, place)
        for name in names:
            results[name][batch] = METRICS[name].compute(frames).reshape(shape)
    return results


def batches(leading: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most ``most`` frames that tile the leading dimensions, last ones whole."""
    steps: list[int] = []
    for size in reversed(leading):
        steps.insert(0, max(1, min(size, most)))
        most //= steps[0]
    ranges = [
        [slice(a, min(a + step, size)) for a in range(0, size, step)]
        for size, step in zip(leading, steps, strict=True)
    ]
    yield from itertools.product(*ranges)


def refuse(source: Any, batch: tuple[slice, ...], place: Callable[[tuple[int, ...]], str]) -> None:
    """Raise the error that names the first non-finite feature of a batch."""
    for frame in itertools.product(*(range(s.start, s.stop) for s in batch)):
        values = np.asarray(source[tuple(slice(i, i + 1) for i in frame)]).reshape(
            source.shape[-2:]
        )
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            i, j = (int(v) for v in bad[0])
            raise ValueError(
                f"features must be finite; got {values[i, j]} at {place((*frame, i, j))}. "
                f"Drop the frames after a run diverged, or the samples that were not recorded."
            )
    raise ValueError("features are too large: their class means overflow float64. Rescale them.")


# --------------------------------------------------------------------------------------------------
# Class centres of other samples, such as those of training features for held-out ones.


class PathCenters:
    """Class means of paths, worked out for a batch of frames when it is asked for.

    Parameters
    ----------
    features : xarray.DataArray
        Dimensions ``sample``, ``feature`` and any of those of the features the centres are for; may
        be read lazily from disk.
    labels : ndarray of int, shape (sample,)
    leading : sequence of str
        Leading dimensions of the features the centres are for, in order.
    """

    def __init__(self, features: xr.DataArray, labels: np.ndarray, leading: Sequence[Hashable]):
        own = [dim for dim in leading if dim in features.dims]
        self._source = features.transpose(*own, "sample", "feature").variable
        self._labels = labels
        self._has = [dim in own for dim in leading]

    def __getitem__(self, batch: tuple[slice, ...]) -> np.ndarray:
        """Class means of a batch of frames, (..., class, feature), float64."""
        own = tuple(s for s, has in zip(batch, self._has, strict=True) if has)
        sizes = tuple(s.stop - s.start for s in own)
        n_samples, n_features = self._source.shape[-2:]
        count = int(np.prod(sizes, dtype=int))
        read = partial(_read, self._source, own, (count, -1, n_features))
        means = ClassFrames(read, (count, n_samples, n_features), self._labels).averages
        if not np.isfinite(means).all():
            try:
                refuse(self._source, own, lambda index: f"index {index}")
            except ValueError as error:
                raise ValueError(f"centers: {error}") from None
        shape = [s.stop - s.start if has else 1 for s, has in zip(batch, self._has, strict=True)]
        full = [s.stop - s.start for s in batch]
        return np.broadcast_to(means.reshape(*shape, *means.shape[1:]), (*full, *means.shape[1:]))


def _read(
    source: xr.Variable, batch: tuple[slice, ...], shape: tuple[int, ...], block: slice
) -> np.ndarray:
    return np.asarray(source[(*batch, block)]).reshape(shape)


def read_centers(value: Any, features: xr.DataArray, n_classes: int) -> Any:
    """Class centres for features (..., sample, feature), to be indexed by a batch of frames.

    Parameters
    ----------
    value : Dataset, DataArray or array_like
        Paths, whose class means are the centres, or their statistics; or the centres (..., class,
        feature). Leading dimensions are some of those of the features, with the same coordinates.
    features : xarray.DataArray, (..., sample, feature)
    n_classes : int
    """
    leading = {dim: features.sizes[dim] for dim in features.dims[:-2]}
    ends = {"class": n_classes, "feature": features.sizes["feature"]}
    if isinstance(value, xr.Dataset) and is_statistics(value):
        value = value["mean"]
    if not isinstance(value, xr.Dataset):
        if isinstance(value, xr.DataArray):
            _check_coords(value, features)
        return align("centers", value, leading, ends)
    found, labels = check_paths("centers", value)
    given = {"class": int(labels.max()) + 1, "feature": found.sizes["feature"]}
    if given != ends:
        raise ValueError(
            f"centers must have the {n_classes} classes and {ends['feature']} features of paths; got "
            f"{given['class']} classes and {given['feature']} features."
        )
    foreign = [dim for dim in found.dims if dim not in (*leading, "sample", "feature")]
    wrong = [d for d in found.dims if d in leading and found.sizes[d] != leading[d]]
    if foreign or wrong:
        dims = ", ".join(f"{dim}: {size}" for dim, size in leading.items()) or "none"
        raise ValueError(
            f"centers must have only leading dimensions that paths has too ({dims}); got "
            f"{', '.join(f'{d}: {found.sizes[d]}' for d in (*foreign, *wrong))}."
        )
    _check_coords(found, features)
    return PathCenters(found, labels, list(leading))


def _check_coords(centers: xr.DataArray, features: xr.DataArray) -> None:
    """Refuse centres of other times, replicates or learning rates than those of the features."""
    for dim in features.dims[:-2]:
        known = dim in centers.dims and dim in centers.coords and dim in features.coords
        if known and not np.array_equal(centers[dim].values, features[dim].values):
            raise ValueError(
                f"centers must have the {dim} of paths; they differ. Choose what both have, for "
                f"example with xarray.align(..., join='inner')."
            )


# --------------------------------------------------------------------------------------------------
# The collapse metrics from class means and within-class covariances, without the samples.


class ClassStatistics(ClassGeometry):
    """A batch of frames of which class means and within-class covariances are known.

    Attributes and methods are those of `ClassGeometry`; there are no samples to iterate over.

    Parameters
    ----------
    means : ndarray, shape (F, K, p), float64
    read_within : callable
        Gives the within-class covariances with divisor n_k, shape (F, K, p, p), when they are needed;
        ``read_within(True)`` their diagonals, (F, K, p).
    stored : ndarray, shape (F,)
    counts, weights, bias
        As for `ClassGeometry`.
    """

    def __init__(
        self,
        means: np.ndarray,
        read_within: Callable[..., np.ndarray],
        stored: np.ndarray,
        counts: np.ndarray,
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ):
        super().__init__(len(means), means.shape[2], counts, weights, bias)
        self.stored = stored
        self._read_within = read_within
        variances = np.maximum(read_within(True), 0.0)
        with np.errstate(over="ignore", under="ignore"):
            size = (variances + means**2).sum(axis=(1, 2))
        largest = np.maximum(np.abs(means), np.sqrt(variances)).max(axis=(1, 2))
        usual = (size > LEAST) & (size < MOST)
        self.exponent = np.where(usual, 0, units(largest))
        shift = -self.exponent[:, None, None]
        self.means = np.ldexp(means, shift)
        self.squares = np.ldexp(variances, 2 * shift) + self.means**2
        self.total = self.squares.sum(axis=2) @ counts

    def blocks(self) -> Iterator[Any]:
        raise need_samples("paths", "this metric")

    @cached_property
    def within(self) -> np.ndarray:
        """Within-class covariances, (F, K, p, p), float64."""
        return np.ldexp(self._read_within(), -2 * self.exponent[:, None, None, None])

    @cached_property
    def scatter(self) -> np.ndarray:
        return self.not_rounding(self.counts * np.einsum("fkpp->fk", self.within))

    @cached_property
    def whitened_scatter(self) -> np.ndarray:
        axes = self.whitening[:, None]
        each = np.einsum(
            "fkpr,fkpr->fk", self.within @ axes, np.broadcast_to(axes, self._over(axes))
        )
        # A covariance without spread along these axes may come out below 0 by its rounding.
        return self.not_whitened_rounding(np.maximum(each, 0.0) @ self.counts)

    def _over(self, axes: np.ndarray) -> tuple[int, ...]:
        return (self.n_frames, self.n_classes, *axes.shape[2:])


def evaluate_statistics(
    mean: Any,
    within: Any,
    counts: np.ndarray,
    names: Sequence[str],
    weights: np.ndarray | None,
    bias: np.ndarray | None,
    place: Callable[[tuple[int, ...]], str],
    rounding: float = 0.0,
) -> dict[str, np.ndarray]:
    """Metrics of everything ``mean`` and ``within`` hold, in batches of frames of bounded size.

    Parameters
    ----------
    mean, within : array or lazily read variable, (..., class, feature), (..., class, feature, feature_)
        Indexed with slices only; a batch at a time is turned into an array.
    counts : ndarray of int, shape (class,)
        Samples per class.
    names, weights, bias
        As for `lesde.analysis.collapse_registry.evaluate`.
    place : callable
        Words for an index of ``mean`` (leading dimensions, class, feature), for the error about a value
        that is not finite.
    rounding : float, default 0
        Relative rounding of the features the statistics are of, where it is known.

    Returns
    -------
    dict of ndarray
        float64, of the shape of the leading dimensions.
    """
    *leading, K, p = mean.shape
    if p == 0:
        raise ValueError("paths.mean must have at least one feature; got none.")
    results = {name: np.empty(leading) for name in names}
    most = max(1, class_frames.BLOCK_VALUES // (K * p * p))
    for batch in batches(tuple(leading), most):
        shape = tuple(s.stop - s.start for s in batch)
        size = int(np.prod(shape, dtype=int))
        means = np.asarray(mean[batch]).reshape(size, K, p)
        stored = np.maximum(rounding_of(means), rounding)
        means = means.astype(np.float64)
        _check_finite("mean", means, shape, batch, place)

        def read_within(diagonal=False, batch=batch, shape=shape, size=size) -> np.ndarray:
            values = np.asarray(within[batch]).reshape(size, K, p, p)
            if diagonal:
                values = np.einsum("fkpp->fkp", values)
            values = values.astype(np.float64)
            _check_finite("within", values, shape, batch, place)
            return values

        frames = ClassStatistics(
            means,
            read_within,
            stored,
            counts,
            None if weights is None else weights[batch].reshape(size, K, p),
            None if bias is None else bias[batch].reshape(size, K),
        )
        for name in names:
            results[name][batch] = METRICS[name].compute(frames).reshape(shape)
    return results


def _check_finite(
    name: str,
    values: np.ndarray,
    shape: tuple[int, ...],
    batch: tuple[slice, ...],
    place: Callable[[tuple[int, ...]], str],
) -> None:
    """Raise the error that names the first value of a batch that is not finite."""
    if np.isfinite(values).all():
        return
    at, *rest = np.argwhere(~np.isfinite(values))[0]
    frame = np.unravel_index(at, shape)
    index = (*(int(i) + s.start for i, s in zip(frame, batch, strict=True)), *map(int, rest[:2]))
    raise ValueError(
        f"paths.{name} must be finite; got {values[(at, *rest)]} at {place(index)}. "
        f"Drop the frames after a run diverged."
    )


# --------------------------------------------------------------------------------------------------
# The neural-collapse metrics, one function each.


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotient of non-negative numbers: inf for a positive number over 0, NaN for 0 over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return top / bottom


@metric()
def nc1(frames: ClassGeometry) -> np.ndarray:
    """Within-class variability in units of the between-class one, tr(Σ_W Σ_B⁺)/K.

    Papyan, Han, Donoho (2020). With the thin SVD C = U S Vᵀ this is (1/N) Σ_i Σ_j ((x_i −
    μ_{k(i)})·v_j)²/s_j²: the K of Σ_B = CᵀC/K cancels against the division by K. Computed so, it
    is a sum of squares, never negative, and needs no p×p matrix.

    Singular values are kept up to rank min(K−1, p) and while they are above the rounding of the
    class means along v_j. A mean of n_k samples is taken to be off, in each feature, by 4ε + max(n_k,
    p)·2.2e-16 of the root mean square of that feature in the class, with ε that of the precision the
    features were stored in: the layer that computed them rounded as well as the store. Over K means
    and p features √K(1 + √(p/K)) times that is the most that independent rounding reaches.
    Directions below are dropped, as in the pseudo-inverse: scatter there does not count. A spread
    within the rounding of the sums (ε left out) counts as 0. Where all class means coincide within
    their rounding the value is inf (NaN when there is no scatter either).

    float64 features that are all numbers of float32 were rounded to it, and are treated so; whole
    numbers are exact. Arithmetic in float64 on features of lower precision hides that precision: take
    metrics of the features as recorded.

    Parameters
    ----------
    features : array_like, shape (..., sample, feature)
        Features of the samples; leading dimensions are batched over.
    labels : array_like of int, shape (sample,)
        Classes 0 to K−1 with K ≥ 2, in any order.

    Returns
    -------
    ndarray, shape (...)
        float64.
    """
    value = frames.whitened_scatter / frames.n_samples
    apart = frames.whitening.any(axis=(1, 2))
    if apart.all():
        return value
    total = frames.scatter.sum(axis=1)
    return np.where(apart, value, _ratio(total, np.zeros_like(total)))


@metric()
def nc1_trace(frames: ClassGeometry) -> np.ndarray:
    """Within-class variability as a quotient of traces, tr Σ_W / tr Σ_B.

    Tirer et al. (2023). inf where all class means coincide (NaN
    when there is no scatter either). Parameters and shapes as in `nc1`.
    """
    within = frames.scatter.sum(axis=1) / frames.n_samples
    return _ratio(within, frames.between / frames.n_classes)


@metric()
def nc1_cdnv(frames: ClassGeometry) -> np.ndarray:
    """Class-distance normalised variance, mean over pairs of (Var_k + Var_l) / (2‖μ_k − μ_l‖²).

    Galanti, György, Hutter (2022). Var_k is the mean squared distance of the samples of class k
    to μ_k (divisor n_k; 0 for a class with one sample); every pair counts alike. inf if two class
    means coincide (NaN when neither class of such a pair has scatter). Parameters and shapes as
    in `nc1`.
    """
    variance = frames.scatter / frames.counts
    total = np.zeros(frames.n_frames)
    for k, square in frames.pairs():
        total += _ratio(variance[:, k, None] + variance[:, k + 1 :], 2 * square).sum(axis=1)
    return total / (frames.n_classes * (frames.n_classes - 1) / 2)


def _etf_distance(products: np.ndarray) -> np.ndarray:
    """‖A/‖A‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for each A of shape (F, K, K); NaN where A = 0."""
    k = products.shape[-1]
    target = (np.eye(k) - 1.0 / k) / np.sqrt(k - 1)
    size = np.linalg.norm(products, axis=(1, 2), keepdims=True)
    return np.linalg.norm(_ratio(products, size) - target, axis=(1, 2))


@metric()
def nc2_etf(frames: ClassGeometry) -> np.ndarray:
    """Distance of the class means from a simplex ETF, ‖CCᵀ/‖CCᵀ‖_F − (I − 11ᵀ/K)/√(K−1)‖_F.

    The means form a simplex equiangular tight frame iff it is 0 (Papyan, Han, Donoho 2020). It is
    0 for every frame at K = 2, where two centred means are always opposite. NaN where all class
    means coincide. Parameters and shapes as in `nc1`.
    """
    return _etf_distance(np.where(frames.between[:, None, None] > 0, frames.gram, 0.0))


def _norms(frames: ClassGeometry) -> np.ndarray:
    """Norms of the centred means, shape (F, K); 0 where a mean is at the centre within rounding."""
    squares = np.einsum("fkk->fk", frames.gram)
    apart = squares > 2 * frames.most_noise[:, None]
    if not apart.all():
        noise = frames.noise_squares + frames.noise_squares.mean(axis=1, keepdims=True)
        apart |= (frames.centred**2 > noise).any(axis=2)
    return np.where(apart, np.sqrt(squares), 0.0)


@metric()
def nc2_norm_cv(frames: ClassGeometry) -> np.ndarray:
    """Coefficient of variation of the norms of the centred class means.

    Standard deviation (divisor K) over mean of ‖μ_k − μ_G‖ (Papyan, Han, Donoho 2020). 0 for
    every frame at K = 2. NaN where all class means coincide. Parameters and shapes as in `nc1`.
    """
    norms = _norms(frames)
    return _ratio(norms.std(axis=1), norms.mean(axis=1))


@metric()
def nc2_angle_std(frames: ClassGeometry) -> np.ndarray:
    """Standard deviation, over pairs of classes, of the cosine between centred class means.

    Divisor K(K−1)/2 (Papyan, Han, Donoho 2020). At K = 2 there is one pair, so it is 0 by
    definition and says nothing. NaN where a class mean coincides with the centre, which has no
    direction. Parameters and shapes as in `nc1`.
    """
    norms = _norms(frames)
    k, l = np.triu_indices(frames.n_classes, 1)
    known = norms[:, k] * norms[:, l]
    return _ratio(frames.gram[:, k, l], np.where(known > 0, known, np.nan)).std(axis=1)


def _centred_weights(weights: np.ndarray) -> np.ndarray:
    """Rows of the weights (F, K, p) less their mean, to scale; 0 where they are equal."""
    largest = np.abs(weights).max(axis=(1, 2))
    rows = np.ldexp(weights, -units(largest)[:, None, None])
    noise = rows.shape[1] * np.finfo(np.float64).eps * np.abs(rows).max(axis=1, keepdims=True)
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred * (np.abs(centred) > noise).any(axis=(1, 2), keepdims=True)


@metric(classifier=True)
def nc3(frames: ClassGeometry) -> np.ndarray:
    """Distance of classifier and class means from one shared simplex ETF.

    ‖A/‖A‖_F − (I − 11ᵀ/K)/√(K−1)‖_F with A = (W − w̄)Cᵀ, w̄ the mean of the rows of the weights
    W: `nc2_etf` with the classifier in place of one C, the form of Zhu et al. (NeurIPS 2021) but
    with W centred. It is 0 only if the classifier is aligned with the class means (self-duality)
    and both form the frame; `nc3_duality` is 0 for self-dual means that are no frame too. NaN where all class means coincide or W has
    equal rows.

    Parameters
    ----------
    features : array_like, shape (..., sample, feature)
    labels : array_like of int, shape (sample,)
    weights : array_like, shape (..., class, feature)
        Leading dimensions broadcast against those of the features.
    bias : ignored
        Accepted so that `nc3` and `nc4` are called alike.

    Returns
    -------
    ndarray, shape (...)
    """
    assert frames.weights is not None
    rows = _centred_weights(frames.weights)
    products = rows @ frames.centred.swapaxes(1, 2)
    return _etf_distance(np.where(frames.between[:, None, None] > 0, products, 0.0))


@metric(classifier=True)
def nc3_duality(frames: ClassGeometry) -> np.ndarray:
    """Distance of the classifier from the class means, each of unit size.

    ‖V/‖V‖_F − C/‖C‖_F‖_F with V = W − w̄, w̄ the mean of the rows of the weights W: self-duality
    alone, whatever the class means form. It is the distance of Papyan, Han, Donoho (2020), who do
    not centre W and show its square; rows of W that all move alike leave every decision as it is.
    0 for self-dual, √2 for unrelated and 2 for opposite weights and means. NaN where all class means
    coincide or W has equal rows. Parameters and shapes as in `nc3`.
    """
    assert frames.weights is not None
    rows = _centred_weights(frames.weights)
    centred = np.where(frames.between[:, None, None] > 0, frames.centred, 0.0)
    units = [_ratio(a, np.linalg.norm(a, axis=(1, 2), keepdims=True)) for a in (rows, centred)]
    return np.linalg.norm(units[0] - units[1], axis=(1, 2))


def _decision(frames: ClassGeometry) -> tuple[np.ndarray, np.ndarray | float]:
    """Weights and bias for features in the units of the frames, together to scale."""
    assert frames.weights is not None
    # Of x/2^e the logits are those of x over 2^e where the bias is over 2^e as well.
    exponent = units(np.abs(frames.weights).max(axis=(1, 2)))
    if frames.bias is None:
        return np.ldexp(frames.weights, -exponent[:, None, None]), 0.0
    largest = np.abs(frames.bias).max(axis=1)
    exponent = np.where(
        largest > 0, np.maximum(exponent, units(largest) - frames.exponent), exponent
    )
    bias = np.ldexp(frames.bias, -(frames.exponent + exponent)[:, None])
    return np.ldexp(frames.weights, -exponent[:, None, None]), bias[:, None, :]


@metric(target=1.0, classifier=True, samples=True, centers=True)
def nc4(frames: ClassFrames) -> np.ndarray:
    """Share of samples on which the classifier and the nearest class mean agree.

    argmax_k (w_k·x + b_k) against argmin_k ‖x − μ_k‖ (Papyan, Han, Donoho 2020, who report the
    share that disagrees); 1 under collapse. A tie goes to the lower class. Without ``bias``, b
    = 0. With ``centers``, those in place of the class means μ_k: for held-out features the class
    means of the training features. Parameters and shapes as in `nc3`, of ``centers`` as in
    `ncc_accuracy`.
    """
    assert frames.weights is not None
    weights, offset = _decision(frames)
    agreed = np.zeros(frames.n_frames)
    for block in frames.blocks():
        values = block.values
        decision = (values @ weights.swapaxes(1, 2) + offset).argmax(axis=2)
        agreed += (decision == frames.closeness(values).argmax(axis=2)).sum(axis=1)
    return agreed / frames.n_samples


@metric(target=1.0, samples=True, centers=True, usual=False)
def ncc_accuracy(frames: ClassFrames) -> np.ndarray:
    """Share of samples whose nearest class centre is that of their own class.

    The accuracy of the rule argmin_k ‖x − c_k‖ of Papyan, Han, Donoho (2020, their NC4), at any layer
    (Ben-Shaul, Dekel 2022, arXiv 2201.08924, follow the share on which it disagrees with the network
    through the layers). The centres c_k are the means μ_k of the same samples, or ``centers``: for
    held-out features the class means of the training features (Galanti, György, Hutter 2022 bound the
    error of this rule by the CDNV).

    A sample that is equally far from m nearest centres, its own among them, counts 1/m, what a draw
    among them gives on average: features that all coincide have the accuracy of guessing, whatever
    the order of the classes. Distances that differ by no more than the rounding of the centres are
    equal.

    Parameters
    ----------
    features : array_like, shape (..., sample, feature)
        Features of the samples; leading dimensions are batched over.
    labels : array_like of int, shape (sample,)
        Classes 0 to K−1 with K ≥ 2, in any order.
    centers : array_like, shape (..., class, feature), optional
        Class centres; leading dimensions broadcast against those of the features. Default: the class
        means of ``features``.

    Returns
    -------
    ndarray, shape (...)
        float64.

    Examples
    --------
    >>> x, labels = [[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1]
    >>> float(ncc_accuracy(x, labels))
    1.0
    >>> float(ncc_accuracy(x, labels, centers=[[-1.0], [1.0]]))  # 0 is in the middle
    0.625
    """
    correct = np.zeros(frames.n_frames)
    for block in frames.blocks():
        closeness = frames.closeness(block.values)
        best = closeness.max(axis=2) - frames.tie(block.values)
        nearest = closeness >= best[..., None]
        own = nearest[:, np.arange(len(block.labels)), block.labels]
        correct += (own / nearest.sum(axis=2)).sum(axis=1)
    return correct / frames.n_samples


# --------------------------------------------------------------------------------------------------


def neural_collapse(
    paths: xr.Dataset,
    metrics: str | Sequence[str] | None = None,
    weights: Any = None,
    bias: Any = None,
    centers: Any = None,
) -> xr.Dataset:
    """Neural-collapse metrics of every frame of a dataset of features.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` with dimensions ``sample`` and ``feature`` and any others
        (``learning_rate``, ``replicate``, ``time``, …), and coordinate ``label(sample)``:
        integers 0 to K−1, K ≥ 2, in any order, classes of any sizes. Features may be stored in
        any real dtype and are converted to float64 a batch at a time; a variable read lazily from
        disk is read a batch at a time. Or a dataset of statistics, as `lesde.statistics` returns:
        variables ``mean`` and ``within``, coordinate ``count``.
    metrics : str or sequence of str, optional
        Names of registered metrics; only what they need is computed. Default: all those of NC1 to
        NC4, those of a classifier (``nc3``, ``nc3_duality``, ``nc4``) only where there are weights,
        and ``nc4``, which compares rules on every sample, only where ``paths`` holds features.
        ``ncc_accuracy``, the accuracy of the nearest class centre, is computed where it is named
        or ``centers`` are given.
    weights : DataArray or array_like, optional
        Weights of the linear classifier on top of the features. A DataArray has dimensions
        ``class`` and ``feature`` (or ``feature_in``) and any of the others of the features; an
        array has shape (..., class, feature) and broadcasts against their leading dimensions in
        the order of ``paths.features``. Default: the variable ``weights`` of ``paths`` if it has
        one.
    bias : DataArray or array_like, optional
        Bias of the classifier, (..., class), used by ``nc4``. Default: the variable ``bias`` of
        ``paths`` where its ``weights`` are used, else zero.
    centers : Dataset, DataArray or array_like, optional
        Class centres for ``nc4`` and ``ncc_accuracy`` in place of the class means of ``paths``: for
        held-out features, the paths of the training features at the same layer (or their statistics),
        whose class means are taken a batch at a time; or the centres themselves, a DataArray with
        dimensions ``class``, ``feature`` and any of the others of the features, or an array (...,
        class, feature). All other metrics are those of ``paths`` alone.

    Returns
    -------
    xarray.Dataset
        One float64 variable per metric over the dimensions of ``features`` other than ``sample``
        and ``feature``, in their order and with their coordinates: ``nc1``, ``nc1_trace``,
        ``nc1_cdnv``, ``nc2_etf``, ``nc2_norm_cv``, ``nc2_angle_std``, with weights ``nc3``,
        ``nc3_duality``, ``nc4``, and ``ncc_accuracy`` where it is asked for. Each has attributes ``long_name`` and ``target``, its value under perfect
        collapse. Coordinate ``count(class)``: samples per class.

    Raises
    ------
    ValueError
        For a feature that is not finite (the message says where), fewer than two classes, an
        unknown metric, weights or centres that do not fit the features, or centres that no metric
        uses.
    TypeError
        For an argument of the wrong kind.

    Notes
    -----
    Definitions, conventions for unbalanced classes and degenerate cases stand with
    each metric, for example `lesde.analysis.collapse.nc1`. In short: the centre is the mean of
    the class means, and ratios are inf where class means coincide. No metric is ever negative.
    Paths that start with every sample at its class mean have NC1 = 0 at the first time.

    All metrics are ratios, and the same at every scale that the dtype holds. Class means coincide
    where they differ by no more than the rounding of the *features*, so that classes each centred to
    0 have coinciding means whatever rounding left of them.

    From statistics the metrics are the same up to rounding: that of the dtype they are stored in,
    times the ratio of the spread in all directions to that along the class means for NC1, and of the
    size of the class means to their distances where these enter.

    The cost is one pass over the features for NC2 and one more for each of the spread NC1 whitens
    and the one it does not. Memory beyond the features is about 10 MB and a few arrays of the
    size of the class means of one frame, (class, feature) in float64, whatever the number of
    frames and samples; no array of shape (feature, feature) is formed.

    Examples
    --------
    >>> nc = lesde.neural_collapse(paths, metrics=["nc1", "nc2_etf"])  # doctest: +SKIP
    >>> nc.nc1.mean("replicate").plot(hue="learning_rate", yscale="log")  # doctest: +SKIP
    """
    reduced = is_statistics(paths)
    if reduced:
        own: dict[str, list[str]] = {
            "mean": ["class", "feature"],
            "within": ["class", "feature", "feature_"],
        }
        counts = check_statistics("paths", paths, own)
        features, last = paths["mean"], ("class", "feature")
    else:
        features, labels = check_paths("paths", paths)
        counts, last = np.bincount(labels), ("sample", "feature")
    leading = [dim for dim in features.dims if dim not in last]
    features = features.transpose(*leading, *last)
    sizes = {dim: features.sizes[dim] for dim in leading}
    ends = {"class": len(counts), "feature": features.sizes["feature"]}

    if weights is None and bias is None and "weights" in paths:
        weights, bias = paths["weights"], paths.get("bias")
    if weights is None and bias is not None:
        raise ValueError("bias is only used with weights; give weights too, or leave bias out.")
    if weights is not None:
        weights = align("weights", weights, sizes, ends)
    if bias is not None:
        bias = align("bias", bias, sizes, {"class": ends["class"]})

    names = _names(metrics, weights is not None, not reduced, centers is not None)
    if centers is not None:
        centers = read_centers(centers, features, ends["class"])

    def place(index: tuple[int, ...]) -> str:
        parts = []
        for dim, i in zip(features.dims, index, strict=True):
            known = dim in features.coords and features.coords[dim].ndim == 1
            parts.append(f"{dim}={features.coords[dim].values[i]}" if known else f"{dim} {i}")
        return ", ".join(parts)

    if reduced:
        within = paths["within"].transpose(*leading, *own["within"])
        values = evaluate_statistics(
            features.variable,
            within.variable,
            counts,
            names,
            weights,
            bias,
            place,
            float(paths.attrs.get("rounding", 0.0)),
        )
    else:
        values = evaluate(features.variable, labels, names, weights, bias, place, centers)
    coords: dict[Hashable, Any] = {
        name: coord for name, coord in features.coords.items() if set(coord.dims) <= set(leading)
    }
    coords["count"] = ("class", counts)
    return xr.Dataset(
        {
            name: (
                leading,
                value,
                {"long_name": METRICS[name].title, "target": METRICS[name].target},
            )
            for name, value in values.items()
        },
        coords=coords,
        attrs=dict(paths.attrs),
    )


def _names(
    metrics: str | Sequence[str] | None, classifier: bool, samples: bool, centers: bool
) -> list[str]:
    if centers and not samples:
        raise need_samples("paths", "centers")
    if metrics is None:
        return [
            name
            for name, entry in METRICS.items()
            if (classifier or not entry.classifier)
            and (samples or not entry.samples)
            and (entry.usual or (centers and entry.centers))
        ]
    chosen = check_names("metrics", metrics)
    if not chosen:
        raise ValueError("metrics must name at least one metric; got none. Leave it out for all.")
    names = list(dict.fromkeys(check_choice("metrics", name, METRICS) for name in chosen))
    for name in names:
        if METRICS[name].samples and not samples:
            raise need_samples("paths", f"the metric {name!r}")
        if METRICS[name].classifier and not classifier:
            raise ValueError(
                f"metrics: {name!r} needs the weights of a classifier; got none. Give weights=, or "
                f"paths with a variable 'weights'."
            )
    if centers and not any(METRICS[name].centers for name in names):
        users = [name for name, entry in METRICS.items() if entry.centers]
        raise ValueError(
            f"centers is only used by {', '.join(map(repr, users))}; got metrics "
            f"{', '.join(map(repr, names))}. Name one of those, or leave centers out."
        )
    return names
