"""One validated request, as the engines see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged
from lesde.initial import Initial
from lesde.simulation.noise import BLOCK, BlockNoise

__all__ = ["Block", "Plan", "Tick"]

Tick = Callable[[], object]
"""Called after every saved time of every block, for the progress bar."""


@dataclass(frozen=True)
class Block:
    """A block of replicates: its number in the stream, and the rows of the result it fills."""

    number: int
    rows: slice


@dataclass(frozen=True)
class Plan:
    """What to simulate.

    Attributes
    ----------
    coefficients : Coefficients
        Derived drift, kicks and noise.
    times : ndarray, shape (time,)
        Saved times; the first is that of the initial state.
    start : Initial
    replicates, first_block, seed : int
    rates : ndarray, shape (cell,), or None
        Learning rates.
    device, dtype
        Where paths are computed, and their precision.
    """

    coefficients: Coefficients
    times: np.ndarray
    start: Initial
    replicates: int
    first_block: int
    seed: int
    rates: np.ndarray | None
    device: torch.device
    dtype: torch.dtype

    @property
    def n_features(self) -> int:
        """p."""
        return self.coefficients.noise_factor.shape[-1]

    def blocks(self) -> Iterator[Block]:
        """The blocks that cover the replicates."""
        for i, row in enumerate(range(0, self.replicates, BLOCK)):
            yield Block(self.first_block + i, slice(row, min(row + BLOCK, self.replicates)))

    def noise(self, cell: int, block: Block) -> BlockNoise:
        """Random numbers of a block at one learning rate."""
        return BlockNoise(self.seed, cell, block.number, self.device)

    def initial(self, noise: BlockNoise, block: Block) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Initial class means (replicate, class, feature) and deviations (…, sample, feature), float64.

        Random means are the first draws of a block.
        """
        if self.start.means is None:
            shape = (BLOCK, len(self.coefficients.counts), self.n_features)
            return noise.normal(*shape, dtype=torch.float64) / math.sqrt(self.n_features), None
        means = self._rows(self.start.means, block)
        offsets = None if self.start.offsets is None else self._rows(self.start.offsets, block)
        return means, offsets

    def _rows(self, array: np.ndarray, block: Block) -> torch.Tensor:
        if array.ndim == 2:
            array = np.broadcast_to(array, (BLOCK, *array.shape))
        else:  # the last block may be short: repeat a row, its results are dropped
            last = self.replicates - 1
            array = array[np.minimum(block.rows.start + np.arange(BLOCK), last)]
        return torch.from_numpy(np.array(array)).to(self.device)

    def store(self, out: np.ndarray, block: Block, index: int, samples: torch.Tensor) -> None:
        """Write one saved time of a block into ``out`` (replicate, time, sample, feature).

        ``samples`` is (replicate, sample, feature), or (replicate, class, sample of class, feature).
        """
        # One sum is cheaper than a mask; where it overflows the mask decides.
        if not math.isfinite(float(samples.sum())) and not bool(torch.isfinite(samples).all()):
            raise Diverged(self.times[index])
        rows = block.rows
        count = rows.stop - rows.start
        target = torch.from_numpy(out)[rows, index]
        target.view(count, *samples.shape[1:]).copy_(samples[:count])
