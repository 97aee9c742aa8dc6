"""Class means of the drawn training samples, over windows of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from lesde.checks import (
    bare_array,
    check_integer,
    check_labels,
    check_real,
    check_sequence,
    check_times,
    shown,
)
from lesde.networks.data import ImageData
from lesde.networks.looking import Look, Looker, Loss, Pooling
from lesde.networks.probes import ProbeSet, read_probes
from lesde.networks.training import EnsembleRun, Observer, train_ensemble
from lesde.paths import check_dataset, with_asked_times

__all__ = [
    "collect",
    "drawn_means",
    "entries_of",
    "packed",
    "record",
    "record_ensemble",
    "track_attrs",
]


# --------------------------------------------------------------------------------------------------
# Features of any layers of any model, as datasets like those of :func:`lesde.simulate`.

Entries = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Variables of one look at one layer, each with its dimensions after ``replicate`` and ``time``."""

ABOUT = {
    "loss": {"long_name": "loss on the probe set"},
    "accuracy": {"long_name": "accuracy on the probe set"},
    "step_size": {"long_name": "learning rate", "description": "of the step before the record"},
    "time": {"long_name": "time", "description": "sum of the learning rates of the steps"},
}
CLOCK = ("time", "iteration", "step_size")
"""Variables over time alone, the same for all replicates."""


