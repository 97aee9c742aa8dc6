"""One look at the layers of any model: the features of a probe set, now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lesde.checks import check_choice, check_integer, shown
from lesde.errors import Diverged
from lesde.networks.ensemble import LOSSES, layer_names
from lesde.networks.probes import ProbeSet, each
from lesde.networks.quiet import (
    Kept,
    check_each_by_itself,
    device_of,
    kept_randomness,
    moved_parameters,
    quiet,
    rounding,
    tensors_in,
    trial_rows,
)

__all__ = [
    "Call",
    "Head",
    "Look",
    "Looker",
    "close",
    "find_head",
    "fits",
    "linear_calls",
    "map_at",
    "read_input",
]


# --------------------------------------------------------------------------------------------------
# Which features a model's logits are an affine map of, and that map: W and b with logits = h Wᵀ + b.

Map = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Head:
    """Where the classifier reads.

    Attributes
    ----------
    module : torch.nn.Linear
        Its input is what the logits are an affine map of.
    own : bool
        Whether its weight and bias are that map; else (an adapter beside it, a scale after it) the map is
        the derivative of the logits.
    """

    module: nn.Linear
    own: bool


@dataclass(frozen=True)
class Call:
    """The last call of a linear layer: what it read, and what its weight and bias make of it."""

    module: nn.Linear
    read: Tensor
    values: Tensor
    product: Tensor


def read_input(inputs: tuple, keywords: dict[str, Any]) -> Tensor:
    """What a linear layer is called with."""
    return inputs[0] if inputs else keywords["input"]


@contextmanager
def linear_calls(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Linear, Call]]:
    """The linear layers among some modules that run in the block, in the order of their last calls."""
    calls: dict[nn.Linear, Call] = {}

    def before(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        read = read_input(inputs, keywords)
        if torch.is_grad_enabled() and read.is_leaf and read.is_floating_point():
            read.requires_grad_()  # also where all before it is frozen

    def after(module: nn.Linear, inputs: tuple, keywords: dict[str, Any], output: Any) -> None:
        read = read_input(inputs, keywords)
        calls.pop(module, None)
        with torch.no_grad():
            product = F.linear(read, module.weight, module.bias)
            calls[module] = Call(module, read, read.clone(), product)

    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, nn.Linear):
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield calls


def find_head(calls: Sequence[Call], logits: Tensor, by_derivative: bool = False) -> Head | None:
    """The last linear layer that gives the logits, or whose input the logits are an affine map of."""
    for call in reversed(calls):
        if call.values.ndim != 2 or len(call.values) != len(logits) or close(call.values, logits):
            continue
        if not by_derivative:
            if close(call.product, logits):
                return Head(call.module, own=True)
        # Through one point there is always an affine map.
        elif len(torch.unique(call.values, dim=0)) > 1:
            found = map_at(call.read, logits)
            if found is not None and fits(call.values, found, logits):
                return Head(call.module, own=False)
    return None


@torch.enable_grad()
def map_at(read: Tensor, logits: Tensor) -> Map | None:
    """The affine map at the first sample; None where the logits do not depend on what was read."""
    if not (read.requires_grad and logits.requires_grad):
        return None
    rows = []
    for k in range(logits.shape[1]):
        try:
            (slope,) = torch.autograd.grad(logits[0, k], read, retain_graph=True, allow_unused=True)
        except RuntimeError:  # changed in place since
            return None
        if slope is None:
            return None
        rows.append(slope[0])
    with torch.no_grad():
        weight = torch.stack(rows)
        return weight, logits[0].detach() - weight @ read[0].detach()


@torch.no_grad()
def fits(read: Tensor, found: Map, logits: Tensor) -> bool:
    """True where the map gives the logits, to rounding."""
    weight, bias = (None if t is None else t.detach().double() for t in found)
    assert weight is not None
    if read.ndim != 2 or read.shape[1] != weight.shape[1] or logits.shape[1] != len(weight):
        return False
    x = read.detach().double()
    product, size = x @ weight.T, x.abs() @ weight.abs().T
    if bias is not None:
        product, size = product + bias, size + bias.abs()
    worst = (product - logits.double()).abs().max()
    return bool(worst <= rounding(logits.dtype) * size.max())


def close(a: Tensor, b: Tensor) -> bool:
    """True where two tensors are the same, to rounding."""
    if a.shape != b.shape:
        return False
    worst, size = (a.detach().double() - b.detach().double()).abs().max(), b.detach().abs().max()
    return bool(worst <= rounding(b.dtype) * size.double())


# --------------------------------------------------------------------------------------------------

_DTYPES = ("float16", "float32", "float64")
Pooling = str | Callable[[Tensor], Tensor]
Loss = str | Callable[[Tensor, Tensor], Any] | None


class _Failed(ValueError):
    """The model does not run, or gives what cannot be recorded."""


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
        Of the classifier, where a recorded layer is what it reads.
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
    rows: Tensor = field(default_factory=lambda: torch.arange(0))
    arrays: dict[str, Tensor] = field(default_factory=dict)

    def write(self, name: str, values: Tensor, dtype: torch.dtype | None = None) -> None:
        if name not in self.arrays:
            shape = (self.total, *values.shape[1:])
            self.arrays[name] = torch.empty(shape, dtype=dtype or self.dtype)
        array = self.arrays[name]
        # Copied at once: a later layer may work in place.
        array[self.rows] = values.detach().to(array.device, array.dtype)


class Looker:
    """Takes the features of chosen layers of one model.

    Parameters
    ----------
    model : torch.nn.Module
    layers : str or sequence of str
    example : ProbeSet
        To see that the model takes it, and what it makes of it; a few of its samples are passed through.
    loss, pooling, dtype, batch_size
        As for :func:`lesde.record`.

    Attributes
    ----------
    readable : tuple of str
        The layers that are what the classifier reads, whose weights are recorded with them.
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
        # What the model returns does not matter where neither its loss nor its logits are recorded.
        self._needs_logits = loss is not None or "logits" in self.layers
        self._last: nn.Linear | None = None  # whose input is "penultimate"
        self._head: Head | None = None
        self._told = False
        self.readable: tuple[str, ...] = ()
        few = trial_rows(len(example), self._batch)
        try:
            self._try(example, few, len(example))
        except _Failed:
            # Told of a batch as it will be; a model that takes no other is tried on it alone.
            rows, _ = next(example.batches(self._batch))
            self._try(example, rows.tolist(), 1)

    @property
    def classifier(self) -> str | None:
        """Name of the linear layer that the logits come from; None where there is none."""
        return None if self._head is None else self._name(self._head.module)

    def look(self, probe: ProbeSet, time: float = 0.0) -> Look:
        """Features of all layers now. The model and all random numbers stay as they are.

        Raises
        ------
        Diverged
            If a feature is not finite; ``time`` is for the message.
        """
        sheet = _Sheet(len(probe), self._dtype)
        heads = [self._head.module] if self._head is not None and self.readable else []
        found: Map | None = None
        fitting = True
        with self._untouched() as kept:
            for rows, inputs in self._here(probe).batches(self._batch):
                sheet.rows = rows
                with self._watched(sheet, self.layers), linear_calls(heads) as calls:
                    logits = self._call(inputs)
                    self._keep_logits(sheet, logits)
                for call in calls.values():
                    if found is None:
                        found = self._map_now(call, inputs, kept)
                    fitting = fitting and bool(
                        found and logits is not None and fits(call.values, found, logits)
                    )
                # Every batch meets the model as it was.
                kept.restore()
        return self._report(sheet, probe, time, found, fitting)

    @contextmanager
    def _untouched(self) -> Iterator[Kept]:
        """A block that leaves no trace; ``restore()`` wipes away what there is so far."""
        with kept_randomness(device_of(self.model)), quiet(self.model), Kept(self.model) as kept:
            yield kept

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

    def _name(self, module: nn.Module) -> str:
        return next(name for name, one in self._modules.items() if one is module)

    def _run(self, inputs: Any, parameters: dict[str, Tensor] | None = None) -> Any:
        """What the model returns, with these parameters in place of its own."""
        if isinstance(inputs, Mapping):
            places, keywords = (), dict(inputs)
        else:
            places, keywords = inputs if isinstance(inputs, tuple) else (inputs,), {}
        try:
            if parameters:
                return functional_call(self.model, parameters, places, keywords)
            return self.model(*places, **keywords)
        except _Failed:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            leaf = _first_tensor(places or tuple(keywords.values()))
            shape = None if leaf is None else tuple(leaf.shape)
            raise _Failed(
                f"model must take the inputs of the probe set, here a batch of shape {shape}; it "
                f"failed with: {error}"
            ) from error

    def _call(self, inputs: Any, parameters: dict[str, Tensor] | None = None) -> Tensor | None:
        """The logits."""
        return self._logits(self._run(inputs, parameters))

    def _logits(self, output: Any) -> Tensor | None:
        tensor = getattr(output, "logits", None)
        if tensor is None and isinstance(output, Mapping):
            tensor = output.get("logits")
        elif tensor is None:
            tensor = _first_tensor(output)
        if isinstance(tensor, Tensor):
            return tensor
        if not self._needs_logits:
            return None
        if isinstance(output, Mapping):
            got = f"a {type(output).__name__} of {shown(list(output))}"
        else:
            got = type(output).__name__
        raise _Failed(
            f"model must return a tensor, a tuple that begins with one, or something with logits, by "
            f"that name; got {got}. Give loss=None to record features alone."
        )

    @contextmanager
    def _watched(self, sheet: _Sheet, layers: Sequence[str]) -> Iterator[None]:
        """Hooks on the asked layers while the block is open."""

        def after(layer: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._keep(sheet, layer, output)

            return hook

        def before(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            self._keep(sheet, "penultimate", inputs[0] if inputs else keywords["input"])

        with ExitStack() as stack:
            for layer in layers:
                if layer == "penultimate":
                    assert self._last is not None
                    handle = self._last.register_forward_pre_hook(before, with_kwargs=True)
                elif layer == "logits":
                    continue
                else:
                    handle = self._modules[layer].register_forward_hook(after(layer))
                stack.callback(handle.remove)
            yield

    def _keep_logits(self, sheet: _Sheet, logits: Tensor | None) -> None:
        if logits is not None and logits.ndim == 2:
            sheet.write("output", logits, torch.float64)
        if "logits" in self.layers:
            self._keep(sheet, "logits", logits)

    def _keep(self, sheet: _Sheet, layer: str, output: Any) -> None:
        value = _first_tensor(output)
        if value is None:
            raise _Failed(
                f"layers must name submodules that return a tensor, or a tuple that begins with one; "
                f"{layer!r} returns {type(output).__name__}."
            )
        count = len(sheet.rows)
        if callable(self._pooling):
            value = self._pooling(value)
        elif self._pooling == "mean" and value.ndim > 2:
            value = value.flatten(2).mean(-1)
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise _Failed(
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
            logits = self._call(few)
            return None if logits is None else map_at(calls[call.module].read, logits)

    def _try(self, example: ProbeSet, batch: Sequence[int], count: int) -> None:
        """See on a few samples that the model takes them each by itself, and where its classifier is.

        It runs with parameters a little away from its own, so that a part that does nothing yet, since it
        begins at zero (a gate, the second factor of an adapter), shows too.
        """
        probe, device = self._here(example), device_of(self.model)
        moved: dict[str, Tensor] | None = moved_parameters(self.model)

        def answer(rows: Sequence[int]) -> Any:
            with kept_randomness(device, seed=0):
                return self._run(probe.take(rows), moved)

        with self._untouched() as kept:
            try:
                tensor = self._logits(answer(batch))
                if tensor is not None and not torch.isfinite(tensor).all():
                    moved = None
            except _Failed:
                moved = None
            kept.restore()
            with linear_calls(self.model.modules()) as calls:
                output = answer(batch)
            origins = self._origins(lambda: probe.take(batch), moved)
            try:
                self._check_first(calls, output, int(example.classes[-1]) + 1, origins)
            except ValueError:
                if self._needs_logits:
                    raise
                self._head = None  # whatever reads the first entry is no classifier
            else:
                self._head = self._find(calls, output)
                kept.restore()
                if self._head is None and calls:
                    self._head = self._find_by_derivative(lambda: answer(batch))
            kept.restore()
            self._choose_last(calls)
            heads = [] if self._head is None else [self._head.module]
            read: list[Tensor] = []

            def run(rows: Sequence[int]) -> dict[str, Tensor]:
                nonlocal read
                sheet = _Sheet(len(rows), torch.float64, torch.arange(len(rows)))
                with self._watched(sheet, self.layers), linear_calls(heads) as calls:
                    self._keep_logits(sheet, self._logits(answer(rows)))
                read = read or [call.values.cpu() for call in calls.values()]
                kept.restore()
                return {name: one for name, one in sheet.arrays.items() if name in wanted}

            wanted = {*self.layers, "output"} if self._needs_logits else set(self.layers)
            dtype = next(
                (p.dtype for p in self.model.parameters() if p.is_floating_point()),
                torch.get_default_dtype(),
            )
            seen = check_each_by_itself(self.model, run, batch, count, dtype)
            self.readable = tuple(
                layer
                for layer in self.layers
                if layer != "logits" and layer in seen and read and close(seen[layer], read[0])
            )

    def _find(self, calls: Mapping[nn.Linear, Call], output: Any) -> Head | None:
        """The layer that gives the logits."""
        logits = self._logits(output)
        if logits is None or logits.ndim != 2:
            return None
        return find_head(list(calls.values()), logits)

    def _find_by_derivative(self, answer: Callable[[], Any]) -> Head | None:
        """The layer whose input the logits are an affine map of."""
        try:
            with torch.enable_grad(), linear_calls(self.model.modules()) as calls:
                logits = self._logits(answer())
        except _Failed:  # a model that cannot be differentiated
            return None
        if logits is None or logits.ndim != 2:
            return None
        return find_head(list(calls.values()), logits, by_derivative=True)

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
        self,
        calls: Mapping[nn.Linear, Call],
        output: Any,
        classes: int,
        origins: Callable[[int], set[str] | None],
    ) -> None:
        """Raise or warn where the first tensor of a tuple is not the logits."""
        if not isinstance(output, tuple | list) or hasattr(output, "logits"):
            return
        tensors = tensors_in(output)
        if not tensors or tensors[0].ndim != 2:
            return
        first, *others = tensors

        def source(tensor: Tensor) -> Call | None:
            made = (call for call in calls.values() if close(call.product, tensor))
            return next(made, None)

        order = list(calls)
        own, linear = first.shape[1], source(first)
        for n, other in enumerate(others, 1):
            if other.ndim != 2:
                continue
            width, call = other.shape[1], source(other)
            if call is None and width not in (own, classes):
                continue
            if linear and call and order.index(linear.module) >= order.index(call.module):
                continue
            # Features go through the weights of the body, the logits through those and the head's. Of two
            # heads each has weights that the other lacks.
            mine, its = origins(0), origins(n)
            known = mine is not None and its is not None
            body = mine < its if mine is not None and its is not None else own != width == classes
            gives = f", what {self._name(call.module)!r} (Linear) gives," if call else ""
            message = (
                f"model must return the logits first where it returns a tuple, or by the name logits: its "
                f"first entry has {own} columns, entry {n}{gives} has {width}, and the largest label is "
                f"{classes - 1}"
            )
            if body and known:
                message += (
                    f"; entry {n} is made with all weights that the first is made with, and more"
                )
            wide = width in (own, classes) or not self._needs_logits
            if (call and close(call.values, first)) or (body and wide):
                raise ValueError(f"{message}.")
            if body and not linear:
                warnings.warn(f"{message}. The first is taken.", stacklevel=5)

    def _origins(
        self, inputs: Callable[[], Any], moved: Mapping[str, Tensor] | None
    ) -> Callable[[int], set[str] | None]:
        """A function that names the matrices among the model's weights that its n-th tensor depends on.

        None where the model cannot be differentiated.
        """

        @cache
        def passed() -> tuple[dict[str, Tensor], list[Tensor]]:
            # Vectors are left out: a scale or a temperature after the logits makes them no features.
            named = (*self.model.named_parameters(), *self.model.named_buffers())
            marked = {
                name: (moved or {}).get(name, value).detach().clone().requires_grad_()
                for name, value in named
                if value.is_floating_point() and value.ndim > 1
            }
            with kept_randomness(device_of(self.model), seed=0), torch.enable_grad():
                return marked, tensors_in(self._run(inputs(), {**(moved or {}), **marked}))

        @cache
        def origins(n: int) -> set[str] | None:
            try:
                marked, tensors = passed()
                if not tensors[n].requires_grad:
                    return set()
                found = torch.autograd.grad(
                    tensors[n],
                    list(marked.values()),
                    torch.ones_like(tensors[n]),
                    retain_graph=True,
                    allow_unused=True,
                )
            except (_Failed, RuntimeError):
                return None
            return {name for name, one in zip(marked, found, strict=True) if one is not None}

        return origins

    def _report(
        self, sheet: _Sheet, probe: ProbeSet, time: float, found: Map | None, fitting: bool
    ) -> Look:
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
        if self.readable and output is not None and probe.classes[-1] < output.shape[1]:
            self._add_classifier(look, probe, found, fitting, time)
        return look

    def _add_classifier(
        self, look: Look, probe: ProbeSet, found: Map | None, fitting: bool, time: float
    ) -> None:
        if not fitting and not self._told:
            self._told = True
            warnings.warn(
                f"the logits at time {time:g} are no affine map of the features of "
                f"{' and '.join(map(repr, self.readable))}; the weights recorded with them are NaN where "
                f"this is so.",
                stacklevel=5,
            )
        if found is None:
            return
        weight, bias = (
            None if t is None else t.to("cpu", self._dtype, copy=True).numpy()[probe.classes]
            for t in found
        )
        for values in (weight, bias):
            if values is not None and not fitting:
                values[:] = np.nan
        look.weights, look.bias = weight, bias

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
    """A tensor itself, or the first of a tuple."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None
