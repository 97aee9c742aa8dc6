"""How the N×N pairs of samples are cut into tiles: a fixed grid, whatever the memory or the replicates.

Samples are sorted by class. A class is cut into blocks of about equal size; small classes share a block.
Tiles are pairs of blocks, on and above the diagonal: the strength is symmetric in the two samples, so
that a tile serves both. Within a tile s is constant, except in tiles of shared blocks with themselves.

Features are held as planes (replicate, feature, sample): there matrix products are several times faster
than with features last. Blocks are padded to a multiple of 8 samples and features to one of 4, so that
no vectorised loop of torch or MKL ends in a remainder, whose rounding could differ between replicates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

__all__ = ["Block", "Layout", "Tile", "make_layout"]

SAMPLES = 8
FEATURES = 4
PLANE = 16
"""Blocks, features and planes are padded to multiples of these."""

SMALL = 48
"""Classes of fewer samples share blocks."""


def padded(size: int, unit: int) -> int:
    """The size rounded up to a multiple of a unit."""
    return -(-size // unit) * unit


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring samples of one class, or of several small ones.

    Attributes
    ----------
    index : int
        Its number.
    classes : range
        The classes in it.
    first, length : int
        Its samples.
    columns : slice
        Its place in the planes, padded.
    """

    index: int
    classes: range
    first: int
    length: int
    columns: slice

    @property
    def width(self) -> int:
        """Columns with the padding."""
        return self.columns.stop - self.columns.start

    @property
    def is_shared(self) -> bool:
        """Whether it holds several classes."""
        return len(self.classes) > 1


@dataclass(frozen=True, eq=False)
class Tile:
    """A pair of blocks; ``kind`` tells what s is in it: "same" 1, "different" 0, "mixed" both."""

    row: Block
    column: Block
    kind: str

    @property
    def size(self) -> int:
        """Entries with the padding."""
        return self.row.width * self.column.width


@dataclass(frozen=True, eq=False)
class Layout:
    """The blocks, and where every sample is in the planes.

    Attributes
    ----------
    blocks : tuple of Block
    sample : ndarray of int, shape (column,)
        The sample in every column of the planes; padding repeats a sample of its block, so that a
        formula which is finite for all pairs is finite there.
    label : ndarray of int, shape (column,)
        Its class.
    is_padding : ndarray of bool, shape (column,)
    """

    blocks: tuple[Block, ...]
    sample: np.ndarray
    label: np.ndarray
    is_padding: np.ndarray

    def tiles(self) -> list[Tile]:
        """All pairs of blocks, each once."""
        pairs = itertools.combinations_with_replacement(self.blocks, 2)
        return [Tile(a, b, _kind(a, b)) for a, b in pairs]


def _kind(a: Block, b: Block) -> str:
    if a is b and a.is_shared:
        return "mixed"
    return "same" if a.classes == b.classes else "different"


def make_layout(counts: np.ndarray, largest: int) -> Layout:
    """Cut classes of the given sizes into blocks of at most about ``largest`` samples."""
    pieces: list[tuple[range, int]] = []
    small: list[int] = []
    sizes = [int(n) for n in counts]

    def flush() -> None:
        if small:
            classes = range(small[0], small[-1] + 1)
            pieces.append((classes, sum(sizes[k] for k in small)))
            small.clear()

    for k, n in enumerate(sizes):
        if n < SMALL:
            if sum(sizes[l] for l in small) + n > 2 * SMALL:
                flush()
            small.append(k)
            continue
        flush()
        step = padded(-(-n // -(-n // largest)), SAMPLES)
        pieces += [(range(k, k + 1), min(step, n - done)) for done in range(0, n, step)]
    flush()

    labels = np.repeat(np.arange(len(sizes)), sizes)
    blocks, samples, padding = [], [], []
    first = start = 0
    for i, (classes, length) in enumerate(pieces):
        width = padded(length, SAMPLES)
        blocks.append(Block(i, classes, first, length, slice(start, start + width)))
        first, start = first + length, start + width
        if i == len(pieces) - 1:  # the plane's own padding, in no block
            width += padded(start, PLANE) - start
        place = np.arange(width)
        samples.append(blocks[-1].first + np.minimum(place, length - 1))
        padding.append(place >= length)
    sample, is_padding = np.concatenate(samples), np.concatenate(padding)
    return Layout(tuple(blocks), sample, labels[sample], is_padding)
