"""The convolutions of many networks at once, with the pooling that follows."""

from __future__ import annotations

import torch
from torch import Tensor

from .pooling import Tiles

__all__ = ["Convolution"]


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
