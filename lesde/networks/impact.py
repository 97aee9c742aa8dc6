"""Local elasticity of any one network measured directly, as it is now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call

from lesde.analysis.impact.moments import impact_from_changes
from lesde.checks import check_choice, check_integer, check_labels, check_real, shown
from lesde.networks.ensemble import LOSSES
from lesde.networks.probes import read_labelled
from lesde.networks.quiet import (
    REFUSALS,
    check_each_by_itself,
    device_of,
    float_type,
    kept_randomness,
    undisturbed,
    watching,
)


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
    are now, and the features of the probe are taken before and after. The network itself is left as it was. For
    networks of an ensemble, measured while they train, see :func:`lesde.networks.measure_impact`.

    Parameters
    ----------
    model : torch.nn.Module
        Any that maps a batch (n, ...) to outputs (n, ...), each sample by itself and without chance in evaluation
        mode. Parameters that do not require a gradient stay as they are.
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

    Notes
    -----
    The cost for each of the S samples is a step and a pass of the probe, and all S × n changes are held at a time.
    The model computes in its own precision; for small changes convert it before: ``model.double()``.

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
    check_choice("layer", layer, ["logits", *(name for name, _ in model.named_modules() if name)])
    batch_size = check_integer("batch_size", batch_size)
    (x, y), (probe_x, probe_y) = _inputs("samples", samples, model), _inputs("probe", probe, model)
    labels = check_labels("probe labels", probe_y)
    K = int(labels.max()) + 1
    if y.min() < 0 or y.max() >= K:
        raise ValueError(
            f"samples labels must be 0 to {K - 1}, the classes of probe; got {y.min()} to {y.max()}. "
            f"Renumber them, or watch samples of these classes too."
        )
    cost = _loss(loss, K)
    start = {name: p.detach() for name, p in model.named_parameters()}

    def features(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Features (sample, feature), in float64."""
        found = []
        for part in x.split(batch_size):
            with watching(model, (layer,)) as seen:
                output = _run(model, parameters, part)
            value = seen.get(layer, output)
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(part):
                raise ValueError(
                    f"layer must return a tensor with one row per input; it returned {shown(value)}."
                )
            found.append(value.reshape(len(part), -1).double())
        return torch.cat(found)

    def run(rows: Sequence[int]) -> dict[str, Tensor]:
        with kept_randomness(seed=0):
            return {layer: features(start, probe_x[rows]).to(float_type(model))}

    with undisturbed(model):
        check_each_by_itself(run, len(probe_x))
        before, drawn = features(start, probe_x), features(start, x)
        changes = np.empty((len(x), *before.shape), dtype=np.float64)
        own = np.empty(drawn.shape, dtype=np.float64)
        for j in range(len(x)):
            label = torch.from_numpy(y[j : j + 1]).to(x.device)
            moved = _stepped(model, lambda output: cost(output, label), x[j : j + 1], rate)  # noqa: B023
            changes[j] = (features(moved, probe_x) - before).cpu().numpy()
            own[j] = (features(moved, x[j : j + 1])[0] - drawn[j]).cpu().numpy()
    return impact_from_changes(
        changes,
        labels,
        drawn.cpu().numpy(),
        y,
        rate,
        drawn_changes=own,
        features=before.cpu().numpy(),
        by=by,
        bins=bins,
        shares=shares,
    ).assign_attrs(engine="network", layer=layer, architecture=str(model))


def _inputs(name: str, value: Any, model: nn.Module) -> tuple[Tensor, np.ndarray]:
    """Inputs where the model is and in its precision, and labels."""
    x, y = read_labelled(name, value)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must give one tensor for each input; got several.")
    return x.to(device_of(model), float_type(model) if x.is_floating_point() else None), y


def _run(model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Any:
    """Output of the model with these parameters in place of its own."""
    try:
        return functional_call(model, dict(parameters), (x,))
    except REFUSALS as error:
        raise ValueError(
            f"model must take a batch of shape {tuple(x.shape)}, here also of one sample; it failed "
            f"with: {error}"
        ) from error


def _stepped(
    model: nn.Module, cost: Callable[[Tensor], Tensor], x: Tensor, rate: float
) -> dict[str, Tensor]:
    """Parameters after one step of plain SGD at one sample."""
    named = model.named_parameters()
    trained = {name: p.detach().clone().requires_grad_() for name, p in named if p.requires_grad}
    if not trained:
        raise ValueError("model must have parameters that require a gradient; it has none.")
    with torch.enable_grad():
        value = cost(_run(model, trained, x))
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss must return one number; got {shown(value)}.")
        slopes = torch.autograd.grad(value.reshape(()), list(trained.values()), allow_unused=True)
    return {
        name: p.detach() if slope is None else p.detach() - rate * slope
        for (name, p), slope in zip(trained.items(), slopes, strict=True)
    }


def _loss(loss: Any, n_classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a function of outputs and labels."""
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
