"""Records of ensembles that are trained, as datasets like those of :func:`lesde.simulate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from lesde.checks import shown
from lesde.clocks import with_asked_times
from lesde.networks.data import ImageData
from lesde.networks.training import EnsembleRun, train_ensemble


def record_ensemble(
    data: ImageData,
    architecture: Callable[[], nn.Module],
    learning_rates: float | Sequence[float],
    replicates: int | Sequence[int],
    times: Sequence[float] | np.ndarray,
    *,
    layers: Sequence[str] = ("logits", "penultimate"),
    **options: Any,
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks by plain SGD and record the features of the probe set, as paths.

    Parameters
    ----------
    data, architecture, learning_rates, replicates, times, layers
        As for :func:`lesde.networks.train_ensemble`.
    **options
        ``loss``, ``batch_size``, ``sampling``, ``seed``, ``dtype``, ``device``, ``labels``, ``drawn``, ``observe`` and
        ``progress``, as for :func:`lesde.networks.train_ensemble`.

    Yields
    ------
    dict of str to xarray.Dataset
        One dictionary per learning rate, as soon as it is trained, with one dataset per layer. Variables:

        - ``features (learning_rate, replicate, time, sample, feature)``;
        - ``loss``, ``accuracy (learning_rate, replicate, time)`` on the probe set;
        - for the layer ``"penultimate"``, ``weights (learning_rate, replicate, time, class,
          feature_in)`` and ``bias (learning_rate, replicate, time, class)`` of the last linear layer.

        Coordinates ``learning_rate`` (of length 1), ``replicate``, ``time``, ``label(sample)``,
        ``iteration(learning_rate, time)``, and ``asked_time (time)`` where a time asked for lies between
        iterations; attributes say what was trained, how, and with which versions.

        With ``drawn`` also ``"drawn"``: ``features (learning_rate, replicate, draw, feature)``, the logits
        of the drawn training samples, with ``label (learning_rate, replicate, draw)``,
        ``iteration (draw)``, the steps done before, and ``time (learning_rate, draw)``.

    Raises
    ------
    Diverged
        As :func:`lesde.networks.train_ensemble`.

    Examples
    --------
    >>> from lesde.networks import collect, digits, mlp, record_ensemble
    >>> data = digits(classes=4)
    >>> records = record_ensemble(data, lambda: mlp(64, (32,), 4), (0.05, 0.1), 8, [0, 1, 2, 4])
    >>> dict(collect(records)["logits"].features.sizes)
    {'learning_rate': 2, 'replicate': 8, 'time': 4, 'sample': 160, 'feature': 4}
    """
    runs = train_ensemble(
        data, architecture, learning_rates, replicates, times, layers=layers, **options
    )
    attrs = {
        "engine": "network",
        "data": str(data),
        "loss": options.get("loss", "cross_entropy"),
        "batch_size": int(options.get("batch_size", 1)),
        "sampling": options.get("sampling", "uniform"),
        "seed": int(options.get("seed", 0)),
        **{f"{package}_version": version(package) for package in ("lesde", "numpy", "torch")},
    }
    return (_datasets(run, data, attrs) for run in runs)


def _datasets(
    run: EnsembleRun, data: ImageData, attrs: Mapping[str, str | int]
) -> dict[str, xr.Dataset]:
    """The records of one learning rate, by layer."""
    rate = ("learning_rate", [run.learning_rate], {"long_name": "learning rate"})
    common: dict[str, Any] = {"learning_rate": rate, "replicate": run.replicates}
    attrs = {"architecture": run.architecture, **attrs}
    lead = ("learning_rate", "replicate", "time")
    about = {"long_name": "time", "description": "learning rate x iteration"}
    coords = common | {
        "time": ("time", run.times, about),
        "label": ("sample", data.probe_y),
        "iteration": (("learning_rate", "time"), run.iterations[None]),
    }
    coords = with_asked_times(coords, run.asked_times)
    found = {}
    for layer, features in run.features.items():
        variables: dict[str, Any] = {"features": ((*lead, "sample", "feature"), features[None])}
        for name in ("loss", "accuracy"):
            about = {"long_name": f"{name} on the probe set"}
            variables[name] = (lead, getattr(run, name)[None], about)
        if layer == "penultimate" and run.weights is not None:
            variables["weights"] = ((*lead, "class", "feature_in"), run.weights[None])
            if run.bias is not None:
                variables["bias"] = ((*lead, "class"), run.bias[None])
        found[layer] = xr.Dataset(variables, coords, {"layer": layer, **attrs})
    if run.drawn_logits is not None and run.drawn_labels is not None:
        lead, draws = ("learning_rate", "replicate", "draw"), run.drawn_labels.shape[1]
        iterations = np.arange(draws) // (draws // int(run.iterations[-1]))
        coords = common | {
            "label": (lead, run.drawn_labels[None]),
            "iteration": ("draw", iterations, {"description": "steps done before the draw"}),
            "time": (("learning_rate", "draw"), iterations[None] * run.learning_rate),
        }
        drawn = {"features": ((*lead, "feature"), run.drawn_logits[None])}
        found["drawn"] = xr.Dataset(drawn, coords, {"layer": "logits", **attrs})
    return found


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
    given = list(records)
    if not given or not all(isinstance(record, Mapping) for record in given):
        raise ValueError(
            f"records must hold at least one dict of datasets by layer, as lesde.networks.record_ensemble "
            f"yields; got {shown(given)}."
        )
    layers = [sorted(record) for record in given]
    if len(given) > 1 and (layers != layers[:1] * len(layers) or "drawn" in layers[0]):
        raise ValueError(
            f"records must all hold the same layers, and not the drawn samples, whose number depends on the "
            f"learning rate; got {shown(layers)}."
        )
    try:
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
    except ValueError as error:
        raise ValueError(
            f"records must all hold the same times, samples and replicates ({error}). Record at times that fall on "
            f"iterations of every learning rate, as lesde.networks.saving_times makes them."
        ) from error
