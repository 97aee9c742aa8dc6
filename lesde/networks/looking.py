"""One look at any model: the features of chosen layers on a probe set, as they are now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lesde.checks import check_choice, check_integer, shown
from lesde.errors import Diverged
from lesde.networks.classifier import (
    Call,
    Head,
    Map,
    close,
    find_head,
    fits,
    linear_calls,
    map_at,
    read_input,
)
from lesde.networks.ensemble import LOSSES, layer_names
from lesde.networks.mixing import REFUSALS, check_each_by_itself, tensors_in, trial_rows
from lesde.networks.probes import ProbeSet, each
from lesde.networks.quiet import (
    Kept,
    device_of,
    float_type,
    kept_randomness,
    moved_parameters,
    quiet,
)

__all__ = ["Entries", "Looker", "Loss", "Pooling"]

Pooling = str | Callable[[Tensor], Tensor]
Loss = str | Callable[[Tensor, Tensor], Any] | None
Entries = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Variables of one look at one layer, each with its dimensions after ``replicate`` and ``time``."""


class _Refused(ValueError):
    """The model does not run, or gives what cannot be recorded."""


class _Sheet:
    """Arrays over all samples that fill batch by batch."""

    def __init__(self, total: int, dtype: torch.dtype) -> None:
        self._total, self._dtype = total, dtype
        self.rows = torch.arange(total)
        self.arrays: dict[str, Tensor] = {}

    def write(self, name: str, values: Tensor, dtype: torch.dtype | None = None) -> None:
        if name not in self.arrays:
            shape = (self._total, *values.shape[1:])
            self.arrays[name] = torch.empty(shape, dtype=dtype or self._dtype)
        array = self.arrays[name]
        # Copied at once: a later layer may work in place.
        array[self.rows] = values.detach().to(array.device, array.dtype)


