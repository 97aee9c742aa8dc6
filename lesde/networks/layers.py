"""Layers of many networks at once, with backpropagation and the SGD step written out.

A network that is a chain of the layers below trains as a :class:`Chain`: its tensors carry a leading replicate
axis, then the batch, and every product is one batched matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Chain", "Layer", "chain_of"]

Map = Callable[[Tensor], Tensor]
Back = Callable[[Tensor, Tensor], Tensor]

_threshold_backward = torch.ops.aten.threshold_backward
"""Its first argument where the second exceeds the third, else 0: the derivative of a ReLU."""

_ACTIVATIONS: dict[type[nn.Module], tuple[Map, Back]] = {
    nn.ReLU: (torch.relu, lambda delta, y: _threshold_backward(delta, y, 0)),
    nn.Tanh: (torch.tanh, lambda delta, y: delta * (1 - y * y)),
    nn.Sigmoid: (torch.sigmoid, lambda delta, y: delta * (y * (1 - y))),
}


class Layer(Protocol):
    """One layer of all replicates."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (replicate, batch, ...); inputs that all replicates share have one replicate."""

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        """Take a step, and with ``through`` return the derivative by the inputs."""


class Linear:
    """``torch.nn.Linear``."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = weight
        self._transposed = weight.transpose(1, 2)
        self.bias = None if bias is None else bias.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        x = x.expand(len(self.weight), -1, -1)
        if self.bias is None:
            return torch.bmm(x, self._transposed)
        return torch.baddbmm(self.bias, x, self._transposed)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        below = torch.bmm(delta, self.weight) if through else None
        if delta.shape[1] == 1:  # no sum to take, and the weights need not be packed for a product
            self.weight.addcmul_(delta.transpose(1, 2), self._x, value=-rate)
        else:
            self.weight.baddbmm_(delta.transpose(1, 2), self._x, alpha=-rate)
            delta = delta.sum(1, keepdim=True)
        if self.bias is not None:
            self.bias.sub_(delta, alpha=rate)
        return below


class Convolution:
    """``torch.nn.Conv2d`` with steps of one pixel: one matrix product with the patches of all images."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]):
        self._kernel, self._padding = weight.shape[3:], padding
        self.weight = weight.view(*weight.shape[:2], -1)
        self.bias = None if bias is None else bias[:, :, None]

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), (high, wide) = self._padding, self._kernel
        if rows or columns:
            x = F.pad(x, (columns, columns, rows, rows))
        self._shape = x.shape
        patches = x.unfold(3, high, 1).unfold(4, wide, 1)  # (R, B, C, H, W, high, wide)
        pixels = patches.shape[1], *patches.shape[3:5]
        self._patches = patches.permute(0, 2, 5, 6, 1, 3, 4).reshape(
            len(x), self.weight.shape[2], -1
        )
        shared = self._patches.expand(len(self.weight), -1, -1)
        if self.bias is None:
            out = torch.bmm(self.weight, shared)
        else:
            out = torch.baddbmm(self.bias, self.weight, shared)
        return out.unflatten(2, pixels).transpose(1, 2)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        delta = delta.transpose(1, 2)  # (R, output, B, H, W)
        pixels = delta.shape[2:]
        delta = delta.reshape(*delta.shape[:2], -1)
        below = (
            self._spread(torch.bmm(self.weight.transpose(1, 2), delta), pixels) if through else None
        )
        self.weight.baddbmm_(delta, self._patches.transpose(1, 2), alpha=-rate)
        if self.bias is not None:
            self.bias.sub_(delta.sum(2, keepdim=True), alpha=rate)
        return below

    def _spread(self, patches: Tensor, pixels: torch.Size) -> Tensor:
        """The derivative by the images, from that by their patches."""
        R, B, C, H, W = self._shape
        (high, wide), (_, h, w) = self._kernel, pixels
        patches = patches.view(R, C, high, wide, *pixels)
        images = patches.new_zeros(R, C, B, H, W)
        for i in range(high):
            for j in range(wide):
                images[..., i : i + h, j : j + w] += patches[:, :, i, j]
        rows, columns = self._padding
        return images.transpose(1, 2)[..., rows : H - rows, columns : W - columns]


