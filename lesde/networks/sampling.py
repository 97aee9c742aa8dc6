"""The order in which each replicate sees the training samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["SAMPLING", "SampleOrder"]

SAMPLING = ("uniform", "epochs")

_DRAWS = 4096  # drawn at once; part of what a seed means, so not to be tuned


class SampleOrder:
    """Streams of sample numbers, one per replicate, handed out in batches.

    Parameters
    ----------
    seeds : sequence of numpy.random.SeedSequence
        One per replicate. A stream depends on its own seed only, and is the same however it is cut
        into calls of :meth:`take`.
    n_samples : int
        Size of the training set.
    batch_size : int
    sampling : {"uniform", "epochs"}
        Independent uniform draws, or one random permutation after another. A batch may hold the end
        of one epoch and the beginning of the next, so that all batches have one size.
    """

    def __init__(
        self,
        seeds: Sequence[np.random.SeedSequence],
        n_samples: int,
        batch_size: int,
        sampling: str,
    ) -> None:
        self._batch_size = batch_size
        self._streams = [_draws(np.random.default_rng(s), n_samples, sampling) for s in seeds]
        self._waiting = [np.empty(0, dtype=np.int64) for _ in seeds]

    def take(self, steps: int) -> np.ndarray:
        """Sample numbers of the next steps, int64 (steps, replicate, batch)."""
        need = steps * self._batch_size
        taken = np.empty((len(self._streams), need), dtype=np.int64)
        for row, stream in enumerate(self._streams):
            pieces = [self._waiting[row]]
            have = len(pieces[0])
            while have < need:
                pieces.append(next(stream))
                have += len(pieces[-1])
            joined = np.concatenate(pieces)
            taken[row], self._waiting[row] = joined[:need], joined[need:]
        shaped = taken.reshape(len(taken), steps, self._batch_size)
        return np.ascontiguousarray(shaped.swapaxes(0, 1))


def _draws(rng: np.random.Generator, n_samples: int, sampling: str) -> Iterator[np.ndarray]:
    while True:
        if sampling == "uniform":
            yield rng.integers(n_samples, size=_DRAWS)
        else:
            yield rng.permutation(n_samples)
