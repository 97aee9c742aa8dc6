"""Within-class scatter without samples: a process of p×p matrices, whatever the number of samples.

The n deviations Y_i of a class from its mean are Brownian with the average taken off, which is n−1
independent Brownian motions from any start. Their scatter G = Σ Y_i Y_iᵀ = L Lᵀ therefore moves over an
interval in which noise adds the covariance Σ = A Aᵀ as

    G → (L + A Z)(L + A Z)ᵀ + A W Aᵀ,      Z normal, of the shape of L, W Wishart with the rest of the
                                            n−1 degrees of freedom,

because turning the n−1 coordinates changes nothing: L takes up the first min(p, n−1) of them. W is
drawn through its Cholesky factor.

References
----------
Bartlett, *On the theory of statistical regression*, Proc. R. Soc. Edinburgh 53 (1933), for the factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lesde.simulation.noise import BLOCK, BlockNoise

__all__ = ["Scatter"]


class Scatter:
    """The scatter of every class in some blocks of replicates.

    Parameters
    ----------
    noises : sequence of BlockNoise, length block
        Streams of the blocks.
    counts : ndarray of int (class,)
    n_features : int
    """

    def __init__(self, noises: Sequence[BlockNoise], counts: np.ndarray, n_features: int):
        self.noises, self.counts, self.p = noises, counts, n_features
        # Classes of one size move together.
        self._members = [np.flatnonzero(counts == n) for n in np.unique(counts)]
        self._sizes = np.unique(counts).tolist()
        self._roots = [
            np.zeros((len(noises), BLOCK, len(members), n_features, min(n_features, int(n) - 1)))
            for n, members in zip(self._sizes, self._members, strict=True)
        ]

    @staticmethod
    def bytes(counts: np.ndarray, n_features: int) -> float:
        """Working memory of a block."""
        return 8.0 * BLOCK * len(counts) * n_features**2 * 8

    def advance(self, factors: np.ndarray) -> None:
        """Add noise with the covariance A Aᵀ to every deviation.

        Parameters
        ----------
        factors : ndarray (class,) or (class, feature, feature)
            A of every class, as a number where it is a multiple of the identity.
        """
        for i, (n, members) in enumerate(zip(self._sizes, self._members, strict=True)):
            root = self._roots[i]
            columns = root.shape[-1]
            if columns == 0:
                continue
            A = factors[members]
            A = A[:, None, None] if A.ndim == 1 else A
            moved = root + _times(A, self._normals(root.shape[2:]))
            rest = n - 1 - columns
            if rest > 0:
                added = _times(A, self._wishart_root(len(members), rest))
                moved = np.concatenate([moved, added], axis=-1)
                # Turned back into as many columns as there are features.
                moved = np.asarray(np.linalg.qr(moved.swapaxes(-1, -2), mode="r")).swapaxes(-1, -2)
            self._roots[i] = moved

    def roots(self) -> np.ndarray:
        """L/√n_k, whose square is the within-class covariance, (block, replicate, class, p, p).

        Columns beyond n_k − 1 are zero.
        """
        shape = (len(self.noises), BLOCK, len(self.counts), self.p, self.p)
        result = np.zeros(shape)
        for n, members, root in zip(self._sizes, self._members, self._roots, strict=True):
            result[:, :, members, :, : root.shape[-1]] = root / np.sqrt(n)
        return result

    def covariances(self) -> np.ndarray:
        """The empirical within-class covariances, divisor n_k, (block, replicate, class, p, p)."""
        roots = self.roots()
        return roots @ roots.swapaxes(-1, -2)

    def _normals(self, shape: tuple[int, ...]) -> np.ndarray:
        draws = [noise.normal(BLOCK, *shape, dtype=torch.float64) for noise in self.noises]
        return torch.stack(draws).cpu().numpy()

    def _wishart_root(self, classes: int, degrees: int) -> np.ndarray:
        """B with B Bᵀ Wishart of these degrees of freedom, (block, replicate, class, p, columns)."""
        columns = min(self.p, degrees)
        root = np.zeros((len(self.noises), BLOCK, classes, self.p, columns))
        below = np.tril_indices(self.p, -1, columns)
        root[..., below[0], below[1]] = self._normals((classes, len(below[0])))
        orders = np.tile(degrees - np.arange(columns), classes)
        squares = np.stack([noise.chi_square(orders, BLOCK) for noise in self.noises])
        diagonal = np.arange(columns)
        root[..., diagonal, diagonal] = np.sqrt(squares).reshape(*root.shape[:3], columns)
        return root


def _times(factor: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """A B, with A a number (class, 1, 1) or a matrix (class, p, p)."""
    return factor * matrices if factor.shape[-1] == 1 else factor @ matrices