def record(
    model: nn.Module,
    layers: str | Sequence[str],
    probe: Any,
    *,
    loss: Loss = "cross_entropy",
    pooling: Pooling = "flatten",
    dtype: str = "float32",
    batch_size: int = 256,
    time: float = 0.0,
    iteration: int = 0,
    replicate: int = 0,
) -> Any:
    """Features of named layers of a model on a probe set, as it is now.

    Any ``torch.nn.Module``, trained in any way. It runs once over the probe set, in evaluation mode and
    without gradients, and over a few samples to see what it is. Afterwards all is as before: parameters,
    buffers, gradients, the mode and the attributes of every submodule (numbers, tensors, arrays, generators,
    lists, sets and dicts of these), hooks, and the random numbers of torch, numpy and Python. Every batch meets
    the model as it was before the first. Hooks of your own run, for they may be part of the model (pruning,
    weight normalisation); the variables that they count or collect in are put back too. What is not: attributes
    that are objects of other classes, global variables that a ``forward`` changes, plain attributes of scripted
    modules, and files.

    Parameters
    ----------
    model : torch.nn.Module
        Returns logits (sample, class): a tensor, a tuple that begins with it, or something with
        ``logits`` (a dict must name them so). For layers alone, with ``loss=None``, it may return anything.
        A tuple is refused where a later entry of as many columns, or of one for each class, is made with all
        weights that the first is made with and with more, as the logits are of features.
        In evaluation mode it maps each sample by itself, whatever the others in the batch and however many:
        batch normalisation needs running statistics.
    layers : str or sequence of str
        Names of submodules, as in ``model.named_modules()``, whose output is taken (of a tuple, the
        first entry; of a module that runs several times, the last time);
        ``"logits"``, what the model returns; ``"penultimate"``, what the classifier reads: the input of the
        last ``torch.nn.Linear`` of which the logits are an affine map. If there is none it is the input of
        the last to run, with a warning.
    probe : DataLoader, Dataset, (inputs, labels), ImageData, or dict of str to these
        Labelled inputs; a dict names several, such as ``{"train": ..., "held_out": ...}``, of the same
        classes. Labels are integers that number the outputs of the model, the last entry of each item.
        Inputs are moved to the
        model's device and floating ones to its dtype; a tuple of inputs is passed as arguments, a dict
        as keywords. A loader that shuffles gives the same samples at every call.
    loss : {"cross_entropy", "mse"}, callable or None, default "cross_entropy"
        Loss to record; ``"mse"`` is half the squared distance to the one-hot label. A callable takes the
        float64 logits (sample, class) and labels (sample,) of the whole probe set. None records neither
        loss nor accuracy.
    pooling : {"flatten", "mean"} or callable, default "flatten"
        How an output (sample, ...) becomes (sample, feature): all its numbers in a row, or the mean over
        all axes after the second one (feature maps (sample, channel, height, width) become (sample,
        channel)). A callable takes the tensor and returns one with the samples first.
    dtype : {"float32", "float16", "float64"}
        Of what is kept; the model computes in its own.
    batch_size : int, default 256
        Inputs that pass through the model at once, at most; batches are about equally long, and each
        class has its share of each.
    time, iteration, replicate : float, int, int
        Coordinates of the result, so that several can be joined: over ``replicate`` by
        ``open_records([first, second], layer)`` (:func:`lesde.networks.open_records`), over ``time`` by
        ``xarray.concat([first, second], "time", data_vars="minimal", coords="minimal",
        compat="equals", join="exact")``.

    Returns
    -------
    xarray.Dataset, or dict of str to it
        For one layer, named by a string, a dataset; for several, a dict of them by layer; where ``probe``
        names several sets, a dict of these by the name of the set. Samples are sorted by class, and
        labels numbered 0..K-1. Variables:

        - ``features (replicate, time, sample, feature)``, both leading axes of length 1;
        - ``loss``, ``accuracy (replicate, time)`` on the probe set;
        - ``weights (replicate, time, class, feature_in)`` and ``bias (replicate, time, class)`` of the
          classifier, for ``"penultimate"`` and any other layer whose features are what it reads, so that
          logits = features weightsᵀ + bias, to rounding; those of the classes of the probe set. They are
          those of the linear layer, or where more than it makes the logits (an adapter beside it, a
          temperature after it) the derivative of the logits. NaN, with a warning, where they do not give
          the logits of the moment.

        Coordinates ``replicate``, ``time``, ``iteration(time)`` and ``label(sample)``; attribute
        ``classes`` holds the labels as they were given, and ``classifier`` the name of the linear layer that
        reads the features, or that it reads others.

    Raises
    ------
    TypeError, ValueError
        If there is no such layer, or it never runs; if the model does not take the inputs, its features of a
        sample depend on the other samples of the batch (by less than a twentieth of their spread is a
        warning), or it returns something else before its logits; if the labels do not number its outputs.
    Diverged
        If a feature is not finite.

    Examples
    --------
    >>> import lesde
    >>> from lesde.networks import digits, mlp
    >>> data, model = digits(classes=4), mlp(64, (32,), 4)
    >>> paths = lesde.record(model, "penultimate", (data.probe_x, data.probe_y))
    >>> dict(paths.features.sizes)
    {'replicate': 1, 'time': 1, 'sample': 160, 'feature': 32}
    >>> "nc3" in lesde.neural_collapse(paths)
    True
    """
    probes = read_probes(probe)
    time, iteration = check_real("time", time), check_integer("iteration", iteration, 0)
    replicate = check_integer("replicate", replicate, 0)
    looker = Looker(
        model,
        layers,
        next(iter(probes.values())),
        loss=loss,
        pooling=pooling,
        dtype=dtype,
        batch_size=batch_size,
    )
    found: dict[str, Any] = {}
    for name, one in probes.items():
        look = looker.look(one, time)
        found[name] = {
            layer: packed(
                [entries_of(looker, look, layer, time, iteration)],
                one.labels,
                replicate,
                track_attrs(looker, one, name, layer, loss),
            )
            for layer in looker.layers
        }
        if isinstance(layers, str):
            found[name] = found[name][layers]
    return found if isinstance(probe, Mapping) else found["probe"]


def entries_of(
    looker: Looker,
    look: Look,
    layer: str,
    time: float,
    iteration: int,
    step_size: float | None = None,
) -> Entries:
    """What one look at one layer adds along time."""
    entries: Entries = {
        "time": ((), np.array(time)),
        "iteration": ((), np.array(iteration)),
        "features": (("sample", "feature"), look.features[layer]),
    }
    if step_size is not None:
        entries["step_size"] = ((), np.array(step_size))
    for name in ("loss", "accuracy"):
        value = getattr(look, name)
        if value is not None:
            entries[name] = ((), np.array(value))
    if layer in looker.readable and look.weights is not None:
        entries["weights"] = (("class", "feature_in"), look.weights)
        if look.bias is not None:
            entries["bias"] = (("class",), look.bias)
    return entries


