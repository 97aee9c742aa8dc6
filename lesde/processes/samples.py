"""Paths made of class means and of deviations about them: every sample, or the statistics of each class.

In an LE-SDE whose kernel depends on classes and time, class means and the samples' deviations from them
are independent, and deviations are Gaussian with a known variance. So the means are computed with
the steps that their engine needs, and deviations, or their statistics, are drawn at the saved times only:
:class:`AboutMeans` is common to the exact law and the integrator.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from lesde.clocks import StepGrid
from lesde.derivation import derive
from lesde.laws.transitions import transitions
from lesde.model.lesde import LESDE, Initial
from lesde.model.noise import finite_variance
from lesde.paths import gap_directions
from lesde.processes.process import BLOCK, BlockNoise, Random
from lesde.processes.reach import draw_reach, is_joint

__all__ = [
    "DTYPE",
    "AboutMeans",
    "IntervalNoise",
    "Scatter",
    "class_means",
    "class_sums",
    "draw_start",
    "expected_directions",
    "spread",
]

DTYPE = torch.float64
"""Of the class means: they are few, and differences between them may be small against their size."""


# --------------------------------------------------------------------------------------------------
# From samples sorted by class to class means and back, and where they start.


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


def draw_start(
    model: LESDE, initial: Initial, rng: Random
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Class means (replicate, class, feature) and deviations (replicate, sample, feature), float64."""

    def rows(given: Any) -> torch.Tensor:
        array = torch.as_tensor(given, dtype=DTYPE, device=rng.device)
        if array.ndim == 2:
            return array.expand(rng.replicates, -1, -1)
        # The last block may be short: a row is repeated, whose results are dropped.
        return array[np.minimum(rng.first + np.arange(rng.replicates), len(array) - 1)]

    if initial.means is None:
        shape = (rng.replicates, model.n_classes, model.n_features)
        means = rng.stream("start").normal(*shape, dtype=DTYPE) / math.sqrt(model.n_features)
        return means, None
    return rows(initial.means), None if initial.offsets is None else rows(initial.offsets)


def expected_directions(model: LESDE, initial: Initial, times: np.ndarray) -> np.ndarray | None:
    """Unit vectors of the class means' expected gaps (time, class, class, feature), where known."""
    means = initial.means
    if model.kernel.depends_on_features or means is None or means.ndim == 3:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            steps = transitions(derive(model).coefficients(), times)
        except ValueError:  # matrices too large to form
            return None
        # Without the grand mean, whose growth would drown the gaps.
        basis = steps[0].basis
        rows = [basis.T @ np.asarray(means)]
        for step in steps:
            rows.append(step.apply(step.phi, rows[-1]))
        directions = gap_directions(basis[:, 1:] @ np.stack(rows)[:, 1:])
    off = ~np.eye(model.n_classes, dtype=bool)
    return directions if np.isfinite(directions[:, off]).all() else None


# --------------------------------------------------------------------------------------------------
# The noise added to a sample over the intervals between saved times.

STEPS = 2**12
"""Steps at which noise is tabulated at once."""


@dataclass(frozen=True)
class IntervalNoise:
    """Roots of the covariance that noise adds in each interval.

    ``roots`` are standard deviations (interval, class) where noise is isotropic, else matrices (interval,
    class, feature, feature).
    """

    roots: np.ndarray

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def exact(cls, noise: Any, times: np.ndarray) -> IntervalNoise:
        """The integral of the noise between successive times."""
        if noise.is_isotropic:
            return cls(np.sqrt(noise.integrated_scale(times)))
        if noise.is_constant:
            factors = noise.factor(times[:-1]) * np.sqrt(np.diff(times)[:, None, None, None])
            finite_variance(factors @ factors.swapaxes(-1, -2), times)
            return cls(factors)
        return cls(_square_roots(noise.integrated(times)))

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def of_scheme(cls, noise: Any, grid: StepGrid, method: str) -> IntervalNoise:
        """The noise that a solver's steps add, which differs from the integral where noise depends on time."""
        if noise.is_constant:
            return cls.exact(noise, grid.times)
        sums: Any = 0.0
        for first in range(0, len(grid.starts), STEPS):
            sums = sums + _added(noise, grid, method, first, min(first + STEPS, len(grid.starts)))
        finite_variance(sums, grid.times)
        return cls(np.sqrt(sums[..., 0, 0]) if noise.is_isotropic else _square_roots(sums))

    def grown(self) -> np.ndarray:
        """Roots of what noise has added up to every saved time, the first of them zero."""
        if self.roots.ndim == 2:
            sums = np.sqrt(np.cumsum(self.roots**2, axis=0))
        else:
            sums = _square_roots(np.cumsum(self.roots @ self.roots.swapaxes(-1, -2), axis=0))
        return np.concatenate([np.zeros_like(sums[:1]), sums])

    def add_(
        self, draws: torch.Tensor, last: torch.Tensor, interval: int, counts: np.ndarray
    ) -> torch.Tensor:
        """Multiply normals (..., sample, feature) by each class's noise and add ``last``, in place."""
        roots = self.roots[interval]
        if roots.ndim == 1 and (roots == roots[0]).all():
            return torch.add(last, draws, alpha=float(roots[0]), out=draws)
        for part, root in zip(draws.split(counts.tolist(), -2), roots, strict=True):
            if root.ndim == 0:
                part.mul_(float(root))
            else:
                turned = torch.as_tensor(root.T.copy(), dtype=draws.dtype, device=draws.device)
                part.copy_(part @ turned)
        return draws.add_(last)


