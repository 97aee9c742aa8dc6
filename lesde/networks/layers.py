"""A network that is a chain of known layers, as layers of many networks at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "Activation",
    "Chain",
    "Convolution",
    "Flatten",
    "Layer",
    "Linear",
    "MaxPool",
    "Tiles",
    "Unflatten",
    "chain_of",
    "stacked_layer",
]


# --------------------------------------------------------------------------------------------------
# Maxima over tiles of images, and the way back to where they stood.


class Tiles:
    """Maxima over tiles of images, which do not overlap.

    Of equal numbers the first wins, by rows, as in ``torch.nn.MaxPool2d``.

    Parameters
    ----------
    columns : sequence of Tensor (..., rows, tiles in a row)
        Numbers that stand first in the row of their tile, those that stand second, and so on. They are
        the same arrays at every call; what they hold may change.
    high : int
        Rows of a tile, which divide those of the columns.
    """

    def __init__(self, columns: Sequence[Tensor], high: int):
        self._columns = columns
        between = columns[0].new_empty(columns[0].shape)
        self._between, self._rows = between, between.unflatten(-2, (-1, high)).unbind(-2)

    def largest(self) -> Tensor:
        """Maxima over the tiles."""
        self._right = _largest(self._columns, self._between)
        best = torch.empty_like(self._rows[0], memory_format=torch.contiguous_format)
        self._below = _largest(self._rows, best)
        return best

    def put(self, delta: Tensor) -> None:
        """Write numbers into the columns where the maxima stood, and 0 elsewhere."""
        _put(delta, self._below, self._rows)
        _put(self._between, self._right, self._columns)


def _largest(blocks: Sequence[Tensor], best: Tensor) -> list[Tensor]:
    """The largest of blocks, number by number, into ``best``; by how much each leads those before it."""
    if len(blocks) == 1:
        best.copy_(blocks[0])
        return []
    leads, so_far = [], blocks[0]
    for block in blocks[1:]:
        leads.append(block - so_far)
        so_far = torch.maximum(so_far, block, out=best)
    return leads


def _put(delta: Tensor, leads: list[Tensor], targets: Sequence[Tensor]) -> None:
    """To the last block that leads all before it, and 0 to the others."""
    if not leads:
        targets[0].copy_(delta)
    for i in range(len(leads), 0, -1):
        # The number where the lead is positive, else 0; it is the derivative of a ReLU.
        torch.ops.aten.threshold_backward.grad_input(delta, leads[i - 1], 0, grad_input=targets[i])
        delta = torch.sub(delta, targets[i], out=targets[0] if i == 1 else None)


# --------------------------------------------------------------------------------------------------
# The convolutions of many networks at once, with the pooling that follows.


class Convolution:
    """``torch.nn.Conv2d`` with steps of one pixel, and maxima over tiles of its output.

    The patches of all images of a batch are the columns of one matrix a replicate, which the weights
    multiply: first those whose output stands first in the row of its tile, then those that stand second,
    and so on, so that the maxima are of blocks in one piece. Patches are copied, and their derivatives
    added up, in two stages, so that each copy runs over long pieces of memory: the image once for every
    column of the kernel (a band), then that once for every row of the kernel. Outputs that are in no tile
    are left out. The bias comes after the maxima, where numbers are fewer. The large arrays are kept from
    step to step.

    Parameters
    ----------
    weight : Tensor (replicate, output, channel, row, column)
    bias : Tensor (replicate, output), or None
    padding : tuple of int
        Rows and columns of zeros on either side.
    tile : tuple of int
        Rows and columns of the tiles; (1, 1) for no pooling.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
        tile: tuple[int, int] = (1, 1),
    ):
        self._outputs, self._kernel = weight.shape[1], tuple(weight.shape[3:])
        self._given, self._padding, self._tile = (weight, bias), padding, tile
        self.weight = weight.view(*weight.shape[:2], -1)
        self._transposed = self.weight.transpose(1, 2)
        self.bias = None if bias is None else bias[:, :, None, None, None]
        self._shape: torch.Size | None = None

    def pooled(self, tile: tuple[int, int]) -> Convolution:
        """The same with maxima over tiles of its output."""
        return Convolution(*self._given, self._padding, tile)

    @property
    def patches_of_one(self) -> int:
        """Numbers of the patches and the output of one image, once there was one."""
        batch = self._patches.shape[5]
        return (self._own[0].numel() + self._product[0].numel()) // batch

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self._shape:
            self._prepare(x)
        if self._padded is not None:
            self._inner.copy_(x)
            x = self._padded
        self._bands.copy_(self._windows(x))
        self._patches.copy_(self._rows_of_bands)
        torch.bmm(self.weight, self._matrix, out=self._product)
        out = self._tiles.largest()
        if self.bias is not None:
            out += self.bias
        return out.transpose(1, 2)

    def backward(self, delta: Tensor, rate: float, through: bool) -> Tensor | None:
        delta = delta.transpose(1, 2)
        if self.bias is not None:
            self.bias.sub_(delta.sum((2, 3, 4), keepdim=True), alpha=rate)
        self._tiles.put(delta)
        change = torch.bmm(self._product, self._turned)
        below = self._spread() if through else None
        self.weight.sub_(change, alpha=rate)
        return below

    def _prepare(self, x: Tensor) -> None:
        """Arrays for inputs (R, B, C, H, W), and the views of them that every step takes.

        Inputs that all replicates share have R = 1, and so have their patches.
        """
        R, B, C, H, W = x.shape
        (rows, columns), (high, wide) = self._padding, self._kernel
        self._shape, self._padded = x.shape, None
        if rows or columns:
            H, W = H + 2 * rows, W + 2 * columns
            self._padded = x.new_zeros(R, B, C, H, W)
            self._inner = self._padded[..., rows : H - rows, columns : W - columns]
        self._below_shape = (R, B, C, H, W)
        down, across = self._tile
        h = (H - high + 1) // down * down
        w = (W - wide + 1) // across
        self._bands = x.new_empty(R, C, wide, across, B, h + high - 1, w)
        self._patches = x.new_empty(R, C, high, wide, across, B, h, w)
        self._rows_of_bands = self._bands.unfold(5, h, 1).permute(0, 1, 5, 2, 3, 4, 7, 6)
        self._own = self._patches.view(R, C * high * wide, -1)
        self._matrix = self._own.expand(len(self.weight), -1, -1)
        self._turned = self._matrix.transpose(1, 2)
        # What the maxima are taken of, and later the derivative by it.
        self._product = x.new_empty(len(self.weight), self._outputs, across * B * h * w)
        blocks = self._product.view(len(self.weight), self._outputs, across, B, h, w)
        self._tiles = Tiles(blocks.unbind(2), down)
        self._folds = [
            (self._bands.narrow(5, i, h), self._patches.select(2, i)) for i in range(high)
        ]
        self._bands_by_column = self._bands.unbind(2)

    def _windows(self, image: Tensor) -> Tensor:
        """What the bands are made of, as a view (R, C, column of the kernel, place in the tile, B, ...)."""
        R, B, C, H, W = image.stride()
        return image.as_strided(
            self._bands.shape, (R, C, W, W, B, H, W * self._tile[1]), image.storage_offset()
        )

    def _spread(self) -> Tensor:
        """The derivative by the input. It overwrites the patches, which have done their work."""
        torch.bmm(self._transposed, self._product, out=self._own)
        self._bands.zero_()
        for band, patches in self._folds:
            band += patches
        below = self._bands.new_zeros(self._below_shape)
        for window, band in zip(self._windows(below).unbind(2), self._bands_by_column, strict=True):
            window += band
        if self._padded is None:
            return below
        rows, columns = self._padding
        return below[..., rows : below.shape[3] - rows, columns : below.shape[4] - columns]


