"""The random numbers of one block of replicates, addressed by (seed, learning rate, block, stream).

Replicates are simulated in blocks of fixed size, each with generators of its own, so a result does
not depend on how many replicates are asked for, on grouping, on threads or on the order of work. What
a block draws for different ends (its start, class means, deviations, ...) comes from different
streams, so that the class means of a run are the same whether samples or statistics are kept.
"""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
import torch

__all__ = ["BLOCK", "STREAMS", "BlockNoise"]


BLOCK = 32
"""Replicates in a block. Changing it changes every stream of random numbers."""

STREAMS = {"start": 0, "means": 1, "deviations": 2, "reach": 3, "process": 4}
"""What a block draws random numbers for."""

# Where torch keeps the 624 words of its Mersenne twister inside Generator.get_state().
_WORDS = slice(24, 24 + 624 * 8)


class BlockNoise:
    """Normals and integers of one block.

    On the CPU single-precision normals come from torch (its vectorised Box-Muller), double-precision
    normals and integers from NumPy's SFC64, which is several times faster than torch there. On
    another device all come from torch's generator of that device, so results differ between devices
    but not between runs on one.

    Parameters
    ----------
    seed, cell, block : int
        The address of the stream: the user's seed, the index of the learning rate, the block.
    device : torch.device
    stream : str
        One of :data:`STREAMS`.
    """

    def __init__(
        self, seed: int, cell: int, block: int, device: torch.device, stream: str = "start"
    ):
        self.device = device
        self._seed, self._key = seed, (cell, block, STREAMS[stream])

    def _sequence(self, *child: int) -> np.random.SeedSequence:
        """The source of all bits: child 0 of single precision, child 1 of double precision."""
        # The address goes in as a spawn key: words of a plain tuple run together, so that for example
        # (2³², 0, 0) and (0, 1, 0) would be one stream.
        return np.random.SeedSequence(self._seed, spawn_key=(*self._key, *child))

    @cached_property
    def _torch(self) -> torch.Generator:
        # Made when first asked for: to seed it takes as long as a thousand normals.
        if self.device.type == "cpu":
            return _seeded(self._sequence(0))
        word = int(self._sequence().generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(self.device).manual_seed(word)

    @cached_property
    def _numpy(self) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(self._sequence(1)))

    def normal_(self, out: torch.Tensor) -> torch.Tensor:
        """Fill a contiguous tensor with standard normals."""
        if self.device.type == "cpu" and out.dtype == torch.float64:
            self._numpy.standard_normal(out=out.numpy())
            return out
        return out.normal_(generator=self._torch)

    def normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Standard normals in a new tensor."""
        return self.normal_(torch.empty(shape, dtype=dtype, device=self.device))

    def exponential(self, *shape: int) -> torch.Tensor:
        """Exponential float64 numbers of mean 1."""
        if self.device.type == "cpu":
            return torch.from_numpy(self._numpy.standard_exponential(shape))
        empty = torch.empty(shape, dtype=torch.float64, device=self.device)
        return empty.exponential_(generator=self._torch)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform float64 numbers in [0, 1)."""
        if self.device.type == "cpu":
            return torch.from_numpy(self._numpy.random(shape))
        empty = torch.empty(shape, dtype=torch.float64, device=self.device)
        return empty.uniform_(generator=self._torch)

    def chi_square(self, degrees: np.ndarray, rows: int) -> np.ndarray:
        """Chi-square variables (row, degree), float64, of the given degrees of freedom."""
        shape = np.broadcast_to(degrees / 2.0, (rows, len(degrees)))
        if self.device.type == "cpu":
            return 2.0 * self._numpy.standard_gamma(shape)
        device = torch.as_tensor(shape.copy(), device=self.device)
        return 2.0 * torch._standard_gamma(device, generator=self._torch).cpu().numpy()

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers 0..high-1."""
        if self.device.type == "cpu":
            return torch.from_numpy(self._numpy.integers(high, size=shape))
        return torch.randint(high, shape, generator=self._torch, device=self.device)


def _seeded(sequence: np.random.SeedSequence) -> torch.Generator:
    """A CPU generator with all of its state from the sequence.

    ``manual_seed`` keeps only 32 bits on the CPU: among 100,000 blocks two would be expected to
    share a stream. So the twister's words are set directly.
    """
    generator = torch.Generator()
    template = _known_state()
    if template is None:
        return generator.manual_seed(int(sequence.generate_state(1)[0]))
    # As NumPy's MT19937 does, which is slow to hand its words over; the first bit says "not all zero".
    words = sequence.generate_state(624)
    words[0] = 0x80000000
    state = template.clone()
    state.numpy()[_WORDS].view(np.uint64)[:] = words
    generator.set_state(state)
    return generator


@cache
def _known_state() -> torch.Tensor | None:
    """A state of torch's CPU generator, None where its layout is not the one known here."""
    state = torch.Generator().manual_seed(1).get_state()
    words = state.numpy()[_WORDS].view(np.uint64)
    known = len(words) == 624 and words[0] == 1 and words[1] == 1812433254
    return state if known else None
