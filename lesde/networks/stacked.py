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

__all__ = ["Layer", "stacked_layer"]

Map = Callable[[Tensor], Tensor]

# An activation, and its derivative from its own output.
_ACTIVATIONS: dict[type[nn.Module], tuple[Map, Map]] = {
    nn.ReLU: (torch.relu, lambda y: y > 0),
    nn.Tanh: (torch.tanh, lambda y: 1 - y * y),
    nn.Sigmoid: (torch.sigmoid, lambda y: y * (1 - y)),
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
        return Convolution(parameters["weight"], parameters.get("bias"), module.padding)
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
        if self.bias is None:
            return torch.bmm(x, self._transposed)
        return torch.baddbmm(self.bias, x, self._transposed)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        below = torch.bmm(delta, self.weight) if through else None
        self.weight.baddbmm_(delta.transpose(1, 2), self._x, alpha=-rate)
        if self.bias is not None:
            if delta.shape[1] > 1:
                delta = delta.sum(1, keepdim=True)
            self.bias.sub_(delta, alpha=rate)
        return below


class Activation:
    """A function of each number, whose derivative follows from its value."""

    def __init__(self, function: Map, derivative: Map):
        self._function, self._derivative = function, derivative

    def forward(self, x: Tensor) -> Tensor:
        self._y = self._function(x)
        return self._y

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        return delta * self._derivative(self._y) if through else None


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


class Convolution:
    """``torch.nn.Conv2d`` with steps of one pixel, as a product with the patches of the image.

    The patches of all images of a batch are columns of one matrix a replicate.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: object):
        replicates, self._outputs = weight.shape[:2]
        self._channels, self._kernel = weight.shape[2], (int(weight.shape[3]), int(weight.shape[4]))
        self._padding = _pair(padding)
        self.weight = weight.view(replicates, self._outputs, -1)
        self.bias = None if bias is None else bias.unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        R, B = x.shape[:2]
        rows, columns = self._padding
        if rows or columns:
            x = torch.nn.functional.pad(x, (columns, columns, rows, rows))
        self._shape = x.shape
        high, wide = self._kernel
        windows = x.unfold(3, high, 1).unfold(4, wide, 1)  # (R, B, C, rows, columns, high, wide)
        H, W = windows.shape[3:5]
        patches = windows.permute(0, 2, 5, 6, 1, 3, 4).reshape(R, -1, B * H * W)
        self._patches = patches
        if self.bias is None:
            out = torch.bmm(self.weight, patches)
        else:
            out = torch.baddbmm(self.bias, self.weight, patches)
        return out.view(R, -1, B, H, W).transpose(1, 2)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        R, B, out, H, W = delta.shape
        flat = delta.transpose(1, 2).reshape(R, out, B * H * W)
        below = self._spread(flat, B, H, W) if through else None
        self.weight.baddbmm_(flat, self._patches.transpose(1, 2), alpha=-rate)
        if self.bias is not None:
            self.bias.sub_(flat.sum(2, keepdim=True), alpha=rate)
        return below

    def _spread(self, flat: Tensor, B: int, H: int, W: int) -> Tensor:
        """The derivative by the input: every patch's put back where the patch was taken."""
        high, wide = self._kernel
        patches = torch.bmm(self.weight.transpose(1, 2), flat)
        patches = patches.view(-1, self._channels, high, wide, B, H, W)
        image = flat.new_zeros(self._shape)
        channels_first = image.transpose(1, 2)
        for i in range(high):
            for j in range(wide):
                channels_first[..., i : i + H, j : j + W] += patches[:, :, i, j]
        rows, columns = self._padding
        return image[..., rows : image.shape[-2] - rows, columns : image.shape[-1] - columns]


class MaxPool:
    """``torch.nn.MaxPool2d`` over tiles that do not overlap."""

    def __init__(self, kernel: tuple[int, int]):
        self._kernel = kernel

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
        high, wide = self._kernel
        self._shape = x.shape
        H, W = x.shape[-2] // high, x.shape[-1] // wide
        best = x[..., : H * high : high, : W * wide : wide]
        winner = torch.zeros_like(best, dtype=torch.uint8)
        for place in range(1, high * wide):
            i, j = divmod(place, wide)
            other = x[..., i : H * high : high, j : W * wide : wide]
            winner.masked_fill_(other > best, place)
            best = torch.maximum(best, other)
        self._winner = winner
        return best

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        if not through:
            return None
        high, wide = self._kernel
        H, W = delta.shape[-2:]
        image = delta.new_zeros(self._shape)
        for place in range(high * wide):
            i, j = divmod(place, wide)
            target = image[..., i : H * high : high, j : W * wide : wide]
            torch.mul(delta, self._winner == place, out=target)
        return image


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
