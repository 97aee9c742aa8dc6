"""The call ``simulate``: arguments in, engine run, dataset out."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from lesde.checks import (
    available_memory,
    check_choice,
    check_finite_array,
    check_flag,
    check_integer,
    check_real,
    check_seed,
    check_times,
    shown,
    shown_bytes,
)
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.laws.system import MeanSystem
from lesde.laws.transitions import transitions
from lesde.model.lesde import LESDE, read_initial
from lesde.paths import as_dataset, gap_directions, reduce_frame, seen_times, warn_of_lost_digits
from lesde.processes.integration import default_step
from lesde.processes.plan import Features, Keeper, Plan, Statistics
from lesde.processes.random import BLOCK, BlockNoise

__all__ = [
    "ENGINES",
    "SDES",
    "Process",
    "Random",
    "check_pairs",
    "check_process",
    "check_tables",
    "choose_engine",
    "make_engine",
    "make_keeper",
    "process_paths",
    "read_device",
    "read_learning_rates",
    "read_memory",
    "run_engine",
    "simulate",
    "working_memory",
]


# --------------------------------------------------------------------------------------------------
# What a call of ``simulate`` asks for: learning rates, engine, device and memory, checked.

ENGINES = ("auto", "exact", "torchsde", "sgd")
SDES = ("plain", "sampling", "modified")

SHARE = 0.8
"""Share of the available memory that a run may take, result included."""
SMALL_TABLES = 2**20
"""Bytes of tables that are not counted, as little as what the interpreter takes now and then."""
WORKING_SHARE = 0.5
"""Share of what the result leaves that working arrays may take, where no limit is given."""

_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def read_learning_rates(value: Any) -> tuple[np.ndarray | None, bool]:
    """Learning rates (cell,), and whether they are a dimension of the result."""
    if value is None:
        return None, False
    if isinstance(value, str) or (not isinstance(value, Sequence) and np.ndim(value) == 0):
        value = value.item() if isinstance(value, np.ndarray) else value
        return np.array([check_real("learning_rate", value, 0.0, open_minimum=True)]), False
    rates = check_finite_array("learning_rate", value, [("L",)])
    if len(rates) == 0:
        raise ValueError("learning_rate must hold at least one value; got an empty sequence.")
    if (rates <= 0).any():
        raise ValueError(
            f"learning_rate must be positive; got {rates[rates <= 0][0]:g} at index "
            f"{int(np.argmax(rates <= 0))}."
        )
    if len(np.unique(rates)) < len(rates):
        raise ValueError(
            f"learning_rate must hold distinct values; got {shown(rates.tolist())}. For more noise at "
            f"one learning rate ask for more replicates."
        )
    return rates, True


FOR_LESDE = {
    "initial": None,
    "engine": "auto",
    "dt": None,
    "method": "euler",
    "sde": "plain",
    "differentiable": False,
    "parameters": None,
}
"""Arguments that are for a LE-SDE alone, with their defaults."""


def check_process(process: Any, **given: Any) -> None:
    """Refuse what is no process, and the settings of an engine of LE-SDEs beside one."""
    parts = ("start", "advance", "observe", "counts")
    missing = [part for part in parts if not hasattr(process, part)]
    if missing or isinstance(process, type):
        lacks = f"which lacks {', '.join(missing)}" if missing else "a class, not an object of it"
        raise TypeError(
            f"model must be a lesde.LESDE, or a process with start, advance, observe and counts; got "
            f"{shown(process)}, {lacks}."
        )
    for name, value in given.items():
        default = FOR_LESDE[name]
        if not (value is default or (isinstance(value, str) and value == default)):
            raise ValueError(
                f"{name} is for a lesde.LESDE; {type(process).__name__} is a process, which knows its own "
                f"start and steps. Leave {name} out."
            )


def choose_engine(
    engine: str, coefficients: Any, has_rates: bool, dt: float | None, method: str, sde: str
) -> str:
    """The engine that runs, after checking that it has what it needs and nothing it ignores."""
    interacting = coefficients.depends_on_features
    if engine == "auto":
        if dt is not None or method != "euler" or sde != "plain":
            engine = "torchsde"
        elif has_rates:
            engine = "sgd"
        elif interacting:
            engine = "torchsde"
        else:
            try:
                MeanSystem(coefficients)
                engine = "exact"
            except ValueError:
                engine = "torchsde"
    if engine == "exact" and interacting:
        raise ValueError(
            "engine='exact' draws from a Gaussian law, which a kernel that depends on features does "
            "not have; use engine='torchsde' or engine='sgd'."
        )
    if engine == "sgd" and not has_rates:
        raise ValueError(
            "learning_rate is the step of engine='sgd'; got None. Give a number or a sequence, or use "
            "engine='exact' for the limit of small learning rates."
        )
    if engine != "torchsde":
        if dt is not None:
            raise ValueError(
                f"dt is the step of engine='torchsde'; got dt={dt:g} with engine={engine!r}. Leave dt "
                f"out, or use engine='torchsde'."
            )
        if method != "euler":
            raise ValueError(
                f"method is that of engine='torchsde'; got method={method!r} with engine={engine!r}. "
                f"Leave method out, or use engine='torchsde'."
            )
    if sde != "plain":
        _check_sde(engine, interacting, has_rates, method, sde)
    return engine


def _check_sde(engine: str, interacting: bool, has_rates: bool, method: str, sde: str) -> None:
    """Refuse what does not go with the sampling noise of SGD."""
    if engine != "torchsde":
        what = (
            "has that noise itself" if engine == "sgd" else "knows the law of the plain SDE alone"
        )
        raise ValueError(
            f"sde={sde!r} is for engine='torchsde'; engine={engine!r} {what}. Leave sde out, or use "
            f"engine='torchsde'."
        )
    if not has_rates:
        raise ValueError(
            f"sde={sde!r} has the sampling noise √(hC) of SGD at learning rate h; got learning_rate="
            f"None. Give learning_rate."
        )
    if method != "euler":
        raise ValueError(
            f"method={method!r} needs a diffusion that does not depend on the state; that of "
            f"sde={sde!r} does. Use method='euler'."
        )
    if sde == "modified" and interacting:
        raise ValueError(
            "sde='modified' is derived for kernels of classes and time; this one depends on features. "
            "Use sde='sampling'."
        )


def read_device(device: Any) -> torch.device:
    """The torch device of a run."""
    import torch

    if device is None:
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device must be a torch device such as 'cpu' or 'cuda'; got {shown(device)}."
        ) from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ValueError(
                f"device={shown(str(chosen))} was asked for, but torch sees {count} CUDA devices here. "
                f"Leave device out to run on the CPU."
            )
        # An explicit index makes every tensor of the run agree on its device.
        return torch.device(
            "cuda", torch.cuda.current_device() if chosen.index is None else chosen.index
        )
    if chosen.type != "cpu":
        raise ValueError(f"device must be 'cpu' or 'cuda'; got {shown(str(chosen))}.")
    return chosen


def read_memory(value: Any) -> float | None:
    """Bytes of ``memory_limit``: a number, or a text such as "500 MB"."""
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(
            r"\s*([0-9]+\.?[0-9]*(?:e[0-9]+)?|\.[0-9]+)\s*([a-z]*)\s*", value.lower()
        )
        if match is None or match[2] not in _UNITS:
            raise ValueError(
                f"memory_limit must be a number of bytes or a text such as '500 MB' or '2 GiB'; got "
                f"{shown(value)}."
            )
        value = float(match[1]) * _UNITS[match[2]]
    return check_real("memory_limit", value, 0.0, open_minimum=True)


def _too_many_classes(memory: float, K: int, needed: float, why: str) -> ValueError:
    return ValueError(
        f"memory_limit leaves {shown_bytes(memory)} to work in, but tables over all pairs of the {K} "
        f"classes take about {shown_bytes(needed)} {why}; raise memory_limit, or use fewer classes."
    )


def check_pairs(limit: float | None, n_classes: int) -> None:
    """Refuse so many classes that the ten tables of a derivation do not fit."""
    memory, needed = min(limit or np.inf, SHARE * available_memory()), 80.0 * n_classes**2
    if needed > memory:
        raise _too_many_classes(memory, n_classes, needed, "to derive the model")


def check_tables(plan: Plan, engine: str, memory: float) -> float:
    """What is left of ``memory`` beside the tables over pairs of classes that an engine works with.

    About as many as were counted, where they are more than a megabyte: the exact law of a kernel that changes in time holds it at all nodes of
    an interval, the others hold it at the steps or iterations that are prepared at once.
    """
    coefficients, K, p = plan.coefficients, plan.n_classes, plan.n_features
    if coefficients.depends_on_features:
        return memory
    constant, size = coefficients.drift_table.is_constant, K
    if engine == "exact":
        size = K if coefficients.transform.kind == "identity" else K * p
        widths = np.diff(plan.times)
        alike = constant and np.allclose(widths, widths[0], rtol=1e-12)
        tables = (45 if constant else 200) + 4 * (1 if alike else len(widths))
    elif engine == "sgd":
        from lesde.processes.sgd import CHUNK, TABLE_BYTES

        assert plan.rates is not None
        iterations = (plan.times[-1] - plan.times[0]) / float(plan.rates.min())
        held = 1 if constant else min(iterations, max(CHUNK, TABLE_BYTES / (8 * K**2)))
        tables = 12 + 2 * held
    else:
        from lesde.processes.integration import prefetch_length
        from lesde.processes.random import BLOCK

        tables = 12 + len(plan.times) + 2 * prefetch_length(BLOCK * K * p)
    needed = 8.0 * size**2 * tables
    if needed < SMALL_TABLES:
        return memory
    if needed > memory:
        raise _too_many_classes(memory, K, needed, f"with engine={engine!r}")
    return memory - needed


def working_memory(limit: float | None, result: float, device: torch.device, shape: str) -> float:
    """Bytes that working arrays may take, after checking that the result fits.

    Parameters
    ----------
    limit : float, optional
        What the user allows, result included.
    result : float
        Bytes of the result, which is on the host.
    shape : str
        What the result holds, for the message.
    """
    available = SHARE * available_memory()
    allowed = available if limit is None else min(limit, available)
    if result > allowed:
        bound = "that may be used here" if allowed == available else "of memory_limit"
        smaller = "" if "statistics of" in shape else ", or for keep='statistics'"
        raise ValueError(
            f"the result needs {shown_bytes(result)} ({shape}), more than the {shown_bytes(allowed)} "
            f"{bound}. Ask for fewer replicates or times and run the rest with first_replicate{smaller}."
        )
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return SHARE * free if limit is None else min(limit, SHARE * free)
    return (WORKING_SHARE if limit is None else 1.0) * (allowed - result)


# --------------------------------------------------------------------------------------------------
# Any process as paths: `Process`, what `lesde.simulate` asks of a dynamics, and the loop over it.

# Numbers of one frame of the replicates worked on side by side: enough to outweigh the cost of a call.
FRAME_NUMBERS = 2**20
ENDS = {
    "features": ("sample", "feature"),
    "weights": ("class", "feature"),
    "bias": ("class",),
    "mean": ("class", "feature"),
    "within": ("class", "feature", "feature_"),
    "reach": ("class", "class_"),
}
"""Dimensions of variables after (learning_rate, replicate, time); those of other names have none."""


@runtime_checkable
class Process(Protocol):
    """What `lesde.simulate` asks of a dynamics: any object with these three methods and ``counts``.

    A *state* is whatever the process likes; its tensors have a leading replicate axis, on the device and
    in the dtype of the random numbers.

    Attributes
    ----------
    counts : sequence of int
        Samples per class; features are sorted by class.

    Notes
    -----
    Optional: ``at(learning_rate)``, the process at a learning rate, without which the rates of a batch
    are independent copies; ``reduce(rng, state)``, a dict of ``mean (replicate, class, feature)``,
    ``within (replicate, class, feature, feature)`` and ``reach (replicate, class, class)`` as
    `lesde.statistics` defines them, for a process that can draw them without particles;
    ``describe()``, a dict for the dataset's attribute ``model``.
    """

    counts: Any

    def start(self, rng: Random, replicates: int) -> Any:
        """Return the state at ``times[0]``."""

    def advance(self, rng: Random, state: Any, t0: float, t1: float) -> Any:
        """Return the state at ``t1``, in as many steps as the process likes."""

    def observe(self, rng: Random, state: Any) -> dict[str, torch.Tensor]:
        """Return what is seen of a state.

        ``features (replicate, sample, feature)``; ``weights (replicate, class, feature)`` and ``bias
        (replicate, class)`` where there is a classifier; under any other name one number per replicate.
        """


class Random:
    """Random numbers of the replicates at hand, each from its own block's stream.

    The first axis of what is drawn is that of the replicates, all of them: a replicate gets the same
    numbers whatever others are worked on beside it.

    Attributes
    ----------
    replicates : int
        How many replicates are at hand, a multiple of 32.
    device, dtype
        Where the numbers are, and their precision.
    """

    def __init__(self, blocks: list[BlockNoise], device: torch.device, dtype: torch.dtype):
        self._blocks, self.device, self.dtype = blocks, device, dtype
        self.replicates = BLOCK * len(blocks)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normals."""
        return self._draw(shape, lambda noise, own: noise.normal(*own, dtype=self.dtype))

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return self._draw(shape, lambda noise, own: noise.uniform(*own).to(self.dtype))

    def exponential(self, *shape: int) -> torch.Tensor:
        """Exponential variables of mean 1."""
        return self._draw(shape, lambda noise, own: noise.exponential(*own).to(self.dtype))

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers 0 to high − 1."""
        return self._draw(shape, lambda noise, own: noise.integers(high, *own))

    def _draw(
        self,
        shape: tuple[int, ...],
        draw: Callable[[BlockNoise, tuple[int, ...]], torch.Tensor],
    ) -> torch.Tensor:
        if not shape or shape[0] != self.replicates:
            raise ValueError(
                f"the first axis of random numbers is that of the {self.replicates} replicates at hand, "
                f"the argument `replicates` of start; got shape {shape}."
            )
        own = (BLOCK, *shape[1:])
        return torch.cat([draw(noise, own) for noise in self._blocks])


def process_paths(
    process: Process,
    times: np.ndarray,
    *,
    replicates: int,
    first_replicate: int,
    rates: np.ndarray | None,
    batched: bool,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    keep: str,
    memory: float | None,
    progress: bool,
) -> xr.Dataset:
    """Paths of any process; the arguments as `lesde.simulate` has checked them."""
    counts = _counts(process)
    at = getattr(process, "at", None)
    cells = [process] if rates is None else [at(float(h)) if at else process for h in rates]

    def frames(cell: int, blocks: range) -> Iterator[dict[str, torch.Tensor]]:
        """What is seen of some blocks at every saved time."""
        one = cells[cell]
        streams = [BlockNoise(seed, cell, block, device, "process") for block in blocks]
        rng = Random(streams, device, dtype)
        state = one.start(rng, rng.replicates)
        yield _seen(one, rng, state, keep, counts)
        for t0, t1 in pairwise(times.tolist()):
            state = one.advance(rng, state, t0, t1)
            yield _seen(one, rng, state, keep, counts)

    first = first_replicate // BLOCK
    # What a process gives is known once it has been seen: one start is drawn for that alone.
    shapes = {
        name: tuple(v.shape[1:]) for name, v in next(frames(0, range(first, first + 1))).items()
    }
    lead = (len(cells), replicates, len(times))
    numbers = sum(math.prod(shape) for shape in shapes.values())
    size = math.prod(map(float, lead)) * numbers * torch.finfo(dtype).bits / 8
    text = f"{lead[0]} × {replicates} × {lead[2]} frames of {numbers} numbers"
    working_memory(memory, size, device, text)
    kind = str(dtype).removeprefix("torch.")
    arrays = {name: np.empty((*lead, *shape), kind) for name, shape in shapes.items()}

    frame = int(counts.sum()) * shapes["mean" if keep == "statistics" else "features"][-1]
    most = max(1, FRAME_NUMBERS // (BLOCK * max(numbers, frame)))
    stop = first + -(-replicates // BLOCK)
    total = lead[0] * (stop - first) * lead[2]
    with tqdm(total=total, disable=not progress, desc="simulate", unit="frame") as bar:
        for cell, block in product(range(len(cells)), range(first, stop, most)):
            blocks = range(block, min(block + most, stop))
            rows = slice(
                *(min(BLOCK * (b - first), replicates) for b in (blocks.start, blocks.stop))
            )
            for index, seen in enumerate(frames(cell, blocks)):
                _write(arrays, (cell, rows, index), seen, times[index])
                bar.update(len(blocks))
    coords: dict[str, Any] = {"count": ("class", counts, {"long_name": "samples of the class"})}
    if keep == "features":
        labels = np.repeat(np.arange(len(counts)), counts)
        coords = {"label": ("sample", labels, {"long_name": "class"})}
    variables = {name: (ENDS.get(name, ()), array) for name, array in arrays.items()}
    describe = getattr(process, "describe", None)
    about = describe() if describe else {"kind": type(process).__name__}
    settings: dict[str, Any] = {"engine": "process", "seed": seed, "dtype": kind}
    if keep == "statistics":
        settings |= {"keep": keep, "joint": 1, "reach_paths": int(not hasattr(process, "reduce"))}
    return as_dataset(variables, coords, times, first_replicate, rates, batched, about, settings)


def _write(
    arrays: dict[str, np.ndarray],
    at: tuple[int, slice, int],
    seen: dict[str, torch.Tensor],
    time: float,
) -> None:
    """Put what is seen at a saved time into the arrays of the result."""
    if seen.keys() != arrays.keys():
        raise ValueError(
            f"process.observe must give the same names at every time; got {sorted(seen)} at time "
            f"{time:g}, and {sorted(arrays)} at the start."
        )
    for name, values in seen.items():
        target = arrays[name][at]
        part = values[: len(target)].detach()
        # A reach is NaN on the diagonal, and where class means coincide.
        if name != "reach" and not bool(torch.isfinite(part).all()):
            remedy = "end `times` earlier, or let the process take smaller steps"
            raise Diverged(time, f"{name} of the process", remedy)
        target[...] = part.cpu().numpy()


def _counts(process: Any) -> np.ndarray:
    """Samples per class."""
    counts = np.asarray(process.counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or (counts < 1).any():
        raise ValueError(
            f"process.counts must hold the samples of each class, positive integers; got "
            f"{shown(process.counts)}."
        )
    return counts.astype(np.int64)


def _seen(
    process: Any, rng: Random, state: Any, keep: str, counts: np.ndarray
) -> dict[str, torch.Tensor]:
    """What is kept of a state, each (replicate, …), after checking that it is what it should be."""
    reduce = getattr(process, "reduce", None)
    if keep == "statistics" and reduce is not None:
        seen = dict(reduce(rng, state))
        missing = {"mean", "within", "reach"} - seen.keys()
        if missing:
            raise ValueError(f"process.reduce must give {', '.join(sorted(missing))} too.")
        p = seen["mean"].shape[-1]
    else:
        seen = dict(process.observe(rng, state))
        if "features" not in seen:
            raise ValueError(f"process.observe must give 'features'; got {shown(list(seen))}.")
        p = seen["features"].shape[-1]
    sizes = {"sample": int(counts.sum()), "class": len(counts), "feature": p}
    for name, values in seen.items():
        ends = ENDS.get(name, ())
        wanted = (rng.replicates, *(sizes[end.rstrip("_")] for end in ends))
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != wanted:
            found = tuple(values.shape) if isinstance(values, torch.Tensor) else shown(values)
            raise ValueError(
                f"{name} of the process must be a tensor ({', '.join(('replicate', *ends))}) of shape "
                f"{wanted}; got {found}."
            )
    if keep == "statistics" and reduce is None:
        values = seen.pop("features").detach().cpu()
        reduced = reduce_frame(values, counts)
        seen |= dict(zip(("mean", "within", "reach"), map(torch.from_numpy, reduced), strict=True))
    return seen


# --------------------------------------------------------------------------------------------------
# Which engine serves a plan, and the run over its blocks.


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
            steps = transitions(plan.coefficients, plan.times)
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
        from lesde.processes.particles import IntegratedSamples, ParticleSGD

        if engine == "sgd":
            return ParticleSGD(plan, keeper), steps
        return IntegratedSamples(plan, keeper, method, steps), steps
    noise = plan.coefficients.noise
    if engine == "sgd":
        if not (noise.is_constant or noise.is_isotropic):
            from lesde.processes.particles import ParticleSGD

            return ParticleSGD(plan, keeper), steps
        from lesde.processes.sgd import SGDEngine

        return SGDEngine(plan, keeper), steps
    # From given samples the reach has no law that does not depend on each of them.
    direct = isinstance(keeper, Statistics) and plan.start.offsets is None
    if plan.sde != "plain" and not direct:
        from lesde.processes.particles import IntegratedSamples

        return IntegratedSamples(plan, keeper, method, steps), steps
    from lesde.processes.means import ExactMeans, IntegratedMeans, SampledMeans

    means: Any
    if plan.sde != "plain":
        means = SampledMeans(plan, steps)
    elif engine == "exact":
        with np.errstate(over="ignore", invalid="ignore"):
            means = ExactMeans(plan, transitions(plan.coefficients, plan.times))
    else:
        means = IntegratedMeans(plan, method, steps)
    if direct:
        from lesde.processes.reduced import StatisticsEngine

        assert isinstance(keeper, Statistics)
        return StatisticsEngine(plan, keeper, means), steps
    from lesde.processes.reduced import SampleEngine

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


# --------------------------------------------------------------------------------------------------

METHODS = ("euler", "milstein", "srk")


def simulate(
    model: LESDE | Process,
    times: Any,
    initial: Any = None,
    replicates: int = 256,
    learning_rate: float | Sequence[float] | None = None,
    engine: str = "auto",
    dt: float | None = None,
    seed: int = 0,
    device: Any = None,
    dtype: str = "float32",
    progress: bool = False,
    method: str = "euler",
    first_replicate: int = 0,
    keep: str = "features",
    sde: str = "plain",
    memory_limit: float | str | None = None,
    differentiable: bool = False,
    parameters: Any = None,
) -> Any:
    """Simulate replicates of a model's features.

    Parameters
    ----------
    model : LESDE, or any process
        A process is an object with ``start``, ``advance``, ``observe`` and ``counts``; see
        :class:`lesde.simulation.process.Process`. It knows its own start and steps, so ``initial``,
        ``engine``, ``dt``, ``method``, ``sde``, ``differentiable`` and ``parameters`` are not for it.
    times : array, shape (time,)
        Saved times, strictly increasing; ``times[0]`` is the time of the initial state.
    initial : None or array, optional
        (class, feature): class means, every sample starts at its mean. (sample, feature): the
        samples, sorted by class. Either with a leading replicate dimension: a start for every
        replicate. None, the default: class means N(0, I/p) drawn for every replicate, every sample at
        its mean.
    replicates : int, default 256
        Independent copies.
    learning_rate : float or sequence of float, optional
        A sequence becomes the dimension ``learning_rate`` of the result, with independent noise
        for every entry. With engine "sgd" it is the step h of the discrete process. With
        "torchsde" and ``dt=None`` it is the integration step. The exact law does not depend on it:
        with "exact" the entries are independent copies.
    engine : {"auto", "exact", "torchsde", "sgd"}
        "exact" draws from the law of the LE-SDE at the saved times. "torchsde" integrates the LE-SDE
        step by step. "sgd" is the discrete process the LE-SDE approximates: at every iteration one
        sample is drawn and moves all others; the state is saved at the iteration nearest to each
        time, and ``time`` of the result is the time of that iteration.
        "auto" is "torchsde" where ``dt`` or another ``method`` than "euler" is given, else "sgd"
        where ``learning_rate`` is given, else "exact", or "torchsde" for a model whose exact law
        needs matrices too large to form.
    dt : float, optional
        Largest integration step of "torchsde"; every saved interval is divided evenly. By default
        the class means' growth over the run is right to about 1 %, and there are at least 100 steps.
    seed : int, default 0
        Same seed, same result: the noise depends on the seed, the index of the learning rate and the
        number of the replicate, not on how many replicates are asked for. Learning rates have
        independent noise, random initial means included: give ``initial`` to compare them from one start.
        So do "float32" and "float64" where samples are drawn; see ``dtype``.
    device : optional
        A torch device such as "cuda". Results differ between kinds of devices.
    dtype : {"float32", "float64"}
        Precision of the paths. The samples' noise is drawn in it (in double precision it would cost almost
        three times as much), so for one seed the paths of the two precisions are different draws, with the
        same law. Only class means of "exact", and of "torchsde" for a plain SDE with a kernel of classes and
        time, are drawn in double precision always and agree between the two.
    progress : bool, default False
        Whether to show a progress bar.
    method : {"euler", "milstein", "srk"}
        Method of "torchsde". Noise is additive, so "euler" and "milstein" are the same scheme, of
        strong order 1; "srk" (Rößler's SRA1) has strong order 1.5, for these linear drifts 2, and weak
        order 2.
    first_replicate : int, default 0
        A multiple of 32. Starts the stream there: ``replicates=64`` equals ``replicates=32`` followed
        by ``replicates=32, first_replicate=32``.
    keep : {"features", "statistics"}
        "features": every sample at every saved time. "statistics": class means, within-class
        covariances and the reach of classes toward each other, which is what the analyses need. Where
        kernel and noise let them be drawn directly ("exact", and "torchsde", for kernels of classes
        and time, from initial class means) the cost does not depend on the number of samples.
        Otherwise samples are simulated and reduced time by time. Class means and covariances have the
        law of samples either way, at all times together. Reaches drawn directly (attribute
        ``reach_paths`` 0) have that of samples at each time, given the class means there, but are drawn
        anew at every time and independently of the covariances: do not follow the reach of one replicate
        through time, as for the first time at which it is separated; keep the features for that.
    sde : {"plain", "sampling", "modified"}
        The SDE that "torchsde" integrates. "plain": the LE-SDE, the limit of small learning rates.
        "sampling": with the sampling noise √(hC) of SGD at ``learning_rate`` h as a further diffusion;
        an Euler step of length h, the default where saved times are multiples of h apart, has the first
        two moments of an iteration. "modified": also with
        drift and diffusion corrected at first order in h, so that moments differ from those of the
        discrete process by O(h²). See :func:`lesde.moments`.
    memory_limit : float or str, optional
        Bytes, or a text such as "500 MB", that the result and working arrays, tables over pairs of classes
        among them, may take; it decides how
        many blocks of replicates are worked on side by side and never changes the result. Default:
        80 % of what is available, at most half of the rest after the result for working arrays.
    differentiable : bool, default False
        With "torchsde": return tensors with the graph back to ``parameters`` and ``initial``; see
        :class:`lesde.processes.tensor_paths.TensorPaths`.
    parameters : mapping, optional
        With ``differentiable``: torch values of the free names in the kernel's formulas.

    Returns
    -------
    xarray.Dataset, or TensorPaths where differentiable
        With ``keep="features"``: ``features`` ([learning_rate,] replicate, time, sample, feature),
        samples sorted by class. With ``keep="statistics"``: ``mean`` (…, class, feature); ``within``
        (…, class, feature, feature_), the empirical within-class covariance with divisor n_k; ``reach``
        (…, class, class_), the largest (μ_k − x)·u over samples x of class k, u the unit vector from
        μ_l to μ_k; where ``initial`` is given and the law is known, ``reach_expected``, the same along
        the expected gap, and ``direction`` (time, class, class_, feature), the unit vectors of that.
        Coordinates ``time``, ``label`` (sample), ``replicate``; ``learning_rate`` where given, and for
        "sgd" ``iteration`` ([learning_rate,] time), the number m of iterations done at a saved
        time, t = t₀ + m h, and ``asked_time`` (time), the times as given, where one of them lies
        between iterations. ``count`` (class) for statistics. Attributes record the
        model (JSON), the engine, seed and versions (JSON).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed.
    Diverged
        Where a path stops being finite, with the saved time at which that was seen.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=2, n_per_class=5)
    >>> paths = lesde.simulate(model, [0, 0.5, 1], replicates=8)
    >>> dict(paths.features.sizes)
    {'replicate': 8, 'time': 3, 'sample': 10, 'feature': 2}
    """
    from lesde.model.lesde import LESDE

    check_flag("progress", progress)
    check_flag("differentiable", differentiable)
    if not isinstance(model, LESDE):
        check_process(
            model,
            initial=initial,
            engine=engine,
            dt=dt,
            method=method,
            sde=sde,
            differentiable=differentiable,
            parameters=parameters,
        )
    if differentiable:
        assert isinstance(model, LESDE)
        from lesde.processes.tensor_paths import tensor_paths

        if memory_limit is not None:
            raise ValueError(
                "memory_limit does not go with differentiable=True, which keeps every step for the "
                "gradient; leave it out, or ask for fewer replicates."
            )
        return tensor_paths(
            model,
            times,
            initial,
            replicates,
            parameters=parameters,
            learning_rate=learning_rate,
            engine="torchsde" if engine == "auto" else engine,
            dt=dt,
            seed=seed,
            device=device,
            dtype=dtype,
            method=method,
            first_replicate=first_replicate,
            keep=keep,
            sde=sde,
        )
    if parameters is not None:
        raise ValueError(
            "parameters are for differentiable=True; give numbers to the kernel, or use "
            "model.substitute."
        )
    saved = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    check_choice("engine", engine, ENGINES)
    check_choice("method", method, METHODS)
    check_choice("dtype", dtype, ("float32", "float64"))
    check_choice("keep", keep, ("features", "statistics"))
    check_choice("sde", sde, SDES)
    seed = check_seed(seed)
    first_replicate = check_integer("first_replicate", first_replicate, 0)
    if dt is not None:
        dt = check_real("dt", dt, 0.0, open_minimum=True)
    limit = read_memory(memory_limit)
    rates, batched = read_learning_rates(learning_rate)
    import torch

    from lesde.processes.random import BLOCK

    if first_replicate % BLOCK:
        raise ValueError(
            f"first_replicate must be a multiple of {BLOCK}, the replicates of a block of random "
            f"numbers; got {first_replicate}."
        )
    on = read_device(device)
    if not isinstance(model, LESDE):
        return process_paths(
            model,
            saved,
            replicates=replicates,
            first_replicate=first_replicate,
            rates=rates,
            batched=batched,
            seed=seed,
            device=on,
            dtype=getattr(torch, dtype),
            keep=keep,
            memory=limit,
            progress=progress,
        )
    start = read_initial(model, initial, replicates)
    check_pairs(limit, model.n_classes)
    coefficients = derive(model).coefficients()
    engine = choose_engine(engine, coefficients, rates is not None, dt, method, sde)

    from lesde.processes.plan import KEEPERS, Plan
    from lesde.processes.sgd import iteration_counts

    asked, iterations = saved, None
    if engine == "sgd" and rates is not None:
        iterations = np.stack([iteration_counts(asked, rate) for rate in rates.tolist()])
        saved = seen_times(asked, rates.tolist(), list(iterations))
    plan = Plan(
        coefficients=coefficients,
        times=saved,
        start=start,
        replicates=replicates,
        first_block=first_replicate // BLOCK,
        seed=seed,
        rates=rates,
        device=on,
        dtype=getattr(torch, dtype),
        sde=sde,
    )
    size = KEEPERS[keep].bytes(plan)
    shape = f"{_shape_text(plan, keep)}, {dtype}"
    memory = working_memory(limit, size, on, shape)
    plan = plan.with_memory(check_tables(plan, engine, memory))
    keeper = make_keeper(plan, keep, model)
    runner, steps = make_engine(plan, model, keeper, engine, method, dt)
    run_engine(runner, plan, progress)

    settings: dict[str, Any] = {"engine": engine, "seed": seed, "dtype": dtype, **keeper.attrs()}
    settings["initial"] = "random" if start.is_random else "given"
    if sde != "plain":
        settings["sde"] = sde
    if engine == "torchsde":
        settings |= {"method": method, "dt": steps if batched else steps[0]}
    warn_of_lost_digits(keeper.last_means(), dtype)
    return as_dataset(
        {name: (dims, keeper.arrays[name]) for name, dims in keeper.variables().items()},
        keeper.coords(),
        saved,
        first_replicate,
        rates,
        batched,
        model.describe(),
        settings,
        fixed=keeper.fixed(),
        asked=asked,
        iterations=iterations,
    )


def _shape_text(plan: Plan, keep: str) -> str:
    """What a result holds, for a message."""
    rates = f"{plan.cells} learning rates × " if plan.cells > 1 else ""
    frames = f"{rates}replicates={plan.replicates} × times of length {len(plan.times)}"
    if keep == "features":
        return f"{frames} × {plan.n_samples} samples × {plan.n_features} features"
    return f"{frames} × statistics of {plan.n_classes} classes in {plan.n_features} features"
