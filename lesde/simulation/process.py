"""Any process as paths: `Process`, what `lesde.simulate` asks of a dynamics, and the loop over it.

The loop knows blocks of replicates, streams of random numbers, saved times, memory and the dataset, and
nothing of any equation; a process knows its equation and nothing of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from lesde.checks import shown
from lesde.errors import Diverged
from lesde.reduction import reduce_frame
from lesde.simulation.noise import BLOCK, BlockNoise
from lesde.simulation.request import working_memory
from lesde.simulation.result import as_dataset

__all__ = ["Process", "Random", "process_paths"]

# Numbers of one frame of the replicates worked on side by side: enough to outweigh the cost of a call.
FRAME_NUMBERS = 2**20
ENDS = {
    "features": ("sample", "feature"),
    "weights": ("class", "feature"),
    "bias": ("class",),
    "mean": ("class", "feature"),
    "within": ("class", "feature", "feature_"),
    "reach": ("class", "class_"),
}
"""Dimensions of variables after (learning_rate, replicate, time); those of other names have none."""


@runtime_checkable
class Process(Protocol):
    """What `lesde.simulate` asks of a dynamics: any object with these three methods and ``counts``.

    A *state* is whatever the process likes; its tensors have a leading replicate axis, on the device and
    in the dtype of the random numbers.

    Attributes
    ----------
    counts : sequence of int
        Samples per class; features are sorted by class.

    Notes
    -----
    Optional: ``at(learning_rate)``, the process at a learning rate, without which the rates of a batch
    are independent copies; ``reduce(rng, state)``, a dict of ``mean (replicate, class, feature)``,
    ``within (replicate, class, feature, feature)`` and ``reach (replicate, class, class)`` as
    `lesde.statistics` defines them, for a process that can draw them without particles;
    ``describe()``, a dict for the dataset's attribute ``model``.
    """

    counts: Any

    def start(self, rng: Random, replicates: int) -> Any:
        """Return the state at ``times[0]``."""

    def advance(self, rng: Random, state: Any, t0: float, t1: float) -> Any:
        """Return the state at ``t1``, in as many steps as the process likes."""

    def observe(self, rng: Random, state: Any) -> dict[str, torch.Tensor]:
        """Return what is seen of a state.

        ``features (replicate, sample, feature)``; ``weights (replicate, class, feature)`` and ``bias
        (replicate, class)`` where there is a classifier; under any other name one number per replicate.
        """


class Random:
    """Random numbers of the replicates at hand, each from its own block's stream.

    The first axis of what is drawn is that of the replicates, all of them: a replicate gets the same
    numbers whatever others are worked on beside it.

    Attributes
    ----------
    replicates : int
        How many replicates are at hand, a multiple of 32.
    device, dtype
        Where the numbers are, and their precision.
    """

    def __init__(self, blocks: list[BlockNoise], device: torch.device, dtype: torch.dtype):
        self._blocks, self.device, self.dtype = blocks, device, dtype
        self.replicates = BLOCK * len(blocks)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normals."""
        return self._draw(shape, lambda noise, own: noise.normal(*own, dtype=self.dtype))

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return self._draw(shape, lambda noise, own: noise.uniform(*own).to(self.dtype))

    def exponential(self, *shape: int) -> torch.Tensor:
        """Exponential variables of mean 1."""
        return self._draw(shape, lambda noise, own: noise.exponential(*own).to(self.dtype))

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers 0 to high − 1."""
        return self._draw(shape, lambda noise, own: noise.integers(high, *own))

    def _draw(
        self,
        shape: tuple[int, ...],
        draw: Callable[[BlockNoise, tuple[int, ...]], torch.Tensor],
    ) -> torch.Tensor:
        if not shape or shape[0] != self.replicates:
            raise ValueError(
                f"the first axis of random numbers is that of the {self.replicates} replicates at hand, "
                f"the argument `replicates` of start; got shape {shape}."
            )
        own = (BLOCK, *shape[1:])
        return torch.cat([draw(noise, own) for noise in self._blocks])


def process_paths(
    process: Process,
    times: np.ndarray,
    *,
    replicates: int,
    first_replicate: int,
    rates: np.ndarray | None,
    batched: bool,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    keep: str,
    memory: float | None,
    progress: bool,
) -> xr.Dataset:
    """Paths of any process; the arguments as `lesde.simulate` has checked them."""
    counts = _counts(process)
    at = getattr(process, "at", None)
    cells = [process] if rates is None else [at(float(h)) if at else process for h in rates]

    def frames(cell: int, blocks: range) -> Iterator[dict[str, torch.Tensor]]:
        """What is seen of some blocks at every saved time."""
        one = cells[cell]
        streams = [BlockNoise(seed, cell, block, device, "process") for block in blocks]
        rng = Random(streams, device, dtype)
        state = one.start(rng, rng.replicates)
        yield _seen(one, rng, state, keep, counts)
        for t0, t1 in pairwise(times.tolist()):
            state = one.advance(rng, state, t0, t1)
            yield _seen(one, rng, state, keep, counts)

    first = first_replicate // BLOCK
    # What a process gives is known once it has been seen: one start is drawn for that alone.
    shapes = {
        name: tuple(v.shape[1:]) for name, v in next(frames(0, range(first, first + 1))).items()
    }
    lead = (len(cells), replicates, len(times))
    numbers = sum(math.prod(shape) for shape in shapes.values())
    size = math.prod(map(float, lead)) * numbers * torch.finfo(dtype).bits / 8
    text = f"{lead[0]} × {replicates} × {lead[2]} frames of {numbers} numbers"
    working_memory(memory, size, device, text)
    kind = str(dtype).removeprefix("torch.")
    arrays = {name: np.empty((*lead, *shape), kind) for name, shape in shapes.items()}

    frame = int(counts.sum()) * shapes["mean" if keep == "statistics" else "features"][-1]
    most = max(1, FRAME_NUMBERS // (BLOCK * max(numbers, frame)))
    stop = first + -(-replicates // BLOCK)
    total = lead[0] * (stop - first) * lead[2]
    with tqdm(total=total, disable=not progress, desc="simulate", unit="frame") as bar:
        for cell, block in product(range(len(cells)), range(first, stop, most)):
            blocks = range(block, min(block + most, stop))
            rows = slice(
                *(min(BLOCK * (b - first), replicates) for b in (blocks.start, blocks.stop))
            )
            for index, seen in enumerate(frames(cell, blocks)):
                _write(arrays, (cell, rows, index), seen, times[index])
                bar.update(len(blocks))
    coords: dict[str, Any] = {"count": ("class", counts, {"long_name": "samples of the class"})}
    if keep == "features":
        labels = np.repeat(np.arange(len(counts)), counts)
        coords = {"label": ("sample", labels, {"long_name": "class"})}
    variables = {name: (ENDS.get(name, ()), array) for name, array in arrays.items()}
    describe = getattr(process, "describe", None)
    about = describe() if describe else {"kind": type(process).__name__}
    settings: dict[str, Any] = {"engine": "process", "seed": seed, "dtype": kind}
    if keep == "statistics":
        settings |= {"keep": keep, "joint": 1, "reach_paths": int(not hasattr(process, "reduce"))}
    return as_dataset(variables, coords, times, first_replicate, rates, batched, about, settings)


def _write(
    arrays: dict[str, np.ndarray],
    at: tuple[int, slice, int],
    seen: dict[str, torch.Tensor],
    time: float,
) -> None:
    """Put what is seen at a saved time into the arrays of the result."""
    if seen.keys() != arrays.keys():
        raise ValueError(
            f"process.observe must give the same names at every time; got {sorted(seen)} at time "
            f"{time:g}, and {sorted(arrays)} at the start."
        )
    for name, values in seen.items():
        target = arrays[name][at]
        part = values[: len(target)].detach()
        # A reach is NaN on the diagonal, and where class means coincide.
        if name != "reach" and not bool(torch.isfinite(part).all()):
            remedy = "end `times` earlier, or let the process take smaller steps"
            raise Diverged(time, f"{name} of the process", remedy)
        target[...] = part.cpu().numpy()


def _counts(process: Any) -> np.ndarray:
    """Samples per class."""
    counts = np.asarray(process.counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or (counts < 1).any():
        raise ValueError(
            f"process.counts must hold the samples of each class, positive integers; got "
            f"{shown(process.counts)}."
        )
    return counts.astype(np.int64)


def _seen(
    process: Any, rng: Random, state: Any, keep: str, counts: np.ndarray
) -> dict[str, torch.Tensor]:
    """What is kept of a state, each (replicate, …), after checking that it is what it should be."""
    reduce = getattr(process, "reduce", None)
    if keep == "statistics" and reduce is not None:
        seen = dict(reduce(rng, state))
        missing = {"mean", "within", "reach"} - seen.keys()
        if missing:
            raise ValueError(f"process.reduce must give {', '.join(sorted(missing))} too.")
        p = seen["mean"].shape[-1]
    else:
        seen = dict(process.observe(rng, state))
        if "features" not in seen:
            raise ValueError(f"process.observe must give 'features'; got {shown(list(seen))}.")
        p = seen["features"].shape[-1]
    sizes = {"sample": int(counts.sum()), "class": len(counts), "feature": p}
    for name, values in seen.items():
        ends = ENDS.get(name, ())
        wanted = (rng.replicates, *(sizes[end.rstrip("_")] for end in ends))
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != wanted:
            found = tuple(values.shape) if isinstance(values, torch.Tensor) else shown(values)
            raise ValueError(
                f"{name} of the process must be a tensor ({', '.join(('replicate', *ends))}) of shape "
                f"{wanted}; got {found}."
            )
    if keep == "statistics" and reduce is None:
        values = seen.pop("features").detach().cpu()
        reduced = reduce_frame(values, counts)
        seen |= dict(zip(("mean", "within", "reach"), map(torch.from_numpy, reduced), strict=True))
    return seen
