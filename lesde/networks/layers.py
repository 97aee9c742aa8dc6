"""Layers of many networks at once, with backpropagation and the SGD step written out.

A network that is a chain of the layers below trains as a :class:`Chain`. Tensors are (replicate, batch, ...); inputs
that all replicates share have one replicate. ``backward`` takes the derivative by the outputs, makes a step, and returns
the derivative by the inputs, or with ``through=False`` may leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Map = Callable[[Tensor], Tensor]
Back = Callable[[Tensor, Tensor], Tensor]

_ACTIVATIONS: dict[type[nn.Module], tuple[Map, Back]] = {
    nn.ReLU: (torch.relu, lambda delta, y: torch.ops.aten.threshold_backward(delta, y, 0)),
    nn.Tanh: (torch.tanh, lambda delta, y: delta * (1 - y * y)),
    nn.Sigmoid: (torch.sigmoid, lambda delta, y: delta * (y * (1 - y))),
}
"""Functions of each number, and their derivatives from their values."""


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
        self._kernel, self._padding = tuple(weight.shape[3:]), padding
        self.weight = weight.view(*weight.shape[:2], -1)
        self.bias = None if bias is None else bias[:, :, None]

    def forward(self, x: Tensor) -> Tensor:
        self._shape, (rows, columns) = x.shape, self._padding
        x = F.pad(x, (columns, columns, rows, rows))
        x = x.unfold(3, self._kernel[0], 1).unfold(4, self._kernel[1], 1)
        pixels = x.shape[1], *x.shape[3:5]
        # (replicate, numbers of a patch, batch * pixels), a third faster than F.unfold
        self._patches = x.permute(0, 2, 5, 6, 1, 3, 4).flatten(4).flatten(1, 3)
        shared = self._patches.expand(len(self.weight), -1, -1)
        if self.bias is None:
            out = torch.bmm(self.weight, shared)
        else:
            out = torch.baddbmm(self.bias, self.weight, shared)
        return out.unflatten(2, pixels).transpose(1, 2)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        delta = delta.transpose(1, 2).flatten(2)  # (replicate, output, batch * pixels)
        below = None
        if through:
            patches = torch.bmm(self.weight.transpose(1, 2), delta)
            patches = patches.unflatten(2, (self._shape[1], -1)).transpose(1, 2).flatten(0, 1)
            images = F.fold(patches, self._shape[3:], self._kernel, padding=self._padding)
            below = images.view(self._shape)
        self.weight.baddbmm_(delta, self._patches.transpose(1, 2), alpha=-rate)
        if self.bias is not None:
            self.bias.sub_(delta.sum(2, keepdim=True), alpha=rate)
        return below


class MaxPool:
    """``torch.nn.MaxPool2d`` over tiles that do not overlap."""

    def __init__(self, tile: int | tuple[int, int]):
        self._tile = (tile, tile) if isinstance(tile, int) else tile

    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        best, self._places = F.max_pool2d(x.flatten(0, 1), self._tile, return_indices=True)
        return best.unflatten(0, x.shape[:2])

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor:
        size = self._shape[3:]
        below = F.max_unpool2d(delta.flatten(0, 1), self._places, self._tile, output_size=size)
        return below.view(self._shape)


class Activation:
    """A function of each number, whose derivative follows from its value."""

    def __init__(self, function: Map, back: Back):
        self._function, self._back = function, back

    def forward(self, x: Tensor) -> Tensor:
        self._y = self._function(x)
        return self._y

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor:
        return self._back(delta, self._y)


class Reshape:
    """``torch.nn.Flatten`` and ``torch.nn.Unflatten``."""

    def __init__(self, function: Map):
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        return self._function(x)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor:
        return delta.reshape(self._shape)


Layer = Linear | Convolution | MaxPool | Activation | Reshape


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

    def features(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
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


def _stacked(module: nn.Module, parameters: Mapping[str, Tensor]) -> Layer | None:
    """The stacked form of a module with these parameters; None where there is none."""
    if type(module) is nn.Linear:
        return Linear(parameters["weight"], parameters.get("bias"))
    if type(module) is nn.Conv2d:
        plain = module.groups == 1 and module.padding_mode == "zeros"
        unit = module.stride == module.dilation == (1, 1)
        if plain and unit and not isinstance(module.padding, str):
            high, wide = module.padding
            return Convolution(parameters["weight"], parameters.get("bias"), (high, wide))
    if type(module) is nn.MaxPool2d:
        tiles = module.stride == module.kernel_size and module.padding == 0 and module.dilation == 1
        if tiles and not (module.ceil_mode or module.return_indices):
            return MaxPool(module.kernel_size)
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return Reshape(lambda x: x.flatten(2))
    if type(module) is nn.Unflatten and module.dim == 1:
        sizes = tuple(module.unflattened_size)
        return Reshape(lambda x: x.unflatten(2, sizes))
    if type(module) in _ACTIVATIONS:
        return Activation(*_ACTIVATIONS[type(module)])
    return None
