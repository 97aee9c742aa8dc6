"""The LE-SDE from its exact law: Gaussian transitions of the class means between the saved times.

The transitions are computed once for all replicates, so that the cost does not depend on any step. Only
for kernels of classes and time.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from lesde.derivation import derive
from lesde.laws.system import contrast_basis
from lesde.laws.transitions import transitions
from lesde.processes.integration import prefetch_length
from lesde.processes.process import BLOCK, Random
from lesde.processes.samples import AboutMeans, Steps, exact_noise, square_roots


class ExactPaths(AboutMeans):
    """The law of the LE-SDE at the saved times."""

    def tabulate(self, times: np.ndarray) -> np.ndarray:
        coefficients = derive(self.model).coefficients()
        steps = transitions(coefficients, times)
        phi, noise = steps.phi.numpy(), steps.noise.numpy()
        # From a growth that overflows on nothing is finite.
        good = np.isfinite(phi).all((1, 2)) & np.isfinite(noise).all((1, 2, 3))
        self.kind = np.array(list(itertools.takewhile(lambda kind: good[kind], steps.kind)), int)
        self.phi, self.roots = phi, square_roots(np.where(good[:, None, None, None], noise, 0.0))
        self.factors: list[np.ndarray | None] = [None]
        if steps.features is not None:
            factors = square_roots(steps.features.numpy())
            self.factors = [None if (f == np.eye(len(f))).all() else f for f in factors]
        return exact_noise(coefficients.noise, times)

    def path(self, rng: Random, start: torch.Tensor, offsets: Any) -> Steps:
        K, p, parts = self.model.n_classes, self.model.n_features, len(self.factors)
        ahead = prefetch_length(BLOCK * K * p * parts)
        # Coordinates are (…, contrast, replicate, feature): grand mean and contrasts, each with its
        # own digits, and products with matrices of few rows and many columns.
        basis = contrast_basis(K)
        state = _apply(basis.T, start.transpose(1, 2).cpu().numpy())
        for first in range(0, len(self.kind), ahead):
            kinds = self.kind[first : first + ahead]
            shape = (len(kinds), parts, K, BLOCK, p)
            draws = [noise.numpy.standard_normal(shape) for noise in rng.stream("means").blocks]
            normals = np.stack(draws)
            # Not around the yield, where the setting would be the caller's too.
            with np.errstate(over="ignore", invalid="ignore"):
                rows = np.zeros_like(normals[:, :, 0])
                for i, factor in enumerate(self.factors):
                    coloured = _apply(self.roots[kinds, i], normals[:, :, i])
                    rows += coloured if factor is None else coloured @ factor.T
                for i, kind in enumerate(kinds):
                    rows[:, i] += _apply(self.phi[kind], state)
                    state = rows[:, i]
                means = torch.from_numpy(_apply(basis, rows)).to(rng.device)
            for mean in means.unbind(1):
                yield mean.transpose(1, 2), None
        yield from itertools.repeat((torch.full_like(start, torch.nan), None))


def _apply(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A matrix of contrasts, or of contrasts and features, times rows (…, contrast, replicate, feature)."""
    *lead, K, R, p = rows.shape
    if matrix.shape[-1] == K:
        return (matrix @ rows.reshape(*lead, K, R * p)).reshape(rows.shape)
    flat = rows.swapaxes(-3, -2).reshape(*lead, R, K * p)
    return (flat @ matrix.swapaxes(-1, -2)).reshape(*lead, R, K, p).swapaxes(-3, -2)
