"""Which engine serves a plan, and the run over its blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lesde.model import LESDE
from lesde.reduction import gap_directions
from lesde.simulation.keeping import Features, Keeper, Statistics
from lesde.simulation.plan import Plan
from lesde.simulation.steps import default_step

__all__ = ["make_engine", "make_keeper", "run_engine"]


def make_keeper(plan: Plan, keep: str, model: LESDE) -> Keeper:
    """The arrays of the result."""
    if keep == "features":
        return Features(plan)
    return Statistics(plan, _expected_directions(plan, model))


def _expected_directions(plan: Plan, model: LESDE) -> np.ndarray | None:
    """Unit vectors of the class means' expected gaps (time, class, class, feature), where known."""
    means = plan.start.means
    if plan.coefficients.depends_on_features or means is None or means.ndim == 3:
        return None
    rows: list[np.ndarray] = []
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            steps = model.derive().transitions(plan.times)
        except ValueError:  # matrices too large to form
            return None
        # Without the grand mean, whose growth would drown the gaps.
        state = steps[0].basis.T @ means
        rows.append(state)
        for step in steps:
            state = step.apply(step.phi, state)
            rows.append(state)
        directions = gap_directions(steps[0].basis[:, 1:] @ np.stack(rows)[:, 1:])
    off = ~np.eye(plan.n_classes, dtype=bool)
    return directions if np.isfinite(directions[:, off]).all() else None


def make_engine(
    plan: Plan, model: LESDE, keeper: Keeper, engine: str, method: str, dt: float | None
) -> tuple[Any, list[float]]:
    """The engine object, and the integration step of every cell."""
    steps: list[float] = []
    if engine == "torchsde":
        steps = _steps(plan, method, dt)
    if plan.coefficients.depends_on_features:
        from lesde.simulation.particles import IntegratedSamples, ParticleSGD

        if engine == "sgd":
            return ParticleSGD(plan, keeper), steps
        return IntegratedSamples(plan, keeper, method, steps), steps
    noise = plan.coefficients.noise
    if engine == "sgd":
        if not (noise.is_constant or noise.is_isotropic):
            from lesde.simulation.particles import ParticleSGD

            return ParticleSGD(plan, keeper), steps
        from lesde.simulation.sgd import SGDEngine

        return SGDEngine(plan, keeper), steps
    # From given samples the reach has no law that does not depend on each of them.
    direct = isinstance(keeper, Statistics) and plan.start.offsets is None
    if plan.sde != "plain" and not direct:
        from lesde.simulation.particles import IntegratedSamples

        return IntegratedSamples(plan, keeper, method, steps), steps
    from lesde.simulation.mean_paths import ExactMeans, IntegratedMeans
    from lesde.simulation.sampled_means import SampledMeans

    means: Any
    if plan.sde != "plain":
        means = SampledMeans(plan, steps)
    elif engine == "exact":
        with np.errstate(over="ignore", invalid="ignore"):
            means = ExactMeans(plan, model.derive().transitions(plan.times))
    else:
        means = IntegratedMeans(plan, method, steps)
    if direct:
        from lesde.simulation.reduced import StatisticsEngine

        assert isinstance(keeper, Statistics)
        return StatisticsEngine(plan, keeper, means), steps
    from lesde.simulation.reduced import SampleEngine

    return SampleEngine(plan, keeper, means), steps


def _steps(plan: Plan, method: str, dt: float | None) -> list[float]:
    """The integration step of every cell."""
    if not plan.coefficients.depends_on_features:
        plan.coefficients.weights(plan.times)  # a kernel that is not finite there says so by name
    plan.coefficients.noise.factor(plan.times[:1])
    if dt is not None:
        return [dt] * plan.cells
    if plan.rates is not None:
        return plan.rates.tolist()
    if plan.coefficients.depends_on_features:
        return [(plan.times[-1] - plan.times[0]) / 100]
    return [default_step(plan.coefficients, plan.times, method)]


def run_engine(engine: Any, plan: Plan, progress: bool) -> None:
    """Run an engine over its groups of blocks at every learning rate.

    Groups are independent. Engines whose time goes into large array operations work on as many at a
    time as torch has threads; each in one thread of torch's, as their arrays are small and drawing
    normals is serial.
    """
    tasks = [(cell, blocks) for cell in range(plan.cells) for blocks in engine.groups]
    total = sum(len(blocks) for _, blocks in tasks) * (len(plan.times) - 1)
    threads = torch.get_num_threads()
    bar = tqdm(total=total, disable=not progress, desc="simulate", unit="frame")
    workers = 1
    if plan.device.type == "cpu" and getattr(engine, "parallel", False):
        size = engine.block_bytes * max(len(blocks) for _, blocks in tasks)
        workers = max(1, min(threads, len(tasks), int(plan.memory // size)))
    with bar, _one_thread(plan.device):
        if workers == 1:
            for cell, blocks in tasks:
                engine.run(cell, blocks, bar.update)
        else:
            _run_threads(engine, tasks, workers, bar.update)


def _run_threads(engine: Any, tasks: list[Any], workers: int, update: Callable[[], object]) -> None:
    lock = threading.Lock()

    def tick() -> None:
        with lock:
            update()

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = [pool.submit(engine.run, cell, blocks, tick) for cell, blocks in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done():
                future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Run torch's CPU loops in one thread, and put the setting back."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
