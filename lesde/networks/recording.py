"""Features of any layers of any model, as datasets like those of :func:`lesde.simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from lesde.checks import check_integer, check_real
from lesde.networks.looking import Entries, Looker, Loss, Pooling
from lesde.networks.probes import ProbeSet, read_probes

CLOCK = ("time", "iteration", "step_size")
"""Variables over time alone, the same for all replicates."""
_ABOUT = {
    "loss": {"long_name": "loss on the probe set"},
    "accuracy": {"long_name": "accuracy on the probe set"},
    "step_size": {"long_name": "learning rate", "description": "of the step before the record"},
    "time": {"long_name": "time", "description": "sum of the learning rates of the steps"},
}


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

    Any ``torch.nn.Module``, trained in any way. It runs over the probe set in evaluation mode and without
    gradients. Parameters, gradients, buffers, modes, and the random numbers of torch, numpy and Python are as
    before afterwards; what a ``forward`` keeps elsewhere is not put back.

    Parameters
    ----------
    model : torch.nn.Module
        Returns logits (sample, class): a tensor, a tuple that begins with it, or something with
        ``logits`` (a dict must name them so). For layers alone, with ``loss=None``, it may return anything.
        In evaluation mode it maps each sample by itself and without chance, whatever the others in the
        batch and however many: batch normalisation needs running statistics.
    layers : str or sequence of str
        Names of submodules, as in ``model.named_modules()``, whose output is taken (of a tuple, the
        first entry; of a module that runs several times, the last time); ``"logits"``, what the model
        returns; ``"penultimate"``, the input of the classifier, which is the last ``torch.nn.Linear`` whose
        output is the logits. If there is none it is the input of the last to run, with a warning.
    probe : DataLoader, Dataset, (inputs, labels), ImageData, or dict of str to these
        Labelled inputs; a dict names several, such as ``{"train": ..., "held_out": ...}``, of the same
        classes. Labels, the last entry of each item, are integers that number the outputs of the model.
        Inputs are moved to the model's device and floating ones to its dtype; a tuple of inputs is passed
        as arguments, a dict as keywords. A loader that shuffles gives the same samples at every call.
    loss : {"cross_entropy", "mse"}, callable or None, default "cross_entropy"
        Loss to record; ``"mse"`` is half the squared distance to the one-hot label. A callable takes the
        float64 logits (sample, class) and labels (sample,) of the whole probe set. None records neither
        loss nor accuracy.
    pooling : {"flatten", "mean"} or callable, default "flatten"
        How an output (sample, ...) becomes (sample, feature): all its numbers in a row, or the mean over
        all axes after the second one (feature maps (sample, channel, height, width) become (sample,
        channel)). A callable takes the tensor and returns one with the samples first.
    dtype : {"float32", "float16", "float64"}
        Of the recorded features; the model computes in its own.
    batch_size : int, default 256
        Inputs that pass through the model at once, at most.
    time, iteration, replicate : float, int, int
        Coordinates of the result, so that several can be joined: over ``replicate`` by
        :func:`lesde.networks.open_records`, over ``time`` by ``xarray.concat([first, second], "time",
        data_vars="minimal", coords="minimal", compat="equals", join="exact")``.

    Returns
    -------
    xarray.Dataset, or dict of str to it
        For one layer, named by a string, a dataset; for several, a dict of them by layer; where ``probe``
        names several sets, a dict of these by the name of the set. Samples are sorted by class, and
        labels numbered 0..K-1. Variables:

        - ``features (replicate, time, sample, feature)``, both leading axes of length 1;
        - ``loss``, ``accuracy (replicate, time)`` on the probe set;
        - ``weights (replicate, time, class, feature_in)`` and ``bias (replicate, time, class)`` of the
          classifier, for ``"penultimate"`` and any other layer whose features it reads, so that
          logits = features weightsᵀ + bias for the classes of the probe set. NaN, with a warning, where
          the logits have stopped being that.

        Coordinates ``replicate``, ``time``, ``iteration(time)`` and ``label(sample)``; attribute
        ``classes`` holds the labels as they were given, and ``classifier`` the name of the linear layer that
        reads the features, or that it reads others.

    Raises
    ------
    Diverged
        If a feature or the loss is not finite.

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
    first = next(iter(probes.values()))
    looker = Looker(
        model, layers, first, loss=loss, pooling=pooling, dtype=dtype, batch_size=batch_size
    )
    found: dict[str, Any] = {}
    for name, one in probes.items():
        found[name] = {}
        for layer, look in looker.look(one, time, iteration).items():
            attrs = track_attrs(looker, one, name, layer, loss)
            found[name][layer] = packed([look], one.labels, replicate, attrs)
        if isinstance(layers, str):
            found[name] = found[name][layers]
    return found if isinstance(probe, Mapping) else found["probe"]


def track_attrs(
    looker: Looker, probe: ProbeSet, name: str, layer: str, loss: Loss
) -> dict[str, Any]:
    """Attributes that describe one layer on one probe set, and the versions it was recorded with."""
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
    looks: Sequence[Entries], labels: np.ndarray, replicate: int, attrs: Mapping[str, Any]
) -> xr.Dataset:
    """A dataset of paths from looks one after another."""
    variables: dict[str, Any] = {}
    for name, (dims, _) in looks[0].items():
        values = np.stack([entries[name][1] for entries in looks])
        if name in CLOCK:
            variables[name] = (("time",), values, _ABOUT.get(name, {}))
        else:
            variables[name] = (("replicate", "time", *dims), values[None], _ABOUT.get(name, {}))
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
