"""The linear system of the class means, in the smallest space that carries it.

dY = W(t) V Y dt + noise, Y the class means in the coordinates of :func:`contrast_basis`: grand mean and
contrasts. Where the two do not mix, as in balanced models, each keeps its own digits; in class coordinates
the contrasts would drown in the rounding of a grand mean that grows faster.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lesde.derivation.coefficients import Coefficients, FeatureCoefficients
from lesde.laws.rule import Transforms
from lesde.laws.values import BoundNoise, BoundTable, Values, numbers_of
from lesde.model.kernels import no_linear_drift
from lesde.model.quadrature import NODES, WEIGHTS, Panels

DENSE_LIMIT = 2000
"""Largest K·p for which dense (K·p)×(K·p) matrices are formed (32 MB each)."""
ROUNDING = 16 * np.finfo(float).eps
"""Entries of a rotated matrix this far below its largest are rounding of exact zeros."""
LARGEST_NORM = 1.5
"""A polynomial of degree 15 carries the flow of a panel to rounding up to this norm."""
MOST_PANELS = 20_000
"""Panels of one law; a decay that needs more ends in zeros long before."""
VALUES_AT_ONCE = 2**17
"""Numbers in arrays of class matrices and flows at once, 8 bytes each."""


def contrast_basis(n_classes: int) -> np.ndarray:
    """An orthogonal K×K matrix: the first column the grand mean 1/√K, the others Helmert contrasts."""
    K = n_classes
    basis = np.zeros((K, K))
    basis[:, 0] = 1 / np.sqrt(K)
    for j in range(1, K):
        basis[:j, j] = 1.0
        basis[j, j] = -j
        basis[:, j] /= np.sqrt(j * (j + 1))
    return basis


def clean(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (item, …) with entries that are only rounding set to zero, so that decoupled parts stay decoupled.

    Gradients are kept: a strength that happens to be zero now must still be able to move.
    """
    with torch.no_grad():
        size = matrices.abs().flatten(1).amax(1).view(-1, *(1,) * (matrices.dim() - 1))
        rounding = torch.where(matrices.abs() > ROUNDING * size, 0.0, matrices)
    return matrices - rounding


