"""From samples sorted by class to class means and back."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["all_samples", "class_means", "class_sums", "spread"]


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
