"""Paths of the torchsde engine as tensors, with gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchsde

from lesde.checks import check_choice, check_integer, check_real, check_seed, check_times
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.laws.law import refuse_feature_kernel
from lesde.laws.values import BoundTable, Values, numbers_of, read_parameters
from lesde.model.lesde import read_initial
from lesde.paths import as_dataset, warn_of_lost_digits
from lesde.processes.deviations import Deviations, IntervalNoise
from lesde.processes.integration import (
    METHODS,
    STAGES,
    StepGrid,
    StepIncrements,
    default_step,
    prefetch_length,
)
from lesde.processes.means import DTYPE, MeanSDE, from_rows, to_rows
from lesde.processes.plan import KEEPERS, Features, Plan, class_means, spread
from lesde.processes.random import BLOCK
from lesde.simulation import read_device, working_memory

if TYPE_CHECKING:
    import xarray as xr

    from lesde.model.lesde import LESDE

__all__ = ["TensorPaths", "tensor_paths"]


@dataclass(frozen=True, eq=False)
class TensorPaths:
    """Simulated paths as tensors that are part of a graph.

    Made by ``lesde.simulate(model, times, ..., differentiable=True, parameters={...})``.

    Attributes
    ----------
    features : tensor (replicate, time, sample, feature)
        Samples sorted by class; in the dtype asked for, on the device asked for.
    means : tensor (replicate, time, class, feature), float64
        Class means, before they are rounded to that dtype.
    times : tensor (time,), float64
    labels : tensor of int (sample,)
        The class of every sample.
    """

    features: torch.Tensor
    means: torch.Tensor
    times: torch.Tensor
    labels: torch.Tensor
    _model: LESDE
    _plan: Plan
    _settings: dict[str, Any]

    def dataset(self) -> xr.Dataset:
        """The paths without gradients, as ``lesde.simulate`` returns them."""
        keeper = Features(self._plan)
        keeper.arrays["features"][0] = self.features.detach().cpu().numpy()
        return as_dataset(
            {name: (dims, keeper.arrays[name]) for name, dims in keeper.variables().items()},
            keeper.coords(),
            self._plan.times,
            self._plan.first_block * BLOCK,
            self._plan.rates,
            False,
            self._model.describe(),
            self._settings,
        )


class TensorMeanSDE(MeanSDE):
    """The SDE of the class means with a drift that is part of a graph.

    Parameters
    ----------
    plan, grid, method
        As of MeanSDE.
    drift : BoundTable
        w_l E_kl(t).
    """

    def __init__(self, plan: Plan, grid: StepGrid, method: str, drift: BoundTable):
        super().__init__(plan, grid, method)
        self._drift, self._first = drift, 0
        self._matrices: dict[float, tuple[torch.Tensor, ...]] = {}

    def load(self, first: int, end: int) -> None:
        """Tabulate drift and noise for the steps first..end-1."""
        super().load(first, end)
        stages, grid = STAGES[self.method], self.grid
        widths, starts = grid.widths[first:end], grid.starts[first:end]
        if self._drift.is_constant:
            values = self._drift(starts[:1])[:, None].expand(-1, len(stages), -1, -1)
        else:
            times = starts[:, None] + np.asarray(stages) * widths[:, None]
            values = self._drift(times.ravel()).unflatten(0, times.shape)
        scaled = (values * torch.from_numpy(widths)[:, None, None, None]).to(self.plan.device)
        self._first = first
        self._matrices = {stage: scaled[:, i].unbind(0) for i, stage in enumerate(stages)}

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Drift over one step, shape (block, channel)."""
        time = float(t)
        step = math.floor(time)
        rows = y.view(len(y), self.K, BLOCK, self.p)
        return self.maps(self._matrices[time - step][step - self._first], rows).view_as(y)


