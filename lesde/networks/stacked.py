"""Layers of many networks at once, with backpropagation and the SGD step written out.

Arrays have the leading axes (replicate, batch). A layer's ``forward`` keeps what its ``backward``
needs; ``backward`` takes the derivative by the layer's output, changes the parameters in place, and
returns the derivative by its input, through the parameters as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from .convolution import Convolution
from .pooling import Tiles

__all__ = ["Activation", "Flatten", "Layer", "Linear", "MaxPool", "Unflatten", "stacked_layer"]

Map = Callable[[Tensor], Tensor]
Back = Callable[[Tensor, Tensor], Tensor]

# Activations that never decrease, and how a derivative by the output, with that output, becomes one
# by the input.
_ACTIVATIONS: dict[type[nn.Module], tuple[Map, Back]] = {
    nn.ReLU: (torch.relu, lambda delta, y: torch.ops.aten.threshold_backward(delta, y, 0)),
    nn.Tanh: (torch.tanh, lambda delta, y: delta * (1 - y * y)),
    nn.Sigmoid: (torch.sigmoid, lambda delta, y: delta * (y * (1 - y))),
}


class Layer(Protocol):
    """One layer of all replicates."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (replicate, batch, ...)."""

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        """Take a step, and with ``through`` return the derivative by the inputs."""


def stacked_layer(module: nn.Module, parameters: dict[str, Tensor]) -> Layer | None:
    """The stacked form of a module; None where there is none.

    Parameters
    ----------
    module : torch.nn.Module
    parameters : dict of str to Tensor
        Its own, by their names in the module, each with a leading replicate axis.
    """
    if type(module) is nn.Linear:
        return Linear(parameters["weight"], parameters.get("bias"))
    if type(module) is nn.Conv2d and _is_plain(module):
        return Convolution(parameters["weight"], parameters.get("bias"), _pair(module.padding))
    if type(module) is nn.MaxPool2d and MaxPool.allows(module):
        return MaxPool(_pair(module.kernel_size))
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return Flatten()
    if type(module) is nn.Unflatten and module.dim == 1:
        return Unflatten(tuple(module.unflattened_size))
    if type(module) in _ACTIVATIONS:
        return Activation(*_ACTIVATIONS[type(module)])
    return None


class Linear:
    """``torch.nn.Linear``."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = weight
        self._transposed = weight.transpose(1, 2)
        self.bias = None if bias is None else bias.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        if len(x) < len(self.weight):  # all replicates read the same inputs
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


class Activation:
    """A function of each number, whose derivative follows from its value."""

    def __init__(self, function: Map, back: Back):
        self._function, self._back = function, back

    def forward(self, x: Tensor) -> Tensor:
        self._y = self._function(x)
        return self._y

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        return self._back(delta, self._y) if through else None


class Flatten:
    """``torch.nn.Flatten``."""

    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        return x.flatten(2)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        return delta.view(self._shape) if through else None


class Unflatten:
    """``torch.nn.Unflatten`` of all but the batch."""

    def __init__(self, sizes: tuple[int, ...]):
        self._sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(2, self._sizes)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        return delta.flatten(2) if through else None


class MaxPool:
    """``torch.nn.MaxPool2d`` over tiles that do not overlap."""

    def __init__(self, tile: tuple[int, int]):
        self.tile = tile

    @staticmethod
    def allows(module: nn.MaxPool2d) -> bool:
        """Whether tiles do not overlap, and nothing is padded."""
        return (
            _pair(module.kernel_size) == _pair(module.stride)
            and _pair(module.padding) == (0, 0)
            and _pair(module.dilation) == (1, 1)
            and not module.ceil_mode
            and not module.return_indices
        )

    def forward(self, x: Tensor) -> Tensor:
        self._image = x.clone()
        high, wide = self.tile
        H, W = x.shape[-2] // high, x.shape[-1] // wide
        whole = self._image[..., : H * high, : W * wide]
        self._tiles = Tiles(whole.unflatten(-1, (W, wide)).unbind(-1), high)
        return self._tiles.largest()

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        if not through:
            return None
        self._image.zero_()
        self._tiles.put(delta)
        return self._image


def _pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value, arg-type]


def _is_plain(module: nn.Conv2d) -> bool:
    return (
        _pair(module.stride) == (1, 1)
        and _pair(module.dilation) == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
