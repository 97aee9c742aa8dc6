"""Local elasticity of any one network measured directly, as it is now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call

from lesde.analysis.impact.moments import impact_from_changes
from lesde.checks import check_choice, check_integer, check_labels, check_real, shown
from lesde.networks.classifier import close
from lesde.networks.ensemble import LOSSES
from lesde.networks.mixing import REFUSALS, check_each_by_itself, trial_rows
from lesde.networks.probes import read_labelled
from lesde.networks.quiet import Kept, device_of, evaluating, float_type, kept_randomness

__all__ = ["measure_impact"]


def measure_impact(
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
    """Changes of the features of some samples by one SGD step of a network at each of others.

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
    samples : (array (S, ...), int array (S,)), Dataset or DataLoader
        Inputs and labels of the drawn samples, at which steps are taken; several of every class of the probe.
    probe : (array (n, ...), int array (n,)), Dataset or DataLoader
        Inputs and labels 0 to K−1 of the samples whose features are compared.
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
    The cost for each of the S samples is a step, two passes of the drawn sample and one of the probe.
    Changes are computed in the precision of the model; for small ones convert it before: ``model.double()``. All S × n
    changes are held at a time.

    Examples
    --------
    >>> import lesde
    >>> network = lesde.networks.mlp(64, (32,), 4)
    >>> data = lesde.networks.digits(classes=4)
    >>> drawn = (data.train_x[::20], data.train_y[::20])
    >>> impact = lesde.measure_impact(network, "cross_entropy", drawn, (data.probe_x, data.probe_y), 0.01)
    >>> lesde.fit_impact(impact).E.shape
    (4, 4)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module; got {shown(model)}. To measure networks while they "
            f"train on ImageData, use lesde.networks.measure_impact(data, architecture, learning_rates, "
            f"replicates, times)."
        )
    rate = check_real("learning_rate", learning_rate, 0.0, open_minimum=True)
    if by is not None:
        check_choice("by", by, ("r2", "cosine"))
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of one layer; got {shown(layer)}.")
    watched = _Watched(model, layer, check_integer("batch_size", batch_size))
    x, y = watched.inputs("samples", samples)
    probe_x, probe_y = watched.inputs("probe", probe)
    labels = check_labels("probe labels", probe_y.numpy())
    K = int(labels.max()) + 1
    other = np.unique(y[(y < 0) | (y >= K)])
    if len(other):
        raise ValueError(
            f"samples labels must be 0 to {K - 1}, the classes of probe; got "
            f"{', '.join(map(str, other[:8]))}{', …' if len(other) > 8 else ''}. Renumber them, or watch samples "
            f"of these classes too."
        )
    cost = _loss(loss, K)
    with kept_randomness(device_of(model)), evaluating(model), Kept(model) as kept:
        watched.restore = kept.restore
        start = {name: p.detach() for name, p in model.named_parameters()}
        watched.check(start, probe_x)
        before, drawn = watched(start, probe_x), watched(start, x)
        changes = np.empty((len(x), *before.shape), dtype=np.float64)
        own = np.empty(drawn.shape, dtype=np.float64)
        for j in range(len(x)):
            moved = watched.stepped(cost, x[j : j + 1], y[j : j + 1], rate)
            changes[j] = (watched(moved, probe_x) - before).double().cpu().numpy()
            own[j] = (watched(moved, x[j : j + 1]) - drawn[j]).double().cpu().numpy()[0]
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


class _Watched:
    """A model's features of one layer, for parameters given in place of its own."""

    restore: Callable[[], None]
    """Restores the model, so that a pass does not affect the next."""

    def __init__(self, model: nn.Module, layer: str, batch_size: int) -> None:
        names = [name for name, _ in model.named_modules() if name]
        if layer != "logits" and layer not in names:
            raise ValueError(
                f"layer must be 'logits' or the name of a submodule of model, "
                f"{', '.join(map(repr, names)) or 'of which it has none'}; got {shown(layer)}."
            )
        self._model, self._layer, self._batch_size = model, layer, batch_size
        # A submodule that is called "logits" is meant by its name, as in a recorder.
        self._module = model.get_submodule(layer) if layer in names else None
        self._device, self._dtype = device_of(model), float_type(model)

    def inputs(self, name: str, value: Any) -> tuple[Tensor, Tensor]:
        """Inputs where the model is and in its precision, and labels on the CPU."""
        x, y = read_labelled(name, value)
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must give one tensor for each input; got several.")
        dtype = self._dtype if x.is_floating_point() else None
        return x.to(self._device, dtype), torch.from_numpy(y)

    def check(self, parameters: Mapping[str, Tensor], x: Tensor) -> None:
        """Raise where the features of a sample depend on the other samples, or on chance."""

        def run(rows: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
            with kept_randomness(self._device, seed):
                return {self._layer: self(parameters, x[rows])}

        rows = trial_rows(len(x), self._batch_size)
        seen = check_each_by_itself(self._model, run, rows, len(x), self._dtype)[self._layer]
        if not close(run(rows, 1)[self._layer], seen):
            raise ValueError(
                f"model must give the same features for the same input each time; those of {self._layer!r} "
                f"differ with the random numbers. Leave out what draws in evaluation mode."
            )

    def stepped(
        self, cost: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, rate: float
    ) -> dict[str, Tensor]:
        """Parameters after one step at one sample."""
        trained = {
            name: p.detach().clone().requires_grad_()
            for name, p in self._model.named_parameters()
            if p.requires_grad
        }
        if not trained:
            raise ValueError("model must have parameters that require a gradient; it has none.")
        with torch.enable_grad():
            value = cost(self._run(trained, x), y.to(x.device))
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"loss must return one number; got {shown(value)}.")
            slopes = torch.autograd.grad(
                value.reshape(()), list(trained.values()), allow_unused=True
            )
        self.restore()
        return {
            name: p.detach() if slope is None else p.detach() - rate * slope
            for (name, p), slope in zip(trained.items(), slopes, strict=True)
        }

    @torch.no_grad()
    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Features (sample, feature)."""
        found = []
        for part in x.split(self._batch_size):
            seen: list[Any] = []
            with ExitStack() as stack:
                if self._module is not None:
                    hook = self._module.register_forward_hook(lambda _, __, out: seen.append(out))  # noqa: B023
                    stack.callback(hook.remove)
                output = self._run(parameters, part)
            if self._module is not None and not seen:
                raise ValueError("layer must be a submodule that runs; this one never does.")
            features = seen[-1] if seen else output
            if not isinstance(features, Tensor) or len(features) != len(part):
                raise ValueError(
                    f"layer must return a tensor with one row per input; it returned {shown(features)}."
                )
            found.append(features.reshape(len(part), -1).clone())
            self.restore()
        return torch.cat(found)

    def _run(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs of the model. Buffers are copies, so that changes by a pass are lost."""
        buffers = {name: b.clone() for name, b in self._model.named_buffers()}
        try:
            return functional_call(self._model, (dict(parameters), buffers), (x,))
        except REFUSALS as error:
            raise ValueError(
                f"model must take a batch of shape {tuple(x.shape)}, here also of one sample; it failed "
                f"with: {error}"
            ) from error


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
