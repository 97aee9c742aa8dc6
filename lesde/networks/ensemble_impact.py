"""Local elasticity of networks measured directly, while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from lesde.analysis.impact.moments import (
    DISTANCES,
    bin_changes,
    check_bins,
    impact_dataset,
    make_bins,
    pair_distances,
    reduce_changes,
)
from lesde.checks import check_choice, check_instance, check_integer, check_real, check_seed
from lesde.networks.data import ImageData
from lesde.networks.ensemble import LOSSES, Ensemble, child_seed, make_step
from lesde.networks.records import record_ensemble

WORKING_BYTES = 2**27
"""What copies of networks and their layers' outputs may take at once; more is not faster."""


def measure_impact(
    data: ImageData,
    architecture: Callable[[], nn.Module],
    learning_rates: float | Sequence[float],
    replicates: int | Sequence[int],
    times: Sequence[float] | np.ndarray,
    *,
    draws: int = 5,
    layer: str = "logits",
    step: float | None = None,
    by: str | None = None,
    bins: int | Sequence[float] = 12,
    loss: str = "cross_entropy",
    seed: int = 0,
    **options: Any,
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks as `record_ensemble` does, and measure at the saved times what one SGD step does.

    At every saved time, for every network and each of some drawn training samples, a copy of the network
    takes one step of plain SGD at that sample alone, and the change of the features of all probe samples
    is reduced to what `lesde.fit_impact` needs. Training is the same to the last bit as without measuring. For
    your own network, in its current state, see `lesde.measure_impact`.

    Parameters
    ----------
    data, architecture, learning_rates, replicates, times, loss, seed
        As for :func:`lesde.networks.train_ensemble`.
    draws : int, default 5
        Training samples drawn of every class (at most all), without replacement, for each network its own, the same at all times.
        At least 2 for errors from fewer than 8 replicates.
    layer : str, default "logits"
        Features: ``"logits"``, ``"penultimate"`` or the name of a submodule.
    step : float, optional
        Learning rate of the measured step. Default: that of training.
    by : {"r2", "cosine", "input_r2", "input_cosine"}, optional
        Also sort pairs of a probe sample and a drawn sample by their squared distance or cosine, of features or of
        inputs, for `lesde.impact_by_distance`.
    bins : int or sequence of float, default 12
        Number of bins, with edges at quantiles of the distances of all networks at each time, or the edges.
    **options
        ``batch_size``, ``sampling``, ``dtype``, ``device`` and ``progress``, as for
        :func:`lesde.networks.train_ensemble`.

    Yields
    ------
    dict of str to xarray.Dataset
        One per learning rate, what :func:`lesde.networks.record_ensemble` yields for the layers ``"logits"`` and
        ``layer``, and ``"impact"``, for `lesde.fit_impact`, with a ``learning_rate`` axis of length 1:
        ``change (learning_rate, replicate, time, draw, class, feature)`` and others as
        `lesde.analysis.impact_from_changes` returns, and ``drawn_sample (replicate, draw)``, the numbers of the
        drawn samples in the training set. :func:`lesde.networks.collect` joins learning rates.

    Notes
    -----
    The step is taken and the changes are measured in float64, whatever ``dtype``: late in training changes are
    small differences of large features. What is kept is 8·R·T·K·S·(K + 1)·(p + 2) bytes for R replicates, T times, S
    draws of each of K classes and p features (with B bins 16·R·T·K·S·B·(p + 2) more).

    Examples
    --------
    >>> import lesde
    >>> from lesde.networks import digits, measure_impact, mlp
    >>> data = digits(classes=4)
    >>> (record,) = measure_impact(data, lambda: mlp(64, (32,), 4), 0.02, 8, [0, 1, 2, 4], draws=3)
    >>> fit = lesde.fit_impact(record["impact"].isel(learning_rate=0))
    >>> fit.E.sizes
    Frozen({'time': 4, 'class': 4, 'class_': 4})
    """
    if not isinstance(data, ImageData):
        raise TypeError(
            f"data must be a lesde.networks.ImageData; got {type(data).__name__}. To measure one network as it "
            f"is now, use lesde.measure_impact(model, loss, samples, probe, learning_rate)."
        )
    if by is not None:
        check_choice("by", by, DISTANCES)
    check_instance("layer", layer, str, "the name of one layer")
    check_choice("loss", loss, LOSSES)
    draws = check_integer("draws", draws, 1, np.bincount(data.train_y).min())
    if step is not None:
        step = check_real("step", step, 0.0, open_minimum=True)
    cuts, seed = check_bins(bins), check_seed(seed)
    labels = np.repeat(np.arange(data.n_classes), draws)
    frames: list[dict[str, np.ndarray]] = []

    def observe(rate: float, index: int, ensemble: Ensemble) -> None:
        if index == 0:
            frames.clear()
        samples = _drawn_samples(data, draws, ensemble.replicates, seed)
        h = rate if step is None else step
        frames.append(_measure(data, ensemble, samples, labels, layer, loss, h, by, cuts))

    def dataset(record: xr.Dataset) -> xr.Dataset:
        """The measurements at one learning rate, with the coordinates of its record."""
        counts = np.bincount(data.train_y)
        over = ("learning_rate", "replicate", "time")
        h = float(record["learning_rate"].values[0]) if step is None else step
        edges = [frame.pop("edges") for frame in frames] if by is not None else None
        found = impact_dataset(
            {name: np.stack([frame[name] for frame in frames], axis=1)[None] for name in frames[0]},
            over,
            labels,
            np.bincount(data.probe_y),
            counts / counts.sum(),
            h,
            edges=None if edges is None else np.array(edges)[None],
            by=by,
            coords={name: record[name] for name in (*over, "iteration")},
        )
        samples = _drawn_samples(data, draws, record["replicate"].values.tolist(), seed)
        about = {"long_name": "number of the drawn sample in the training set"}
        found = found.assign_coords(
            drawn_sample=(("replicate", "draw"), samples, about),
            step=("learning_rate", [h], found["step"].attrs),
        )
        return found.assign_attrs({**record.attrs, **found.attrs, "layer": layer})

    records = record_ensemble(
        data,
        architecture,
        learning_rates,
        replicates,
        times,
        layers=tuple(dict.fromkeys(("logits", layer))),
        loss=loss,
        seed=seed,
        observe=observe,
        **options,
    )
    return (record | {"impact": dataset(record["logits"])} for record in records)


def _drawn_samples(data: ImageData, draws: int, replicates: Sequence[int], seed: int) -> np.ndarray:
    """Numbers (replicate, draw) of the drawn samples; a replicate's depend on it and the seed only."""
    rows = []
    for r in replicates:
        order = np.random.default_rng(child_seed(seed, r, 2)).permutation(len(data.train_y))
        own = [order[data.train_y[order] == k][:draws] for k in range(data.n_classes)]
        rows.append(np.concatenate(own))
    return np.array(rows)


@torch.no_grad()
def _measure(
    data: ImageData,
    ensemble: Ensemble,
    samples: np.ndarray,
    labels: np.ndarray,
    layer: str,
    loss: str,
    h: float,
    by: str | None,
    bins: int | np.ndarray,
) -> dict[str, np.ndarray]:
    """The networks as they are now: changes (replicate, draw, ...) by a step at each drawn sample."""
    R, D = samples.shape
    device = next(iter(ensemble.parameters.values())).device
    x = torch.as_tensor(data.train_x)[torch.from_numpy(samples)].double().to(device)  # (R, D, ...)
    targets = torch.eye(data.n_classes, dtype=torch.float64)[torch.from_numpy(labels)].to(device)
    watched = torch.as_tensor(data.probe_x).double().to(device)
    whole = ensemble.copies(torch.arange(R))
    before = whole.evaluate(watched)[layer]
    drawn = whole.evaluate(x, own=True)[layer]
    result = {"drawn": drawn.cpu().numpy()}
    if by is not None:
        from_, to = (
            (x.flatten(2), watched.flatten(1)[None]) if by.startswith("input") else (drawn, before)
        )
        distances = pair_distances(from_.cpu().numpy(), to.cpu().numpy(), by)
        edges = make_bins(bins, distances)
        result["edges"] = edges
    parts: list[dict[str, np.ndarray]] = []
    # Weights, their copies and gradients, and the outputs for all probe samples, 8 bytes each.
    at_once = max(1, WORKING_BYTES // (8 * (3 * ensemble.weights + len(watched) * ensemble.made)))
    for part in torch.arange(R * D).split(at_once):
        r, d = part // D, part % D
        own, target = x[r, d].unsqueeze(1), targets[d].unsqueeze(1)
        moved = ensemble.copies(r)
        make_step(moved, loss, h)(own, target)
        changes = (moved.evaluate(watched)[layer] - before[r]).cpu().numpy()
        after = moved.evaluate(own, own=True)[layer][:, 0]
        norms = torch.linalg.vector_norm(after - drawn[r, d], dim=-1).cpu().numpy()
        parts.append(reduce_changes(changes, data.probe_y, norms))
        if by is not None:
            same = data.probe_y == labels[d.numpy()][:, None]
            parts[-1] |= bin_changes(edges, changes, distances[r.numpy(), d.numpy()], same)
    for name, value in parts[0].items():
        joined = np.concatenate([part[name] for part in parts])
        result[name] = joined.reshape(R, D, *value.shape[1:])
    return result