def tensor_paths(
    model: LESDE,
    times: Any,
    initial: Any = None,
    replicates: int = 256,
    *,
    parameters: Any = None,
    learning_rate: Any = None,
    engine: str = "torchsde",
    dt: float | None = None,
    seed: int = 0,
    device: Any = None,
    dtype: str = "float32",
    method: str = "euler",
    first_replicate: int = 0,
    keep: str = "features",
    sde: str = "plain",
) -> TensorPaths:
    """Paths integrated by torchsde with gradients to kernel parameters and the initial state.

    Gradients are those of the discrete scheme: back-propagation through every step, whose states stay
    in memory. Random numbers do not depend on the parameters, and are those of the same call without
    gradients, so that the paths are the same to rounding.

    Parameters
    ----------
    model : LESDE
        With a kernel that depends on classes and time only.
    times, replicates, dt, seed, device, dtype, method, first_replicate
        As in :func:`lesde.simulate`. The default of ``dt`` depends on the parameters' values: give
        one to compare runs.
    initial : None, tensor or array, optional
        As in :func:`lesde.simulate`; a tensor keeps its graph.
    parameters : mapping of str to number or 0-d tensor
        A value for every name in ``model.free_parameters``; tensors keep their graph. Names in the
        noise have no gradient here.
    learning_rate : float, optional
        The step where ``dt`` is not given.

    Returns
    -------
    TensorPaths

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed.
    Diverged
        Where a path stops being finite.
    """
    _check_request(model, learning_rate, engine, keep, sde)
    saved = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    check_choice("dtype", dtype, ("float32", "float64"))
    check_choice("method", method, METHODS)
    first_replicate = check_integer("first_replicate", first_replicate, 0)
    if first_replicate % BLOCK:
        raise ValueError(
            f"first_replicate must be a multiple of {BLOCK}, the replicates of a block of random "
            f"numbers; got {first_replicate}."
        )
    values = read_parameters(model, parameters)
    _refuse_noise_gradient(model, values)
    fixed = model.substitute(**numbers_of(values))
    coefficients = derive(fixed).coefficients()
    coefficients.weights(saved)  # a kernel that is not finite there says so by name
    for name, value in (("dt", dt), ("learning_rate", learning_rate)):
        if value is not None:
            check_real(name, value, 0.0, open_minimum=True)
    step = dt if dt is not None else learning_rate
    plan = Plan(
        coefficients=coefficients,
        times=saved,
        start=read_initial(model, initial, replicates),
        replicates=replicates,
        first_block=first_replicate // BLOCK,
        seed=check_seed(seed),
        rates=None if learning_rate is None else np.array([float(learning_rate)]),
        device=read_device(device),
        dtype=getattr(torch, dtype),
    )
    step = default_step(coefficients, saved, method) if step is None else float(step)
    grid = StepGrid.regular(saved, step)
    needed = KEEPERS["features"].bytes(plan)
    # Of every step about three states of the class means stay, for the gradient.
    steps = 24.0 * replicates * int(grid.saved[-1]) * plan.n_classes * plan.n_features
    working_memory(
        None, needed + steps, plan.device, f"replicates={replicates} × {int(grid.saved[-1])} steps"
    )
    drift = BoundTable(derive(model).coefficients().drift_table, values, "kernel")
    sde_of_means = TensorMeanSDE(plan, grid, method, drift)
    start, offsets = _start(plan, initial)
    rows = _integrate(plan, sde_of_means, start)
    means = torch.stack(rows, 1)[:replicates]
    warn_of_lost_digits(means[:, -1].detach().cpu().numpy(), dtype)
    features = _samples(plan, grid, method, rows, offsets, sde_of_means)
    return TensorPaths(
        features=features[:replicates],
        means=means,
        times=torch.from_numpy(saved.copy()),
        labels=torch.from_numpy(model.labels),
        _model=fixed,
        _plan=plan,
        _settings={
            "engine": "torchsde",
            "seed": plan.seed,
            "dtype": dtype,
            "initial": "random" if plan.start.is_random else "given",
            "method": method,
            "dt": step,
        },
    )


def _check_request(model: LESDE, learning_rate: Any, engine: str, keep: str, sde: str) -> None:
    """Refuse what has no gradients."""
    refuse_feature_kernel(model)
    if engine not in ("auto", "torchsde"):
        raise ValueError(
            f"differentiable=True needs engine='torchsde'; got engine={engine!r}. For gradients of the "
            f"exact law use lesde.tensor_law(model, ...)."
        )
    for name, value, only in (("keep", keep, "features"), ("sde", sde, "plain")):
        if value != only:
            raise ValueError(
                f"differentiable=True needs {name}={only!r}; got {name}={value!r}. The result holds "
                f"the class means as well."
            )
    if learning_rate is not None and np.ndim(learning_rate) != 0:
        raise ValueError(
            "differentiable=True takes one learning_rate; got a sequence. Call it for each."
        )