def track_attrs(
    looker: Looker, probe: ProbeSet, name: str, layer: str, loss: Loss
) -> dict[str, Any]:
    """What one layer on one probe set is, and with which versions it was recorded."""
    return {
        "engine": "network",
        "architecture": str(looker.model),
        "layer": layer,
        "classifier": looker.classifier if layer in looker.readable else "reads other features",
        "probe": name,
        "classes": probe.classes.tolist(),
        "loss": loss if isinstance(loss, str) else getattr(loss, "__name__", str(loss)),
        **{f"{package}_version": version(package) for package in ("lesde", "numpy", "torch")},
    }


def packed(
    given: Sequence[Entries], labels: np.ndarray, replicate: int, attrs: Mapping[str, Any]
) -> xr.Dataset:
    """A dataset of paths from looks one after another."""
    variables: dict[str, tuple] = {}
    for name, (dims, _) in given[0].items():
        values = np.stack([entries[name][1] for entries in given])
        if name in CLOCK:
            variables[name] = (("time",), values, ABOUT.get(name, {}))
        else:
            leading = ("replicate", "time")
            variables[name] = ((*leading, *dims), values[None], ABOUT.get(name, {}))
    coords = {"replicate": [replicate], "label": ("sample", labels)}
    return with_rate(xr.Dataset(variables, coords=coords, attrs=dict(attrs)))


def with_rate(dataset: xr.Dataset) -> xr.Dataset:
    """Mark the coordinates, and add ``learning_rate`` where one rate explains the whole clock."""
    dataset = dataset.set_coords([name for name in ("iteration", "label") if name in dataset])
    if "step_size" in dataset:
        rate = float(dataset["step_size"][-1])
        if np.allclose(dataset["time"], rate * dataset["iteration"], rtol=1e-9, atol=0):
            about = {"long_name": "learning rate"}
            dataset = dataset.assign_coords(learning_rate=((), rate, about))
    return dataset


# --------------------------------------------------------------------------------------------------
# Features recorded from networks, as datasets like those of :func:`lesde.simulate`.


