"""One look at the layers of any model: the features of a probe set, now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, shown
from ..errors import Diverged
from .ensemble import layer_names
from .gradients import LOSSES
from .probe_set import ProbeSet
from .quiet import device_of, kept_randomness, quiet

__all__ = ["Look", "Looker"]

_DTYPES = ("float16", "float32", "float64")
Pooling = str | Callable[[Tensor], Tensor]
Loss = str | Callable[[Tensor, Tensor], Any] | None


@dataclass
class Look:
    """What was seen.

    Attributes
    ----------
    features : dict of str to array (sample, feature)
        By layer.
    loss, accuracy : float or None
        On the probe set; None where they are not defined.
    weights : array (class, feature_in), or None
        Of the last linear layer, where "penultimate" is recorded and it gives the classes.
    bias : array (class,), or None
    """

    features: dict[str, np.ndarray]
    loss: float | None = None
    accuracy: float | None = None
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None


@dataclass
class _Sheet:
    """Arrays that fill batch by batch."""

    total: int
    dtype: torch.dtype
    rows: slice = field(default_factory=lambda: slice(0))
    arrays: dict[str, Tensor] = field(default_factory=dict)

    def write(self, name: str, values: Tensor, dtype: torch.dtype | None = None) -> None:
        if name not in self.arrays:
            shape = (self.total, *values.shape[1:])
            self.arrays[name] = torch.empty(shape, dtype=dtype or self.dtype)
        # Copied at once: a later layer may work in place.
        self.arrays[name][self.rows].copy_(values)


class Looker:
    """Takes the features of chosen layers of one model.

    Parameters
    ----------
    model : torch.nn.Module
    layers : str or sequence of str
    example : ProbeSet
        To see that the model takes it; its first samples are passed through.
    loss, pooling, dtype, batch_size
        As for :func:`lesde.record`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        example: ProbeSet,
        *,
        loss: Loss,
        pooling: Pooling,
        dtype: str,
        batch_size: int,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {shown(model)}.")
        # Hooks set after torch.compile are not seen by what it compiled; the model itself sees them.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self._modules = dict(self.model.named_modules())
        known = ["logits", "penultimate", *filter(None, self._modules)]
        self.layers = tuple(check_choice("layers", name, known) for name in layer_names(layers))
        self._dtype = getattr(torch, check_choice("dtype", dtype, _DTYPES))
        self._batch = check_integer("batch_size", batch_size)
        if not callable(pooling):
            check_choice("pooling", pooling, ("flatten", "mean"))
        if loss is not None and not callable(loss):
            check_choice("loss", loss, LOSSES)
        self._pooling, self._loss = pooling, loss
        self._moved: dict[int, tuple[ProbeSet, ProbeSet, torch.device, torch.dtype]] = {}
        self._last: nn.Linear | None = None
        if "penultimate" in self.layers:
            self._last = self._last_linear(example)

    def look(self, probe: ProbeSet, time: float = 0.0) -> Look:
        """Features of all layers now. The model and all random numbers stay as they are.

        Raises
        ------
        Diverged
            If a feature is not finite; ``time`` is for the message.
        """
        sheet = _Sheet(len(probe), self._dtype)
        with ExitStack() as stack:
            self._enter(stack)
            self._watch(stack, sheet)
            for rows, inputs in self._here(probe).batches(self._batch):
                sheet.rows = rows
                output = self._call(inputs)
                if output.ndim == 2:
                    sheet.write("output", output, torch.float64)
                if "logits" in self.layers:
                    self._keep(sheet, "logits", output)
        return self._report(sheet, probe, time)

    def _enter(self, stack: ExitStack) -> None:
        stack.enter_context(kept_randomness(device_of(self.model)))
        stack.enter_context(quiet(self.model))

    def _here(self, probe: ProbeSet) -> ProbeSet:
        """The probe set where the model is, moved there once."""
        floats = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        device, dtype = device_of(self.model), next(floats, torch.get_default_dtype())
        known = self._moved.get(id(probe))
        if known is None or known[2:] != (device, dtype):
            # With the original, so that its id stays its own.
            known = (probe, probe.to(device, dtype), device, dtype)
            self._moved[id(probe)] = known
        return known[1]

    def _call(self, inputs: Any) -> Tensor:
        try:
            if isinstance(inputs, Mapping):
                output = self.model(**inputs)
            else:
                output = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        except (RuntimeError, TypeError) as error:
            leaf = _first_tensor(inputs)
            shape = None if leaf is None else tuple(leaf.shape)
            raise ValueError(
                f"model must take the inputs of the probe set, here a batch of shape {shape}; it "
                f"failed with: {error}"
            ) from error
        tensor = getattr(output, "logits", None)
        if tensor is None and isinstance(output, Mapping):
            tensor = output.get("logits")
        tensor = _first_tensor(output) if tensor is None else tensor
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"model must return a tensor, a tuple that begins with one, or something with "
                f"logits; got {type(output).__name__}."
            )
        return tensor

    def _watch(self, stack: ExitStack, sheet: _Sheet) -> None:
        """Hooks on the asked layers while the stack is open."""

        def after(layer: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._keep(sheet, layer, output)

            return hook

        def before(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            self._keep(sheet, "penultimate", inputs[0] if inputs else keywords["input"])

        for layer in self.layers:
            if layer == "penultimate":
                assert self._last is not None
                handle = self._last.register_forward_pre_hook(before, with_kwargs=True)
            elif layer == "logits":
                continue
            else:
                handle = self._modules[layer].register_forward_hook(after(layer))
            stack.callback(handle.remove)

    def _keep(self, sheet: _Sheet, layer: str, output: Any) -> None:
        value = _first_tensor(output)
        if value is None:
            raise ValueError(
                f"layers must name submodules that return a tensor, or a tuple that begins with one; "
                f"{layer!r} returns {type(output).__name__}."
            )
        count = sheet.rows.stop - sheet.rows.start
        if callable(self._pooling):
            value = self._pooling(value)
        elif self._pooling == "mean" and value.ndim > 2:
            value = value.flatten(2).mean(-1)
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"layer {layer!r} must have the samples along its first axis, {count} of them here; "
                f"got {got}. Give pooling=, a function that brings them there."
            )
        sheet.write(layer, value.flatten(1) if value.ndim > 1 else value[:, None])

    def _last_linear(self, example: ProbeSet) -> nn.Linear:
        """The torch.nn.Linear that runs last."""
        run: list[nn.Linear] = []
        with ExitStack() as stack:
            self._enter(stack)
            for module in self._modules.values():
                if isinstance(module, nn.Linear):
                    handle = module.register_forward_hook(lambda m, *_: run.append(m))
                    stack.callback(handle.remove)
            _, inputs = next(self._here(example).batches(2))
            self._call(inputs)
        if not run:
            raise ValueError(
                "layers may hold 'penultimate' only where a torch.nn.Linear runs in the model; none "
                "does. Ask for the features by the name of a submodule."
            )
        return run[-1]

    def _report(self, sheet: _Sheet, probe: ProbeSet, time: float) -> Look:
        for layer in self.layers:
            if layer not in sheet.arrays:
                raise ValueError(
                    f"layers must name submodules that run; {layer!r} never does. (What "
                    f"torch.compile made of a submodule hides the layers in it.)"
                )
            if not torch.isfinite(sheet.arrays[layer]).all():
                remedy = "use a smaller learning rate"
                if self._dtype == torch.float16:
                    remedy += ", or dtype='float32' if they are only too large for float16"
                raise Diverged(time, f"the features of layer {layer!r}", remedy)
        features = {layer: sheet.arrays[layer].numpy() for layer in self.layers}
        output = sheet.arrays.get("output")
        look = Look(features, *self._measure(output, probe))
        if look.loss is not None and not np.isfinite(look.loss):
            raise Diverged(time, "the loss on the probe set", "use a smaller learning rate")
        if self._last is not None and output is not None:
            width = features["penultimate"].shape[1]
            fits = self._last.weight.shape == (output.shape[1], width)
            if fits and probe.classes[-1] < len(self._last.weight):
                look.weights = self._copied(self._last.weight)[probe.classes]
                if self._last.bias is not None:
                    look.bias = self._copied(self._last.bias)[probe.classes]
        return look

    def _copied(self, tensor: Tensor) -> np.ndarray:
        return tensor.detach().to("cpu", self._dtype, copy=True).numpy()

    def _measure(self, output: Tensor | None, probe: ProbeSet) -> tuple[float | None, float | None]:
        """Loss and accuracy on the probe set."""
        if self._loss is None:
            return None, None
        labels = torch.from_numpy(probe.classes[probe.labels])
        fits = output is not None and int(labels.max()) < output.shape[1]
        if not fits and (output is None or not callable(self._loss)):
            shape = "no (sample, class)" if output is None else f"{output.shape[1]} columns"
            raise ValueError(
                f"model must give one logit for each class for the loss and the accuracy; its output "
                f"has {shape}, the largest label is {int(labels.max())}. Give loss=None to record "
                f"features alone."
            )
        assert output is not None
        if callable(self._loss):
            loss = float(self._loss(output, labels))
        else:
            loss = float(LOSSES[self._loss](output, torch.eye(output.shape[1]).double()[labels]))
        accuracy = float((output.argmax(1) == labels).double().mean()) if fits else None
        return loss, accuracy


def _first_tensor(value: Any) -> Tensor | None:
    """A tensor itself, or the first of a tuple or dict."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None