def _added(noise: Any, grid: StepGrid, method: str, first: int, end: int) -> np.ndarray:
    """Covariance that the steps first..end-1 add in every interval, (interval, class, …, …)."""
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


def _square_roots(covariances: np.ndarray) -> np.ndarray:
    """A with A Aᵀ the covariances (…, feature, feature), of any rank."""
    values, vectors = np.linalg.eigh(covariances)
    return vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :]


# --------------------------------------------------------------------------------------------------
# Within-class scatter.


class Scatter:
    """Within-class scatter without samples: a process of p×p matrices, whatever the number of samples.

    Of every class in some blocks of replicates, each drawn from its block's stream.
    """

    def __init__(self, noises: list[BlockNoise], counts: np.ndarray, n_features: int):
        self.noises, self.counts, self.p = noises, counts, n_features
        # Classes of one size move together: their members, size, and roots (block, replicate, class, p, columns).
        self._groups = [
            (
                np.flatnonzero(counts == n),
                n,
                np.zeros(
                    (len(noises), BLOCK, (counts == n).sum(), n_features, min(n_features, n - 1))
                ),
            )
            for n in np.unique(counts).tolist()
        ]

    @staticmethod
    def bytes(counts: np.ndarray, n_features: int) -> float:
        """Working memory of a block."""
        return 8.0 * BLOCK * len(counts) * n_features**2 * 8

    def advance(self, factors: np.ndarray) -> None:
        """Add noise of covariance A Aᵀ to every deviation, A (class,) or (class, feature, feature)."""
        for i, (members, n, root) in enumerate(self._groups):
            columns = root.shape[-1]
            if columns == 0:
                continue
            A = factors[members]
            A = A[:, None, None] if A.ndim == 1 else A
            moved = root + _times(A, self._normals(root.shape[2:]))
            rest = n - 1 - columns
            if rest > 0:
                moved = np.concatenate(
                    [moved, _times(A, self._wishart_root(len(members), rest))], axis=-1
                )
                # Turned back into as many columns as there are features.
                moved = np.asarray(np.linalg.qr(moved.swapaxes(-1, -2), mode="r")).swapaxes(-1, -2)
            self._groups[i] = members, n, moved

    def roots(self) -> np.ndarray:
        """L/√n_k, whose square is the within-class covariance, (block, replicate, class, p, p).

        Columns beyond n_k − 1 are zero.
        """
        result = np.zeros((len(self.noises), BLOCK, len(self.counts), self.p, self.p))
        for members, n, root in self._groups:
            result[:, :, members, :, : root.shape[-1]] = root / np.sqrt(n)
        return result

    def covariances(self) -> np.ndarray:
        """The empirical within-class covariances, divisor n_k, (block, replicate, class, p, p)."""
        roots = self.roots()
        return roots @ roots.swapaxes(-1, -2)

    def _normals(self, shape: tuple[int, ...]) -> np.ndarray:
        draws = [noise.normal(BLOCK, *shape, dtype=DTYPE) for noise in self.noises]
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
# Samples, or their statistics, about class means.

NUMBERS = 2**20
"""Numbers of deviations that are worked on together: few enough for the cache, with as few calls as can be."""
REACH_TIMES = 32
REACH_NUMBERS = 2**19
"""Saved times whose reaches are drawn at once, and numbers of their directions."""
WORTH_THREADS = 512
"""Numbers of a replicate from which threads gain more than they cost."""
ROW = 32
"""Numbers that are shifted in one go where samples are placed."""


