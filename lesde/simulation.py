"""The loop: a process goes in, a dataset comes out.

It handles blocks of replicates, streams of random numbers, saved times, memory, devices, progress and the
dataset, and no equation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from lesde.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_real,
    check_seed,
    check_times,
    read_device,
    shown,
)
from lesde.clocks import seen_times
from lesde.errors import Diverged
from lesde.laws.moments import read_learning_rates
from lesde.model.lesde import LESDE, class_average
from lesde.paths import as_dataset, reduce_frame, warn_of_lost_digits, working_memory
from lesde.processes.engines import Engine, read_engine
from lesde.processes.process import BLOCK, Process, Random, check_first_replicate

STATE_BYTES = 40
"""Bytes that a process may hold for each number of a frame, with its working arrays."""
DRAWN = 2**23
"""Bytes of a block for random numbers that are drawn ahead."""
FRAME_NUMBERS = 2**21
"""Numbers of one frame of the replicates worked on side by side: enough to outweigh the cost of a call."""
MOST_BLOCKS = 64
"""Blocks side by side: more gain little."""
ENDS = {
    "features": ("sample", "feature"),
    "weights": ("class", "feature"),
    "bias": ("class",),
    "mean": ("class", "feature"),
    "within": ("class", "feature", "feature_"),
    "reach": ("class", "class_"),
    "reach_expected": ("class", "class_"),
}
"""Dimensions of variables after (learning_rate, replicate, time); those of other names have none."""
STATISTICS = ("mean", "within", "reach")

Seen = dict[str, torch.Tensor]
"""The variables kept of a state, each (replicate, …)."""


def simulate(
    process: LESDE | Process,
    times: Any,
    initial: Any = None,
    replicates: int = 256,
    learning_rate: float | Sequence[float] | None = None,
    engine: str | Engine = "auto",
    keep: str = "features",
    seed: int = 0,
    first_replicate: int = 0,
    device: Any = None,
    dtype: str = "float32",
    memory_limit: float | str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Simulate replicates of a process: an LE-SDE, or your own dynamics.

    Parameters
    ----------
    process : LESDE, or any process
        A process is an object with ``start``, ``advance``, ``observe`` and ``counts``; see
        :class:`lesde.processes.process.Process`. It knows its own start and steps, so it takes
        neither ``initial`` nor ``engine``.
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
        "torchsde" without ``dt`` it is the integration step. The exact law does not depend on it:
        with "exact" the entries are independent copies.
    engine : {"auto", "exact", "torchsde", "sgd"}, or an engine with settings
        :class:`lesde.Exact`, "exact", draws from the law of the LE-SDE at the saved times.
        :class:`lesde.TorchSDE`, "torchsde", integrates it, or the SDE with the sampling noise of SGD, step
        by step: ``lesde.TorchSDE(method="srk", dt=0.01)``. :class:`lesde.SGD`, "sgd", is the discrete
        process that the LE-SDE approximates. "auto" is "sgd" where ``learning_rate`` is given, else
        "exact", or "torchsde" for a kernel that depends on features or a model whose exact law needs
        matrices too large to form.
    keep : {"features", "statistics"}
        "features": every sample at every saved time. "statistics": class means, within-class
        covariances and the reach of classes toward each other, which is what the analyses need. With
        "exact" and "torchsde", for kernels of classes and time and from initial class means, they are drawn
        directly, at a cost that does not depend on the number of samples; otherwise samples are simulated
        and reduced time by time. Means and covariances have the law of samples' either way, jointly over
        time. Reaches drawn directly (attribute ``reach_paths`` 0) have the right law at each time, given the
        class means there, but are drawn anew at every time: do not follow the reach of one replicate through
        time, for example to find when it first separates; keep the features for that.
    seed : int, default 0
        Same seed, same result: the noise depends on the seed, the index of the learning rate and the
        number of the replicate, not on how many replicates are asked for. Learning rates have
        independent noise, random initial means included: give ``initial`` to compare them from one start.
    first_replicate : int, default 0
        A multiple of 32. Starts the stream there: ``replicates=64`` equals ``replicates=32`` followed
        by ``replicates=32, first_replicate=32``.
    device : optional
        A torch device such as "cuda". Results differ between kinds of devices.
    dtype : {"float32", "float64"}
        Precision of the paths. The samples' noise is drawn in it, so for one seed the paths of the two
        precisions are different draws, with the same law. Only class means of "exact", and of "torchsde" for
        a plain SDE with a kernel of classes and time, are always drawn in double precision.
    memory_limit : float or str, optional
        Bytes, or a text such as "500 MB", that the result and the states of the replicates may take, beside
        some 50 MB of scratch. States are taken to need 40 bytes for each number seen of them at one time. It
        sets how many blocks of replicates are advanced side by side and never changes the result. Default:
        80 % of the available memory, where states take at most half of what the result leaves.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
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
    asked = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    check_choice("dtype", dtype, ("float32", "float64"))
    check_choice("keep", keep, ("features", "statistics"))
    check_flag("progress", progress)
    first_replicate = check_first_replicate(first_replicate)
    seed, limit, on = check_seed(seed), read_memory(memory_limit), read_device(device)
    rates, batched = read_learning_rates(learning_rate)
    model = process if isinstance(process, LESDE) else None
    if model is not None:
        made = read_engine(engine, model, rates is not None)
        process = made.process(model, initial, replicates)
    else:
        _check_process(process, initial, engine)
    counts, statistics, kind = _counts(process), keep == "statistics", getattr(torch, dtype)

    at = getattr(process, "at", None)
    cells: list[Any] = [process] if rates is None or not at else [at(float(h)) for h in rates]
    if hasattr(process, "prepare"):
        cells = [one.prepare(asked, statistics) for one in cells]
    if rates is not None and not at:
        cells *= len(rates)  # independent copies
    directions = getattr(cells[0], "directions", None) if statistics else None
    directly = statistics and getattr(cells[0], "reduce", None) is not None
    blocks = range(first_replicate // BLOCK, -(-(first_replicate + replicates) // BLOCK))

    def frames(cell: int, part: range) -> Iterator[Seen]:
        """What is kept of some blocks at every saved time."""
        one, first = cells[cell], BLOCK * (part.start - blocks.start)
        rng = Random(seed, cell, part, on, kind, first, min(BLOCK * len(part), replicates - first))
        state = one.start(rng, rng.replicates)
        for i, time in enumerate(asked.tolist()):
            if i:
                state = one.advance(rng, state, float(asked[i - 1]), time)
            seen = dict(one.reduce(rng, state) if directly else one.observe(rng, state))
            _check_seen(seen, rng, counts, STATISTICS if directly else ("features",))
            if statistics and not directly:
                features = seen.pop("features")[: rng.wanted].detach().to(kind)
                _check_finite("features", features, time)
                along = None if directions is None else directions[i]
                reduced = map(torch.from_numpy, reduce_frame(features.cpu(), counts, along))
                seen |= dict(zip((*STATISTICS, "reach_expected"), reduced, strict=False))
            yield seen

    with _one_thread(on) as threads:
        if model is not None:
            names = [*STATISTICS] if statistics else ["features"]
            if directions is not None:
                names.append("reach_expected")
            sizes = {"sample": counts.sum(), "class": len(counts), "feature": model.n_features}
            shapes = {name: tuple(sizes[e.rstrip("_")] for e in ENDS[name]) for name in names}
        else:  # known after the first observation
            shapes = {name: tuple(x.shape[1:]) for name, x in next(frames(0, blocks[:1])).items()}
        lead = (len(cells), replicates, len(asked))
        memory = _room(lead, shapes, counts, kind, limit, on)
        K, p = len(counts), int(shapes["mean" if statistics else "features"][-1])
        numbers = BLOCK * p * (K * (K + p) if directly else int(counts.sum()))
        parallel = threads if getattr(cells[0], "parallel", False) else 1
        groups, workers = _groups(blocks, len(cells), numbers, memory, parallel, on)
        tasks = [(cell, part) for cell in range(len(cells)) for part in groups]
        arrays = {name: np.empty((*lead, *shape), dtype) for name, shape in shapes.items()}
        total = len(cells) * len(blocks) * len(asked)
        bar = tqdm(total=total, disable=not progress, desc="simulate", unit="frame")

        def run(task: tuple[int, range]) -> None:
            cell, part = task
            first = BLOCK * (part.start - blocks.start)
            for i, seen in enumerate(frames(cell, part)):
                _check_same(seen, shapes)
                for name, array in arrays.items():
                    target = array[cell, first : first + len(seen[name]), i]
                    values = seen[name][: len(target)].detach().to(kind)
                    # A reach is NaN on the diagonal, and where class means coincide.
                    if not name.startswith("reach"):
                        _check_finite(name, values, float(asked[i]))
                    torch.from_numpy(target).copy_(values)
                if statistics:
                    _check_spread(seen["mean"], seen["within"], kind)
                bar.update(len(range(part.start, min(part.stop, blocks.stop))))

        with bar:
            _run(run, tasks, workers)
    last = arrays["mean" if statistics else "features"][:, :, -1].astype(np.float64)
    warn_of_lost_digits(last if statistics else class_average(last, counts), dtype)
    iterations = [one.iterations for one in cells if hasattr(one, "iterations")]
    seen = asked
    if iterations and rates is not None:
        seen = seen_times(asked, rates.tolist(), iterations)
    coords: dict[str, Any]
    settings: dict[str, Any] = {"engine": "process", "seed": seed, "dtype": dtype}
    if statistics:
        coords = {"count": ("class", counts, {"long_name": "samples of the class"})}
        settings |= {"keep": keep, "joint": 1, "reach_paths": int(not directly)}
    else:
        coords = {"label": ("sample", np.repeat(np.arange(K), counts), {"long_name": "class"})}
    every = [getattr(one, "attributes", {}) for one in cells]
    for name, value in every[0].items():  # a list where the cells differ
        values = [one[name] for one in every]
        settings[name] = values if batched and any(v != value for v in values) else value
    fixed = {"direction": (("time", "class", "class_", "feature"), directions)}
    return as_dataset(
        {name: (ENDS.get(name, ()), array) for name, array in arrays.items()},
        coords,
        seen,
        first_replicate,
        rates,
        batched,
        process.describe() if hasattr(process, "describe") else {"kind": type(process).__name__},
        settings,
        fixed=None if directions is None else fixed,  # type: ignore[arg-type]
        asked=asked,
        iterations=np.stack(iterations) if iterations else None,
    )


# --------------------------------------------------------------------------------------------------
# Arguments.


def _check_process(process: Any, initial: Any, engine: Any) -> None:
    """Refuse objects that are not processes, and arguments that are for an LE-SDE alone."""
    parts = ("start", "advance", "observe", "counts")
    missing = [part for part in parts if not hasattr(process, part)]
    if missing or isinstance(process, type):
        lacks = f"which lacks {', '.join(missing)}" if missing else "a class, not an object of it"
        raise TypeError(
            f"process must be a lesde.LESDE, or a process with start, advance, observe and counts; got "
            f"{shown(process)}, {lacks}."
        )
    for name, given in (("initial", initial is not None), ("engine", engine != "auto")):
        if given:
            raise ValueError(
                f"{name} is for a lesde.LESDE; {type(process).__name__} is a process, which knows its own "
                f"start and steps. Leave {name} out."
            )


def _counts(process: Any) -> np.ndarray:
    """Samples per class."""
    counts = np.asarray(process.counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or (counts < 1).any():
        raise ValueError(
            f"process.counts must hold the samples of each class, positive integers; got "
            f"{shown(process.counts)}."
        )
    return counts.astype(np.int64)


UNITS = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20}
UNITS |= {"": 1.0, "gib": 2.0**30, "tib": 2.0**40}


def read_memory(value: Any) -> float | None:
    """Bytes of ``memory_limit``: a number, or a text such as "500 MB"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in UNITS:
            raise ValueError(
                f"memory_limit must be a number of bytes or a text such as '500 MB' or '2 GiB'; got "
                f"{shown(value)}."
            )
        value = float(match[1]) * UNITS[match[2]]
    return None if value is None else check_real("memory_limit", value, 0.0, open_minimum=True)


