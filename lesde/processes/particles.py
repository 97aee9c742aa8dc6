"""Engines that carry every sample: for kernels of the features, and where samples steer the noise.

Where the kernel depends on classes and time only, cheaper engines have the same law (see ``reduced``
and ``sgd``); these serve what is left. A run works on one block of replicates at a time and stores
nothing but the state, so with statistics kept its memory does not grow with the saved times.
"""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lesde.derivation import derive
from lesde.laws.rule import Transforms, modified_drift, modified_noise
from lesde.laws.rule import drift as class_drift
from lesde.model.lesde import LESDE, Initial
from lesde.paths import StepGrid, iteration_counts, seen_times
from lesde.processes.integration import STAGES, StepIncrements, integrate
from lesde.processes.pairs import Interaction
from lesde.processes.process import BLOCK, Random
from lesde.processes.samples import (
    DTYPE,
    class_means,
    class_sums,
    draw_start,
    expected_directions,
    spread,
)
from lesde.processes.torchsde import ShiftedNoise, drift_slopes, refuse_noise

__all__ = [
    "ClassInteraction",
    "IntegratedParticles",
    "OwnNoise",
    "ParticleSGD",
    "SampleSDE",
]


# --------------------------------------------------------------------------------------------------
# How samples move each other where the kernel depends on classes and time, sample by sample.


