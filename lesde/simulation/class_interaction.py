"""How samples move each other where the kernel depends on classes and time, sample by sample.

The same three maps as those of :class:`lesde.simulation.interaction.Interaction`, for engines that
carry every sample. They go through class means, so they cost O(N p).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lesde.sampling_noise import modified_drift, modified_noise
from lesde.simulation.classes import class_means, class_sums, spread
from lesde.simulation.mean_sde import DTYPE, ClassMaps
from lesde.simulation.plan import Plan
from lesde.simulation.sampled_means import drift_slopes

__all__ = ["ClassInteraction"]


class ClassInteraction:
    """Drift, kicks and sampling noise of a kernel of classes and time.

    Samples are (replicate, sample, feature), sorted by class; results have their shape and dtype.

    Parameters
    ----------
    plan : Plan
    rate : float or None
        The learning rate, for the modified equation.
    """

    def __init__(self, plan: Plan, rate: float | None = None):
        self.plan, self.counts = plan, plan.counts
        self.rate = rate if plan.sde == "modified" else None
        self.maps = ClassMaps(plan)
        self._tables: dict[float, tuple[torch.Tensor, ...]] = {}
        self._labels = torch.as_tensor(
            np.repeat(np.arange(plan.n_classes), plan.counts), device=plan.device
        )

    def prepare(self, times: np.ndarray) -> None:
        """Tabulate the kernel at the times that will be asked for next."""
        coefficients = self.plan.coefficients
        unique = np.unique(times)
        parts = [coefficients.weights(unique), coefficients.kicks(unique)]
        tables = [torch.as_tensor(part, dtype=DTYPE, device=self.plan.device) for part in parts]
        if self.rate is not None:
            tables.append(drift_slopes(self.plan, unique))
        rows = zip(*(table.unbind(0) for table in tables), strict=True)
        self._tables = dict(zip(unique.tolist(), rows, strict=True))

    def _at(self, time: float) -> tuple[torch.Tensor, ...]:
        if time not in self._tables:
            self.prepare(np.array([time]))
        return self._tables[time]

    def _rows(self, means: torch.Tensor) -> torch.Tensor:
        """Class means (replicate, class, feature) as the one block (1, class, replicate, feature)."""
        return means.double().transpose(0, 1).unsqueeze(0).contiguous()

    def _spread(self, rows: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        return spread(rows[0].transpose(0, 1).to(samples.dtype), self.counts)

    def drift(self, samples: torch.Tensor, time: float) -> torch.Tensor:
        """b of every sample, in a modified equation with its correction."""
        matrix, _, *slope = self._at(time)
        rows = self._rows(class_means(samples, self.counts))
        if self.rate is None:
            return self._spread(self.maps(matrix, rows), samples)
        turned = modified_drift(
            lambda x: self.maps(matrix, x), lambda x: self.maps(slope[0], x), rows, self.rate
        )
        return self._spread(turned, samples)

    def noise(self, noise: torch.Tensor, time: float) -> torch.Tensor:
        """The samples' own noise, in a modified equation with what it adds to whole classes."""
        if self.rate is None:
            return noise
        matrix = self._at(time)[0]
        rows = self._rows(class_means(noise, self.counts))
        change = modified_noise(lambda x: self.maps(matrix, x), rows, self.rate) - rows
        return noise + self._spread(change, noise)

    def kick(self, samples: torch.Tensor, drawn: torch.Tensor, time: float) -> torch.Tensor:
        """E_kL H_L X_J of every sample, for the sample J (replicate,) drawn in each replicate."""
        kicks = self._at(time)[1]
        lanes = torch.arange(len(samples), device=samples.device)
        classes = self._labels[drawn]
        rows = torch.zeros(
            (len(samples), self.plan.n_classes, samples.shape[-1]),
            dtype=DTYPE,
            device=samples.device,
        )
        rows[lanes, classes] = samples[lanes, drawn].double()
        return self._spread(self.maps(kicks, self._rows(rows)), samples)

    def drift_and_sampling(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The drift, and C^{1/2} applied to one normal a sample, (1/√N) Σ_j (E_kl H_l X_j − b_k) ξ_j.

        b is that of the plain equation in either case.
        """
        matrix, kicks, *slope = self._at(time)
        rows = self._rows(class_means(samples, self.counts))
        plain = self.maps(matrix, rows)
        moved = self._rows(class_sums(samples * normals.unsqueeze(-1), self.counts))
        shared = normals.double().sum(1)[None, None, :, None]
        sampled = (self.maps(kicks, moved) - plain * shared) / math.sqrt(samples.shape[1])
        drift = plain
        if self.rate is not None:
            drift = modified_drift(
                lambda x: self.maps(matrix, x), lambda x: self.maps(slope[0], x), rows, self.rate
            )
        return self._spread(drift, samples), self._spread(sampled, samples)
