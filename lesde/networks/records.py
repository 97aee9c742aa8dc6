"""Records of ensembles that are trained, as datasets like those of :func:`lesde.simulate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from lesde.checks import (
    check_sequence,
    shown,
)
from lesde.networks.data import ImageData
from lesde.networks.training import EnsembleRun, train_ensemble
from lesde.paths import with_asked_times

__all__ = ["collect", "record_ensemble"]


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
    return ({layer: _packed(run, layer, data, attrs) for layer in _layers(run)} for run in runs)


def _layers(run: EnsembleRun) -> list[str]:
    return [*run.features, *(["drawn"] if run.drawn_logits is not None else [])]


def _packed(
    run: EnsembleRun, layer: str, data: ImageData, attrs: Mapping[str, str | int]
) -> xr.Dataset:
    """The record of one layer, or of the drawn samples."""
    rate = ("learning_rate", [run.learning_rate], {"long_name": "learning rate"})
    coords: dict[str, Any] = {"learning_rate": rate, "replicate": run.replicates}
    variables: dict[str, Any] = {}
    leading = ("learning_rate", "replicate")
    if layer == "drawn":
        assert run.drawn_labels is not None
        assert run.drawn_logits is not None
        variables["features"] = ((*leading, "draw", "feature"), run.drawn_logits[None])
        draws = run.drawn_labels.shape[1]
        iterations = np.arange(draws) // (draws // int(run.iterations[-1]))
        about = {"description": "steps done before the draw"}
        coords |= {
            "label": ((*leading, "draw"), run.drawn_labels[None]),
            "iteration": ("draw", iterations, about),
            "time": (("learning_rate", "draw"), iterations[None] * run.learning_rate),
        }
        layer = "logits"
    else:
        over_time = (*leading, "time")
        variables["features"] = ((*over_time, "sample", "feature"), run.features[layer][None])
        for name in ("loss", "accuracy"):
            about = {"long_name": f"{name} on the probe set"}
            variables[name] = (over_time, getattr(run, name)[None], about)
        if layer == "penultimate" and run.weights is not None:
            variables["weights"] = ((*over_time, "class", "feature_in"), run.weights[None])
            if run.bias is not None:
                variables["bias"] = ((*over_time, "class"), run.bias[None])
        about = {"long_name": "time", "description": "learning rate x iteration"}
        coords |= {
            "time": ("time", run.times, about),
            "label": ("sample", data.probe_y),
            "iteration": (("learning_rate", "time"), run.iterations[None]),
        }
        coords = with_asked_times(coords, run.asked_times)
    attrs = {"architecture": run.architecture, "layer": layer, **attrs}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


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
