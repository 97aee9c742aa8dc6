"""How far each class reaches toward the others, at a cost that does not depend on its size.

The deviations of n samples from their own mean are Y_i = A (Z_i − Z̄), Z_i standard normal. What
separation needs of them is how far they reach against the unit vectors u_d to the other classes,
max_i (−u_d·Y_i). With a_d = −Aᵀu_d = |a_d| b_d that is |a_d| times the largest of b_d·(Z_i − Z̄).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from lesde.model.noise import finite_variance
from lesde.processes.integration import StepGrid
from lesde.processes.plan import Block, Plan, class_sums, spread
from lesde.processes.random import BLOCK, BlockNoise

__all__ = [
    "Deviations",
    "IntervalNoise",
    "Scatter",
    "draw_reach",
    "is_joint",
    "largest_of_centred",
    "points_needed",
    "square_roots",
]


# --------------------------------------------------------------------------------------------------
# The deviations of samples from their class mean, drawn at the saved times only.

NUMBERS = 2**20
"""Numbers of a block that are worked on together: few enough for the last cache, with as few calls as can be."""

ROW = 32
"""Numbers that are shifted in one go where samples are placed."""

STEPS = 2**12
"""Steps at which noise is tabulated at once."""


@dataclass(frozen=True)
class IntervalNoise:
    """What noise adds to a sample over the intervals between saved times.

    Attributes
    ----------
    scale : ndarray (interval, class), or None
        Its standard deviation per coordinate, where noise is isotropic.
    factors : ndarray (interval, class, feature, feature)
        A root of its covariance, otherwise.
    """

    scale: np.ndarray | None
    factors: np.ndarray

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def exact(cls, noise: Any, times: np.ndarray) -> IntervalNoise:
        """The integral of the noise between successive times."""
        if noise.is_isotropic:
            return cls(np.sqrt(noise.integrated_scale(times)), np.empty(0))
        if noise.is_constant:
            widths = np.diff(times)[:, None, None, None]
            factors = noise.factor(times[:-1]) * np.sqrt(widths)
            finite_variance(factors @ factors.swapaxes(-1, -2), times)
            return cls(None, factors)
        return cls(None, square_roots(noise.integrated(times)))

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def of_scheme(cls, noise: Any, grid: StepGrid, method: str) -> IntervalNoise:
        """What a solver's steps add, which differs from the integral where noise depends on time."""
        if noise.is_constant:
            return cls.exact(noise, grid.times)
        sums: Any = 0.0
        for first in range(0, len(grid.starts), STEPS):
            sums = sums + _added(noise, grid, method, first, min(first + STEPS, len(grid.starts)))
        finite_variance(sums, grid.times)
        if noise.is_isotropic:
            return cls(np.sqrt(sums[..., 0, 0]), np.empty(0))
        return cls(None, square_roots(sums))

    def __getitem__(self, interval: int) -> np.ndarray:
        """The roots of every class: (class,) where isotropic, else (class, feature, feature)."""
        return self.factors[interval] if self.scale is None else self.scale[interval]

    @cached_property
    def common(self) -> list[float | None]:
        """For every interval the standard deviation that all classes share, None where they do not."""
        if self.scale is None:
            return [None] * len(self.factors)
        shared = (self.scale == self.scale[:, :1]).all(axis=1).tolist()
        first = self.scale[:, 0].tolist()
        return [value if one else None for one, value in zip(shared, first, strict=True)]

    def grown(self) -> list[np.ndarray]:
        """Roots of what noise has added up to every saved time, the first of them zero."""
        if self.scale is not None:
            sums = np.sqrt(np.cumsum(self.scale**2, axis=0))
            return [np.zeros_like(sums[0]), *sums]
        covariances = self.factors @ self.factors.swapaxes(-1, -2)
        roots = square_roots(np.cumsum(covariances, axis=0))
        return [np.zeros_like(roots[0]), *roots]