# --------------------------------------------------------------------------------------------------
# Layers of many networks at once, with backpropagation and the SGD step written out.

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


# --------------------------------------------------------------------------------------------------


class Chain:
    """Layers of all replicates, from the inputs to the logits.

    Attributes
    ----------
    layers : list of Layer
    names : list of str or None
        The module whose output each layer gives; None for a layer whose output no module gives.
    """

    def __init__(self, layers: list[Layer], names: list[str | None]) -> None:
        self.layers, self.names = layers, names

    def forward(self, x: Tensor) -> Tensor:
        """Logits (replicate, batch, class) of inputs (replicate, batch, ...)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def features(self, x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
        """Logits, what the last layer reads (``"penultimate"``), and the outputs of named modules.

        Inputs (1, batch, ...) are shared by all replicates.
        """
        seen: dict[str, Tensor] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            if layer is self.layers[-1]:
                seen["penultimate"] = x
            x = layer.forward(x)
            if name is not None and name in wanted:
                seen[name] = x
        # What comes before any weights is the same for all, and there once.
        seen = {name: y.expand(len(x), *y.shape[1:]) for name, y in seen.items()}
        return seen | {"logits": x}

    def numbers(self, x: Tensor) -> tuple[int, int]:
        """Numbers of the weights, and of what an input makes on its way, for one replicate."""
        weights = images = 0
        for layer in self.layers:
            x = layer.forward(x)
            images += x[0, 0].numel()
            if isinstance(layer, Linear | Convolution):
                weights += layer.weight[0].numel()
            if isinstance(layer, Convolution):
                images += layer.patches_of_one
        return weights, images


def chain_of(
    base: nn.Module, parameters: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> Chain | None:
    """The layers of networks like ``base``, all trained and no weights shared; else None.

    Parameters
    ----------
    base : torch.nn.Module
    parameters, fixed : dict of str to Tensor
        Trained parameters, and all others and buffers, by name, with a leading replicate axis.
    """
    names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    if type(base) is not nn.Sequential or fixed or names != set(parameters):
        return None
    layers: list[Layer] = []
    children: list[str | None] = []
    for child, module in base._modules.items():  # named_children leaves out what comes twice
        assert module is not None
        own = {name: parameters[f"{child}.{name}"] for name, _ in module.named_parameters()}
        layer = stacked_layer(module, own)
        if layer is None:
            return None
        layers.append(layer)
        children.append(child)
    # A linear layer reads the last axis alone, so images that were not flattened are for the other way.
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, Linear)), 0)
    ends = bool(layers) and isinstance(layers[-1], Linear)
    flat = all(isinstance(layer, Linear | Activation) for layer in layers[first:])
    images = all(not isinstance(layer, Linear) for layer in layers[:first])
    return Chain(*_pooled_early(layers, children)) if ends and flat and images else None


def _pooled_early(
    layers: list[Layer], names: list[str | None]
) -> tuple[list[Layer], list[str | None]]:
    """Maxima before activations, which never decrease, and within the convolutions they follow."""
    layers, names = list(layers), list(names)
    for i in range(1, len(layers)):
        if isinstance(layers[i], MaxPool) and isinstance(layers[i - 1], Activation):
            layers[i - 1 : i + 1] = layers[i], layers[i - 1]
            names[i - 1] = None
    for i in range(len(layers) - 1, 0, -1):
        pool, before = layers[i], layers[i - 1]
        if isinstance(pool, MaxPool) and isinstance(before, Convolution):
            layers[i - 1 : i + 1] = [before.pooled(pool.tile)]
            names[i - 1 : i + 1] = [names[i]]
    return layers, names
