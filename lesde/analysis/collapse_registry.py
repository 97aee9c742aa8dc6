"""Registry of the collapse metrics, and the loop that evaluates them batch by batch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lesde.analysis import class_frames
from lesde.analysis.class_frames import ClassFrames
from lesde.checks import bare_array, check_finite_array, check_labels, shown

__all__ = [
    "METRICS",
    "Metric",
    "batches",
    "evaluate",
    "evaluate_arrays",
    "metric",
    "refuse",
    "target_of",
]


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