class Looker:
    """Takes the features of chosen layers of one model; arguments are those of :func:`lesde.record`.

    A few samples of ``example`` are passed through at once, to check that the model maps each by itself and to find
    the input of its classifier. ``readable`` are the layers that are this input: the classifier's weights are recorded
    with them.
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
        self._dtype = getattr(
            torch, check_choice("dtype", dtype, ("float16", "float32", "float64"))
        )
        self._batch = check_integer("batch_size", batch_size)
        if not callable(pooling):
            check_choice("pooling", pooling, ("flatten", "mean"))
        if loss is not None and not callable(loss):
            check_choice("loss", loss, LOSSES)
        self._pooling, self._loss = pooling, loss
        self._moved: dict[int, tuple[ProbeSet, ProbeSet, torch.device, torch.dtype]] = {}
        # What the model returns does not matter where neither its loss nor its logits are recorded.
        self._needs_logits = loss is not None or "logits" in self.layers
        self._last: nn.Linear | None = None  # whose input is "penultimate"
        self._head: Head | None = None
        self._warned = False
        self.readable: tuple[str, ...] = ()
        try:
            self._try(example, trial_rows(len(example), self._batch), len(example))
        except _Refused:
            # Checked on a batch of the final size; a model that accepts no other size is tried on it alone.
            rows, _ = next(example.batches(self._batch))
            self._try(example, rows.tolist(), 1)

    @property
    def classifier(self) -> str | None:
        """Name of the linear layer that the logits come from; None where there is none."""
        return None if self._head is None else self._name(self._head.module)

    def look(
        self, probe: ProbeSet, time: float, iteration: int, step_size: float | None = None
    ) -> dict[str, Entries]:
        """Variables of every layer now. The model and all random numbers stay as they are.

        Raises Diverged, at ``time``, if a feature or the loss is not finite.
        """
        sheet = _Sheet(len(probe), self._dtype)
        heads = [self._head.module] if self._head is not None and self.readable else []
        found: Map | None = None
        fitting = True
        with self._untouched() as kept:
            for rows, inputs in self._here(probe).batches(self._batch):
                sheet.rows = rows
                with self._watched(sheet), linear_calls(heads) as calls:
                    logits = self._logits(self._run(inputs))
                    self._keep_logits(sheet, logits)
                for call in calls.values():
                    if found is None:
                        found = self._map_now(call, inputs, kept)
                    fitting &= bool(
                        found and logits is not None and fits(call.values, found, logits)
                    )
                kept.restore()  # every batch meets the model as it was
        self._check_finite(sheet, time)
        clock: Entries = {"time": ((), np.array(time)), "iteration": ((), np.array(iteration))}
        if step_size is not None:
            clock["step_size"] = ((), np.array(step_size))
        output = sheet.arrays.get("output")
        clock |= self._measured(output, probe, time)
        result: dict[str, Entries] = {}
        for layer in self.layers:
            values = sheet.arrays[layer].numpy()
            result[layer] = {**clock, "features": (("sample", "feature"), values)}
        if self.readable and output is not None and probe.classes[-1] < output.shape[1]:
            read = self._classifier_entries(
                found if fitting else None, probe.classes, result[self.readable[0]], time
            )
            for layer in self.readable:
                result[layer] |= read
        return result

    @contextmanager
    def _untouched(self) -> Iterator[Kept]:
        """A block that leaves no trace; ``restore()`` wipes away what there is so far."""
        with kept_randomness(device_of(self.model)), quiet(self.model), Kept(self.model) as kept:
            yield kept

    def _here(self, probe: ProbeSet) -> ProbeSet:
        """The probe set where the model is, moved there once."""
        device, dtype = device_of(self.model), float_type(self.model)
        known = self._moved.get(id(probe))
        if known is None or known[2:] != (device, dtype):
            # With the original, so that its id stays its own.
            known = (probe, probe.to(device, dtype), device, dtype)
            self._moved[id(probe)] = known
        return known[1]

    def _name(self, module: nn.Module) -> str:
        return next(name for name, one in self._modules.items() if one is module)

    def _run(self, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """The model's output, with these parameters in place of its own."""
        if isinstance(inputs, Mapping):
            places, keywords = (), dict(inputs)
        else:
            places, keywords = inputs if isinstance(inputs, tuple) else (inputs,), {}
        try:
            if parameters:
                return functional_call(self.model, dict(parameters), places, keywords)
            return self.model(*places, **keywords)
        except _Refused:
            raise
        except REFUSALS as error:
            tensors = tensors_in(inputs)
            shape = tuple(tensors[0].shape) if tensors else None
            raise _Refused(
                f"model must take the inputs of the probe set, here a batch of shape {shape}; it "
                f"failed with: {error}"
            ) from error

    def _logits(self, output: Any) -> Tensor | None:
        """The logits in what the model returned; None where there are none and none are needed."""
        tensor = getattr(output, "logits", None)
        if tensor is None and isinstance(output, Mapping):
            tensor = output.get("logits")
        elif tensor is None:
            tensor = _first_tensor(output)
        if isinstance(tensor, Tensor):
            return tensor
        if not self._needs_logits:
            return None
        got = type(output).__name__
        if isinstance(output, Mapping):
            got = f"a {got} of {shown(list(output))}"
        raise _Refused(
            f"model must return a tensor, a tuple that begins with one, or something with logits, by "
            f"that name; got {got}. Give loss=None to record features alone."
        )

    @contextmanager
    def _watched(self, sheet: _Sheet) -> Iterator[None]:
        """Hooks on the asked layers, which fill the sheet, while the block is open."""

        def after(layer: str) -> Callable[..., None]:
            return lambda module, inputs, output: self._keep(sheet, layer, output)

        def before(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            self._keep(sheet, "penultimate", read_input(inputs, keywords))

        with ExitStack() as stack:
            for layer in self.layers:
                if layer == "penultimate":
                    assert self._last is not None
                    handle = self._last.register_forward_pre_hook(before, with_kwargs=True)
                    stack.callback(handle.remove)
                elif layer != "logits":
                    stack.callback(self._modules[layer].register_forward_hook(after(layer)).remove)
            yield

    def _keep_logits(self, sheet: _Sheet, logits: Tensor | None) -> None:
        if logits is not None and logits.ndim == 2:
            sheet.write("output", logits, torch.float64)
        if "logits" in self.layers:
            self._keep(sheet, "logits", logits)

    def _keep(self, sheet: _Sheet, layer: str, output: Any) -> None:
        value = _first_tensor(output)
        if value is None:
            raise _Refused(
                f"layers must name submodules that return a tensor, or a tuple that begins with one; "
                f"{layer!r} returns {type(output).__name__}."
            )
        if callable(self._pooling):
            value = self._pooling(value)
        elif self._pooling == "mean" and value.ndim > 2:
            value = value.flatten(2).mean(-1)
        count = len(sheet.rows)
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise _Refused(
                f"layer {layer!r} must have the samples along its first axis, {count} of them here; "
                f"got {got}. Give pooling=, a function that brings them there."
            )
        sheet.write(layer, value.flatten(1) if value.ndim > 1 else value[:, None])

    def _map_now(self, call: Call, inputs: Any, kept: Kept) -> Map | None:
        """The map from what the classifier reads to the logits, after a pass."""
        assert self._head is not None
        if self._head.own:
            weight, bias = call.module.weight, call.module.bias
            return weight.detach().clone(), None if bias is None else bias.detach().clone()
        kept.restore()
        few = each(inputs, lambda tensor: tensor[:2].clone())
        with torch.enable_grad(), linear_calls([call.module]) as calls:
            logits = self._logits(self._run(few))
            return None if logits is None else map_at(calls[call.module].read, logits)

    def _check_finite(self, sheet: _Sheet, time: float) -> None:
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

    def _measured(self, output: Tensor | None, probe: ProbeSet, time: float) -> Entries:
        """Loss and accuracy on the probe set."""
        if self._loss is None:
            return {}
        labels = torch.from_numpy(probe.classes[probe.labels])
        numbered = output is not None and int(labels.max()) < output.shape[1]
        if output is None or not (numbered or callable(self._loss)):
            shape = "no (sample, class)" if output is None else f"{output.shape[1]} columns"
            raise ValueError(
                f"model must give one logit for each class for the loss and the accuracy; its output "
                f"has {shape}, the largest label is {int(labels.max())}. Give loss=None to record "
                f"features alone."
            )
        if callable(self._loss):
            loss = float(self._loss(output, labels))
        else:
            loss = float(LOSSES[self._loss](output, torch.eye(output.shape[1]).double()[labels]))
        if not np.isfinite(loss):
            raise Diverged(time, "the loss on the probe set", "use a smaller learning rate")
        entries: Entries = {"loss": ((), np.array(loss))}
        if numbered:
            right = (output.argmax(1) == labels).double().mean()
            entries["accuracy"] = ((), np.array(float(right)))
        return entries

    def _classifier_entries(
        self, found: Map | None, classes: np.ndarray, entries: Entries, time: float
    ) -> Entries:
        """Weights and bias of the classes of the probe set; NaN, with a warning, where no map gives the logits."""
        assert self._head is not None
        if found is None:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the logits at time {time:g} are no affine map of the features of "
                    f"{' and '.join(map(repr, self.readable))}; the weights recorded with them are NaN where "
                    f"this is so.",
                    stacklevel=5,
                )
            without = self._head.own and self._head.module.bias is None
            width = entries["features"][1].shape[1]
            nan = torch.full((int(classes[-1]) + 1, width), torch.nan)
            found = nan, None if without else nan[:, 0]
        weight, bias = (
            None if t is None else t.to("cpu", self._dtype, copy=True).numpy()[classes]
            for t in found
        )
        assert weight is not None
        read: Entries = {"weights": (("class", "feature_in"), weight)}
        if bias is not None:
            read["bias"] = (("class",), bias)
        return read

    def _try(self, example: ProbeSet, batch: Sequence[int], count: int) -> None:
        """Check on a few samples that the model maps each by itself, and find its classifier.

        It runs with parameters a little away from its own, so that a part without effect so far, since it
        begins at zero (a gate, the second factor of an adapter), is noticed too.
        """
        probe = self._here(example)
        moved = moved_parameters(self.model)

        def answer(rows: Sequence[int]) -> Any:
            with kept_randomness(device_of(self.model), seed=0):
                return self._run(probe.take(rows), moved)

        with self._untouched() as kept:
            try:
                logits = self._logits(answer(batch))
                if logits is not None and not torch.isfinite(logits).all():
                    moved = {}
            except _Refused:
                moved = {}
            kept.restore()
            with linear_calls(self.model.modules()) as calls:
                output = answer(batch)
            kept.restore()
            try:
                self._check_first(output, int(example.classes[-1]) + 1, probe.take(batch), moved)
            except ValueError:
                if self._needs_logits:
                    raise
                self._head = None  # whatever reads the first entry is no classifier
            else:
                self._head = self._find_head(calls, output, lambda: answer(batch))
            kept.restore()
            self._choose_last(calls)
            heads = [] if self._head is None else [self._head.module]
            read: list[Tensor] = []

            def run(rows: Sequence[int]) -> dict[str, Tensor]:
                nonlocal read
                sheet = _Sheet(len(rows), torch.float64)
                with self._watched(sheet), linear_calls(heads) as calls:
                    self._keep_logits(sheet, self._logits(answer(rows)))
                read = read or [call.values.cpu() for call in calls.values()]
                kept.restore()
                return {name: one for name, one in sheet.arrays.items() if name in wanted}

            wanted = {*self.layers, "output"} if self._needs_logits else set(self.layers)
            seen = check_each_by_itself(self.model, run, batch, count, float_type(self.model))
            self.readable = tuple(
                layer
                for layer in self.layers
                if layer != "logits" and layer in seen and read and close(seen[layer], read[0])
            )

    def _find_head(
        self, calls: Mapping[nn.Linear, Call], output: Any, answer: Callable[[], Any]
    ) -> Head | None:
        """The linear layer that gives the logits; else the one whose input they are an affine map of."""
        logits = self._logits(output)
        if logits is None or logits.ndim != 2 or not calls:
            return None
        head = find_head(list(calls.values()), logits)
        if head is None:
            try:
                with torch.enable_grad(), linear_calls(self.model.modules()) as calls:
                    logits = self._logits(answer())
            except _Refused:  # a model that cannot be differentiated
                return None
            assert logits is not None
            head = find_head(list(calls.values()), logits, by_derivative=True)
        return head

    def _choose_last(self, calls: Mapping[nn.Linear, Call]) -> None:
        """The linear layer whose input is "penultimate"."""
        if self._head is not None:
            self._last = self._head.module
        elif "penultimate" in self.layers:
            if not calls:
                raise ValueError(
                    "layers may hold 'penultimate' only where a torch.nn.Linear runs in the model; none "
                    "does. Ask for the features by the name of a submodule."
                )
            self._last = last = list(calls)[-1]
            if torch.isfinite(calls[last].product).all():
                warnings.warn(
                    f"'penultimate' is recorded without weights, hence without NC3 and NC4: the logits are "
                    f"no affine map of what a torch.nn.Linear reads. It is what {self._name(last)!r} reads, "
                    f"the last of them to run. Ask for the features by the name of a submodule if they are "
                    f"others.",
                    stacklevel=5,
                )

    def _check_first(
        self, output: Any, classes: int, inputs: Any, moved: Mapping[str, Tensor]
    ) -> None:
        """Raise or warn where the first tensor of a tuple is not the logits.

        Features go through the weights of the body, the logits through those and the head's. Of two heads each has
        weights that the other lacks.
        """
        if not isinstance(output, tuple | list) or hasattr(output, "logits"):
            return
        tensors = tensors_in(output)
        if len(tensors) < 2 or tensors[0].ndim != 2:
            return
        behind, own = self._weights_behind(inputs, moved), tensors[0].shape[1]
        for n, other in enumerate(tensors):
            if n == 0 or other.ndim != 2:
                continue
            width = other.shape[1]
            if not (behind[0] < behind[n] if behind else own != width == classes):
                continue
            message = (
                f"model must return the logits first where it returns a tuple, or by the name logits: its "
                f"first entry has {own} columns, entry {n} has {width}, and the largest label is "
                f"{classes - 1}"
            )
            if behind:
                message += (
                    f"; entry {n} is made with all weights that the first is made with, and more"
                )
            if width in (own, classes) or not self._needs_logits:
                raise ValueError(f"{message}.")
            warnings.warn(f"{message}. The first is taken.", stacklevel=5)

    def _weights_behind(self, inputs: Any, moved: Mapping[str, Tensor]) -> list[set[str]] | None:
        """The matrices among the model's weights that each tensor it returns depends on.

        None where the model cannot be differentiated. Vectors are left out: a scale or a temperature after the logits
        makes them no features.
        """
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        marked = {
            name: moved.get(name, value).detach().clone().requires_grad_()
            for name, value in named
            if value.is_floating_point() and value.ndim > 1
        }
        behind = []
        try:
            with kept_randomness(device_of(self.model), seed=0), torch.enable_grad():
                tensors = tensors_in(self._run(inputs, {**moved, **marked}))
            for tensor in tensors:
                found: Sequence[Tensor | None] = []
                if tensor.requires_grad:
                    ones = torch.ones_like(tensor)
                    found = torch.autograd.grad(
                        tensor, list(marked.values()), ones, retain_graph=True, allow_unused=True
                    )
                behind.append(
                    {name for name, one in zip(marked, found, strict=False) if one is not None}
                )
        except (_Refused, RuntimeError):
            return None
        return behind


def _first_tensor(value: Any) -> Tensor | None:
    """A tensor itself, or the first of a tuple."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None
