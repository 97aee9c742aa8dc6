"""The samples as planes (replicate, feature, column), and what the tiles multiply: O(N p) work."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lesde.simulation.pair_layout import FEATURES, SAMPLES, Layout, padded
from lesde.transforms import Transform, logit_directions

__all__ = ["Planes"]

FEW = 64
"""Sums over so many classes are one product with a matrix of ones and zeros."""


class Planes:
    """Working arrays of O(N p) a replicate, filled anew at every call.

    Attributes
    ----------
    features : tensor (replicate, feature, column)
        X, in the padding that of a sample of the same block.
    pushes : tensor (replicate, part·feature, column)
        H X and, or, H X ξ √N; 0 in the padding.
    scaled : dict of tensors like ``pushes``
        The same times the factor of the strength in time, over N, for tiles with s = 1 and s = 0.
    totals : list of tensors (replicate, part·feature, column of the block), one a block
        The result; apart, as in-place products need contiguous memory to be fast.
    left, right : dict of tensors (replicate, ..., column)
        By (variable, kind of tile): what multiplies to r2, g or c.
    own_cosine : tensor (replicate, column)
        c of a sample with itself: 1, or 0 where it is 0.
    """

    def __init__(self, coefficients: Any, layout: Layout, dtype: torch.dtype, device: torch.device):
        self.layout, self.dtype, self.device = layout, dtype, device
        self.counts = np.asarray(coefficients.counts)
        self.transform: Transform = coefficients.transform
        self.N, self.K = int(self.counts.sum()), len(self.counts)
        self.p = self.transform.n_features
        self.P = padded(self.p, FEATURES)
        self.M = len(layout.sample)
        self.sample = torch.as_tensor(layout.sample, device=device)
        self.label = torch.as_tensor(layout.label, device=device)
        self.is_padded = self.M > self.N
        self.mask = self._tensor(~layout.is_padding)
        self.sizes = self._tensor(self.counts)
        self.ones = self._tensor(np.ones((1, FEATURES, self.P)))
        self.distance_scales: dict[str, float] = {}
        self.stamp = object()
        self.replicates = self.parts = 0
        self._shared = {
            b: self._one_hot(b.columns, b.classes) for b in layout.blocks if b.is_shared
        }
        few = self.K <= FEW
        self._members = self._one_hot(slice(0, self.M), range(self.K)) if few else None
        if self._members is not None:
            self._members[:, :, self.K] = 1.0
        self._matrices = self._transform_matrices()

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(np.array(values, np.float64), dtype=self.dtype, device=self.device)

    def _one_hot(self, columns: slice, classes: range) -> torch.Tensor:
        """Which of the classes every column belongs to, (1, column, class)."""
        labels = self.layout.label[columns] - classes.start
        members = np.zeros((1, len(labels), padded(len(classes) + 1, SAMPLES)))
        members[0, np.arange(len(labels)), labels] = 1.0
        return self._tensor(members)

    def _transform_matrices(self) -> torch.Tensor | None:
        if self.transform.kind != "matrix":
            return None
        matrices = (
            self.transform.array()[:1] if self.transform.is_shared else self.transform.array()
        )
        full = np.zeros((len(matrices), self.P, self.P))
        full[:, : self.p, : self.p] = matrices
        return self._tensor(full)

    def bytes_per_replicate(self) -> int:
        """Of the arrays that the tiles now have, with drift and sampling noise."""
        once = {id(a): a for a in [*self.left.values(), *self.right.values(), self.features]}
        fixed = [*once.values(), self._masked, self._scratch]
        each = [self.pushes, *self.totals, *self.scaled.values()]
        cells = sum(a[0].numel() for a in fixed) + 2 * sum(a[0].numel() for a in each) // self.parts
        return cells * self.features.element_size()

    def resize(self, replicates: int, parts: int) -> None:
        """Make the arrays for so many replicates and results, unless they are there."""
        if (replicates, parts) == (self.replicates, self.parts):
            return
        self.replicates, self.parts, self.stamp = replicates, parts, object()
        self.features = self._empty(self.P)
        self._masked = self._empty(self.P)
        self._scratch = self._empty(self.P)
        self.pushes = self._empty(parts * self.P)
        self.totals = [self._empty(parts * self.P, b.width) for b in self.layout.blocks]
        self.own_cosine = self._empty(1)[:, 0]
        self.scaled: dict[str, torch.Tensor] = {}
        self.left: dict[tuple[str, str], torch.Tensor] = {}
        self.right: dict[tuple[str, str], torch.Tensor] = {}

    def _empty(self, rows: int, columns: int | None = None) -> torch.Tensor:
        # Zeros, as the padding of features is never written.
        shape = (self.replicates, rows, self.M if columns is None else columns)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def require(self, grams: Iterable[tuple[str, str]], kinds: Iterable[str]) -> None:
        """Make the arrays that tiles of some kinds and variables need."""
        for kind in kinds:
            self.scaled[kind] = torch.empty_like(self.pushes)
        for name, kind in grams:
            if name == "g":
                self.left[name, kind] = self.right[name, kind] = self.features
            elif name == "c":
                unit = self.left.get(("c", "same"), self.left.get(("c", "different")))
                unit = self._empty(self.P) if unit is None else unit
                self.left[name, kind] = self.right[name, kind] = unit
            else:
                left, right = self._empty(self.p + 2), self._empty(self.p + 2)
                left[:, self.p + 1] = 1.0
                right[:, self.p] = self.distance_scales[kind]
                self.left[name, kind], self.right[name, kind] = left, right

    def load(self, samples: torch.Tensor) -> None:
        """Take samples (replicate, sample, feature)."""
        rows = samples.index_select(1, self.sample) if self.is_padded else samples
        self.features[:, : self.p].copy_(rows.transpose(1, 2))
        torch.mul(self.features, self.mask, out=self._masked)

    def push(self, normals: torch.Tensor | None, with_drift: bool) -> None:
        """Fill ``pushes``: with H X, and last with H X ξ √N for normals (replicate, sample)."""
        first = self.pushes[:, : self.P]
        self._apply_transform(first)
        if normals is not None:
            rows = normals.index_select(1, self.sample) if self.is_padded else normals
            factor = rows.mul(math.sqrt(self.N)).unsqueeze(1)
            torch.mul(first, factor, out=self.pushes[:, self.P :] if with_drift else first)

    def _apply_transform(self, out: torch.Tensor) -> None:
        masked = self._masked
        if self.transform.kind == "identity":
            out.copy_(masked)
        elif self._matrices is None:
            directions = self._directions
            torch.mul(directions, masked, out=self._scratch)
            scores = self._column_sums(self._scratch).unsqueeze(1) / (1.0 - 1.0 / self.K)
            torch.mul(directions, scores, out=out)
        elif len(self._matrices) == 1:
            torch.bmm(self._matrices.expand(len(masked), -1, -1), masked, out=self._scratch)
            out.copy_(self._scratch)
        else:
            self._apply_class_matrices(out)

    def _apply_class_matrices(self, out: torch.Tensor) -> None:
        assert self._matrices is not None
        out.zero_()
        for block in self.layout.blocks:
            part = self._masked[:, :, block.columns]
            for i, k in enumerate(block.classes):
                own = part * self._shared[block][:, :, i].unsqueeze(1) if block.is_shared else part
                matrix = self._matrices[k].expand(len(part), -1, -1)
                out[:, :, block.columns].baddbmm_(matrix, own)

    @property
    def _directions(self) -> torch.Tensor:
        """d_l of the class of every column, (1, feature, column)."""
        if not hasattr(self, "_logit_planes"):
            full = np.zeros((1, self.P, self.M))
            full[0, : self.p] = logit_directions(self.K)[self.layout.label].T
            self._logit_planes = self._tensor(full)
        return self._logit_planes

    def start(self, same: float, different: float) -> None:
        """Set the totals to what a strength of s and t alone gives: (1/N) Σ_j κ_ij times the pushes."""
        if same == 0 and different == 0:
            for total in self.totals:
                total.zero_()
            return
        sums, whole = self.class_sums(self.pushes)
        drifts = sums.mul((same - different) / self.N).add_(whole.mul(different / self.N))
        for block, total in zip(self.layout.blocks, self.totals, strict=True):
            torch.index_select(drifts, 2, self.label[block.columns], out=total)

    def class_sums(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the columns of every class (replicate, row, class), and of all (…, 1).

        Of planes that are 0 in the padding.
        """
        if self._members is not None:
            members = self._members.expand(len(planes), -1, -1)
            sums = torch.bmm(planes, members)
            return sums[:, :, : self.K], sums[:, :, self.K : self.K + 1]
        result = planes.new_zeros(*planes.shape[:2], self.K)
        for block in self.layout.blocks:
            part, first = planes[:, :, block.columns], block.classes.start
            if block.is_shared:
                members = self._shared[block].expand(len(part), -1, -1)
                sums = torch.bmm(part, members)[:, :, : len(block.classes)]
                result[:, :, first : first + len(block.classes)] = sums
            else:
                result[:, :, first] += part.sum(-1)
        return result, result.sum(-1, keepdim=True)

    def _column_sums(self, planes: torch.Tensor) -> torch.Tensor:
        """Sums over features, (replicate, column), by a product whose rounding is always the same."""
        return torch.bmm(self.ones.expand(len(planes), -1, -1), planes)[:, 0]

    def prepare(self, factors: dict[str, float]) -> None:
        """Fill what the tiles multiply, given the factors in time of the kinds of tiles."""
        for kind, scaled in self.scaled.items():
            torch.mul(self.pushes, factors[kind] / self.N, out=scaled)
        kinds = [kind for name, kind in self.left if name == "r2"]
        if kinds:
            sums, whole = self.class_sums(self._masked)
            for kind in kinds:
                self._centre(kind, sums / self.sizes if kind == "same" else whole / self.N)
        units = {id(unit): unit for (name, _), unit in self.left.items() if name == "c"}
        for unit in units.values():
            self._normalise(unit)

    def _centre(self, kind: str, centres: torch.Tensor) -> None:
        """Factors of q·r2 = q(|x|² + |y|² − 2⟨x, y⟩), about the class means or the mean of all."""
        p, q = self.p, self.distance_scales[kind]
        left, right, scratch = self.left["r2", kind], self.right["r2", kind], self._scratch
        if kind == "same":
            centres = torch.index_select(centres, 2, self.label, out=scratch)
        torch.sub(self.features[:, :p], centres[:, :p], out=left[:, :p])
        scratch.zero_()
        torch.mul(left[:, :p], left[:, :p], out=scratch[:, :p])
        squares = self._column_sums(scratch)
        left[:, p].copy_(squares)
        torch.mul(left[:, :p], -2.0 * q, out=right[:, :p])
        torch.mul(squares, q, out=right[:, p + 1])

    def _normalise(self, unit: torch.Tensor) -> None:
        """Unit vectors, 0 for a sample at 0; scaled first, so that no square overflows."""
        largest = self.features.abs().amax(1)
        self.own_cosine.copy_(largest > 0)
        largest.masked_fill_(largest == 0, 1.0)
        torch.div(self.features, largest.unsqueeze(1), out=unit)
        torch.mul(unit, unit, out=self._scratch)
        norm = self._column_sums(self._scratch).sqrt_()
        unit.div_(norm.masked_fill(norm == 0, 1.0).unsqueeze(1))

    def results(self) -> list[torch.Tensor]:
        """The totals as (replicate, sample, feature), one tensor a part."""
        parts = []
        for i in range(self.parts):
            shape = (self.replicates, self.N, self.p)
            result = torch.empty(shape, dtype=self.dtype, device=self.device)
            for block, total in zip(self.layout.blocks, self.totals, strict=True):
                rows = total[:, i * self.P : i * self.P + self.p, : block.length]
                result[:, block.first : block.first + block.length].copy_(rows.transpose(1, 2))
            parts.append(result)
        return parts
