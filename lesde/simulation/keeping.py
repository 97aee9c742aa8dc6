"""What is kept of simulated paths: every sample's features, or statistics of each class.

An engine hands over one saved time of one block at a time; a keeper writes it into the arrays of the
result. Which variables there are is known here alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from lesde.initial import class_average
from lesde.simulation.plan import Block, Plan

__all__ = ["KEEPERS", "Features", "Keeper", "Statistics"]


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
        from lesde.reduction import reduce_frame

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
