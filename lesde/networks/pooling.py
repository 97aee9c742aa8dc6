"""Maxima over tiles of images, and the way back to where they stood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Tiles"]


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
