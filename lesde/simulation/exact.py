"""Engine ``exact``: draws from the law, at the saved times only.

For a kernel of classes and time the class means form a linear Gaussian process, whose transition
between saved times is known; the deviations of the samples from their class mean are Brownian,
σ(ΔW_i − ΔW̄_k), and independent of the means. So the paths have the exact law at any spacing.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lesde.errors import Diverged
from lesde.propagator import Transition, transitions
from lesde.simulation.colour import Colour
from lesde.simulation.noise import BLOCK, BlockNoise
from lesde.simulation.packing import class_means, spread
from lesde.simulation.plan import Plan, Tick

__all__ = ["ExactEngine"]


class ExactEngine:
    """Sampler of the exact law; the transitions are computed once for all replicates."""

    def __init__(self, plan: Plan):
        self.plan = plan
        with np.errstate(over="ignore", invalid="ignore"):
            steps = transitions(plan.coefficients, plan.times)
        self.steps = steps
        for time, step in zip(plan.times[1:], self.steps, strict=True):
            if not all(np.isfinite(part).all() for part in (step.phi, *(c for c, _ in step.parts))):
                raise Diverged(time)

    def run(self, cell: int, out: np.ndarray, tick: Tick) -> None:
        """Fill ``out`` (replicate, time, sample, feature)."""
        plan = self.plan
        coefficients, dtype = plan.coefficients, plan.dtype
        N, p = int(coefficients.counts.sum()), plan.n_features
        colour = Colour(coefficients, dtype, plan.device)
        for block in plan.blocks():
            noise = plan.noise(cell, block)
            start, offsets = plan.initial(noise, block)
            means = start.cpu().numpy()
            deviation = torch.zeros(BLOCK, N, p, dtype=dtype, device=plan.device)
            if offsets is not None:
                deviation += offsets
            draws = torch.empty_like(deviation)
            plan.store(out, block, 0, self._compose(means, deviation))
            for i, step in enumerate(self.steps):
                means = self._advance(step, means, noise)
                noise.normal_(draws)
                draws.sub_(spread(class_means(draws, coefficients.counts), coefficients.counts))
                width = plan.times[i + 1] - plan.times[i]
                deviation.add_(colour.samples(draws), alpha=math.sqrt(width))
                plan.store(out, block, i + 1, self._compose(means, deviation))
                tick()

    def _advance(self, step: Transition, means: np.ndarray, noise: BlockNoise) -> np.ndarray:
        shape = (step.n_normals, *means.shape)
        normals = noise.normal(*shape, dtype=torch.float64).cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            return step.mean(means) + step.noise(normals)

    def _compose(self, means: np.ndarray, deviation: torch.Tensor) -> torch.Tensor:
        centre = torch.from_numpy(means).to(deviation)
        return spread(centre, self.plan.coefficients.counts) + deviation
