"""The features of which a model's logits are an affine map, and that map: W and b with logits = h Wᵀ + b."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lesde.networks.mixing import rounding

__all__ = [
    "Call",
    "Head",
    "Map",
    "close",
    "find_head",
    "fits",
    "linear_calls",
    "map_at",
    "read_input",
]

Map = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Head:
    """The linear layer whose input the logits are an affine map of.

    Its weight and bias are that map where they are its ``own``; else (an adapter beside it, a scale after it) the map
    is the derivative of the logits.
    """

    module: nn.Linear
    own: bool


@dataclass(frozen=True)
class Call:
    """The last call of a linear layer: a copy of its input, and the output of its weight and bias."""

    module: nn.Linear
    read: Tensor
    values: Tensor
    product: Tensor


def read_input(inputs: tuple, keywords: dict[str, Any]) -> Tensor:
    """The tensor that a linear layer is called with."""
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
    weight, bias = found[0].double(), found[1]
    if read.ndim != 2 or read.shape[1] != weight.shape[1] or logits.shape[1] != len(weight):
        return False
    x = read.double()
    product, size = x @ weight.T, x.abs() @ weight.abs().T
    if bias is not None:
        product, size = product + bias.double(), size + bias.double().abs()
    worst = (product - logits.double()).abs().max()
    return bool(worst <= rounding(logits.dtype) * size.max())


@torch.no_grad()
def close(a: Tensor, b: Tensor) -> bool:
    """True where two tensors are the same, to rounding."""
    if a.shape != b.shape:
        return False
    worst = (a.double() - b.double()).abs().max()
    return bool(worst <= rounding(b.dtype) * b.double().abs().max())
