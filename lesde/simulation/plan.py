"""One validated request, as the engines see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lesde.errors import Diverged
from lesde.initial import Initial
from lesde.simulation.noise import BLOCK, BlockNoise

__all__ = ["Block", "Plan", "Tick", "groups"]

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
    coefficients : Coefficients or FeatureCoefficients
        Derived drift, kicks and noise.
    times : ndarray, shape (time,)
        Saved times; the first is that of the initial state.
    start : Initial
    replicates, first_block, seed : int
    rates : ndarray, shape (cell,), or None
        Learning rates.
    device, dtype
        Where paths are computed, and their precision.
    sde : {"plain", "sampling", "modified"}
        Which SDE approximates SGD.
    memory : float
        Bytes that working arrays may take.
    """

    coefficients: Any
    times: np.ndarray
    start: Initial
    replicates: int
    first_block: int
    seed: int
    rates: np.ndarray | None
    device: torch.device
    dtype: torch.dtype
    sde: str = "plain"
    memory: float = math.inf

    @property
    def counts(self) -> np.ndarray:
        """n_k, shape (class,)."""
        return self.coefficients.counts

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.counts)

    @cached_property
    def n_samples(self) -> int:
        """N."""
        return int(self.counts.sum())

    @property
    def n_features(self) -> int:
        """p."""
        return self.coefficients.transform.n_features

    @property
    def cells(self) -> int:
        """Learning rates, one where there is none."""
        return 1 if self.rates is None else len(self.rates)

    def with_memory(self, memory: float) -> Plan:
        """The same plan with another allowance of working memory."""
        return replace(self, memory=memory)

    def blocks(self) -> Iterator[Block]:
        """The blocks that cover the replicates."""
        for i, row in enumerate(range(0, self.replicates, BLOCK)):
            yield Block(self.first_block + i, slice(row, min(row + BLOCK, self.replicates)))

    def noise(self, cell: int, block: Block, stream: str) -> BlockNoise:
        """Random numbers of a block at one learning rate."""
        return BlockNoise(self.seed, cell, block.number, self.device, stream)

    def diverged(self, index: int) -> Diverged:
        """The error where samples are not finite at a saved time, or the last one before its end."""
        time = float(self.times[min(index, len(self.times) - 1)])
        if not self.coefficients.depends_on_features:
            return Diverged(time)
        remedy = (
            "see that the formula of the FeatureKernel is finite for all pairs of samples (r2 is 0 for "
            "a sample and itself, g and c may be negative); else end `times` earlier, weaken the "
            "kernel, or give a smaller dt or learning_rate"
        )
        return Diverged(time, remedy=remedy)

    def initial(self, cell: int, block: Block) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Initial class means (replicate, class, feature) and deviations (…, sample, feature), float64."""
        if self.start.means is None:
            noise = self.noise(cell, block, "start")
            shape = (BLOCK, self.n_classes, self.n_features)
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


def groups(plan: Plan, block_bytes: float, most: int, what: str) -> list[list[Block]]:
    """The blocks in groups that are worked on side by side, as many as memory allows, at most ``most``.

    Parameters
    ----------
    block_bytes : float
        Working memory of one block.
    what : str
        What takes it, for the message where even one block does not fit.
    """
    if block_bytes > plan.memory:
        raise ValueError(
            f"memory_limit leaves {plan.memory / 1e6:.3g} MB to work in, but one block of {BLOCK} "
            f"replicates needs {block_bytes / 1e6:.3g} MB ({what}); raise memory_limit, or use a smaller "
            f"model."
        )
    # Every thread may have a group of its own in work.
    threads = torch.get_num_threads() if plan.device.type == "cpu" else 1
    fitting = max(1, int(min(most, plan.memory / threads // max(1.0, block_bytes))))
    blocks = list(plan.blocks())
    return [blocks[i : i + fitting] for i in range(0, len(blocks), fitting)]
