"""One look at any model: the features of chosen layers on a probe set, as they are now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lesde.checks import check_choice, check_choices, check_integer, shown
from lesde.errors import Diverged
from lesde.networks.ensemble import LOSSES
from lesde.networks.probes import ProbeSet, each
from lesde.networks.quiet import (
    REFUSALS,
    check_each_by_itself,
    close,
    device_of,
    float_type,
    kept_randomness,
    tensors_in,
    undisturbed,
    watching,
)

Pooling = str | Callable[[Tensor], Tensor]
Loss = str | Callable[[Tensor, Tensor], Any] | None
Entries = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Variables of one look at one layer, each with its dimensions after ``replicate`` and ``time``."""


class Looker:
    """Takes the features of chosen layers of one model; arguments are those of :func:`lesde.record`.

    A few samples of ``example`` are passed through at once, to check that the model maps each by itself and to find
    its classifier, the linear layer whose output is the logits. ``readable`` are the layers whose features the
    classifier reads: its weights are recorded with them.
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
        names = [name for name, _ in self.model.named_modules() if name]
        self.layers = tuple(check_choices("layers", layers, ["logits", "penultimate", *names]))
        self._dtype = getattr(
            torch, check_choice("dtype", dtype, ("float16", "float32", "float64"))
        )
        self._batch = check_integer("batch_size", batch_size)
        if not callable(pooling):
            check_choice("pooling", pooling, ("flatten", "mean"))
        if loss is not None and not callable(loss):
            check_choice("loss", loss, LOSSES)
        self._pooling, self._loss = pooling, loss
        self._last: nn.Linear | None = None  # whose input is "penultimate"
        self._head: nn.Linear | None = None  # whose output is the logits
        self.classifier: str | None = None  # its name
        self.readable: tuple[str, ...] = ()
        with undisturbed(self.model):
            self._find_classifier(example)

    def look(
        self, probe: ProbeSet, time: float, iteration: int, step_size: float | None = None
    ) -> dict[str, Entries]:
        """Variables of every layer now; buffers, modes and all random numbers stay as they are.

        Raises Diverged, at ``time``, if a feature or the loss is not finite.
        """
        arrays: dict[str, Tensor] = {}
        fits = True
        with undisturbed(self.model):
            for rows, inputs in probe.batches(self._batch):
                seen, read = self._seen(inputs, len(rows))
                for name, values in seen.items():
                    if name not in arrays:
                        kind = torch.float64 if name == "output" else self._dtype
                        arrays[name] = torch.empty((len(probe), *values.shape[1:]), dtype=kind)
                    arrays[name][rows] = values.to("cpu", arrays[name].dtype)
                if self._head is not None and read is not None and self.readable:
                    product = F.linear(read, self._head.weight, self._head.bias)
                    fits = fits and close(product, seen["output"])
            weights = self._classifier_entries(probe.classes, fits) if self.readable else {}
        for layer in self.layers:
            if not torch.isfinite(arrays[layer]).all():
                half = self._dtype == torch.float16
                remedy = "use a smaller learning rate" + (", or dtype='float32'" if half else "")
                raise Diverged(time, f"the features of layer {layer!r}", remedy)
        common: Entries = {"time": ((), np.array(time)), "iteration": ((), np.array(iteration))}
        if step_size is not None:
            common["step_size"] = ((), np.array(step_size))
        common |= self._measured(arrays.get("output"), probe, time)
        result: dict[str, Entries] = {}
        for layer in self.layers:
            features = arrays[layer].numpy()
            result[layer] = {**common, "features": (("sample", "feature"), features)}
            if layer in self.readable:
                result[layer] |= weights
        return result

    def _run(self, inputs: Any) -> Any:
        """The model's output for inputs that are moved to where it is."""
        device, dtype = device_of(self.model), float_type(self.model)
        inputs = each(inputs, lambda x: x.to(device, dtype if x.is_floating_point() else None))
        if isinstance(inputs, Mapping):
            places, keywords = (), inputs
        else:
            places, keywords = inputs if isinstance(inputs, tuple) else (inputs,), {}
        try:
            return self.model(*places, **keywords)
        except REFUSALS as error:
            tensors = tensors_in(inputs)
            shape = tuple(tensors[0].shape) if tensors else None
            raise ValueError(
                f"model must take the inputs of the probe set, here a batch of shape {shape}; it "
                f"failed with: {error}"
            ) from error

    def _seen(self, inputs: Any, count: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Features (sample, feature) by layer, logits as "output", for a batch; and what the last layer reads."""
        layers = self.layers if self._last is None else {*self.layers, "penultimate"}
        with watching(self.model, layers, self._last) as outputs:
            logits = self._logits(self._run(inputs))
        if logits is not None:
            outputs["logits"] = logits
        seen = {layer: self._pooled(layer, outputs[layer], count) for layer in self.layers}
        if logits is not None and logits.ndim == 2:
            seen["output"] = logits
        return seen, outputs.get("penultimate")

    def _pooled(self, layer: str, value: Tensor, count: int) -> Tensor:
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
        return value.flatten(1) if value.ndim > 1 else value[:, None]

    def _logits(self, output: Any) -> Tensor | None:
        """The logits in what the model returned; None where there are none and none are needed."""
        found = getattr(output, "logits", None)
        if isinstance(output, Mapping):
            found = output.get("logits")
        elif found is None:
            found = next(iter(tensors_in(output)), None)
        if found is None and (self._loss is not None or "logits" in self.layers):
            raise ValueError(
                f"model must return a tensor, a tuple that begins with one, or something with logits, "
                f"by that name; got {type(output).__name__}. Give loss=None to record features alone."
            )
        return found

    def _find_classifier(self, example: ProbeSet) -> None:
        """Check on a few samples that the model maps each by itself, and find its classifier."""
        names = {module: name for name, module in self.model.named_modules()}
        outputs: dict[nn.Linear, Tensor] = {}

        def note(module: nn.Linear, inputs: Any, output: Tensor) -> None:
            outputs.pop(module, None)  # in the order of the last calls
            outputs[module] = output.clone()

        few = example.take([0, len(example) - 1])
        with ExitStack() as stack:
            for module in names:
                if isinstance(module, nn.Linear):
                    stack.callback(module.register_forward_hook(note).remove)
            output = self._run(few)
        logits = self._logits(output)
        for module, values in outputs.items():
            self._last = module
            if logits is not None and close(values, logits):
                self._head, self.classifier = module, names[module]
        self._last = self._head or self._last
        if isinstance(output, tuple | list) and self._loss is not None and logits is not None:
            K = int(example.classes[-1]) + 1
            if logits.shape[-1] != K and any(one.shape[-1:] == (K,) for one in tensors_in(output)):
                raise ValueError(
                    f"model must return the logits first where it returns a tuple, or by the name logits; "
                    f"its first entry has {logits.shape[-1]} columns and a later one has {K}, one per class."
                )
        if "penultimate" in self.layers and self._last is None:
            raise ValueError(
                "layers may hold 'penultimate' only where a torch.nn.Linear runs in the model; none "
                "does. Ask for the features by the name of a submodule."
            )
        if "penultimate" in self.layers and self._head is None and logits is not None:
            warnings.warn(
                f"'penultimate' is recorded without weights, hence without NC3 and NC4: the logits are "
                f"not the output of a torch.nn.Linear. It is what {names[self._last]!r} reads, the last of "
                f"them to run. Ask for the features by the name of a submodule if they are others.",
                stacklevel=4,
            )

        def run(rows: Sequence[int]) -> dict[str, Tensor]:
            with kept_randomness(seed=0):
                seen, _ = self._seen(example.take(rows), len(rows))
            output = seen.pop("output", None)
            if self._loss is not None and output is not None:
                seen["logits"] = output
            return seen

        check_each_by_itself(run, len(example))
        if self._head is not None and example.classes[-1] < self._head.out_features:
            seen, read = self._seen(few, 2)
            assert read is not None
            named = [layer for layer in self.layers if layer != "logits"]
            self.readable = tuple(name for name in named if close(seen[name], read))

    def _measured(self, output: Tensor | None, probe: ProbeSet, time: float) -> Entries:
        """Loss and accuracy on the probe set."""
        if self._loss is None:
            return {}
        labels = torch.from_numpy(probe.classes[probe.labels])
        numbered = output is not None and int(labels.max()) < output.shape[1]
        if output is None or not (numbered or callable(self._loss)):
            shape = "no (sample, class)" if output is None else f"{output.shape[1]} columns"
            raise ValueError(
                f"model must give one logit for each class; its output has {shape}, the largest label is "
                f"{int(labels.max())}. Give loss=None to record features alone."
            )
        if callable(self._loss):
            loss = float(self._loss(output, labels))
        else:
            loss = float(LOSSES[self._loss](output, F.one_hot(labels, output.shape[1]).double()))
        if not np.isfinite(loss):
            raise Diverged(time, "the loss on the probe set", "use a smaller learning rate")
        entries: Entries = {"loss": ((), np.array(loss))}
        if numbered:
            right = (output.argmax(1) == labels).double().mean()
            entries["accuracy"] = ((), np.array(float(right)))
        return entries

    def _classifier_entries(self, classes: np.ndarray, fits: bool) -> Entries:
        """Weights and bias of these classes; NaN, with a warning, where they do not give the logits."""
        assert self._head is not None
        if not fits:
            message = (
                f"the logits are no longer the output of {self.classifier!r}; its weights are NaN."
            )
            warnings.warn(message, stacklevel=5)
        read: Entries = {}
        for name, tensor, dims in (
            ("weights", self._head.weight, ("class", "feature_in")),
            ("bias", self._head.bias, ("class",)),
        ):
            if tensor is not None:
                values = tensor.detach().to("cpu", self._dtype, copy=True).numpy()[classes]
                read[name] = dims, values if fits else np.full_like(values, np.nan)
        return read
