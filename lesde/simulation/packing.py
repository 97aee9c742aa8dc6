"""How a block's samples are laid out for the integrator: flat states with each class contiguous.

torchsde wants a state of shape (replicate, channel). Samples of one class stand next to each other in
the last place, so that class means and the spreading of a drift over a class run along memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

__all__ = ["Packing", "class_means", "make_packing", "spread"]


def class_means(samples: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Class means (..., class, feature) of samples (..., sample, feature) sorted by class."""
    if (counts == counts[0]).all():
        shape = (*samples.shape[:-2], len(counts), int(counts[0]), samples.shape[-1])
        return samples.reshape(shape).mean(-2)
    return torch.stack([part.mean(-2) for part in samples.split(counts.tolist(), -2)], -2)


def spread(means: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Every class's row at each of its samples: (..., class, feature) to (..., sample, feature)."""
    if (counts == counts[0]).all():
        lead, (K, p) = means.shape[:-2], means.shape[-2:]
        wide = means.unsqueeze(-2).expand(*lead, K, int(counts[0]), p)
        return wide.reshape(*lead, -1, p)
    return means.repeat_interleave(torch.tensor(counts.tolist(), device=means.device), -2)


class Packing(ABC):
    """States of all samples as (replicate, channel)."""

    def __init__(self, counts: np.ndarray, n_features: int):
        self.counts = counts
        self.K, self.p, self.N = len(counts), n_features, int(counts.sum())

    @property
    def size(self) -> int:
        """Channels of a replicate: N·p."""
        return self.N * self.p

    @abstractmethod
    def pack(self, samples: torch.Tensor) -> torch.Tensor:
        """(replicate, sample, feature) to (replicate, channel)."""

    @abstractmethod
    def unpack(self, state: torch.Tensor) -> torch.Tensor:
        """(replicate, channel) to (replicate, sample, feature), a view.

        The place of the sample is split in (class, sample of class) where classes are equally large.
        """

    @abstractmethod
    def means(self, state: torch.Tensor) -> torch.Tensor:
        """Class means (replicate, class, feature)."""

    @abstractmethod
    def spread(self, drift: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write a drift (replicate, class, feature) to every sample of ``out`` (replicate, channel)."""

    @abstractmethod
    def scale(self, values: torch.Tensor) -> torch.Tensor:
        """One number a class as a vector over the channels."""

    @abstractmethod
    def apply(self, factors: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Every sample multiplied by its class's matrix, factors (class, feature, feature)."""


class Balanced(Packing):
    """All classes equally large: channels are (class, feature, sample of the class)."""

    @property
    def n(self) -> int:
        return int(self.counts[0])

    def _split(self, state: torch.Tensor) -> torch.Tensor:
        return state.view(*state.shape[:-1], self.K, self.p, self.n)

    def pack(self, samples: torch.Tensor) -> torch.Tensor:
        blocks = samples.reshape(len(samples), self.K, self.n, self.p)
        return blocks.transpose(-1, -2).reshape(len(samples), -1)

    def unpack(self, state: torch.Tensor) -> torch.Tensor:
        return self._split(state).transpose(-1, -2)

    def means(self, state: torch.Tensor) -> torch.Tensor:
        return self._split(state).mean(-1)

    def spread(self, drift: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        self._split(out).copy_(drift.unsqueeze(-1))
        return out

    def scale(self, values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(self.p * self.n)

    def apply(self, factors: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return (factors @ self._split(state)).reshape(len(state), -1)


class Ragged(Packing):
    """Classes of different sizes: channels are (feature, sample)."""

    def _split(self, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return state.view(*state.shape[:-1], self.p, self.N).split(self.counts.tolist(), -1)

    def pack(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.transpose(-1, -2).reshape(len(samples), -1)

    def unpack(self, state: torch.Tensor) -> torch.Tensor:
        return state.view(*state.shape[:-1], self.p, self.N).transpose(-1, -2)

    def means(self, state: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.mean(-1) for part in self._split(state)], 1)

    def spread(self, drift: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        for k, part in enumerate(self._split(out)):
            part.copy_(drift[:, k, :, None])
        return out

    def scale(self, values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(
            torch.tensor(self.counts.tolist(), device=values.device)
        ).repeat(self.p)

    def apply(self, factors: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        rows = [factor @ part for factor, part in zip(factors, self._split(state), strict=True)]
        return torch.cat(rows, -1).reshape(len(state), -1)


def make_packing(counts: np.ndarray, n_features: int) -> Packing:
    """The packing for classes of these sizes."""
    balanced = bool((counts == counts[0]).all())
    return (Balanced if balanced else Ragged)(counts, n_features)
