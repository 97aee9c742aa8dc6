"""The contract of a dynamics, `Process`, and the random numbers that `lesde.simulate` hands to it.

Replicates are simulated in blocks of 32, each with generators of its own, so that a result does not
depend on how many replicates are asked for, nor on grouping, memory, threads or the order of work.
Within a block, numbers for different purposes (the start, class means, deviations, ...) come from
different streams: class means, for example, are the same whether samples or statistics are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from lesde.checks import check_integer

BLOCK = 32
"""Replicates in a block. Changing it changes every stream of random numbers."""


def check_first_replicate(value: Any) -> int:
    """The number of the first replicate, which begins a block."""
    first = check_integer("first_replicate", value, 0)
    if first % BLOCK:
        raise ValueError(
            f"first_replicate must be a multiple of {BLOCK}, the replicates of a block of random "
            f"numbers; got {first}."
        )
    return first


@runtime_checkable
class Process(Protocol):
    """A dynamics as `lesde.simulate` takes it: any object with these three methods and ``counts``.

    A *state* is whatever the process likes, and ``advance`` may change it in place. Tensors that are
    observed have a leading replicate axis, on any device.

    Attributes
    ----------
    counts : sequence of int
        Samples per class; features are sorted by class.

    Notes
    -----
    Optional:

    - ``at(learning_rate)`` returns the process at a learning rate. Without it the rates of a batch are
      independent copies.
    - ``reduce(rng, state)`` returns ``mean (replicate, class, feature)``, ``within (replicate, class,
      feature, feature)`` and ``reach (replicate, class, class)`` as `lesde.statistics` defines them,
      for a process that can draw them without particles; other names are one number per replicate, or
      ``reach_expected``, the reach along ``directions`` (below).
    - ``describe()`` returns a dict for the dataset's attribute ``model``, and ``attributes`` is a dict of
      further attributes, such as ``engine``, or ``joint``, 0 where ``reduce`` draws the reaches of one
      class toward several others independently. Values that differ between learning rates become a list.
    - ``prepare(times, statistics)`` returns the process for these saved times, to be reduced rather
      than observed where ``statistics`` is true. It is called once, after ``at``; its result is
      observed (or reduced) at every saved time in order, so that it may tabulate transitions and
      draw for several times at once. It may have ``iterations (time,)``, the number of SGD steps
      done at the saved times, which then becomes the dataset's clock, and ``directions
      (time, class, class, feature)``, unit vectors along which the reach is taken too.
    - ``parallel``, true where groups of blocks may be advanced in several threads at a time.
    """

    counts: Any

    def start(self, rng: Random, replicates: int) -> Any:
        """Return the state at ``times[0]``."""

    def advance(self, rng: Random, state: Any, t0: float, t1: float) -> Any:
        """Return the state at ``t1``, in as many steps as the process likes."""

    def observe(self, rng: Random, state: Any) -> dict[str, torch.Tensor]:
        """Return what can be observed of a state.

        ``features (replicate, sample, feature)``; ``weights (replicate, class, feature)`` and ``bias
        (replicate, class)`` where there is a classifier; under any other name one number per replicate.
        """


class Random:
    """Random numbers of the replicates at hand, each from its own block's stream.

    The first axis of an array that is drawn is that of all replicates at hand: a replicate gets the same
    numbers whatever others are advanced with it.

    Attributes
    ----------
    replicates : int
        Number of replicates at hand, a multiple of 32.
    wanted : int
        Number of them, the first ones, that were asked for: the others fill the last block and are dropped, and
        a process whose replicates are costly may leave them out of its state.
    first : int
        Position of the first of them among all replicates of the call.
    device, dtype
        Where the numbers are, and their precision.
    blocks : list of BlockNoise
        The generators behind it.
    """

    def __init__(
        self,
        seed: int,
        cell: int,
        blocks: range,
        device: torch.device,
        dtype: torch.dtype,
        first: int = 0,
        wanted: int | None = None,
        stream: str = "process",
    ):
        self._address = seed, cell, blocks
        self._streams: dict[str, Random] = {stream: self}
        self.device, self.dtype, self.first = device, dtype, first
        self.blocks = [BlockNoise(seed, cell, block, device, stream) for block in blocks]
        self.replicates = BLOCK * len(blocks)
        self.wanted = self.replicates if wanted is None else wanted

    def stream(self, name: str) -> Random:
        """Random numbers of the same replicates that are independent of those under other names."""
        if name not in self._streams:
            other = Random(*self._address, self.device, self.dtype, self.first, self.wanted, name)
            other._streams = self._streams
            self._streams[name] = other
        return self._streams[name]

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Standard normals."""
        return self._draw(shape, lambda noise, own: noise.normal(*own, dtype=dtype or self.dtype))

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return self._on_host(shape, lambda numpy, own: numpy.random(own)).to(self.dtype)

    def exponential(self, *shape: int) -> torch.Tensor:
        """Exponential variables of mean 1."""
        drawn = self._on_host(shape, lambda numpy, own: numpy.standard_exponential(own))
        return drawn.to(self.dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers 0 to high − 1."""
        return self._on_host(shape, lambda numpy, own: numpy.integers(high, size=own))

    def normal_(self, out: torch.Tensor) -> torch.Tensor:
        """Fill a contiguous tensor (replicate, …) with standard normals."""
        for noise, part in zip(self.blocks, out.split(BLOCK), strict=True):
            noise.normal_(part)
        return out

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
        return torch.cat([draw(noise, (BLOCK, *shape[1:])) for noise in self.blocks])

    def _on_host(self, shape: tuple[int, ...], draw: Any) -> torch.Tensor:
        drawn = self._draw(shape, lambda noise, own: torch.from_numpy(draw(noise.numpy, own)))
        return drawn.to(self.device)


class BlockNoise:
    """Random numbers of one block, addressed by (seed, index of the learning rate, block, stream).

    Single-precision normals come from torch (on the CPU its vectorised Box-Muller takes a third of the
    time); double-precision normals on the CPU, and everything else, from NumPy's SFC64. So results
    differ between kinds of devices but not between runs on one.
    """

    def __init__(
        self, seed: int, cell: int, block: int, device: torch.device, stream: str = "start"
    ):
        self.device = device
        # As a spawn key: words of a plain tuple run together, so that for example (2³², 0, 0) and
        # (0, 1, 0) would be one stream.
        key = (cell, block, zlib.crc32(stream.encode()))
        self._sequence = np.random.SeedSequence(seed, spawn_key=key)

    @cached_property
    def _torch(self) -> torch.Generator:
        # On the CPU manual_seed keeps 32 bits: of 10,000 blocks two share a stream with probability 0.01.
        word = int(self._sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(self.device).manual_seed(word)

    @cached_property
    def numpy(self) -> np.random.Generator:
        """The generator of all that is drawn on the host, in double precision."""
        return np.random.Generator(np.random.SFC64(self._sequence))

    def normal_(self, out: torch.Tensor) -> torch.Tensor:
        """Fill a contiguous tensor with standard normals."""
        if self.device.type == "cpu" and out.dtype == torch.float64:
            self.numpy.standard_normal(out=out.numpy())
            return out
        return out.normal_(generator=self._torch)

    def normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Standard normals in a new tensor."""
        return self.normal_(torch.empty(shape, dtype=dtype, device=self.device))