class ClassInteraction:
    """Drift, kicks and sampling noise of a kernel of classes and time.

    Samples are (replicate, sample, feature), sorted by class; results have their shape and dtype.

    ``rate`` is the learning rate of the modified equation, else None.
    """

    def __init__(self, model: LESDE, times: np.ndarray, rate: float | None, device: Any):
        self.coefficients, self.counts, self.device = (
            derive(model).coefficients(),
            model.counts,
            device,
        )
        self.n_classes, self.rate = model.n_classes, rate
        self.transforms = Transforms(model.transform, DTYPE, device)
        self._slopes = None if rate is None else drift_slopes(self.coefficients, times)
        self._tables: dict[float, tuple[torch.Tensor, ...]] = {}
        self._labels = torch.as_tensor(model.labels, device=device)

    def maps(self, matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Σ_l A_kl H_l x^l for rows (block, class, replicate, feature)."""
        return class_drift(self.transforms, matrix, rows, -3)

    def prepare(self, times: np.ndarray) -> None:
        """Tabulate the kernel at the times that will be asked for next."""
        unique = np.unique(times)
        parts = [self.coefficients.weights(unique), self.coefficients.kicks(unique)]
        if self._slopes is not None:
            parts.append(self._slopes(unique))
        tables = [torch.as_tensor(part, dtype=DTYPE, device=self.device) for part in parts]
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
            (len(samples), self.n_classes, samples.shape[-1]),
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


# --------------------------------------------------------------------------------------------------
# The SDE of every sample of a block, as torchsde calls it.


class OwnNoise:
    """σ_k(t) applied to normals of every sample."""

    def __init__(self, noise: Any, counts: np.ndarray, dtype: torch.dtype, device: torch.device):
        self.noise, self.counts, self.dtype, self.device = noise, counts, dtype, device
        self._known: dict[float, torch.Tensor | float] = {}

    def prepare(self, times: np.ndarray) -> None:
        """Tabulate the noise at the times that will be asked for next."""
        unique, noise = np.unique(times), self.noise
        at = unique[:1] if noise.is_constant else unique
        values: list[Any]
        if noise.is_isotropic and noise.is_shared:
            values = noise.scale(at)[:, 0].tolist()
        elif noise.is_isotropic:
            scale = torch.as_tensor(noise.scale(at), dtype=self.dtype, device=self.device)
            values = list(spread(scale.unsqueeze(-1), self.counts).unbind(0))
        else:
            factors = np.ascontiguousarray(np.swapaxes(noise.factor(at), -1, -2))
            values = list(torch.as_tensor(factors, dtype=self.dtype, device=self.device).unbind(0))
        self._known = dict(zip(unique.tolist(), values * (len(unique) // len(at)), strict=True))

    def __call__(self, normals: torch.Tensor, time: float) -> torch.Tensor:
        """Normals (replicate, sample, feature) times σ."""
        if time not in self._known:
            self.prepare(np.array([time]))
        factor = self._known[time]
        if self.noise.is_isotropic:
            return normals * factor
        assert isinstance(factor, torch.Tensor)
        parts = normals.split(self.counts.tolist(), 1)
        return torch.cat([part @ own for part, own in zip(parts, factor, strict=True)], 1)


class SampleSDE:
    """The SDE of all samples of a block in step time, with torchsde's names.

    The state is one row, (1, replicate·sample·feature); with sampling noise one more noise channel a
    sample follows those of the state.

    ``rate`` is the learning rate, where the SDE has sampling noise, ``lanes`` the replicates that are
    wanted of the block.
    """

    sde_type = "ito"

    def __init__(
        self,
        model: LESDE,
        grid: StepGrid,
        kind: str,
        rate: float | None,
        interaction: Any,
        dtype: torch.dtype,
        device: torch.device,
        lanes: int = BLOCK,
    ):
        self.grid, self.kind, self.interaction = grid, kind, interaction
        self.rate = None if kind == "plain" else rate
        self.noise_type = "additive" if self.rate is None else "general"
        noise: Any = model.noise_table
        if kind == "modified" and not noise.is_constant:
            noise = ShiftedNoise(derive(model).coefficients(), grid.times, rate or 0.0)
        self.own = OwnNoise(noise, model.counts, dtype, device)
        self.shape = (lanes, model.n_samples, model.n_features)
        # Only these are wanted of the numbers that a block draws, in the order drawn.
        self.select: torch.Tensor | None = None
        if lanes < BLOCK:
            own = torch.arange(math.prod(self.shape))
            extra = torch.arange(lanes * model.n_samples) + BLOCK * math.prod(self.shape[1:])
            chosen = own if self.rate is None else torch.cat([own, extra])
            self.select = chosen.to(device)

    @property
    def channels(self) -> int:
        """Noise channels of a block."""
        _, samples, features = self.shape
        return BLOCK * samples * (features + (0 if self.rate is None else 1))

    def load(self, first: int, end: int, method: str) -> None:
        """Tabulate what depends on time for the steps first..end-1."""
        starts, widths = self.grid.starts[first:end], self.grid.widths[first:end]
        stages = np.unique([*STAGES[method], 0.0, 1.0 if method == "srk" else 0.0])
        times = np.array([starts + stage * widths for stage in stages]).ravel()
        self.own.prepare(times)
        if hasattr(self.interaction, "prepare"):
            self.interaction.prepare(times)

    def _time(self, t: torch.Tensor) -> tuple[float, float]:
        """The model's time and the step's width at a step time."""
        step = min(math.floor(float(t)), len(self.grid.widths) - 1)
        width = float(self.grid.widths[step])
        return float(self.grid.starts[step] + (float(t) - step) * width), width

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Drift over one step."""
        time, width = self._time(t)
        return self.interaction.drift(y.view(self.shape), time).mul(width).reshape(y.shape)

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Noise over one step."""
        if self.rate is None:
            return self.own(v.view(self.shape), self._time(t)[0]).reshape(y.shape)
        return self.f_and_g_prod(t, y, v)[1]

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        time, width = self._time(t)
        samples = y.view(self.shape)
        own = self.own(v[:, : y.shape[1]].view(self.shape), time)
        if self.rate is None:
            drift = self.interaction.drift(samples, time)
        else:
            normals = v[:, y.shape[1] :].view(self.shape[:2])
            drift, sampled = self.interaction.drift_and_sampling(samples, time, normals)
            if self.kind == "modified":
                own = self.interaction.noise(own, time)
            own = own.add(sampled, alpha=math.sqrt(self.rate))
        return drift.mul(width).reshape(y.shape), own.reshape(y.shape)


# --------------------------------------------------------------------------------------------------

AHEAD = 2**20
"""Random numbers of a block that are drawn at once."""
MOST_SAMPLES = 200_000
"""Samples up to which pairs are summed over: beyond, one step takes minutes."""
CHECKED = 64
"""Steps after which a path is looked at for overflow."""


class _Particles:
    """What the two processes of all samples share: one block of 32 replicates at a time, in threads."""

    most_blocks = 1
    parallel = True
    directions: np.ndarray | None = None

    def __init__(self, model: LESDE, initial: Initial, engine: str):
        self.model, self.initial, self.counts = model, initial, model.counts
        self.n_features, self.pairs = model.n_features, model.kernel.depends_on_features
        self.rate: float | None = None
        start = "random" if initial.is_random else "given"
        self.attributes: dict[str, Any] = {"initial": start, "engine": engine}
        if self.pairs:
            self.remedy = (
                "see that the formula of the FeatureKernel is finite for all pairs of samples (r2 is 0 "
                "for a sample and itself, g and c may be negative); else end `times` earlier, weaken "
                "the kernel, or take smaller steps"
            )
        # Working arrays of a feature kernel are not for two threads at a time.
        self._own = threading.local()

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    def at(self, learning_rate: float) -> Any:
        made = copy.copy(self)
        made.rate = learning_rate
        return made

    def interaction(self, times: np.ndarray, rate: float | None, rng: Random) -> Any:
        """The maps from samples to drift, kicks and sampling noise, of the calling thread."""
        if not self.pairs:
            return ClassInteraction(self.model, times, rate, rng.device)
        if not hasattr(self._own, "made"):
            self._own.made = Interaction(derive(self.model).coefficients(), rng.dtype, rng.device)
        return self._own.made

    def _pair_bytes(self, replicates: int) -> float:
        """What the pairs of samples take, in a block."""
        if not self.pairs:
            return 0.0
        N = self.model.n_samples
        if N > MOST_SAMPLES:
            raise ValueError(
                f"a FeatureKernel needs all pairs of samples at every step, {N**2:.2g} for "
                f"n_per_class = {self.counts.tolist()}; give at most {MOST_SAMPLES:,} samples in all, "
                f"which stand for larger classes: the drift is an average over the samples."
            )
        made = Interaction(derive(self.model).coefficients(), torch.float32)
        return float(made.tile_bytes + min(BLOCK, replicates) * made.bytes_per_replicate)

    def lanes(self, rng: Random) -> int:
        """The replicates that are computed: pairs of samples cost more than the random numbers."""
        return rng.wanted if self.pairs else BLOCK

    def first(self, rng: Random) -> torch.Tensor:
        """The samples to start from."""
        means, offsets = draw_start(self.model, self.initial, rng)
        samples = spread(means, self.counts)
        samples = samples if offsets is None else samples + offsets
        return samples[: self.lanes(rng)].to(rng.dtype).contiguous()

    def observe(self, rng: Random, state: Any) -> dict[str, torch.Tensor]:
        return {"features": state.samples}


@dataclass
class _State:
    samples: torch.Tensor
    sde: Any
    brownian: Any
    done: int = 0
    filled: int = 0
    index: int = 0


class IntegratedParticles(_Particles):
    """All samples integrated step by step by torchsde."""

    def __init__(self, model: LESDE, initial: Initial, method: str, dt: float | None, noise: str):
        super().__init__(model, initial, "torchsde")
        self.method, self.dt, self.kind = method, dt, noise
        channels = BLOCK * model.n_samples * (model.n_features + (noise != "plain"))
        self.length = max(1, min(CHECKED, AHEAD // channels))

    def memory(self, times: np.ndarray, statistics: bool, replicates: int) -> tuple[float, float]:
        lanes = min(BLOCK, replicates) if self.pairs else BLOCK
        numbers = self.model.n_samples * (self.n_features + (self.kind != "plain"))
        drawn = BLOCK * (self.length * (2 if self.method == "srk" else 1) + 1) + lanes * 11
        return 0.0, 4.0 * numbers * drawn + self._pair_bytes(replicates)

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        refuse_noise(self.kind, self.rate)
        made = copy.copy(self)
        made._own = threading.local()
        if not self.pairs:
            derive(self.model).coefficients().weights(times)  # not finite there: says so by name
        self.model.noise_table.factor(times[:1])
        step = self.dt or self.rate or (times[-1] - times[0]) / 100
        made.grid = StepGrid.regular(times, step)
        made.attributes = {**self.attributes, "method": self.method, "dt": step}
        if self.kind != "plain":
            made.attributes["sde"] = self.kind
        if statistics:
            made.directions = expected_directions(self.model, self.initial, times)
        return made

    def start(self, rng: Random, replicates: int) -> _State:
        rate = self.rate if self.kind == "modified" else None
        interaction = self.interaction(self.grid.times, rate, rng)
        settings = self.kind, self.rate, interaction, rng.dtype, rng.device, self.lanes(rng)
        sde = SampleSDE(self.model, self.grid, *settings)
        noises = rng.stream("means").blocks
        brownian = StepIncrements(
            noises, sde.channels, self.length, rng.dtype, self.method == "srk", select=sde.select
        )
        return _State(self.first(rng), sde, brownian)

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        state.index += 1
        stop, row = int(self.grid.saved[state.index]), state.samples.reshape(1, -1)
        while state.done < stop and bool(torch.isfinite(row).all()):
            if state.done == state.filled:
                state.filled = min(state.filled + self.length, int(self.grid.saved[-1]))
                state.sde.load(state.done, state.filled, self.method)
                state.brownian.fill(state.done, self.grid.widths[state.done : state.filled])
            end = min(stop, state.filled)
            outputs = [state.done, end]
            row = integrate(state.sde, row, outputs, state.brownian, self.method)[-1]
            state.done = end
        state.samples = row.view(state.sde.shape)
        return state


class ParticleSGD(_Particles):
    """The discrete process with all samples in memory."""

    def __init__(self, model: LESDE, initial: Initial):
        super().__init__(model, initial, "sgd")

    def memory(self, times: np.ndarray, statistics: bool, replicates: int) -> tuple[float, float]:
        lanes = min(BLOCK, replicates) if self.pairs else BLOCK
        numbers = (3 * BLOCK + 5 * lanes) * self.model.n_samples * self.n_features
        return 0.0, 4.0 * numbers + self._pair_bytes(replicates)

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        if self.rate is None:
            raise ValueError(
                "learning_rate is the step of engine='sgd'; got None. Give a number or a sequence."
            )
        made = copy.copy(self)
        made._own = threading.local()
        made.iterations = iteration_counts(times, self.rate)
        made.times = seen_times(times, [self.rate], [made.iterations])
        if statistics:
            made.directions = expected_directions(self.model, self.initial, made.times)
        return made

    def start(self, rng: Random, replicates: int) -> _State:
        interaction = self.interaction(self.times, None, rng)
        own = OwnNoise(self.model.noise_table, self.counts, rng.dtype, rng.device)
        return _State(self.first(rng), (interaction, own), None)

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        begin, stop = self.iterations[state.index : state.index + 2].tolist()
        state.index += 1
        (interaction, own), noise, rate = state.sde, rng.stream("means").blocks[0], self.rate
        samples = state.samples.clone()
        normals = samples.new_empty((BLOCK, *samples.shape[1:]))
        for m in range(begin, stop):
            if m % CHECKED == 0:
                last = min(m + CHECKED, int(self.iterations[-1]))
                times = self.times[0] + rate * np.arange(m, last)
                own.prepare(times)
                if hasattr(interaction, "prepare"):
                    interaction.prepare(times)
                state.brownian = noise.integers(self.model.n_samples, CHECKED, BLOCK)
                if not bool(torch.isfinite(samples).all()):
                    break
            time = float(self.times[0] + rate * m)
            drawn = state.brownian[m % CHECKED, : len(samples)]
            samples.add_(interaction.kick(samples, drawn, time), alpha=rate)
            fresh = own(noise.normal_(normals)[: len(samples)], time)
            samples.add_(fresh, alpha=math.sqrt(rate))
        state.samples = samples
        return state