class MaxPool:
    """``torch.nn.MaxPool2d`` over tiles that do not overlap. Of equal numbers the first wins, by rows, as there."""

    def __init__(self, tile: tuple[int, int]):
        self._tile = tile

    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        best, *others = self._places(x)
        # The excess of the number in each place over the largest before it.
        self._leads = []
        for other in others:
            self._leads.append(other - best)
            best = torch.maximum(best, other)
        return best

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        if not through:
            return None
        below = delta.new_zeros(self._shape)
        first, *others = self._places(below)
        for lead, place in zip(reversed(self._leads), reversed(others), strict=True):
            own = _threshold_backward(delta, lead, 0)
            place.copy_(own)
            delta = delta - own
        first.copy_(delta)
        return below

    def _places(self, x: Tensor) -> list[Tensor]:
        """The numbers that stand first in their tiles, those that stand second, and so on, as views."""
        high, wide = self._tile
        H, W = x.shape[-2] // high * high, x.shape[-1] // wide * wide
        return [x[..., i:H:high, j:W:wide] for i in range(high) for j in range(wide)]


class Activation:
    """A function of each number, whose derivative follows from its value."""

    def __init__(self, function: Map, back: Back):
        self._function, self._back = function, back

    def forward(self, x: Tensor) -> Tensor:
        self._y = self._function(x)
        return self._y

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        return self._back(delta, self._y) if through else None


class Reshape:
    """``torch.nn.Flatten`` and ``torch.nn.Unflatten``."""

    def __init__(self, function: Map):
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        return self._function(x)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        return delta.reshape(self._shape) if through else None


def _stacked(module: nn.Module, parameters: Mapping[str, Tensor]) -> Layer | None:
    """The stacked form of a module with these parameters; None where there is none."""
    kind = type(module)
    if kind is nn.Linear:
        return Linear(parameters["weight"], parameters.get("bias"))
    if type(module) is nn.Conv2d:
        plain = (
            module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
        if plain and _pair(module.stride) == _pair(module.dilation) == (1, 1):
            return Convolution(parameters["weight"], parameters.get("bias"), _pair(module.padding))
    if type(module) is nn.MaxPool2d:
        tile = _pair(module.kernel_size)
        whole = _pair(module.padding) == (0, 0) and _pair(module.dilation) == (1, 1)
        if (
            tile == _pair(module.stride)
            and whole
            and not module.ceil_mode
            and not module.return_indices
        ):
            return MaxPool(tile)
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return Reshape(lambda x: x.flatten(2))
    if type(module) is nn.Unflatten and module.dim == 1:
        sizes = tuple(module.unflattened_size)
        return Reshape(lambda x: x.unflatten(2, sizes))
    if kind in _ACTIVATIONS:
        return Activation(*_ACTIVATIONS[kind])
    return None


def _pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value, arg-type]


class Chain:
    """Layers of all replicates by name, from the inputs to the logits."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = dict(layers)
        trained = [isinstance(layer, Linear | Convolution) for layer in self.layers.values()]
        self._first = trained.index(True)  # derivatives go no further down

    def forward(self, x: Tensor) -> Tensor:
        """Logits (replicate, batch, class) of inputs (replicate, batch, ...)."""
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def backward(self, delta: Tensor | None, rate: float) -> None:
        """Take a step in all layers, from the derivative by the logits."""
        layers = list(self.layers.values())
        for i in range(len(layers) - 1, self._first - 1, -1):
            assert delta is not None
            delta = layers[i].backward(delta, rate, i > self._first)

    def features(self, x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
        """Logits, what the last layer reads (``"penultimate"``), and the outputs of the wanted layers."""
        seen: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            seen["penultimate"] = x
            x = layer.forward(x)
            if name in wanted:
                seen[name] = x
        # Layers before the first weights give the same outputs for all replicates, which are kept once.
        seen = {name: y.expand(len(x), *y.shape[1:]) for name, y in seen.items()}
        return seen | {"logits": x}

    def numbers(self, x: Tensor) -> tuple[int, int]:
        """Number of weights of one replicate, and of values that its layers compute for one input (1, 1, ...)."""
        weights = made = 0
        for layer in self.layers.values():
            x = layer.forward(x)
            made += x[0].numel()
            if isinstance(layer, Linear | Convolution):
                weights += layer.weight[0].numel()
            if isinstance(layer, Convolution):
                made += layer._patches[0].numel()
        return weights, made


def chain_of(
    base: nn.Module, parameters: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> Chain | None:
    """The layers of networks like ``base``, if it is a chain of known ones, all trained, with no weights shared."""
    names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    if type(base) is not nn.Sequential or fixed or names != set(parameters):
        return None
    layers: dict[str, Layer] = {}
    flat = False
    for child, module in base._modules.items():  # named_children leaves out what comes twice
        assert module is not None
        own = {name: parameters[f"{child}.{name}"] for name, _ in module.named_parameters()}
        layer = _stacked(module, own)
        # A linear layer reads the last axis alone, so images that were not flattened take the other method.
        flat = flat or isinstance(layer, Linear)
        if layer is None or (flat and not isinstance(layer, Linear | Activation)):
            return None
        layers[child] = layer
    return Chain(layers) if flat and isinstance(layer, Linear) else None
