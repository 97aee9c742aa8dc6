"""Local elasticity of any one network measured directly: `lesde.measure_impact`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call

from lesde.analysis.impact.moments import (
    DISTANCES,
    Bins,
    bin_changes,
    check_bins,
    impact_dataset,
    impact_from_changes,
    make_bins,
    pair_distances,
    reduce_changes,
)
from lesde.checks import check_choice, check_integer, check_labels, check_real, check_seed, shown
from lesde.networks.data import ImageData
from lesde.networks.ensemble import LOSSES, Ensemble, child_seed, make_step
from lesde.networks.mixing import check_each_by_itself, rounding, trial_rows
from lesde.networks.quiet import Kept, device_of, evaluating, kept_randomness
from lesde.networks.records import record_ensemble

__all__ = ["measure_impact", "measure_module_impact"]


# --------------------------------------------------------------------------------------------------
# Local elasticity of networks measured directly, while they train.

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
    batch_size: int = 1,
    sampling: str = "uniform",
    seed: int = 0,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks as `record_ensemble` does, and measure at the saved times what one SGD step does.

    At every saved time, for every network and each of some drawn training samples, a copy of the network
    takes one step of plain SGD at that sample alone, and the change of the features of all probe samples
    is reduced to what `lesde.fit_impact` needs. The networks that train never see it: they are the same to
    the last bit as without measuring. For a network of your own, as it is now, see `lesde.measure_impact`.

    Parameters
    ----------
    data, architecture, learning_rates, replicates, times, loss, batch_size, sampling, seed, dtype, device, progress
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
    probe = ImpactProbe(
        data,
        layer=layer,
        loss=loss,
        draws=_check_draws(draws, data),
        step=None if step is None else check_real("step", step, 0.0, open_minimum=True),
        by=by,
        bins=check_bins(bins),
        seed=check_seed(seed),
    )
    records = record_ensemble(
        data,
        architecture,
        learning_rates,
        replicates,
        times,
        layers=tuple(dict.fromkeys(("logits", layer))),
        loss=loss,
        batch_size=batch_size,
        sampling=sampling,
        seed=seed,
        dtype=dtype,
        device=device,
        observe=probe,
        progress=progress,
    )
    return (record | {"impact": probe.dataset(record["logits"])} for record in records)


def _check_draws(draws: int, data: ImageData) -> int:
    draws, fewest = check_integer("draws", draws), int(np.bincount(data.train_y).min())
    if draws > fewest:
        raise ValueError(
            f"draws must be at most the number of training samples of every class, {fewest}; got {draws}."
        )
    return draws


class ImpactProbe:
    """Measures an ensemble whenever it is called, and keeps what it found of one learning rate."""

    def __init__(
        self,
        data: ImageData,
        *,
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
        self.labels = np.repeat(np.arange(data.n_classes), draws)
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
        targets = torch.eye(data.n_classes, dtype=torch.float64)[torch.from_numpy(self.labels)]
        targets, watched = targets.to(device), torch.as_tensor(data.probe_x).double().to(device)
        whole = ensemble.copies(torch.arange(R))
        before = whole.evaluate(watched).features[self._layer]
        drawn = whole.evaluate(x, own=True).features[self._layer]
        distances, bins = self._sort(watched, x, before, drawn)
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
                same = data.probe_y == self.labels[d.numpy()][:, None]
                parts[-1] |= bin_changes(bins, changes, distances[r.numpy(), d.numpy()], same)
        frame = {
            name: np.concatenate([part[name] for part in parts]).reshape(R, D, *value.shape[1:])
            for name, value in parts[0].items()
        }
        self._frames.append(frame | {"drawn": drawn.cpu().numpy()})
        if bins is not None:
            self._edges.append(bins.edges)

    def _sort(
        self, watched: Tensor, x: Tensor, before: Tensor, drawn: Tensor
    ) -> tuple[np.ndarray | None, Bins | None]:
        """Distances (replicate, draw, sample) and their bins, where asked for."""
        if self._by is None:
            return None, None
        if self._by.startswith("input"):
            from_, to = x.flatten(2).cpu().numpy(), watched.flatten(1).cpu().numpy()[None]
        else:
            from_, to = drawn.cpu().numpy(), before.cpu().numpy()
        distances = pair_distances(from_, to, self._by)
        return distances, make_bins(self._bins, distances)

    def dataset(self, record: xr.Dataset) -> xr.Dataset:
        """What was measured at one learning rate, with the coordinates of its record."""
        counts = np.bincount(self._data.train_y)
        rate = float(record["learning_rate"].values[0])
        parts = {
            name: np.stack([frame[name] for frame in self._frames], axis=1)[None]
            for name in self._frames[0]
        }
        dataset = impact_dataset(
            parts,
            ("learning_rate", "replicate", "time"),
            self.labels,
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
    """How many copies to step together, so that they and their layers' outputs stay within bounds."""
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


