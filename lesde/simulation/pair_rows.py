"""The strengths of all samples with one drawn sample a replicate: O(N p)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lesde.pair_program import PairProgram
from lesde.simulation.pair_layout import padded
from lesde.transforms import logit_directions

__all__ = ["PairRow"]

UNIT = 64
"""Rows are padded to a multiple, so that rounding does not depend on the number of replicates."""

Strengths = tuple[PairProgram | None, float, list[float]]


class PairRow:
    """κ_iJ H_J X_J for one drawn sample J a replicate."""

    def __init__(self, coefficients: Any, dtype: torch.dtype, device: torch.device):
        counts = np.asarray(coefficients.counts)
        labels = np.repeat(np.arange(len(counts)), counts)
        self.label = torch.as_tensor(labels, device=device)
        self.transform = coefficients.transform
        self.table: torch.Tensor | None = None
        if self.transform.kind != "identity":
            logits = self.transform.kind == "logits"
            table = logit_directions(len(counts)) if logits else self.transform.array()
            self.table = torch.as_tensor(table.copy(), dtype=dtype, device=device)

    def push(self, drawn: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """H_J X_J for features (replicate, feature) of samples of the classes (replicate,)."""
        if self.table is None:
            return drawn
        own = self.table.index_select(0, classes)
        if self.transform.kind == "logits":
            scores = (own * drawn).sum(-1, keepdim=True) / (1.0 - 1.0 / len(self.table))
            return own * scores
        return (own * drawn.unsqueeze(1)).sum(-1)

    def kick(
        self, samples: torch.Tensor, drawn: torch.Tensor, parts: tuple[Strengths, Strengths]
    ) -> torch.Tensor:
        """(replicate, sample, feature), given the strengths of samples of one class and of others."""
        R, N, p = samples.shape
        chosen = samples.gather(1, drawn.view(R, 1, 1).expand(R, 1, p))
        classes = self.label[drawn]
        inputs = self._inputs(
            samples, chosen, drawn, {n for q, _, _ in parts if q for n in q.inputs}
        )
        same, different = (self._strength(inputs, part, R, N, samples) for part in parts)
        strength = torch.where(self.label == classes.unsqueeze(1), same, different)
        return strength.unsqueeze(-1) * self.push(chosen[:, 0], classes).unsqueeze(1)

    def _inputs(
        self, samples: torch.Tensor, chosen: torch.Tensor, drawn: torch.Tensor, names: set[str]
    ) -> dict[str, torch.Tensor]:
        inputs = {}
        if "r2" in names:
            inputs["r2"] = (samples - chosen).square_().sum(-1)
        if "g" in names:
            inputs["g"] = (samples * chosen).sum(-1)
        if "c" in names:
            units, own = _unit(samples), _unit(chosen)
            inputs["c"] = (units * own).sum(-1).clamp_(-1, 1)
            exact = (own != 0).any(-1).to(samples.dtype)
            inputs["c"].scatter_(1, drawn.unsqueeze(1), exact)
        return inputs

    def _strength(
        self,
        inputs: dict[str, torch.Tensor],
        part: Strengths,
        R: int,
        N: int,
        like: torch.Tensor,
    ) -> torch.Tensor:
        program, factor, scalars = part
        if program is None:
            return like.new_full((), factor)
        registers = like.new_zeros(program.n_registers, R, padded(N, UNIT)).unbind(0)
        for name, register in zip(program.inputs, registers, strict=False):
            register[:, :N] = inputs[name]
            if name == "r2" and program.distance_scale != 1:
                register.mul_(program.distance_scale)
        return program.run(registers, scalars)[:, :N] * factor


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Unit vectors, 0 where a row is 0; scaled first, so that no square overflows."""
    largest = rows.abs().amax(-1, keepdim=True)
    rows = rows / largest.masked_fill(largest == 0, 1.0)
    norm = rows.square().sum(-1, keepdim=True).sqrt_()
    return rows / norm.masked_fill(norm == 0, 1.0)