@dataclass
class _State:
    """State of some blocks: what has been drawn ahead for the saved times ``first``, ``first + 1``, …"""

    path: Iterator[tuple[torch.Tensor, np.ndarray | None]]
    own: Any
    """Deviations (replicate, sample, feature) at the last time drawn, not centred; or Scatter."""
    space: torch.Tensor | None = None
    """Room for deviations and samples of several times, (2, time, replicate, sample, feature)."""
    index: int = 0
    first: int = 0
    drawn: dict[str, torch.Tensor] = field(default_factory=dict)
    """The variables at these times, each (time, replicate, ...)."""


class AboutMeans(ABC):
    """An LE-SDE whose class means follow ``path`` and whose deviations are drawn about them.

    Subclasses give ``tabulate`` and ``path``.
    """

    most_blocks = 8
    noise: IntervalNoise
    times: np.ndarray
    reduced: bool
    ahead: int
    """Saved times whose statistics are drawn at once."""
    grown: np.ndarray
    """Roots of what noise has added up to each saved time."""

    def __init__(self, model: LESDE, initial: Initial):
        self.model, self.initial, self.counts = model, initial, model.counts
        self.n_features = model.n_features
        self.balanced = bool((self.counts == self.counts[0]).all())
        self.directions: np.ndarray | None = None
        self.attributes: dict[str, Any] = {"initial": "random" if initial.is_random else "given"}
        self.parallel = True

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    @abstractmethod
    def tabulate(self, times: np.ndarray) -> IntervalNoise:
        """Tabulate for the saved times; the noise added to a sample between them."""

    @abstractmethod
    def path(
        self, rng: Random, start: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, np.ndarray | None]]:
        """Class means (block, replicate, class, feature) at the second, third, … saved time.

        Each with the scatter (block, replicate, class, feature, feature) that goes with it, where it has
        moved them.
        """

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        made = copy.copy(self)
        model = self.model
        made.times, made.noise = times, made.tabulate(times)
        frame = BLOCK * model.n_samples * model.n_features
        # From given samples the reach has no law that does not depend on each of them.
        made.reduced = statistics and self.initial.offsets is None
        if made.reduced:
            frame = BLOCK * model.n_classes**2 * model.n_features
            made.ahead = max(1, min(REACH_TIMES, REACH_NUMBERS // frame))
            made.grown = made.noise.grown()
            joint = all(is_joint(int(n), model.n_classes, model.n_features) for n in made.counts)
            made.attributes = {**made.attributes, "joint": int(joint)}
            made.parallel = False  # small arrays, which threads do not help
        else:
            made.reduce = None  # type: ignore[method-assign, assignment]
            made.parallel = model.n_samples * model.n_features >= WORTH_THREADS
        if statistics:
            made.directions = expected_directions(model, self.initial, times)
        return made

    def block_bytes(self, statistics: bool) -> float:
        """Memory of a block's deviations, or statistics, beside the class means."""
        model = self.model
        if statistics and self.initial.offsets is None:
            frame = BLOCK * model.n_classes**2 * model.n_features
            several = max(1, min(REACH_TIMES, REACH_NUMBERS // frame))
            return Scatter.bytes(self.counts, model.n_features) + 48.0 * frame * several
        frame = BLOCK * model.n_samples * model.n_features
        return 8.0 * (4 * frame + 2 * min(64 * frame, NUMBERS))

    def start(self, rng: Random, replicates: int) -> _State:
        means, offsets = draw_start(self.model, self.initial, rng)
        path = self.path(rng, means.unflatten(0, (-1, BLOCK)))
        if self.reduced:
            noises = rng.stream("deviations").blocks
            state = _State(path, Scatter(noises, self.counts, self.model.n_features))
            self._draw_statistics(rng, state, means.unsqueeze(0), state.own.covariances()[None])
            return state
        shape = (replicates, self.model.n_samples, self.model.n_features)
        several = max(1, min(64, NUMBERS // math.prod(shape), len(self.times) - 1))
        space = torch.empty((2, several, *shape), dtype=rng.dtype, device=rng.device)
        own = torch.zeros_like(space[0, 0])
        if offsets is not None:
            own += offsets
        state = _State(path, own, space)
        self._place(state, means.unsqueeze(0), own.unsqueeze(0))
        return state

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        state.index += 1
        if state.index - state.first == len(state.drawn["mean"]):
            several = self.ahead if state.space is None else state.space.shape[1]
            steps = list(islice(state.path, min(several, len(self.times) - state.index)))
            state.first = state.index
            means = torch.stack([mean for mean, _ in steps]).flatten(1, 2)
            if self.reduced:
                self._draw_statistics(rng, state, means, self._scatter(state, steps))
            else:
                self._draw_samples(rng, state, means)
        return state

    def observe(self, rng: Random, state: _State) -> dict[str, torch.Tensor]:
        return {"features": state.drawn["features"][state.index - state.first]}

    def reduce(self, rng: Random, state: _State) -> dict[str, torch.Tensor]:
        return {name: values[state.index - state.first] for name, values in state.drawn.items()}

    def means(self, state: _State) -> torch.Tensor:
        """Class means (replicate, class, feature) of a state, float64."""
        return state.drawn["mean"][state.index - state.first]

    def _draw_samples(self, rng: Random, state: _State, means: torch.Tensor) -> None:
        """Deviations at successive saved times, about means (time, replicate, class, feature)."""
        assert state.space is not None
        values, last = state.space[0, : len(means)], state.own
        for i, part in enumerate(values):
            rng.stream("deviations").normal_(part)
            last = self.noise.add_(part, last, state.first - 1 + i, self.counts)
        state.own.copy_(last)
        self._place(state, means, values)

    def _place(self, state: _State, means: torch.Tensor, values: torch.Tensor) -> None:
        """Samples: deviations, centred, about the means."""
        sizes = torch.tensor(self.counts.tolist(), dtype=DTYPE, device=means.device)
        sums = class_sums(values, self.counts).double()
        shift = (means - sums / sizes.unsqueeze(-1)).to(values.dtype)
        if self.balanced and not shift.requires_grad and state.space is not None:
            samples = _shifted(values, shift, state.space[1, : len(means)])
        else:
            samples = values + spread(shift, self.counts)
        state.drawn = {"mean": means, "features": samples}

    def _scatter(self, state: _State, steps: list[Any]) -> np.ndarray:
        """Covariances within classes at successive saved times, (time, replicate, class, p, p)."""
        found = []
        for i, (_, within) in enumerate(steps):
            if within is None:
                state.own.advance(self.noise.roots[state.first - 1 + i])
                within = state.own.covariances()
            found.append(within)
        return np.stack(found)

    def _draw_statistics(
        self, rng: Random, state: _State, means: torch.Tensor, within: np.ndarray
    ) -> None:
        """Draw the reaches at successive saved times, anew at each, with the law that samples have there.

        They are independent of those at other times, and of the covariances, given the class means.
        """
        roots = self.grown[state.first : state.first + len(means)]
        reaches = []
        by_block = means.unflatten(1, (-1, BLOCK)).unbind(1)
        for noise, mean in zip(rng.stream("reach").blocks, by_block, strict=True):
            # (time, set, replicate, class, class_, feature): along the gaps, and the expected gaps
            directions = gap_directions(mean.cpu().numpy())[:, None]
            if self.directions is not None:
                fixed = self.directions[state.first : state.first + len(mean), None, None]
                both = [directions, np.broadcast_to(fixed, directions.shape)]
                directions = np.concatenate(both, axis=1)
            # The noise's factor goes into the directions, so that all times are drawn at once.
            if roots.ndim == 2:
                directions = directions * roots[:, None, None, :, None, None]
            else:
                directions = directions @ roots[:, None, None]
            flat = directions.reshape(-1, *directions.shape[3:])
            reach = draw_reach(noise, self.counts, flat)
            reaches.append(torch.from_numpy(reach.reshape(directions.shape[:-1])))
        found = torch.cat(reaches, 2).unbind(1)
        scatter = torch.from_numpy(within.reshape(*means.shape[:3], *within.shape[-2:]))
        state.drawn = {"mean": means, "within": scatter}
        state.drawn |= dict(zip(("reach", "reach_expected"), found, strict=False))


def _shifted(values: torch.Tensor, shift: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """A row of every class (…, class, feature) added to its samples (…, sample, feature), of equal number.

    The row is repeated for several samples, because a loop over the few numbers of one sample is slow.
    """
    K, p = shift.shape[-2:]
    n = values.shape[-2] // K
    several = max(1, min(n, ROW // p))
    wide = shift.unsqueeze(-2).expand(*shift.shape[:-1], several, p).flatten(-2).unsqueeze(-2)
    values, whole = values.unflatten(-2, (K, n)), n - n % several
    target = out.unflatten(-2, (K, n))
    for samples, at_once in ((slice(0, whole), several), (slice(whole, n), 1)):
        if samples.start < samples.stop:
            rows, place = (
                x[..., samples, :].view(*x.shape[:-2], -1, at_once * p) for x in (values, target)
            )
            torch.add(rows, wide[..., : at_once * p], out=place)
    return out