def _added(noise: Any, grid: StepGrid, method: str, first: int, end: int) -> np.ndarray:
    """What steps first..end-1 add to the covariance in every interval, (interval, class, …, …)."""
    starts, widths = grid.starts[first:end], grid.widths[first:end]
    edges = np.append(starts, starts[-1] + widths[-1])
    values = noise.scale(edges)[..., None, None] if noise.is_isotropic else noise.factor(edges)
    left, right = values[:-1], values[1:]
    squares = left @ left.swapaxes(-1, -2)
    if method == "srk":  # σ(t+Δ)(I − U/Δ) + σ(t) U/Δ, with the increment I and its integral U
        mixed = left @ right.swapaxes(-1, -2)
        squares = squares + right @ right.swapaxes(-1, -2)
        squares = (squares + (mixed + mixed.swapaxes(-1, -2)) / 2) / 3
    sums = np.zeros((len(grid.times) - 1, *squares.shape[1:]))
    interval = grid.interval(np.arange(first, end))
    begins = np.flatnonzero(np.diff(interval, prepend=-1))
    sums[interval[begins]] = np.add.reduceat(squares * widths[:, None, None, None], begins, axis=0)
    return sums


def _shift_classes(values: torch.Tensor, shift: torch.Tensor, out: torch.Tensor) -> None:
    """Add a row of every class to its samples, for classes of equal size.

    ``values``, ``out`` (time, row, sample, feature), ``shift`` (time, row, class, feature). The row is
    repeated for several samples, because a loop over the few numbers of one sample is slow.
    """
    K, p = shift.shape[2:]
    n = values.shape[2] // K
    several = max(1, min(n, ROW // p))
    wide = shift.unsqueeze(3).expand(-1, -1, -1, several, -1)
    repeated = wide.flatten(3).unsqueeze(3)
    values, out = values.unflatten(2, (K, n)), out.unflatten(2, (K, n))
    whole = n - n % several
    for samples, at_once in ((slice(0, whole), several), (slice(whole, n), 1)):
        if samples.start < samples.stop:
            parts = (x[:, :, :, samples] for x in (values, out))
            rows, target = (part.view(*part.shape[:3], -1, at_once * p) for part in parts)
            torch.add(rows, repeated[..., : at_once * p], out=target)


def square_roots(covariances: np.ndarray) -> np.ndarray:
    """A with A Aᵀ the covariances (…, feature, feature), of any rank."""
    values, vectors = np.linalg.eigh(covariances)
    return vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :]


class Deviations:
    """The samples of one block, without their drift, at successive saved times.

    Parameters
    ----------
    plan : Plan
    cell : int
    block : Block
    offsets : tensor (replicate, sample, feature), or None
        Initial deviations.
    noise : IntervalNoise
    """

    def __init__(
        self,
        plan: Plan,
        cell: int,
        block: Block,
        offsets: torch.Tensor | None,
        noise: IntervalNoise,
    ):
        self.counts, self.noise = plan.counts, noise
        self.generator = plan.noise(cell, block, "deviations")
        # Not centred: the average over a class is taken off where samples are placed.
        shape = (BLOCK, plan.n_samples, plan.n_features)
        self.last = torch.zeros(shape, dtype=plan.dtype, device=plan.device)
        if offsets is not None:
            self.last += offsets
        self._space = torch.empty(
            (self.times_at_once(plan), *shape), dtype=plan.dtype, device=plan.device
        )
        sizes = torch.tensor(self.counts.tolist(), dtype=torch.float64, device=plan.device)
        self.sizes = sizes.unsqueeze(-1)
        self.balanced = bool((self.counts == self.counts[0]).all())

    @staticmethod
    def times_at_once(plan: Plan) -> int:
        """Saved times whose deviations are drawn together; depends on the model alone."""
        return max(1, min(64, NUMBERS // (BLOCK * plan.n_samples * plan.n_features)))

    @classmethod
    def bytes(cls, plan: Plan) -> float:
        """Working memory of a block."""
        size = torch.empty(0, dtype=plan.dtype).element_size()
        frames = 3.0 + cls.times_at_once(plan)
        return frames * size * BLOCK * plan.n_samples * plan.n_features

    def first(self) -> torch.Tensor:
        """The deviations at the first time, (1, replicate, sample, feature)."""
        return self.last.unsqueeze(0)

    def following(self, first: int, count: int) -> torch.Tensor:
        """The deviations at the ends of ``count`` intervals, (time, replicate, sample, feature).

        Overwritten by the next call.
        """
        values = self.generator.normal_(self._space[:count])
        last = self.last
        for i, part in enumerate(values):
            common = self.noise.common[first + i]
            if common is None:
                self._scale(part, first + i)
                part.add_(last)
            else:
                torch.add(last, part, alpha=common, out=part)
            last = part
        self.last.copy_(values[-1])
        return values

    def _scale(self, draws: torch.Tensor, interval: int) -> None:
        """Multiply normals (replicate, sample, feature) by each class's noise, in place."""
        roots, first = self.noise[interval], 0
        for n, root in zip(self.counts, roots, strict=True):
            part = draws[:, first : first + int(n)]
            if root.ndim == 0:
                part.mul_(float(root))
            else:
                turned = torch.as_tensor(root.T.copy(), dtype=draws.dtype, device=draws.device)
                part.copy_(part @ turned)
            first += int(n)

    def place(self, values: torch.Tensor, means: torch.Tensor, out: torch.Tensor) -> None:
        """Write samples, deviations about class means, into ``out``.

        Parameters
        ----------
        values : tensor (time, replicate, sample, feature)
        means : tensor (time, replicate, class, feature), float64
        out : tensor (time, row, sample, feature)
            Replicates beyond its rows are dropped.
        """
        rows = out.shape[1]
        sums = class_sums(values, self.counts)
        shift = (means - sums.double() / self.sizes).to(values.dtype)[:, :rows]
        values = values[:, :rows]
        direct = out.device == values.device
        target = out if direct else torch.empty_like(values)
        if self.balanced:
            _shift_classes(values, shift, target)
        else:
            torch.add(values, spread(shift, self.counts), out=target)
        if not direct:
            out.copy_(target)


# --------------------------------------------------------------------------------------------------
# Within-class scatter without samples: a process of p×p matrices, whatever the number of samples.


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


# --------------------------------------------------------------------------------------------------
# The largest projections of a centred normal sample, without drawing the sample.

EXPLICIT = 128
EXPLICIT_PER_ROW = 16
"""Samples of up to ``EXPLICIT`` + ``EXPLICIT_PER_ROW`` D points are always drawn in full."""

LARGEST_CORRECTION = 0.5
"""Of the covariance of a point below t, relative to that of a normal one."""

CHUNK = 2**19
"""Numbers worked on at once. Changing it changes the stream of random numbers."""

TIE = 1e-12
"""Equal rows are told apart by this much per row, which moves the levels by as little."""


def points_needed(count: int, D: int) -> int:
    """About how many points are drawn for one sample and D rows."""
    return count if _is_small(count, D) else _batch(D)


def largest_of_centred(noise: BlockNoise, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One draw of max_i b_d·(Z_i − Z̄) for every lane and row.

    Parameters
    ----------
    noise : BlockNoise
    rows : ndarray (lane, D, q)
        Unit vectors b_d. They may repeat or depend on each other.
    counts : ndarray of int (lane,)
        Sample sizes n.

    Returns
    -------
    ndarray (lane, D)
        Zero where n = 1.
    """
    L, D, q = rows.shape
    out = np.empty((L, D))
    small = np.zeros(L, dtype=bool)
    for n in np.unique(counts).tolist():
        if _is_small(n, D):
            same = counts == n
            small |= same
            for part in _pieces(np.flatnonzero(same), n * (q + D)):
                out[part] = _in_full(noise, rows[part], n)
    for part in _pieces(np.flatnonzero(~small), _batch(D) * (q + 3 * D)):
        out[part] = _Descent(noise, rows[part], counts[part]).run()
    return out


def _is_small(n: int, D: int) -> bool:
    """Whether a sample is drawn in full: where many would turn out to need it anyway."""
    if n <= EXPLICIT + EXPLICIT_PER_ROW * D:
        return True
    # The level at which most samples stop, and rows at 60 degrees as between many classes.
    tail = (math.log(D) + 2.0) / n
    t, f = -ndtri(tail), math.exp(-0.5 * ndtri(tail) ** 2) / math.sqrt(2.0 * math.pi)
    f /= 1.0 - D * tail
    return t * f * (D + 1) / 2 + f * f * D * (D + 1) / 2 > LARGEST_CORRECTION


def _batch(D: int) -> int:
    """Candidates drawn at once: mostly enough for D maxima."""
    return max(16, math.ceil(D * (math.log(D) + 2.0))) if D > 1 else 1


def _pieces(index: np.ndarray, numbers: int) -> list[np.ndarray]:
    size = max(1, CHUNK // int(numbers))
    return [index[i : i + size] for i in range(0, len(index), size)]


def _normals(noise: BlockNoise, *shape: int) -> np.ndarray:
    return noise.normal(*shape, dtype=torch.float64).cpu().numpy()


def _in_full(noise: BlockNoise, rows: np.ndarray, n: int) -> np.ndarray:
    projected = rows @ _normals(noise, len(rows), rows.shape[2], n)
    return projected.max(-1) - projected.mean(-1)


class _Descent:
    """Points of all lanes in the order of falling T, and then the sums of the rest.

    Everything is kept as projections on the rows: a point is the vector of its D projections.

    Attributes
    ----------
    peak : ndarray (lane, D)
        The largest projections so far, of the points kept.
    candidates, kept : ndarray (lane, D)
        Sums over the candidates above the level reached, and over those kept.
    n_candidates, n_kept : ndarray (lane,)
    """

    def __init__(self, noise: BlockNoise, rows: np.ndarray, counts: np.ndarray):
        self.noise, self.rows, self.counts = noise, rows, counts
        self.L, self.D, self.q = rows.shape
        self.gram = rows @ rows.swapaxes(1, 2)
        self.shift = TIE * np.arange(self.D)
        # A level that half of the points would be candidates for: hardly ever reached.
        self.floor = float(-ndtri(0.5 / self.D)) if self.D > 1 else -np.inf
        self.peak = np.full((self.L, self.D), -np.inf)
        self.candidates = np.zeros((self.L, self.D))
        self.kept = np.zeros((self.L, self.D))
        self.n_candidates = np.zeros(self.L)
        self.n_kept = np.zeros(self.L)

    def run(self) -> np.ndarray:
        """The maxima about the mean, (lane, D)."""
        self._descend()
        least = self.peak.min(1)
        t = np.maximum(least, self.floor)
        law = _BelowLevel(t, self.gram)
        full = (least < self.floor) | (law.correction > LARGEST_CORRECTION)
        good: slice | np.ndarray = slice(None)
        if full.any():
            good = np.flatnonzero(~full)
            law = _BelowLevel(t[good], self.gram[good])
        rest = self.counts[good] - self.n_candidates[good]
        y = _normals(self.noise, len(rest), self.q)
        total = np.empty((self.L, self.D))
        total[good] = self.candidates[good] + law.sums(self.rows[good], rest, y)
        for lane in np.flatnonzero(full).tolist():
            total[lane] = self.kept[lane] + self._rest_in_full(lane, t[lane])
        return self.peak + self.shift - total / self.counts[:, None]

    def _descend(self) -> None:
        """Draw candidates batch by batch until no lane's maxima can rise."""
        size = _batch(self.D)
        lanes = np.arange(self.L)
        spent = np.zeros(self.L)
        drawn = 0
        while len(lanes):
            # Order statistics of n uniform levels: log(1 − V) falls by exponential steps.
            place = drawn + np.arange(size)
            left = self.counts[lanes, None] - place
            steps = self._exponentials(len(lanes), size) / np.maximum(left, 1)
            log_rest = spent[lanes, None] + steps.cumsum(1)
            spent[lanes] = log_rest[:, -1]
            V = np.where(left > 0, -np.expm1(-log_rest), 1.0)
            points, height, keep = self._candidates(lanes, -ndtri(V / self.D))
            keep &= height >= self.floor
            found = (points + np.where(keep, 0.0, -np.inf)[:, None]).max(2)
            peak = np.maximum(self.peak[lanes], found)
            self.peak[lanes] = peak
            # Candidates below the level at which a lane stops belong to the rest.
            t = np.maximum(peak.min(1), self.floor)
            above = height >= t[:, None]
            chosen = np.stack([above, above & keep], 2).astype(np.float64)
            number = chosen.sum(1)
            sums = points @ chosen + self.shift[:, None] * number[:, None]
            self.candidates[lanes] += sums[..., 0]
            self.kept[lanes] += sums[..., 1]
            self.n_candidates[lanes] += number[:, 0]
            self.n_kept[lanes] += number[:, 1]
            lanes = lanes[height[:, -1] > t]
            drawn += size

    def _candidates(
        self, lanes: np.ndarray, level: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates with these projections (lane, point) on a row drawn for each.

        Returns the shifted projections (lane, D, point), that on the row drawn, and which are kept.
        """
        rows, gram = self.rows, self.gram
        if len(lanes) < self.L:
            rows, gram = rows[lanes], gram[lanes]
        L, size = level.shape
        if self.D == 1:
            return level[:, None], level, np.ones(level.shape, dtype=bool)
        points = rows @ _normals(self.noise, L, self.q, size)
        row = self.noise.integers(self.D, L, size).cpu().numpy() + self.D * np.arange(L)[:, None]
        own = row * size + np.arange(size)
        # Where the projection on the row drawn is changed, the others change along.
        excess = level - points.take(own)
        toward = gram.reshape(-1, self.D).take(row, axis=0)
        toward *= excess[..., None]
        points += toward.swapaxes(1, 2)
        points -= self.shift[:, None]
        height = points.take(own)
        return points, height, height >= points.max(1)

    def _rest_in_full(self, lane: int, t: float) -> np.ndarray:
        """Projections of the sum of the points that were not kept, drawn one by one below t."""
        needed = int(self.counts[lane] - self.n_kept[lane])
        total = np.zeros(self.D)
        while needed:
            points = _normals(self.noise, needed + 8, self.q) @ self.rows[lane].T
            below = points[(points - self.shift).max(1) < t][:needed]
            total += below.sum(0)
            needed -= len(below)
        return total

    def _exponentials(self, *shape: int) -> np.ndarray:
        # Never zero, which would put a point at infinity.
        return self.noise.exponential(*shape).cpu().numpy() + 2.0**-54


class _BelowLevel:
    """Cumulants of log(1 − Σ_d Φ̄(t − b_d·θ)) + θ²/2: a point below t that is no candidate.

    With f = φ(t)/(1 − DΦ̄(t)), v = Σ b_d and P = Σ b_d b_dᵀ the mean is −f v, the covariance
    I − t f P − f² v vᵀ, and the third cumulant −[(t² − 1) f Σ b_d³ + t f² (v P + 2 permutations) + 2 f³ v³].
    """

    def __init__(self, t: np.ndarray, gram: np.ndarray):
        D = gram.shape[1]
        self.t, self.gram = t, gram
        self.f = np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi) / (1.0 - D * ndtr(-t))
        norm = np.abs(gram).sum(2).max(1)
        self.correction = np.abs(t) * self.f * norm + self.f**2 * gram.sum((1, 2))

    def sums(self, rows: np.ndarray, number: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Projections (lane, D) of the sum of ``number`` (lane,) points, from normals y (lane, q)."""
        f, t, gram = self.f, self.t, self.gram
        inner = (t * f)[:, None, None] * np.eye(rows.shape[1]) + (f * f)[:, None, None]
        covariance = np.eye(rows.shape[2]) - rows.swapaxes(1, 2) @ inner @ rows
        # x: projections of the whitened normal vector, with covariance Q = b C⁻¹ bᵀ
        factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        turned = torch.from_numpy(rows.swapaxes(1, 2))
        white = torch.linalg.solve_triangular(factor, turned, upper=False).numpy()
        Q = white.swapaxes(1, 2) @ white
        x = (white.swapaxes(1, 2) @ y[..., None])[..., 0]
        X = x.sum(1, keepdims=True)
        of_row = Q.sum(2)
        square = x * x - np.diagonal(Q, axis1=1, axis2=2)
        f, t = f[:, None], t[:, None]
        third = (t * t - 1.0) * f * square
        third += t * f * f * (square.sum(1, keepdims=True) + 2.0 * (x * X - of_row))
        third += 2.0 * f**3 * (X * X - of_row.sum(1, keepdims=True))
        m = number[:, None]
        along = np.sqrt(m) * (t * f * x + f * f * X) + m * f + third / 6.0
        return np.sqrt(m) * x - (gram @ along[..., None])[..., 0]


# --------------------------------------------------------------------------------------------------

NUMBERS_EXTREMES = 200_000
"""Random numbers that the joint law of one class of one replicate may take (about 2 ms)."""


def is_joint(count: int, n_classes: int, n_features: int) -> bool:
    """Whether a class of ``count`` samples gets the joint law of its reaches, else each alone."""
    D = n_classes - 1
    return points_needed(int(count), D) * _rank(D, n_features) <= NUMBERS_EXTREMES


def draw_reach(
    noise: BlockNoise, factor: Any, counts: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, bool]:
    """One draw, for every replicate, of how far each class reaches toward each other one.

    Exact in law up to what ``lesde.simulation.centred_maxima`` states (below 1e-6 in the distribution
    function of each), jointly over the other classes. Different classes, and different replicates,
    are independent. So are two calls: the joint law of one class at two times is not that of a path.

    Parameters
    ----------
    noise : BlockNoise
        Of the block that the replicates make up. All numbers are drawn in float64.
    factor : number, array (K,) or array (K, p, p)
        A, of the deviations A (Z_i − Z̄): a multiple of I, the same for all classes or one for
        each, or a matrix for each.
    counts : ndarray of int (K,)
        Samples of each class.
    directions : ndarray (R, K, K, p)
        ``directions[r, k, l]`` is the unit vector from class l to class k. Where it is NaN, so is
        the reach. The diagonal is not read. A vector of another length scales the reach, so that
        many times go into one call, as further replicates, with ``u @ A`` for u and 1 for A.

    Returns
    -------
    reach : ndarray (R, K, K), float64
        ``reach[r, k, l]``, the largest of −u_kl·Y_i over the samples of class k. NaN for k = l.
    joint : bool
        False where K is so large that the joint law of some class would take more than ``NUMBERS``
        random numbers. The reaches of such a class are then independent, each with its own law.
    """
    counts = np.asarray(counts, dtype=np.int64)
    R, K, _, p = directions.shape
    reach = np.full((R, K, K), np.nan)
    if K == 1:
        return reach, True
    other = np.array([[l for l in range(K) if l != k] for k in range(K)])
    own = np.arange(K)[:, None]
    rows = _rows(factor, directions[:, own, other])
    length = np.linalg.norm(rows, axis=-1)
    rows = _unit_rows(rows, length)
    peaks = np.empty((R, K, K - 1))
    joint = np.array([is_joint(count, K, p) for count in counts])
    if joint.any():
        part = rows[:, joint]
        sizes = np.broadcast_to(counts[joint], part.shape[:2])
        if p > 2 * (K - 1):
            # Only inner products of the rows matter: K−1 coordinates do.
            triangle = np.asarray(np.linalg.qr(part.swapaxes(-1, -2), mode="r"))
            part = triangle.swapaxes(-1, -2)
        flat = part.reshape(-1, K - 1, part.shape[-1])
        peaks[:, joint] = largest_of_centred(noise, flat, sizes.ravel()).reshape(part.shape[:-1])
    if not joint.all():
        sizes = np.broadcast_to(counts[~joint, None], peaks[:, ~joint].shape)
        alone = largest_of_centred(noise, np.ones((sizes.size, 1, 1)), sizes.ravel())
        peaks[:, ~joint] = alone.reshape(sizes.shape)
    with np.errstate(invalid="ignore"):
        reach[:, own, other] = np.where(length == 0, 0.0, length * peaks)
    return reach, bool(joint.all())


def _rank(D: int, p: int) -> int:
    return p if p <= 2 * D else D


def _rows(factor: Any, directions: np.ndarray) -> np.ndarray:
    """−Aᵀu for the unit vectors (replicate, class, other, feature)."""
    factor = np.asarray(factor, dtype=np.float64)
    K, p = directions.shape[1], directions.shape[3]
    if factor.shape in ((), (K,)):
        return -directions * factor.reshape(-1, 1, 1)
    if factor.shape != (K, p, p):
        raise ValueError(
            f"factor must be a number or have shape ({K},) or ({K}, {p}, {p}); got shape "
            f"{factor.shape}."
        )
    return -(directions @ factor)


def _unit_rows(rows: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Rows of length one; where there is none, a copy of another one, whose result is not used."""
    usable = np.isfinite(length) & (length > 0)
    if usable.all():
        return rows / length[..., None]
    unit = rows / np.where(usable, length, 1.0)[..., None]
    first = usable.argmax(-1)[..., None, None]
    spare = np.take_along_axis(unit, first, axis=-2)
    spare = np.where(usable.any(-1)[..., None, None], spare, np.eye(rows.shape[-1])[0])
    return np.where(usable[..., None], unit, spare)
