"""Interaction of all samples under a kernel of the features: drift, sampling noise and kicks.

The drift of sample i is b_i = (1/N) Σ_j κ_ij H_j X_j, a sum over all samples j, and its sampling noise is such a
sum too. The N×N strengths κ are never held at once: the samples are cut into blocks, and for every two blocks a
matrix product gives r2, g or c, the compiled formula turns them into strengths, and two products add these to the
sums of both blocks, as κ is symmetric. A formula of degree one in g and c needs no pairs at all: its sums over j are
second moments of the classes, at a cost of O(N p²).
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
import torch

from lesde.laws.rule import Transforms, kick
from lesde.model.formula import FEATURE_VARIABLES, TIME, Formula, compiled
from lesde.processes.process import BLOCK
from lesde.processes.samples import class_means, spread

SMALL = 48
"""Classes of fewer samples share a block."""
LARGEST = {"cpu": 384, "cuda": 2048}
"""Samples of a block, at most: on the CPU the strengths between two blocks fit its cache."""
CELLS = {"cpu": 2**18, "cuda": 2**26}
"""Pairs worked on at once: those of two blocks, in as many replicates side by side as fit."""
HELD = 2**24
"""Bytes of the array that makes the C library keep what is freed."""


class PairInteraction:
    """The interaction of all samples, for replicates side by side.

    Samples are (replicate, sample, feature), sorted by class. Bit for bit, the results of a replicate do not depend
    on how many others there are, as long as they come in multiples of ``together``, which divides 32. Values are
    not checked to be finite: that is for the caller.
    """

    def __init__(
        self,
        coefficients: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        formula = coefficients.strength
        formula.check_resolved()
        self.strengths = {same: read_strength(formula.at(same)) for same in (True, False)}
        self.counts = np.asarray(coefficients.counts)
        self.N = int(self.counts.sum())
        self.transforms = Transforms(coefficients.transform, dtype, device)
        labels = np.repeat(np.arange(len(self.counts)), self.counts)
        self.labels = torch.as_tensor(labels, device=device)
        kind = torch.device(device).type
        self.blocks = cut(self.counts, LARGEST[kind])
        self.tiles = self._tiles()
        largest = max(block.stop - block.start for block in self.blocks)
        cells = max(largest**2 if self.tiles else 0, 8 * self.N * coefficients.n_features)
        self.together = min(BLOCK, 2 ** int(math.log2(max(1, CELLS[kind] // cells))))
        # It returns freed arrays of such sizes to the system, and every tile would fault its pages in anew,
        # unless it has once seen a larger array come and go.
        torch.empty(HELD, dtype=torch.uint8)

    def _tiles(self) -> list[tuple[int, int, bool, torch.Tensor | None]]:
        """Every two blocks and whether their samples are of one class; where only some are, which."""
        needed = [same for same, strength in self.strengths.items() if strength.linear is None]
        labels = [self.labels[block] for block in self.blocks]
        tiles: list[tuple[int, int, bool, torch.Tensor | None]] = []
        for i, j in itertools.combinations_with_replacement(range(len(labels)), 2):
            one_class = bool(labels[i][0] == labels[j][-1])
            if i == j and not one_class:
                among = labels[i].unsqueeze(1) == labels[i]
                tiles += [(i, j, same, among == same) for same in needed]
            elif one_class in needed:
                tiles.append((i, j, one_class, None))
        return tiles

    def rounded(self, replicates: int) -> int:
        """The least multiple of ``together`` that is not less."""
        return -(-replicates // self.together) * self.together

    def drift(self, samples: torch.Tensor, time: float) -> torch.Tensor:
        """b_i = (1/N) Σ_j κ_ij H_j X_j."""
        return self._sums(samples, time)

    def drift_and_sampling(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """b, and C^{1/2} applied to normals (replicate, sample): (1/√N) Σ_j (κ_ij H_j X_j − b_i) ξ_j.

        Over ξ the second has the covariance C_ij of the derivation, that of one step's kicks.
        """
        drift, moved = self._sums(samples, time, normals).chunk(2, -1)
        shared = normals.sum(1)[:, None, None] / math.sqrt(self.N)
        return drift, moved * math.sqrt(self.N) - drift * shared

    def kick(self, samples: torch.Tensor, drawn: torch.Tensor, time: float) -> torch.Tensor:
        """κ_iJ H_J X_J for the sample J (replicate,) drawn in each replicate: O(N p)."""
        lanes = torch.arange(len(samples), device=samples.device)
        chosen, classes = samples[lanes, drawn], self.labels[drawn]
        inputs = {name for strength in self.strengths.values() for name in strength.inputs}
        variables = {}
        if "r2" in inputs:
            variables["r2"] = (samples - chosen.unsqueeze(1)).square_().sum(-1)
        if "g" in inputs:
            variables["g"] = (samples * chosen.unsqueeze(1)).sum(-1)
        if "c" in inputs:
            units = unit_vectors(samples, -1)
            own = units[lanes, drawn]
            variables["c"] = (units * own.unsqueeze(1)).sum(-1).clamp_(-1, 1)
            variables["c"][lanes, drawn] = (own != 0).any(-1).to(samples.dtype)
        same, different = (
            strength.scale(time) * strength(variables, time) for strength in self.strengths.values()
        )
        kappa = torch.where(self.labels == classes.unsqueeze(1), same, different)
        return kick(self.transforms, kappa, chosen, classes)

    def _sums(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(1/N) Σ_j κ_ij y_j for y_j = H_j X_j and, behind it, for y_j = H_j X_j ξ_j."""
        # Shapes never change, with which rounding may: the last replicates are filled up.
        lanes = torch.arange(self.rounded(len(samples)), device=samples.device)
        parts = []
        for rows in lanes.clamp_(max=len(samples) - 1).split(self.together):
            own = samples[rows]
            pushed = self._push(own)
            if normals is not None:
                pushed = torch.cat([pushed, pushed * normals[rows].unsqueeze(-1)], -1)
            # From here on features stand before samples: products of matrices with few columns are slower.
            planes = pushed.mT.contiguous() / self.N
            sums = self._class_sums(own, planes, time)
            self._add_pairs(own, planes, time, sums)
            parts.append(torch.cat(sums, -1).mT)
        return torch.cat(parts)[: len(samples)].contiguous()

    def _push(self, samples: torch.Tensor) -> torch.Tensor:
        """H_j X_j."""
        if self.transforms.matrices is None or self.transforms.is_shared:
            return self.transforms.rows(samples, self.labels.expand(samples.shape[:2]))
        parts = zip(samples.split(self.counts.tolist(), 1), self.transforms.matrices, strict=True)
        return torch.cat([part @ matrix.mT for part, matrix in parts], 1)

    def _class_sums(
        self, samples: torch.Tensor, pushed: torch.Tensor, time: float
    ) -> list[torch.Tensor]:
        """Σ_j κ_ij y_j where κ is linear, else 0, as (replicate, row of y, sample of the block) for each block."""
        same, different = (strength.coefficients(time) for strength in self.strengths.values())
        if not any(same) and not any(different):
            shape = pushed.shape[:2]
            return [pushed.new_zeros(*shape, b.stop - b.start) for b in self.blocks]
        x = samples.mT
        rows = [torch.ones_like(x[:, :1]), x, unit_vectors(x, 1)]  # κ is a scalar product of these
        used = [i for i in range(3) if same[i] or different[i]]
        known = torch.cat([rows[i] for i in used], 1)
        columns = [each for i in used for each in [[same[i], different[i]]] * rows[i].shape[1]]
        weights = torch.tensor(columns, dtype=x.dtype, device=x.device)
        counts = self.counts.tolist()
        moments = [
            y @ k.mT for y, k in zip(pushed.split(counts, 2), known.split(counts, 2), strict=True)
        ]
        whole = torch.stack(moments).sum(0) * weights[:, 1]
        own = [whole + moment * (weights[:, 0] - weights[:, 1]) for moment in moments]
        moved = [m @ k for m, k in zip(own, known.split(counts, 2), strict=True)]
        sizes = [block.stop - block.start for block in self.blocks]
        return [part.contiguous() for part in torch.cat(moved, 2).split(sizes, 2)]

    def _add_pairs(
        self, samples: torch.Tensor, pushed: torch.Tensor, time: float, sums: list[torch.Tensor]
    ) -> None:
        """Add Σ_j κ_ij y_j, where κ is not linear, to the sums of the blocks."""
        factors, scaled = {}, {}
        for same in {same for _, _, same, _ in self.tiles}:
            strength = self.strengths[same]
            factors[same] = {name: self._factors(name, samples, same) for name in strength.inputs}
            scaled[same] = pushed * strength.scale(time)
        for i, j, same, mask in self.tiles:
            rows, columns = self.blocks[i], self.blocks[j]
            variables = {}
            for name, (left, right) in factors[same].items():
                product = torch.bmm(left[:, :, rows].mT, right[:, :, columns])
                own = product.diagonal(dim1=1, dim2=2) if i == j else product[:, :0, 0]
                # A sample is at distance 0 from itself and has the cosine 1, or 0 at the origin: exactly.
                if name == "r2":
                    product.clamp_(min=0)
                    own.zero_()
                elif name == "c":
                    product.clamp_(-1, 1)
                    own.round_()
                variables[name] = product
            kappa = self.strengths[same](variables, time)
            if mask is not None:
                kappa = torch.where(mask, kappa, 0)
            sums[j].baddbmm_(scaled[same][:, :, rows], kappa)
            if i != j:
                sums[i].baddbmm_(scaled[same][:, :, columns], kappa.mT)

    def _factors(
        self, name: str, samples: torch.Tensor, same: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two arrays (replicate, …, sample) whose products over the middle are r2, g or c of all pairs."""
        x = samples.mT.contiguous()
        if name == "g":
            return x, x
        if name == "c":
            units = unit_vectors(x, 1)
            return units, units
        # |x|² + |y|² − 2⟨x, y⟩ loses the digits of what is far from the origin: that is put into the class mean
        # for two samples of one class, into the mean of all for others.
        origin = samples.mean(1, keepdim=True)
        if same:
            origin = spread(class_means(samples, self.counts), self.counts)
        x = x - origin.mT
        squares = (x * x).sum(1, keepdim=True)
        ones = torch.ones_like(squares)
        return torch.cat([-2 * x, squares, ones], 1), torch.cat([x, ones, squares], 1)


class Strength:
    """The formula for two samples of one class, or for two of different classes.

    ``inputs`` names which of r2, g and c matter. ``linear`` holds a, b and d of a formula a + b g + d c in which
    these depend on time alone, and is None for others.
    """

    def __init__(self, expression: sp.Expr):
        variables = FEATURE_VARIABLES
        # What depends on time alone costs nothing where it is a factor of the whole.
        self._factor, shape = expression.as_independent(*variables.values(), as_Add=False)
        self.inputs = tuple(name for name, symbol in variables.items() if shape.has(symbol))
        symbols = [*(variables[name] for name in self.inputs), TIME]
        self._shape = compiled(shape, symbols, "torch", name="strength")
        g, c = variables["g"], variables["c"]
        slopes = [expression.diff(g), expression.diff(c)]
        parts = [expression.xreplace({g: sp.Integer(0), c: sp.Integer(0)}), *slopes]
        rest = sp.expand(expression - parts[0] - slopes[0] * g - slopes[1] * c)
        is_linear = rest == 0 and not any(part.has(*variables.values()) for part in parts)
        self.linear = parts if is_linear else None

    def scale(self, time: float) -> float:
        """The factor that depends on time alone."""
        return value(self._factor, time)

    def coefficients(self, time: float) -> list[float]:
        """a, b and d at a time, 0 where the formula is not linear."""
        return [value(part, time) for part in self.linear or [sp.Integer(0)] * 3]

    def __call__(self, variables: dict[str, torch.Tensor], time: float) -> torch.Tensor:
        """The strengths up to the factor of :meth:`scale`."""
        return self._shape(*(variables[name] for name in self.inputs), time)


read_strength = lru_cache(Strength)


def value(expression: sp.Expr, time: float) -> float:
    """Value of an expression that depends on time alone, at a time."""
    return _value(expression, time if expression.has(TIME) else 0.0)


@lru_cache(maxsize=4096)
def _value(expression: sp.Expr, time: float) -> float:
    return float(Formula(expression)(np.array([time]), "strength")[0])


def cut(counts: np.ndarray, largest: int) -> list[slice]:
    """The samples in blocks of one class each, of at most ``largest`` samples, or of several small classes."""
    ends, joins = [0], False
    for n in counts.tolist():
        first = ends[-1]
        if joins and n < SMALL and first + n - ends[-2] <= 2 * SMALL:
            ends.pop()  # together with the small classes before
        parts = 1 if n < SMALL else -(-n // largest)
        ends += [first + n * i // parts for i in range(1, parts + 1)]
        joins = n < SMALL
    return [slice(first, end) for first, end in itertools.pairwise(ends)]


def unit_vectors(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Unit vectors along an axis, 0 where x is 0; scaled first, so that no square overflows."""
    largest = x.abs().amax(axis, keepdim=True)
    scaled = x / torch.where(largest == 0, 1, largest)
    return torch.nn.functional.normalize(scaled, dim=axis)