# --------------------------------------------------------------------------------------------------

Values = dict[str, Tensor]


def measure_module_impact(
    model: nn.Module,
    loss: str | Callable[[Tensor, Tensor], Tensor],
    samples: tuple[Any, Any],
    probe: tuple[Any, Any],
    learning_rate: float,
    layer: str = "logits",
    *,
    by: str | None = None,
    bins: int | Sequence[float] = 12,
    shares: Any = None,
    batch_size: int = 1024,
) -> xr.Dataset:
    """What one SGD step of a network at each of some samples does to the features of others.

    For every drawn sample the parameters take one step of plain SGD at that sample alone, from where they
    are now, and the features of the probe are taken before and after. The network itself is left as it was, as
    :func:`lesde.record` leaves it. For networks of an ensemble, measured while they train, see
    :func:`lesde.networks.measure_impact`.

    Parameters
    ----------
    model : torch.nn.Module
        Any that maps a batch (n, ...) to outputs (n, ...), each sample by itself and without chance. It is run in
        evaluation mode: no dropout, and batch normalisation with its running statistics. Parameters that do not
        require a gradient stay as they are.
    loss : {"cross_entropy", "mse"} or callable
        ``"mse"`` is half the squared distance to the one-hot label. A callable takes the output for one sample,
        (1, ...), and its label, an int64 tensor (1,), and returns a number.
    samples : (array (S, ...), int array (S,))
        Inputs and labels of the drawn samples, at which steps are taken; several of every class of the probe.
    probe : (array (n, ...), int array (n,))
        Inputs and labels 0 to K−1 of the samples that are watched.
    learning_rate : float
        h, of the step.
    layer : str, default "logits"
        Features: ``"logits"``, the output of the model, or the output of the submodule of that name; flattened.
    by : {"r2", "cosine"}, optional
        Also sort pairs by squared distance or cosine of their features, for `lesde.impact_by_distance`.
    bins, shares
        As for `lesde.analysis.impact_from_changes`.
    batch_size : int, default 1024
        Probe samples per forward pass.

    Returns
    -------
    xarray.Dataset
        For `lesde.fit_impact`, as `lesde.analysis.impact_from_changes` returns it, without time or replicate; join
        those of several moments of training with ``xarray.concat(impacts, xr.IndexVariable("time", times))``.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above, a network whose features of a sample depend on chance or on the other
        samples of a batch, or inputs or features that are not finite.

    Notes
    -----
    A step and two passes of the drawn sample and one of the probe for each of the S samples. Changes are computed in the
    precision of the model; for small ones convert it before: ``model.double()``. All S × n changes are held at a time.

    Examples
    --------
    >>> network = lesde.networks.mlp(64, (32,), 4)
    >>> data = lesde.networks.digits(classes=4)
    >>> drawn = (data.train_x[::20], data.train_y[::20])
    >>> impact = lesde.measure_impact(network, "cross_entropy", drawn, (data.probe_x, data.probe_y), 0.01)
    >>> lesde.fit_impact(impact).E.shape
    (4, 4)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module; got {shown(model)}. To train networks on ImageData and measure "
            f"them on the way, use lesde.networks.measure_impact(data, architecture, learning_rates, "
            f"replicates, times)."
        )
    rate = check_real("learning_rate", learning_rate, 0.0, open_minimum=True)
    if by is not None:
        check_choice("by", by, ("r2", "cosine"))
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of one layer; got {shown(layer)}.")
    watch = _Watched(model, layer, check_integer("batch_size", batch_size))
    x, y = watch.inputs("samples", samples)
    probe_x, probe_y = watch.inputs("probe", probe)
    labels = check_labels("probe labels", probe_y.numpy())
    _check_drawn(y.numpy(), int(labels.max()) + 1)
    cost = _loss(loss, int(labels.max()) + 1)
    with kept_randomness(device_of(model)), evaluating(model), Kept(model) as kept:
        watch.kept = kept
        start = {name: p.detach() for name, p in model.named_parameters()}
        watch.check(start, probe_x)
        before, drawn = watch(start, probe_x), watch(start, x)
        changes = np.empty((len(x), *before.shape), dtype=np.float64)
        own = np.empty(drawn.shape, dtype=np.float64)
        for j in range(len(x)):
            moved = _stepped(model, watch, cost, x[j : j + 1], y[j : j + 1], rate)
            changes[j] = (watch(moved, probe_x) - before).double().cpu().numpy()
            own[j] = (watch(moved, x[j : j + 1]) - drawn[j]).double().cpu().numpy()[0]
    return impact_from_changes(
        changes,
        labels,
        drawn.double().cpu().numpy(),
        y.numpy(),
        rate,
        drawn_changes=own,
        features=before.double().cpu().numpy(),
        by=by,
        bins=bins,
        shares=shares,
    ).assign_attrs(engine="network", layer=layer, architecture=str(model))


def _check_drawn(labels: np.ndarray, n_classes: int) -> None:
    """Raise where a class is drawn that is not watched."""
    other = np.unique(labels[(labels < 0) | (labels >= n_classes)])
    if len(other):
        raise ValueError(
            f"samples labels must be 0 to {n_classes - 1}, the classes of probe; got "
            f"{', '.join(map(str, other[:8]))}{', …' if len(other) > 8 else ''}. Renumber them, or watch samples "
            f"of these classes too."
        )


def _stepped(
    model: nn.Module,
    watch: _Watched,
    cost: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    rate: float,
) -> Values:
    """Parameters after one step at one sample; those that the step does not touch are left out."""
    trained = {
        name: p.detach().clone().requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    if not trained:
        raise ValueError("model must have parameters that require a gradient; it has none.")
    with torch.enable_grad():
        value = cost(watch.run(trained, x), y.to(x.device))
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss must return one number; got {shown(value)}.")
        slopes = torch.autograd.grad(value.reshape(()), list(trained.values()), allow_unused=True)
    watch.restore()
    with torch.no_grad():
        return {
            name: p.detach() - rate * slope if slope is not None else p.detach()
            for (name, p), slope in zip(trained.items(), slopes, strict=True)
        }


class _Watched:
    """A model's features of one layer, for parameters given in place of its own."""

    def __init__(self, model: nn.Module, layer: str, batch_size: int) -> None:
        names = [name for name, _ in model.named_modules() if name]
        if layer != "logits" and layer not in names:
            raise ValueError(
                f"layer must be 'logits' or the name of a submodule of model, "
                f"{', '.join(map(repr, names)) or 'of which it has none'}; got {shown(layer)}."
            )
        self._model, self._batch_size = model, batch_size
        # A submodule that is called "logits" is meant by its name, as in a recorder.
        self._module = model.get_submodule(layer) if layer in names else None
        self._layer = layer
        first = next(model.parameters(), None)
        self._like = torch.zeros(0) if first is None else first
        self.kept: Kept | None = None

    def restore(self) -> None:
        """Make the model what it was, so that what a pass leaves in it does not meet the next."""
        if self.kept is not None:
            self.kept.restore()

    def check(self, parameters: Values, x: Tensor) -> None:
        """Raise where the features of a sample depend on the other samples, or on chance."""

        def run(rows: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
            with kept_randomness(device_of(self._model), seed):
                return {self._layer: self(parameters, x[rows])}

        rows = trial_rows(len(x), self._batch_size)
        seen = check_each_by_itself(self._model, run, rows, len(x), self._like.dtype)[self._layer]
        other = run(rows, 1)[self._layer]
        if float((other - seen).abs().max()) > rounding(seen.dtype) * float(seen.abs().max()):
            raise ValueError(
                f"model must give the same features for the same input each time; those of {self._layer!r} "
                f"differ with the random numbers. Leave out what draws in evaluation mode."
            )

    def inputs(self, name: str, value: Any) -> tuple[Tensor, Tensor]:
        """Inputs where the model is and in its precision, and labels on the CPU."""
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"{name} must be a pair (inputs, labels); got {shown(value)}.")
        try:
            x, y = torch.as_tensor(value[0]), torch.as_tensor(value[1]).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must hold inputs that are numbers and integer labels: {error}. Number labels that "
                f"are names, for example with numpy.unique(labels, return_inverse=True)."
            ) from None
        if y.ndim != 1 or y.is_floating_point() or len(x) != len(y) or len(y) == 0:
            raise ValueError(
                f"{name} must hold one input and one integer label each, at least one; got inputs of shape "
                f"{tuple(x.shape)} and labels of shape {tuple(y.shape)}, {y.dtype}."
            )
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ValueError(f"{name} must have finite inputs; remove or replace its NaN and inf.")
        x = x.to(self._like.device)
        return (x.to(self._like.dtype) if x.is_floating_point() else x), y.long()

    def run(self, parameters: Values, x: Tensor) -> Tensor:
        """Outputs of the model. Buffers are copies, so that what a pass changes of them is lost."""
        buffers = {name: b.clone() for name, b in self._model.named_buffers()}
        try:
            return functional_call(self._model, (parameters, buffers), (x,))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"model must take a batch of shape {tuple(x.shape)}, here also of one sample; it failed "
                f"with: {error}"
            ) from error

    @torch.no_grad()
    def __call__(self, parameters: Values, x: Tensor) -> Tensor:
        """Features (sample, feature)."""
        found = []
        for part in x.split(self._batch_size):
            found.append(self._features(parameters, part))
            self.restore()
        return torch.cat(found)

    def _features(self, parameters: Values, x: Tensor) -> Tensor:
        seen: list[Any] = []
        handle = None
        if self._module is not None:
            handle = self._module.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            output = self.run(parameters, x)
        finally:
            if handle is not None:
                handle.remove()
        if self._module is not None and not seen:
            raise ValueError("layer must be a submodule that runs; this one never does.")
        found = seen[-1] if seen else output
        if not isinstance(found, Tensor) or len(found) != len(x):
            raise ValueError(
                f"layer must return a tensor with one row per input; it returned {shown(found)}."
            )
        return found.reshape(len(x), -1).clone()


def _loss(loss: Any, n_classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    if callable(loss):
        return loss
    measure = LOSSES[check_choice("loss", loss, LOSSES)]

    def of_labels(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.ndim != 2 or logits.shape[1] < n_classes:
            raise ValueError(
                f"model must return logits (n, K) with K of at least {n_classes} for loss={loss!r}; got shape "
                f"{tuple(logits.shape)}. Give a function of (output, label) as loss."
            )
        return measure(logits, nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype))

    return of_labels