def record_ensemble(
    data: ImageData,
    architecture: Callable[[], nn.Module],
    learning_rates: float | Sequence[float],
    replicates: int | Sequence[int],
    times: Sequence[float] | np.ndarray,
    *,
    layers: Sequence[str] = ("logits", "penultimate"),
    loss: str = "cross_entropy",
    batch_size: int = 1,
    sampling: str = "uniform",
    seed: int = 0,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    labels: np.ndarray | Sequence[Sequence[int]] | None = None,
    drawn: bool = False,
    observe: Observer | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks by plain SGD and record the features of the probe set, as paths.

    Parameters
    ----------
    data, architecture, learning_rates, replicates, times, layers, loss, batch_size, sampling, seed, dtype, device, labels, drawn, observe, progress
        As for :func:`lesde.networks.train_ensemble`.

    Yields
    ------
    dict of str to xarray.Dataset
        One dictionary per learning rate, as soon as it is trained, with one dataset per layer. Each
        has a ``learning_rate`` axis of length 1, so datasets can be appended to one store along it,
        and an interrupt leaves what was written before. Variables:

        - ``features (learning_rate, replicate, time, sample, feature)``;
        - ``loss``, ``accuracy (learning_rate, replicate, time)`` on the probe set;
        - for the layer ``"penultimate"``, ``weights (learning_rate, replicate, time, class,
          feature_in)`` and ``bias (learning_rate, replicate, time, class)`` of the last linear layer.

        With ``drawn`` one more dataset, ``"drawn"``: ``features (learning_rate, replicate, draw,
        feature)``, the logits of the drawn training samples, with ``label (learning_rate, replicate,
        draw)``, ``iteration (draw)``, the steps done before, and ``time (learning_rate, draw)``.

        Coordinates ``learning_rate``, ``replicate``, ``time``, ``label(sample)`` and
        ``iteration(learning_rate, time)``, and ``asked_time (time)``, the times as given, where one of
        them lies between iterations; attributes say what was trained, how, and with which versions.

    Raises
    ------
    TypeError, ValueError, Diverged
        As :func:`lesde.networks.train_ensemble`; arguments are checked at once, not at the first
        learning rate.

    Examples
    --------
    >>> from lesde.networks import collect, digits, mlp, record_ensemble
    >>> data = digits(classes=4)
    >>> records = record_ensemble(data, lambda: mlp(64, (32,), 4), (0.05, 0.1), 8, [0, 1, 2, 4])
    >>> dict(collect(records)["logits"].features.sizes)
    {'learning_rate': 2, 'replicate': 8, 'time': 4, 'sample': 160, 'feature': 4}
    """
    runs = train_ensemble(
        data,
        architecture,
        learning_rates,
        replicates,
        times,
        layers=layers,
        loss=loss,
        batch_size=batch_size,
        sampling=sampling,
        seed=seed,
        dtype=dtype,
        device=device,
        labels=labels,
        drawn=drawn,
        observe=observe,
        progress=progress,
    )
    attrs: dict[str, str | int] = {
        "engine": "network",
        "data": str(data),
        "loss": loss,
        "batch_size": int(batch_size),
        "sampling": sampling,
        "seed": int(seed),
        **{f"{package}_version": version(package) for package in ("lesde", "numpy", "torch")},
    }
    return (_pack_all(run, data, attrs) for run in runs)


def collect(records: Iterable[Mapping[str, xr.Dataset]]) -> dict[str, xr.Dataset]:
    """Join the records of several learning rates into one dataset per layer.

    Parameters
    ----------
    records : iterable of dict
        As :func:`record_ensemble` yields, all of the same data, network and times.

    Returns
    -------
    dict of str to xarray.Dataset
        One dataset per layer, with all learning rates along ``learning_rate`` in the order given.

    Raises
    ------
    ValueError
        If there are no records, or they differ in their layers, times, samples or replicates.
    """
    given = (
        list(records)
        if isinstance(records, Iterator)
        else check_sequence("records", records, "a sequence of dicts")
    )
    if not all(isinstance(record, Mapping) for record in given):
        raise TypeError(
            f"records must be dicts of datasets by layer, as lesde.networks.record_ensemble yields; got "
            f"{shown(records)}."
        )
    if not given:
        raise ValueError("records must hold at least one learning rate; got none.")
    for record in given[1:]:
        if set(record) != set(given[0]):
            raise ValueError(
                f"records must all hold the same layers; got {sorted(given[0])} and "
                f"{sorted(record)}."
            )
        for layer in record:
            times, first = record[layer]["time"].values, given[0][layer]["time"].values
            if layer != "drawn" and not np.array_equal(times, first):
                raise ValueError(
                    f"records must all hold the same times, to be joined with join='exact'; got "
                    f"{shown(first.tolist())} and {shown(times.tolist())}. Record at times that fall on iterations "
                    f"of every learning rate, as lesde.networks.saving_times makes them, or analyse each record by "
                    f"itself."
                )
    if len(given) > 1 and "drawn" in given[0]:
        raise ValueError(
            "records hold the drawn samples of several learning rates, which differ in number; take "
            "record['drawn'] of each, and collect the rest."
        )
    return {
        layer: xr.concat(
            [record[layer] for record in given],
            dim="learning_rate",
            data_vars="minimal",
            coords="minimal",
            compat="equals",
            join="exact",
            combine_attrs="drop_conflicts",
        )
        for layer in given[0]
    }


def _pack_all(
    run: EnsembleRun, data: ImageData, attrs: Mapping[str, str | int]
) -> dict[str, xr.Dataset]:
    packed = {layer: _pack(run, layer, data, attrs) for layer in run.features}
    if run.drawn_logits is None or run.drawn_labels is None:
        return packed
    draws = run.drawn_labels.shape[1]
    iterations = np.arange(draws) // (draws // int(run.iterations[-1]))
    dims = ("learning_rate", "replicate", "draw")
    packed["drawn"] = xr.Dataset(
        {"features": ((*dims, "feature"), run.drawn_logits[None])},
        coords={
            "learning_rate": ("learning_rate", [run.learning_rate], {"long_name": "learning rate"}),
            "replicate": run.replicates,
            "label": (dims, run.drawn_labels[None]),
            "iteration": ("draw", iterations, {"description": "steps done before the draw"}),
            "time": (("learning_rate", "draw"), iterations[None] * run.learning_rate),
        },
        attrs={"architecture": run.architecture, "layer": "logits", **attrs},
    )
    return packed


def _pack(
    run: EnsembleRun, layer: str, data: ImageData, attrs: Mapping[str, str | int]
) -> xr.Dataset:
    over_time = ("learning_rate", "replicate", "time")
    variables: dict[str, tuple] = {
        "features": ((*over_time, "sample", "feature"), run.features[layer][None]),
        "loss": (over_time, run.loss[None], {"long_name": "loss on the probe set"}),
        "accuracy": (over_time, run.accuracy[None], {"long_name": "accuracy on the probe set"}),
    }
    if layer == "penultimate" and run.weights is not None:
        variables["weights"] = ((*over_time, "class", "feature_in"), run.weights[None])
        if run.bias is not None:
            variables["bias"] = ((*over_time, "class"), run.bias[None])
    time_attrs = {"long_name": "time", "description": "learning rate x iteration"}
    coords = {
        "learning_rate": ("learning_rate", [run.learning_rate], {"long_name": "learning rate"}),
        "replicate": run.replicates,
        "time": ("time", run.times, time_attrs),
        "label": ("sample", data.probe_y),
        "iteration": (("learning_rate", "time"), run.iterations[None]),
    }
    return xr.Dataset(
        variables,
        coords=with_asked_times(coords, run.asked_times),
        attrs={"architecture": run.architecture, "layer": layer, **attrs},
    )


# --------------------------------------------------------------------------------------------------


def drawn_means(drawn: xr.Dataset, times: int | np.ndarray | list[float] = 50) -> xr.Dataset:
    """Paths with one sample per class: the mean of what each network drew of it in each window of training.

    A step of SGD on one sample shows the logits of that sample only. Averages over a window of steps give
    every network a mean of every class, which `lesde.fit_elasticity` takes.

    Parameters
    ----------
    drawn : xarray.Dataset
        The dataset ``"drawn"`` of :func:`record_ensemble`: logits, ``features ([learning_rate,] replicate, draw, feature)``, with
        the coordinates ``label ([learning_rate,] replicate, draw)``, integers 0 to K−1, ``time ([learning_rate,] draw)`` and,
        optionally, ``iteration (draw)``.
    times : int or array (window + 1,), default 50
        Number of windows of equal length from the first to the last draw, or their edges in time. A draw
        at time t is in the window whose first edge is the last one at or before t; draws outside are left out. Windows
        should be short against changes of the features: averages over a window are taken for values at its centre.

    Returns
    -------
    xarray.Dataset
        ``features ([learning_rate,] replicate, time, sample, feature)``, float64, sample k being class k; ``drawn_count
        ([learning_rate,] replicate, time, sample)``, how many draws each is the mean of. Coordinates ``label (sample)``, 0 to
        K−1; ``time``, the mean time of the draws in each window; ``time_start``, ``time_end (time)``, its edges; where ``drawn`` has it,
        ``iteration ([learning_rate,] time)``, that of the centre, rounded.

    Raises
    ------
    TypeError
        If ``drawn`` is no dataset, its labels are no integers, or ``times`` is no whole number or list of numbers.
    ValueError
        If dimensions or coordinates are missing; if a class was never drawn, of which logits have one a class; if features of a
        draw are not finite; if a network drew no sample of some class in some window (the message says how long windows must
        be); if learning rates differ in their times.

    Examples
    --------
    >>> from lesde.networks import drawn_means, geo_mnist, lenet, record_ensemble
    >>> record = next(record_ensemble(geo_mnist(), lambda: lenet(3), 0.005, 20, [0, 10], drawn=True))  # doctest: +SKIP
    >>> lesde.fit_elasticity(drawn_means(record["drawn"], 20), estimator="averages")  # doctest: +SKIP
    """
    features, labels, moments = _read(drawn)
    lead = features.shape[:-2]  # (learning rate, replicate)
    K, p = int(labels.max()) + 1, features.shape[-1]
    edges = _edges(times, moments)
    # Times are products of a step, so a draw at an edge may miss it by rounding.
    slack = 1e-6 * (moments[-1] - moments[0]) / len(moments)
    window = np.searchsorted(edges, moments + slack, side="right") - 1
    inside = (window >= 0) & (window < len(edges) - 1)
    W = len(edges) - 1
    cell = (np.arange(int(np.prod(lead)))[:, None] * W + window[inside]) * K
    cell = (cell + labels.reshape(-1, len(moments))[:, inside]).ravel()
    size = int(np.prod(lead)) * W * K
    count = np.bincount(cell, minlength=size).reshape(*lead, W, K)
    if (count == 0).any():
        raise _too_short(count, labels, moments, edges)
    values = features[..., inside, :].reshape(-1, p).astype(np.float64)
    bad = ~np.isfinite(values).all(-1)
    if bad.any():
        raise _not_finite(bad.reshape(*lead, -1), moments[inside])
    sums = [np.bincount(cell, weights=values[:, j], minlength=size) for j in range(p)]
    means = np.stack(sums, -1).reshape(*lead, W, K, p) / count[..., None]
    draws = np.bincount(window[inside], minlength=W)
    centres = np.bincount(window[inside], weights=moments[inside], minlength=W) / draws
    return _paths(drawn, means, count, centres, edges, window)


def _read(drawn: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (..., replicate, draw, feature), labels (..., replicate, draw), times (draw,)."""
    source = "record_ensemble(..., drawn=True), as record['drawn'],"
    check_dataset("drawn", drawn, ["features", "label", "time"], source)
    dims = ("replicate", "draw", "feature")
    if drawn["features"].dims not in (dims, ("learning_rate", *dims)):
        raise ValueError(
            f"drawn.features must have the dimensions ([learning_rate,] replicate, draw, feature); got "
            f"{drawn['features'].dims}. Transpose or rename them."
        )
    lead = drawn["features"].dims[:-1]
    for name, allowed in (("label", [lead]), ("time", [("draw",), ("learning_rate", "draw")])):
        if drawn[name].dims not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(
                f"drawn.{name} must have the dimensions {wanted}; got {drawn[name].dims}."
            )
    labels = drawn["label"].values
    _check_classes(drawn, labels)
    moments = np.atleast_2d(drawn["time"].values.astype(np.float64))
    if (moments != moments[0]).any():
        raise ValueError(
            f"drawn must hold learning rates that have the same times; got the learning rates "
            f"{shown(drawn['learning_rate'].values.tolist())} with different ones. Take one at a time, with "
            f"drawn.isel(learning_rate=[0])."
        )
    if len(moments[0]) < 2 or (np.diff(moments[0]) < 0).any() or moments[0, 0] == moments[0, -1]:
        raise ValueError("drawn.time must increase along draw, over at least two draws.")
    return drawn["features"].values, labels, moments[0]


def _check_classes(drawn: xr.Dataset, labels: np.ndarray) -> None:
    """Raise unless every class was drawn by some replicate."""
    if not np.issubdtype(labels.dtype, np.integer):
        check_labels("drawn.label", labels.ravel())  # says what labels must be
    present = np.unique(labels)
    if len(present) == 0 or present[0] < 0:
        check_labels("drawn.label", labels.ravel())
    K = int(present[-1]) + 1
    # Logits have a feature for each class; features of a layer that is named otherwise say nothing of how many.
    if drawn.attrs.get("layer", "logits") == "logits":
        K = max(K, drawn.sizes["feature"])
    missing = np.setdiff1d(np.arange(K), present)
    if len(missing):
        raise ValueError(
            f"drawn must hold draws of every class, 0 to {K - 1}; class {', '.join(map(str, missing))} was never drawn. "
            f"Train for longer, or record networks of the other classes alone."
        )


def _edges(times: Any, moments: np.ndarray) -> np.ndarray:
    """Edges of the windows, of which the last lies after the last draw where they are not given."""
    if np.ndim(bare_array("times", times)) == 0:
        number = check_integer("times", times)
        steps = np.unique(moments)
        if number > len(steps):
            raise ValueError(
                f"times must be at most the {len(steps)} different times of drawn; got {number} windows."
            )
        # A draw stands for the interval up to the next, so the last window ends one step after it. Edges lie
        # between draws, where rounding cannot move a draw into another window.
        step = (steps[-1] - steps[0]) / (len(steps) - 1)
        cuts = np.rint(np.linspace(0, len(steps), number + 1)).astype(int)
        middle = np.append(steps, steps[-1] + step)[cuts]
        return middle - step / 2
    edges = check_times("times", times)
    if edges[0] > moments[-1] or edges[-1] < moments[0]:
        raise ValueError(
            f"times must overlap the draws, from {moments[0]:g} to {moments[-1]:g}; got edges from "
            f"{edges[0]:g} to {edges[-1]:g}."
        )
    empty = np.diff(np.searchsorted(moments, edges)) == 0
    if empty.any():
        i = int(np.argmax(empty))
        raise ValueError(
            f"times must leave draws in every window; there is none from {edges[i]:g} to "
            f"{edges[i + 1]:g}. Draws go from {moments[0]:g} to {moments[-1]:g}."
        )
    return edges


def _not_finite(bad: np.ndarray, moments: np.ndarray) -> ValueError:
    """The error where draws (..., replicate, draw) hold NaN or inf."""
    replicates = np.unique(np.nonzero(bad)[-2])
    listed = ", ".join(map(str, replicates[:8])) + (", …" if len(replicates) > 8 else "")
    first = float(moments[bad.reshape(-1, bad.shape[-1]).any(0)][0])
    return ValueError(
        f"drawn.features must be finite; {int(bad.sum())} of {bad.size} draws hold NaN or inf, the first at "
        f"t = {first:g}, in replicate number {listed}. Leave these replicates out, or end with times before it."
    )


def _too_short(
    count: np.ndarray, labels: np.ndarray, moments: np.ndarray, edges: np.ndarray
) -> ValueError:
    """The error where a network drew nothing of a class in a window, with the length that would do."""
    at = np.argwhere(count == 0)[0]
    flat = labels.reshape(-1, labels.shape[-1])
    longest = 0.0
    for k in range(count.shape[-1]):
        for row in flat:
            own = moments[row == k]
            if len(own) == 0:
                return ValueError(
                    f"drawn must hold draws of every class in every replicate; one has none of class {k}. "
                    f"Leave that replicate out, or train for longer."
                )
            gaps = np.diff(np.concatenate([moments[:1], own, moments[-1:]]))
            longest = max(longest, float(gaps.max()))
    most = int((moments[-1] - moments[0]) / longest) if longest > 0 else 1
    return ValueError(
        f"times must be windows in which every replicate drew every class: from {edges[at[-2]]:g} to "
        f"{edges[at[-2] + 1]:g}, replicate number {at[-3]} drew none of class {at[-1]}. The longest wait for a "
        f"class is {longest:g} in time, so windows longer than that are long enough, such as times={max(most - 1, 1)}."
    )


def _paths(
    drawn: xr.Dataset,
    means: np.ndarray,
    count: np.ndarray,
    centres: np.ndarray,
    edges: np.ndarray,
    window: np.ndarray,
) -> xr.Dataset:
    lead = drawn["features"].dims[:-2]
    dims = (*lead, "time", "sample")
    coords: dict[Any, Any] = {d: drawn[d] for d in lead if d in drawn.coords}
    coords |= {
        "time": ("time", centres, {"long_name": "time", "description": "centre of the window"}),
        "time_start": ("time", edges[:-1]),
        "time_end": ("time", edges[1:]),
        "label": ("sample", np.arange(means.shape[-2])),
    }
    if "iteration" in drawn.variables:
        inside = (window >= 0) & (window < len(edges) - 1)
        steps = np.bincount(window[inside], weights=drawn["iteration"].values[inside])
        middle = np.rint(steps / np.bincount(window[inside])).astype(np.int64)
        own = lead[:-1]
        shape = tuple(drawn.sizes[d] for d in own)
        coords["iteration"] = ((*own, "time"), np.broadcast_to(middle, (*shape, len(middle))))
    return xr.Dataset(
        {
            "features": ((*dims, "feature"), means),
            "drawn_count": (dims, count, {"long_name": "draws in the window"}),
        },
        coords=coords,
        attrs={**drawn.attrs, "reduced": "means over windows of the drawn samples of each class"},
    )
