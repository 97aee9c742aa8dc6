"""Drift, kicks and sampling noise of a feature kernel, by tiles of pairs of samples.

b_i = (1/N) Σ_j κ_ij H_j X_j is a matrix product with the N×N strengths, which are never held at once:
tile by tile, matrix products give r2, g or c, the compiled formula turns them into strengths in place,
and a product adds them to the result. A part of the formula that has only s and t is a class kernel and
costs sums over classes, O(N p).

r2 from inner products loses digits where samples lie far from the origin of the coordinates: for two
samples of one class the class mean is taken as origin, for two of different classes the mean of all. It
is clamped at 0, and exactly 0 for a sample with itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy as sp
import torch

from lesde.formula import TIME, Formula
from lesde.pair_formula import FEATURE_VARIABLES
from lesde.pair_program import PairProgram
from lesde.simulation.pair_layout import make_layout
from lesde.simulation.pair_planes import Planes
from lesde.simulation.pair_rows import PairRow
from lesde.simulation.pair_tiles import Tiles, least_bytes

__all__ = ["Interaction"]

BLOCK = {"cpu": 256, "cuda": 2048}
TILE_BYTES = {"cpu": 2**21, "cuda": 2**28}


class Strength:
    """The formula for s = 1 or s = 0, as a factor of time and a program on tiles.

    Attributes
    ----------
    factor : Formula
        What depends on time alone: the strength is this times the program's result.
    program : PairProgram or None
        None where the features do not matter; then the factor is the strength.
    """

    def __init__(self, expression: sp.Expr):
        symbols = list(FEATURE_VARIABLES.values())
        factor, shape = expression.as_independent(*symbols, as_Add=False)
        self.factor = Formula(factor)
        self.program = PairProgram(shape) if shape.has(*symbols) else None
        if self.program is None:
            self.factor = Formula(expression)
        self._constant: tuple[float, list[float]] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether nothing in it depends on time."""
        program = self.program is None or self.program.is_constant
        return program and TIME not in self.factor.expression.free_symbols

    def values(self, time: float, name: str) -> tuple[float, list[float]]:
        """The factor, and the program's parts that depend on time alone."""
        if not self.is_constant:
            return self._values(time, name)
        if self._constant is None:
            self._constant = self._values(time, name)
        return self._constant

    def _values(self, time: float, name: str) -> tuple[float, list[float]]:
        factor = float(self.factor(np.array([time]), name)[0])
        scalars = [] if self.program is None else self.program.scalar_values(time)
        if not all(map(math.isfinite, scalars)):
            raise ValueError(
                f"{name} is not finite at t = {time:g}. Change the formula or the times."
            )
        return factor, scalars