# --------------------------------------------------------------------------------------------------
# What a process gives, and the room for it.


def _check_seen(seen: Seen, rng: Random, counts: np.ndarray, needed: Sequence[str]) -> None:
    """Refuse observations without the names that are needed, or of other shapes."""
    missing = [name for name in needed if name not in seen]
    if missing:
        raise ValueError(
            f"process.{'observe' if 'features' in needed else 'reduce'} must give "
            f"{', '.join(map(repr, missing))}; got {shown(list(seen))}."
        )
    sizes = {"sample": int(counts.sum()), "class": len(counts)}
    sizes["feature"] = seen[needed[0]].shape[-1]
    for name, values in seen.items():
        ends = ENDS.get(name, ())
        wanted = (rng.replicates, *(sizes[end.rstrip("_")] for end in ends))
        shape = tuple(values.shape) if isinstance(values, torch.Tensor) else None
        if shape not in (wanted, (rng.wanted, *wanted[1:])):
            raise ValueError(
                f"{name} of the process must be a tensor ({', '.join(('replicate', *ends))}) of shape "
                f"{wanted}; got {shape or shown(values)}."
            )


def _check_same(seen: Seen, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse an observation of other names or sizes than the first."""
    found = {name: tuple(values.shape[1:]) for name, values in seen.items()}
    if found != shapes:
        raise ValueError(
            f"process.observe must give the same names and shapes at every time; got {found}, and {shapes} at first."
        )


def _check_spread(mean: torch.Tensor, within: torch.Tensor, kind: torch.dtype) -> None:
    """Refuse a spread, if it is not rounding, whose square is too small for the precision."""
    limits = torch.finfo(kind)
    squares = within.diagonal(dim1=-2, dim2=-1).amax((-2, -1))
    rounding = (limits.eps * mean.abs().amax((-2, -1)).to(squares)) ** 2
    if bool(((squares > rounding) & (squares < limits.tiny / limits.eps)).any()):
        raise ValueError(
            f"the spread within classes is so small that its square underflows {kind} with keep='statistics'; use "
            f"dtype='float64', larger units, or keep the features."
        )


def _check_finite(name: str, values: torch.Tensor, time: float) -> None:
    # One sum is cheaper than a mask; where it overflows the mask decides.
    if not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
        raise Diverged(time, "the features" if name in ("features", *STATISTICS) else name)


def _room(
    lead: tuple[int, ...],
    shapes: dict[str, tuple[int, ...]],
    counts: np.ndarray,
    kind: torch.dtype,
    limit: float | None,
    device: torch.device,
) -> float:
    """Bytes to work in beside a result of these shapes."""
    numbers = sum(math.prod(map(float, shape)) for shape in shapes.values())
    size = math.prod(map(float, lead)) * numbers * torch.finfo(kind).bits / 8
    cells, replicates, times = lead
    if "features" in shapes:
        what = f"{counts.sum()} samples × {shapes['features'][-1]} features"
    else:
        what = f"statistics of {len(counts)} classes in {shapes['mean'][-1]} features"
    several = f"{cells} learning rates × " if cells > 1 else ""
    text = f"{several}replicates={replicates} × times of length {times} × {what}, "
    return working_memory(limit, size, device, text + str(kind).removeprefix("torch."))


# --------------------------------------------------------------------------------------------------
# Blocks of replicates side by side, in threads.


def _groups(
    blocks: range, cells: int, numbers: int, memory: float, threads: int, device: torch.device
) -> tuple[list[range], int]:
    """The blocks in groups that are worked on side by side, and how many groups at a time, in threads.

    ``numbers`` are those of a frame of one block. On other devices than the CPU the bits of a product may depend
    on its size: groups have one size there, and what was not asked for is dropped.
    """
    needed = STATE_BYTES * numbers
    if needed > memory:
        raise ValueError(
            f"memory_limit leaves {memory / 1e6:.3g} MB to work in, but one block of {BLOCK} replicates "
            f"needs {needed / 1e6:.3g} MB; raise memory_limit, or use a smaller model."
        )
    workers = min(threads, int(memory // needed))
    size = min(MOST_BLOCKS, FRAME_NUMBERS // numbers, int(memory / workers // (needed + DRAWN)))
    if threads > 1:
        size = min(size, -(-cells * len(blocks) // threads))
    size = max(1, size)
    stop = blocks.stop if device.type == "cpu" else blocks.stop + size
    return [range(i, min(i + size, stop)) for i in range(blocks.start, blocks.stop, size)], workers


def _run(run: Any, tasks: list[Any], workers: int) -> None:
    """Do all tasks, several at a time in threads, each in one thread of torch's."""
    if min(workers, len(tasks)) == 1:
        for task in tasks:
            run(task)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(run, tasks):  # cancels the rest where one fails
            pass


@contextmanager
def _one_thread(device: torch.device) -> Iterator[int]:
    """Run torch's CPU loops in one thread, and put the setting back; gives the threads there are for blocks.

    Arrays are small and drawing normals is serial, so that threads of torch's own would only wait.
    """
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield threads if device.type == "cpu" else 1
    finally:
        torch.set_num_threads(threads)
