"""Work on many networks shared among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

__all__ = ["Share", "one_after_another", "parts_of", "threads"]

Share = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Applies a function to all items; results in their order."""

# Numbers that the networks stepped together hold, weights and what an input makes of itself: at most as
# many as the processor's cache takes, and no fewer than fill the time in which another thread prepares
# its next operation.
_MOST, _LEAST = 2**21, 2**18


def one_after_another(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """A :data:`Share` without threads."""
    return [function(item) for item in items]


def parts_of(replicates: int, numbers: int, workers: int) -> list[slice]:
    """Replicates cut into parts for ``workers`` threads, each of which holds some ``numbers``.

    What a network computes must not depend on its part.
    """
    least = max(1, _LEAST // numbers)
    most = max(least, _MOST // numbers)
    parts = -(-replicates // most)
    if workers > 1:
        parts = min(-(-parts // workers) * workers, max(parts, replicates // least))
    edges = [replicates * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


@contextmanager
def threads(workers: int, each: int) -> Iterator[Share]:
    """Share among ``workers`` threads while the block runs, of ``each`` PyTorch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(each)
    try:
        if workers == 1:
            yield one_after_another
        else:
            with ThreadPoolExecutor(workers, initializer=_prepare, initargs=(each,)) as pool:
                yield lambda function, items: list(pool.map(function, items))
    finally:
        torch.set_num_threads(before)


def _prepare(each: int) -> None:
    torch.set_num_threads(each)