def _refuse_noise_gradient(model: LESDE, values: Values) -> None:
    if model.noise_table.is_numeric:
        return
    names = {
        str(symbol)
        for formula in model.noise_table.given.ravel()
        for symbol in formula.expression.free_symbols
    }
    moving = sorted(name for name in names & set(values) if values[name].requires_grad)
    if moving:
        raise ValueError(
            f"parameters has {', '.join(moving)}, in the formula of the noise, with requires_grad: paths "
            f"have no gradient to the noise. Give a number, or use lesde.tensor_law(model, ...)."
        )


def _start(plan: Plan, initial: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Class means (block, replicate, class, feature), float64, and deviations; with a tensor's graph."""
    blocks = list(plan.blocks())
    if not isinstance(initial, torch.Tensor):
        pairs = [plan.initial(0, block) for block in blocks]
        own = [offset for _, offset in pairs if offset is not None]
        return torch.stack([means for means, _ in pairs]), torch.stack(own) if own else None
    state = initial.to(plan.device, DTYPE)
    if state.dim() == 2:
        state = state.expand(plan.replicates, *state.shape)
    # The last block may be short: repeat a row, its results are dropped.
    index = np.minimum(np.arange(len(blocks) * BLOCK), plan.replicates - 1)
    state = state[torch.from_numpy(index).to(plan.device)].unflatten(0, (len(blocks), BLOCK))
    if state.shape[-2] == plan.n_classes and plan.n_classes != plan.n_samples:
        return state, None
    means = class_means(state, plan.counts)
    return means, state - spread(means, plan.counts)


def _integrate(plan: Plan, sde: TensorMeanSDE, start: torch.Tensor) -> list[torch.Tensor]:
    """Class means (replicate, class, feature) of whole blocks at every saved time."""
    blocks = list(plan.blocks())
    length = prefetch_length(sde.channels)
    noises = [plan.noise(0, block, "means") for block in blocks]
    brownian = StepIncrements(noises, sde.channels, length, DTYPE, sde.method == "srk", sde.colour)
    state = to_rows(start)
    rows = [start.flatten(0, 1)]
    cuda = [plan.device] if plan.device.type == "cuda" else []
    for first, end, saved in sde.grid.stretches(length):
        sde.load(first, end)
        brownian.fill(first, sde.grid.widths[first:end])
        inside = [done for done, _ in saved if done < end]
        ts = torch.tensor([first, *inside, end], dtype=torch.float64)
        # sdeint checks shapes with draws of its own from the global generator: put that back.
        with torch.random.fork_rng(devices=cuda):
            states = torchsde.sdeint(sde, state, ts, bm=brownian, method=sde.method, dt=1.0)
        state = states[-1]
        for (_, index), values in zip(saved, states[1:], strict=False):
            if not bool(torch.isfinite(values.detach().to(plan.dtype)).all()):
                raise Diverged(float(plan.times[index]))
            rows.append(from_rows(values, plan.n_classes).flatten(0, 1))
    return rows


def _samples(
    plan: Plan,
    grid: StepGrid,
    method: str,
    rows: list[torch.Tensor],
    offsets: torch.Tensor | None,
    sde: TensorMeanSDE,
) -> torch.Tensor:
    """All samples (replicate, time, sample, feature) of whole blocks, about their class means."""
    noise = IntervalNoise.of_scheme(sde.noise, grid, method)
    deviations = [Deviations(plan, 0, block, None, noise) for block in plan.blocks()]
    frames = []
    for index, means in enumerate(rows):
        parts = [own.following(index - 1, 1) if index else own.first() for own in deviations]
        own = torch.cat([part[0] for part in parts])
        shift = means - class_means(own.to(DTYPE), plan.counts)
        frame = own + spread(shift.to(plan.dtype), plan.counts)
        if offsets is not None:
            frame = frame + offsets.flatten(0, 1).to(plan.dtype)
        frames.append(frame)
    return torch.stack(frames, 1)
