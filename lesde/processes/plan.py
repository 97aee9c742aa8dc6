"""What is kept of simulated paths: every sample's features, or statistics of each class.

An engine hands over one saved time of one block at a time; a keeper writes it into the arrays of the
result. Which variables there are is known here alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lesde.errors import Diverged
from lesde.model.lesde import Initial, class_average
from lesde.processes.random import BLOCK, BlockNoise

__all__ = [
    "KEEPERS",
    "Block",
    "Features",
    "Keeper",
    "Plan",
    "Statistics",
    "Tick",
    "all_samples",
    "class_means",
    "class_sums",
    "groups",
    "spread",
]


# --------------------------------------------------------------------------------------------------
# From samples sorted by class to class means and back.


def class_sums(samples: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Sums over classes (..., class, feature) of samples (..., sample, feature) sorted by class."""
    if (counts == counts[0]).all():
        return samples.unflatten(-2, (len(counts), int(counts[0]))).sum(-2)
    return torch.stack([part.sum(-2) for part in samples.split(counts.tolist(), -2)], -2)


def class_means(samples: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Class means (..., class, feature) of samples (..., sample, feature) sorted by class."""
    sizes = torch.tensor(counts.tolist(), dtype=samples.dtype, device=samples.device)
    return class_sums(samples, counts) / sizes.unsqueeze(-1)


def spread(means: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Every class's row at each of its samples: (..., class, feature) to (..., sample, feature)."""
    if (counts == counts[0]).all():
        lead, (K, p) = means.shape[:-2], means.shape[-2:]
        wide = means.unsqueeze(-2).expand(*lead, K, int(counts[0]), p)
        return wide.reshape(*lead, -1, p)
    return means.repeat_interleave(torch.tensor(counts.tolist(), device=means.device), -2)


def all_samples(
    means: torch.Tensor, offsets: torch.Tensor | None, counts: np.ndarray, dtype: torch.dtype
) -> torch.Tensor:
    """Samples (replicate, sample, feature) from class means and deviations, rounded once."""
    samples = spread(means, counts)
    return (samples if offsets is None else samples + offsets).to(dtype).contiguous()


# --------------------------------------------------------------------------------------------------
# One validated request, as the engines see it.

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


# --------------------------------------------------------------------------------------------------


class Keeper(ABC):
    """Arrays of the result, filled saved time by saved time.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        lead = (plan.cells, plan.replicates, len(plan.times))
        self.dtype = str(plan.dtype).removeprefix("torch.")
        self.arrays = {
            name: np.empty((*lead, *(self._size(dim) for dim in dims)), self.dtype)
            for name, dims in self.dims(plan).items()
        }

    @classmethod
    @abstractmethod
    def dims(cls, plan: Plan) -> dict[str, tuple[str, ...]]:
        """The variables, and their dimensions after (learning_rate, replicate, time)."""

    def _size(self, dim: str) -> int:
        plan = self.plan
        sizes = {"sample": plan.n_samples, "feature": plan.n_features, "class": plan.n_classes}
        return sizes[dim.rstrip("_")]

    @classmethod
    def bytes(cls, plan: Plan) -> float:
        """Memory of the arrays."""
        sizes = {"sample": plan.n_samples, "feature": plan.n_features, "class": plan.n_classes}
        numbers = sum(
            math.prod(float(sizes[dim.rstrip("_")]) for dim in dims)
            for dims in cls.dims(plan).values()
        )
        frames = float(plan.cells) * plan.replicates * len(plan.times)
        return frames * numbers * torch.empty(0, dtype=plan.dtype).element_size()

    @abstractmethod
    def frame(self, cell: int, block: Block, index: int, samples: torch.Tensor) -> None:
        """Take the samples of a saved time, (replicate, sample, feature) sorted by class.

        Or (replicate, class, sample of class, feature).
        """

    def variables(self) -> dict[str, tuple[str, ...]]:
        """The variables, and their dimensions after (learning_rate, replicate, time)."""
        return self.dims(self.plan)

    def fixed(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Further variables, that are the same for all replicates."""
        return {}

    @abstractmethod
    def coords(self) -> dict[str, Any]:
        """Coordinates of the variables' own dimensions."""

    @abstractmethod
    def last_means(self) -> np.ndarray:
        """Class means (learning_rate, replicate, class, feature) of the last time, float64."""

    def attrs(self) -> dict[str, Any]:
        """Attributes of the result."""
        return {}

    def write(self, name: str, cell: int, block: Block, index: int, values: Any) -> None:
        """Copy the rows that exist of a block's values (replicate, …) into an array."""
        rows = block.rows
        target = self.arrays[name][cell, rows, index]
        if not isinstance(values, torch.Tensor):
            values = torch.from_numpy(np.ascontiguousarray(values))
        torch.from_numpy(target).view(len(target), *values.shape[1:]).copy_(values[: len(target)])

    def check(self, index: int, values: Any) -> None:
        """Raise Diverged where values are not finite in the precision of the paths."""
        # One sum is cheaper than a mask; where it overflows the mask decides.
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(np.ascontiguousarray(values))
        values = values.to(self.plan.dtype)
        if not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
            raise self.plan.diverged(index)


class Features(Keeper):
    """All samples."""

    @classmethod
    def dims(cls, plan: Plan) -> dict[str, tuple[str, ...]]:
        return {"features": ("sample", "feature")}

    def frame(self, cell: int, block: Block, index: int, samples: torch.Tensor) -> None:
        self.check(index, samples)
        self.write("features", cell, block, index, samples)

    def coords(self) -> dict[str, Any]:
        labels = np.repeat(np.arange(self.plan.n_classes), self.plan.counts)
        return {"label": ("sample", labels, {"long_name": "class"})}

    def last_means(self) -> np.ndarray:
        last = self.arrays["features"][:, :, -1].astype(np.float64)
        return class_average(last, self.plan.counts)

    def view(self, cell: int, block: Block, times: slice) -> torch.Tensor:
        """The rows of a block at saved times, (time, row, sample, feature), to be written in place."""
        return torch.from_numpy(self.arrays["features"][cell, block.rows, times]).transpose(0, 1)


class Statistics(Keeper):
    """Class means, within-class covariances, and how far classes reach toward each other.

    Attributes
    ----------
    directions : ndarray (time, class, class, feature), or None
        Unit vectors of the expected gaps, where the law of the means is known.
    joint : bool
        Whether the reaches of a class toward several others have their joint law.
    reach_paths : bool
        Whether reaches at several times are those of the same samples.
    """

    reach_paths = True

    def __init__(self, plan: Plan, directions: np.ndarray | None):
        super().__init__(plan)
        self.directions = directions
        self.joint = True
        if directions is not None:
            self.arrays["reach_expected"] = np.empty_like(self.arrays["reach"])

    @classmethod
    def dims(cls, plan: Plan) -> dict[str, tuple[str, ...]]:
        return {
            "mean": ("class", "feature"),
            "within": ("class", "feature", "feature_"),
            "reach": ("class", "class_"),
        }

    def variables(self) -> dict[str, tuple[str, ...]]:
        extra = {} if self.directions is None else {"reach_expected": ("class", "class_")}
        return {**self.dims(self.plan), **extra}

    def fixed(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        if self.directions is None:
            return {}
        return {"direction": (("time", "class", "class_", "feature"), self.directions)}

    def coords(self) -> dict[str, Any]:
        return {"count": ("class", self.plan.counts, {"long_name": "samples of the class"})}

    def last_means(self) -> np.ndarray:
        return self.arrays["mean"][:, :, -1].astype(np.float64)

    def attrs(self) -> dict[str, Any]:
        return {
            "keep": "statistics",
            "joint": int(self.joint),
            "reach_paths": int(self.reach_paths),
        }

    def frame(self, cell: int, block: Block, index: int, samples: torch.Tensor) -> None:
        from lesde.paths import reduce_frame

        self.check(index, samples)
        count = len(self.arrays["mean"][cell, block.rows, index])
        flat = samples.reshape(len(samples), -1, samples.shape[-1])[:count]
        along = None if self.directions is None else self.directions[index]
        reduced = reduce_frame(flat.cpu(), self.plan.counts, along)
        self.statistics(cell, block, index, *reduced)

    def statistics(
        self,
        cell: int,
        block: Block,
        index: int,
        mean: Any,
        within: Any,
        reach: Any,
        expected: Any = None,
    ) -> None:
        """Take the statistics of a saved time, each (replicate, …)."""
        self.check(index, mean)
        self.check(index, within)
        self._check_spread(mean, within)
        self.write("mean", cell, block, index, mean)
        self.write("within", cell, block, index, within)
        self.write("reach", cell, block, index, reach)
        if "reach_expected" in self.arrays:
            self.write("reach_expected", cell, block, index, expected)

    def _check_spread(self, mean: Any, within: Any) -> None:
        """Refuse a spread, if it is not rounding, whose square is too small for the precision."""
        limits = torch.finfo(self.plan.dtype)
        squares = torch.as_tensor(within).diagonal(dim1=-2, dim2=-1).amax(dim=(-2, -1))
        size = torch.as_tensor(mean).abs().amax(dim=(-2, -1))
        lost = (squares > (limits.eps * size) ** 2) & (squares < limits.tiny / limits.eps)
        if bool(lost.any()):
            remedy = "give the model larger units"
            if self.plan.dtype != torch.float64:
                remedy = "use dtype='float64'"
            raise ValueError(
                f"noise leaves a spread within classes of {float(squares[lost][0]) ** 0.5:.1g}, whose square "
                f"underflows dtype={self.dtype!r} with keep='statistics'; {remedy}, or keep the features."
            )


KEEPERS: dict[str, type[Keeper]] = {"features": Features, "statistics": Statistics}
