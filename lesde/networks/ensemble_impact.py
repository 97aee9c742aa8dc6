"""Local elasticity of networks measured directly, while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lesde.analysis.impact.moments import (
    DISTANCES,
    bin_changes,
    check_bins,
    impact_dataset,
    make_bins,
    pair_distances,
    reduce_changes,
)
from lesde.checks import check_choice, check_integer, check_real, check_seed, shown
from lesde.networks.data import ImageData
from lesde.networks.ensemble import LOSSES, Ensemble, child_seed, make_step
from lesde.networks.records import record_ensemble

__all__ = ["measure_impact"]

# What copies of networks and their layers' outputs may take at once, in bytes. Some multiples of the
# processor's cache: more is not faster.
WORKING_BYTES = 2**27


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
    is reduced to what `lesde.fit_impact` needs. The networks that train never see it: they are the same to
    the last bit as without measuring. For your own network, in its current state, see `lesde.measure_impact`.

    Parameters
    ----------
    data, architecture, learning_rates, replicates, times, loss, seed
        As for :func:`lesde.networks.train_ensemble`.
    draws : int, default 5
        Training samples drawn of every class, for each network its own, without replacement; the same at all times, so that
        changes over time are those of the network. At least 2 for errors from fewer than 8 replicates.
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

    Raises
    ------
    TypeError, ValueError, Diverged
        As :func:`lesde.networks.train_ensemble`, and for more draws than a class has samples.

    Notes
    -----
    The step is taken and the changes are measured in float64, whatever ``dtype``: late in training changes are
    small differences of large features. Copies are stacked and stepped together, in parts of at most 128 MB.
    What is kept is 8·R·T·K·S·(K + 1)·(p + 2) bytes for R replicates, T times, S draws of each of K classes and p features
    (with B bins 16·R·T·K·S·B·(p + 2) more). Labels are those of training, wrong ones included.

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
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of one layer; got {shown(layer)}.")
    check_choice("loss", loss, LOSSES)
    draws, fewest = check_integer("draws", draws), int(np.bincount(data.train_y).min())
    if draws > fewest:
        raise ValueError(
            f"draws must be at most the number of training samples of every class, {fewest}; got {draws}."
        )
    if step is not None:
        step = check_real("step", step, 0.0, open_minimum=True)
    probe = _Probe(data, layer, loss, draws, step, by, check_bins(bins), check_seed(seed))
    records = record_ensemble(
        data,
        architecture,
        learning_rates,
        replicates,
        times,
        layers=tuple(dict.fromkeys(("logits", layer))),
        loss=loss,
        seed=seed,
        observe=probe,
        **options,
    )
    return (record | {"impact": probe.dataset(record["logits"])} for record in records)


class _Probe:
    """Measures an ensemble whenever it is called, and keeps the measurements at one learning rate."""

    def __init__(
        self,
        data: ImageData,
        layer: str,
        loss: str,
        draws: int,
        step: float | None,
        by: str | None,
        bins: int | np.ndarray,
        seed: int,
    ) -> None:
        self._data, self._layer, self._loss, self._step = data, layer, loss, step
        self._by, self._bins, self._seed, self._draws = by, bins, seed, draws
        self._labels = np.repeat(np.arange(data.n_classes), draws)
        self._frames: list[dict[str, np.ndarray]] = []
        self._edges: list[np.ndarray] = []

    def drawn_samples(self, replicates: Sequence[int]) -> np.ndarray:
        """Numbers (replicate, draw) of the drawn samples; a replicate's depend on it and the seed only."""
        y, K = self._data.train_y, self._data.n_classes
        rows = []
        for r in replicates:
            rng = np.random.default_rng(child_seed(self._seed, r, 2))
            rows.append(
                np.concatenate(
                    [rng.permutation(np.flatnonzero(y == k))[: self._draws] for k in range(K)]
                )
            )
        return np.array(rows)

    @torch.no_grad()
    def __call__(self, rate: float, index: int, ensemble: Ensemble) -> None:
        """Measure the networks as they are now, at saved time number ``index``."""
        if index == 0:
            self._frames, self._edges = [], []
        data = self._data
        rows = self.drawn_samples(ensemble.replicates)
        R, D = rows.shape
        device = next(iter(ensemble.parameters.values())).device
        x = torch.as_tensor(data.train_x)[torch.from_numpy(rows)].double().to(device)  # (R, D, ...)
        targets = torch.eye(data.n_classes, dtype=torch.float64)[torch.from_numpy(self._labels)]
        targets, watched = targets.to(device), torch.as_tensor(data.probe_x).double().to(device)
        whole = ensemble.copies(torch.arange(R))
        before = whole.evaluate(watched).features[self._layer]
        drawn = whole.evaluate(x, own=True).features[self._layer]
        distances = bins = None
        if self._by is not None:
            places = (x.flatten(2), watched.flatten(1)[None])
            from_, to = places if self._by.startswith("input") else (drawn, before)
            distances = pair_distances(from_.cpu().numpy(), to.cpu().numpy(), self._by)
            bins = make_bins(self._bins, distances)
        parts: list[dict[str, np.ndarray]] = []
        for part in torch.arange(R * D).split(_at_once(whole, len(watched), x[0, :1].cpu())):
            r, d = part // D, part % D
            moved = ensemble.copies(r)
            make_step(moved, self._loss, rate if self._step is None else self._step)(
                x[r, d].unsqueeze(1), targets[d].unsqueeze(1)
            )
            changes = (moved.evaluate(watched).features[self._layer] - before[r]).cpu().numpy()
            after = moved.evaluate(x[r, d].unsqueeze(1), own=True).features[self._layer][:, 0]
            own = torch.linalg.vector_norm(after - drawn[r, d], dim=-1).cpu().numpy()
            parts.append(reduce_changes(changes, data.probe_y, own))
            if bins is not None and distances is not None:
                same = data.probe_y == self._labels[d.numpy()][:, None]
                parts[-1] |= bin_changes(bins, changes, distances[r.numpy(), d.numpy()], same)
        frame = {
            name: np.concatenate([part[name] for part in parts]).reshape(R, D, *value.shape[1:])
            for name, value in parts[0].items()
        }
        self._frames.append(frame | {"drawn": drawn.cpu().numpy()})
        if bins is not None:
            self._edges.append(bins)

    def dataset(self, record: xr.Dataset) -> xr.Dataset:
        """The measurements at one learning rate, with the coordinates of its record."""
        counts = np.bincount(self._data.train_y)
        rate = float(record["learning_rate"].values[0])
        parts = {
            name: np.stack([frame[name] for frame in self._frames], axis=1)[None]
            for name in self._frames[0]
        }
        dataset = impact_dataset(
            parts,
            ("learning_rate", "replicate", "time"),
            self._labels,
            np.bincount(self._data.probe_y),
            counts / counts.sum(),
            rate if self._step is None else self._step,
            edges=np.array(self._edges)[None] if self._edges else None,
            by=self._by,
            coords={
                name: record[name] for name in ("learning_rate", "replicate", "time", "iteration")
            },
        )
        rows = self.drawn_samples(record["replicate"].values.tolist())
        about = {"long_name": "number of the drawn sample in the training set"}
        dataset = dataset.assign_coords(
            drawn_sample=(("replicate", "draw"), rows, about),
            step=("learning_rate", [float(dataset["step"])], dataset["step"].attrs),
        )
        attrs: dict[str, Any] = {**record.attrs, **dataset.attrs, "layer": self._layer}
        return dataset.assign_attrs(attrs)


def _at_once(ensemble: Ensemble, samples: int, example: Tensor) -> int:
    """Number of copies to step together, so that they and their layers' outputs stay within bounds."""
    outputs = [example.numel()]
    handles = [
        module.register_forward_hook(
            lambda _, __, out: outputs.append(out.numel() if isinstance(out, Tensor) else 0)
        )
        for module in ensemble.base.modules()
    ]
    try:
        ensemble.base(example.to(next(ensemble.base.parameters()).dtype))
    finally:
        for handle in handles:
            handle.remove()
    weights = sum(p[0].numel() for p in (ensemble.parameters | ensemble.fixed).values())
    # The outputs of a layer and of the next are there at a time, and patches of a convolution are more.
    each = 8 * (3 * weights + 4 * samples * max(outputs))
    return max(1, WORKING_BYTES // each)