class MeanSystem:
    """W(t), V and the noise of dY = W V Y dt + noise.

    The space has n = K dimensions where the transform is the identity and the noise constant or one number per
    class: every feature obeys the same system. Else n = K·p, and W and V have the rank of the H_l. ValueError
    where the drift is not linear, or needs dense matrices beyond :data:`DENSE_LIMIT`.

    Attributes
    ----------
    basis : tensor (K, K)
    right : tensor (r, n)
        V; the identity where n = K.
    features : tensor (part, p, p), or None
        Where n = K the noise of the class means has the intensity Σ_part Q_part ⊗ features_part, with matrices Q
        of :meth:`intensity`; None where n = K·p.
    """

    def __init__(
        self, coefficients: Coefficients | FeatureCoefficients, values: Values | None = None
    ):
        if isinstance(coefficients, FeatureCoefficients):
            raise no_linear_drift("the exact law")
        self.coefficients, self.values = coefficients, values or {}
        self.noise = noise = BoundNoise(coefficients.noise, self.values)
        self.drift = BoundTable(coefficients.drift_table, self.values, "kernel")
        self._entries = BoundTable(coefficients.entries, self.values, "kernel")
        self.counts = torch.tensor(coefficients.counts, dtype=torch.float64)
        self.n_features = p = coefficients.n_features
        K = len(self.counts)
        self.basis = B = torch.from_numpy(contrast_basis(K))
        self.features: torch.Tensor | None = None
        self._norms = coefficients.transform.norms()
        identity = coefficients.transform.kind == "identity"
        if identity and (noise.is_isotropic or noise.is_constant):
            self.right = torch.eye(K, dtype=torch.float64)
            self.features = torch.eye(p, dtype=torch.float64)[None]
            if not noise.is_isotropic:
                self.features = noise.square(np.zeros(1))[0]
            return
        if K * p > DENSE_LIMIT:
            why, instead = "the exact law of this model", "transform='identity'"
            if identity:
                why, instead = "noise with a matrix that changes in time", "constant noise"
            raise ValueError(
                f"{why} needs dense matrices of size n_classes·n_features = {K * p}, more than {DENSE_LIMIT}; "
                f"use engine='torchsde', or {instead}."
            )
        self._left, readout = Transforms(coefficients.transform).factors()
        V = torch.einsum("lb,lri,la->brai", B, readout, B).reshape(-1, K * p)
        self.right = clean(V[None])[0]

    @property
    def is_constant(self) -> bool:
        """True where neither kernel nor noise depend on time."""
        return self.drift.is_constant and self.noise.is_constant

    @property
    def parts(self) -> int:
        """The number of matrices Q of the noise."""
        return 1 if self.features is None else len(self.features)

    @property
    def panels_at_once(self) -> int:
        """The number of panels whose flows and noise are held in memory at once."""
        r, n = self.right.shape
        return max(1, VALUES_AT_ONCE // (NODES * n * max(r, self.parts * n)))

    def check(self, times: np.ndarray) -> None:
        """Raise where kernel or noise are not finite at one of the times; names the value."""
        with torch.no_grad():
            self._checked(times[:1] if self.drift.is_constant else times)
            self.noise.square(times[:1] if self.noise.is_constant else times)

    def weights(self, times: np.ndarray) -> torch.Tensor:
        """The drift's class matrix w_l E_kl, shape (time, class, class)."""
        return self._checked(times)[:, torch.from_numpy(self.drift.table.index)]

    def _checked(self, times: np.ndarray) -> torch.Tensor:
        try:
            return self.drift.distinct(times)
        except ValueError:
            self._entries(times)  # raises in terms of the user's formulas, where these are at fault
            raise

    def outer(self, times: np.ndarray) -> torch.Tensor:
        """W at the times, shape (time, n, r)."""
        return self._outer(self.weights(times))

    def _outer(self, weights: torch.Tensor) -> torch.Tensor:
        B = self.basis
        if self.features is not None:
            return clean(B.T @ weights @ B)
        # (class, feature·rank·contrast)
        columns = torch.einsum("lir,lb->lirb", self._left, B).flatten(1)
        blocks = (B.T @ weights @ columns).unflatten(-1, (*self._left.shape[1:], len(B)))
        r, n = self.right.shape
        return clean(blocks.movedim(-1, -2)).reshape(-1, n, r)

    def intensity(self, times: np.ndarray) -> torch.Tensor:
        """Q of the class means' noise at the times, (time, part, n, n)."""
        B, K, p = self.basis, len(self.counts), self.n_features
        if self.features is None:
            square = self.noise.covariances(self.noise.square(times), K)
            Q = torch.einsum("ka,tkij,kb->taibj", B, square / self.counts[:, None, None], B)
            return clean(Q).reshape(-1, 1, K * p, K * p)
        if self.noise.is_isotropic:
            sizes = self.noise.square(times)[:, None].expand(-1, 1, K)
        else:  # of one matrix for all classes, or one for each: its size is in `features`
            one = torch.ones(1, K).double() if self.parts == 1 else torch.eye(K).double()
            sizes = one.expand(len(times), -1, -1)
        Q = (B.T * (sizes / self.counts).unsqueeze(-2)) @ B
        return clean(Q.flatten(0, 1)).view(Q.shape)

    def panels(self, times: np.ndarray) -> Panels:
        """Panels on which kernel and noise are resolved and the flow is near the identity, at the current values.

        The owner of each is the interval between successive times. The choice is no part of a graph: the law
        does not depend on it but by rounding. ValueError, with the name of a coefficient, where it changes too
        abruptly or too often to integrate, or is too strong.
        """
        panels = Panels(times[:-1], np.diff(times), np.arange(len(times) - 1))
        if not self.drift.is_constant:
            with torch.no_grad():
                panels = self.coefficients.kernel_panels(
                    times, numbers_of(self.values), lambda at: self._checked(at).numpy()
                )
        pieces = np.ceil(self._panel_norms(panels) * panels.widths / LARGEST_NORM).clip(min=1)
        if not pieces.sum() <= MOST_PANELS:
            at = panels.starts[[int(np.argmax(pieces))]]
            with torch.no_grad():
                strongest = int(self.drift.distinct(at)[0].abs().argmax())
            raise ValueError(
                f"{self.coefficients.entry(strongest)} is too strong to integrate from t = {times[0]:g} to "
                f"{times[-1]:g}, which would take {pieces.sum():.2g} steps. End `times` earlier, or weaken the "
                f"kernel."
            )
        pieces = pieces.astype(int)
        widths = np.repeat(panels.widths / pieces, pieces)
        position = np.arange(len(widths)) - np.repeat(pieces.cumsum() - pieces, pieces)
        starts = np.repeat(panels.starts, pieces) + position * widths
        panels = Panels(starts, widths, np.repeat(panels.owner, pieces))
        if self.noise.is_constant:
            return panels
        kept = np.exp(-2 * panels.widths * self._panel_losses(panels))
        finer = self.noise.panels(np.append(panels.starts, times[-1]), kept)
        return Panels(finer.starts, finer.widths, panels.owner[finer.owner])

    @torch.no_grad()
    def _matrices(self, panels: Panels) -> Iterator[torch.Tensor]:
        """Class matrices (panel, node, class, class), some panels at a time."""
        at_once = max(1, VALUES_AT_ONCE // (NODES * len(self.counts) ** 2))
        nodes_of_all = panels.nodes
        for i in range(0, len(nodes_of_all), at_once):
            nodes = nodes_of_all[i : i + at_once]
            yield self.weights(nodes.ravel()).unflatten(0, nodes.shape)

    def _panel_norms(self, panels: Panels) -> np.ndarray:
        """The largest norm of the generator in each panel, at most √(row sum · column sum) of its class matrix."""
        scale = torch.from_numpy(self._norms)
        absolutes = ((each * scale).abs() for each in self._matrices(panels))
        bounds = ((a.sum(-1).amax(-1) * a.sum(-2).amax(-1)).sqrt().amax(-1) for a in absolutes)
        return torch.cat(list(bounds)).numpy()

    def _panel_losses(self, panels: Panels) -> np.ndarray:
        """The largest rate at which class means shrink in each panel; 0 where none does."""
        losses = []
        for each in self._matrices(panels):
            means = torch.einsum("j,sjkl->skl", torch.from_numpy(WEIGHTS), each)
            M = self._outer(means) @ self.right
            losses.append(-torch.linalg.eigvalsh((M + M.mT) / 2)[:, 0])
        return torch.cat(losses).clamp(min=0).numpy()