class Interaction:
    """The interaction of all samples, for replicates side by side.

    It owns working arrays, so that one object must not be used by two threads at a time. Results do not
    depend on how replicates are grouped into calls, nor on ``tile_bytes``, bit for bit. Values are not
    checked to be finite: that is for the caller, at the times that it saves.

    Parameters
    ----------
    coefficients : FeatureCoefficients
    dtype : torch.dtype
        float32 or float64; of samples, results and arithmetic.
    device : torch.device
    tile_bytes : int, optional
        Working memory of the tiles, which decides how many replicates share one: by default 2 MiB on
        the CPU (about the size of its caches), 256 MiB elsewhere, or one tile where that takes more.

    Raises
    ------
    ValueError
        When a name in the formula has no value, or ``tile_bytes`` is less than one tile takes.
    """

    def __init__(
        self,
        coefficients: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tile_bytes: int | None = None,
    ):
        device = torch.device(device)
        self.dtype, self.device = dtype, device
        formula = coefficients.strength
        formula.check_resolved()
        self.name = "strength"
        self.same, self.different = Strength(formula.at(True)), Strength(formula.at(False))
        kind = "cpu" if device.type == "cpu" else "cuda"
        self.layout = make_layout(coefficients.counts, BLOCK[kind])
        least = least_bytes(self.layout, self._programs, dtype)
        if tile_bytes is not None and tile_bytes < least:
            raise ValueError(
                f"tile_bytes must be at least {least}, which the largest tile takes; got {tile_bytes}."
            )
        self.tile_bytes = max(least, TILE_BYTES[kind]) if tile_bytes is None else int(tile_bytes)
        self.planes = Planes(coefficients, self.layout, dtype, device)
        self.row = PairRow(coefficients, dtype, device)
        self._tiles: Tiles | None = None
        self._tile_list(1, 1)

    @property
    def is_constant(self) -> bool:
        """Whether the strength does not depend on time."""
        return self.same.is_constant and self.different.is_constant

    @property
    def bytes_per_replicate(self) -> int:
        """Working memory of one replicate besides the tiles, with drift and sampling noise."""
        return self.planes.bytes_per_replicate()

    @property
    def _programs(self) -> dict[str, PairProgram]:
        """By kind of tile, where the features matter."""
        parts = {"same": self.same.program, "different": self.different.program}
        return {kind: program for kind, program in parts.items() if program is not None}

    def drift(self, samples: torch.Tensor, time: float) -> torch.Tensor:
        """b_i = (1/N) Σ_j κ_ij H_j X_j.

        Parameters
        ----------
        samples : tensor (replicate, sample, feature)
            Sorted by class.
        time : float

        Returns
        -------
        tensor (replicate, sample, feature)
        """
        (result,) = self._sums(samples, time, None, with_drift=True)
        return result

    def sampling(
        self, samples: torch.Tensor, time: float, drift: torch.Tensor, normals: torch.Tensor
    ) -> torch.Tensor:
        """(1/√N) Σ_j (κ_ij H_j X_j − b_i) ξ_j: the factor of C applied to N normals a replicate.

        Its covariance over ξ is C_ij of the derivation, the covariance of one step's kicks.

        Parameters
        ----------
        samples, drift : tensor (replicate, sample, feature)
            The drift is that of these samples at this time.
        time : float
        normals : tensor (replicate, sample)
        """
        (total,) = self._sums(samples, time, normals, with_drift=False)
        return self._centred(total, drift, normals)

    def drift_and_sampling(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both at the cost of little more than one; equal to them up to rounding."""
        drift, total = self._sums(samples, time, normals, with_drift=True)
        return drift, self._centred(total, drift, normals)

    def kick(self, samples: torch.Tensor, drawn: torch.Tensor, time: float) -> torch.Tensor:
        """κ_iJ H_J X_J for the drawn sample J of every replicate.

        Parameters
        ----------
        samples : tensor (replicate, sample, feature)
        drawn : tensor of int (replicate,)
        time : float
        """
        same, different = (part.values(time, self.name) for part in (self.same, self.different))
        parts = (self.same.program, *same), (self.different.program, *different)
        return self.row.kick(samples, drawn, parts)

    def _centred(
        self, total: torch.Tensor, drift: torch.Tensor, normals: torch.Tensor
    ) -> torch.Tensor:
        shift = normals.sum(1).mul_(1 / math.sqrt(normals.shape[1]))
        return total.sub_(drift * shift[:, None, None])

    def _sums(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor | None, with_drift: bool
    ) -> Sequence[torch.Tensor]:
        """(1/N) Σ_j κ_ij H_j X_j and, with normals, (1/√N) Σ_j κ_ij H_j X_j ξ_j."""
        values = {
            "same": self.same.values(time, self.name),
            "different": self.different.values(time, self.name),
        }
        parts = int(with_drift) + int(normals is not None)
        tiles, planes = self._tile_list(len(samples), parts), self.planes
        planes.load(samples)
        planes.push(normals, with_drift)
        direct = tuple(
            values[kind][0] if part.program is None else 0.0
            for kind, part in (("same", self.same), ("different", self.different))
        )
        planes.start(*direct)
        if not tiles.is_empty:
            tiles.run(values)
        return planes.results()

    def _tile_list(self, replicates: int, parts: int) -> Tiles:
        self.planes.resize(replicates, parts)
        if self._tiles is None or self._tiles.stamp is not self.planes.stamp:
            self._tiles = Tiles(self.layout, self.planes, self._programs, self.tile_bytes)
        return self._tiles
