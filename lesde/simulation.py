"""The loop: a process goes in, a dataset comes out.

It handles blocks of replicates, streams of random numbers, saved times, memory, devices, progress and the
dataset, and no equation.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from lesde.checks import (
    bare_array,
    check_choice,
    check_finite_array,
    check_flag,
    check_integer,
    check_real,
    check_seed,
    check_times,
    read_device,
    shown,
    shown_bytes,
)
from lesde.clocks import seen_times
from lesde.errors import Diverged
from lesde.model.lesde import LESDE, class_average
from lesde.paths import as_dataset, reduce_frame, warn_of_lost_digits, working_memory
from lesde.processes.engines import Engine, read_engine
from lesde.processes.process import BLOCK, Process, Random, check_first_replicate

__all__ = ["Process", "Random", "simulate"]

SMALL_TABLES = 2**20
"""Bytes of tables that are not counted, as little as what the interpreter takes now and then."""
FRAME_NUMBERS = 2**20
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
        covariances and the reach of classes toward each other, which is what the analyses need. Where
        kernel and noise let them be drawn directly ("exact", and "torchsde", for kernels of classes
        and time, from initial class means) the cost does not depend on the number of samples.
        Otherwise samples are simulated and reduced time by time. Either way the class means and
        covariances have the same law as those of samples, jointly over time. Reaches drawn directly
        (attribute ``reach_paths`` 0) have the right law at each time, given the class means there, but are
        drawn anew at every time and independently of the covariances. So do not follow the reach of one
        replicate through time, for example to find when it first separates; keep the features for that.
    seed : int, default 0
        Same seed, same result: the noise depends on the seed, the index of the learning rate and the
        number of the replicate, not on how many replicates are asked for. Learning rates have
        independent noise, random initial means included: give ``initial`` to compare them from one start.
        Where samples are drawn, "float32" and "float64" have independent noise too; see ``dtype``.
    first_replicate : int, default 0
        A multiple of 32. Starts the stream there: ``replicates=64`` equals ``replicates=32`` followed
        by ``replicates=32, first_replicate=32``.
    device : optional
        A torch device such as "cuda". Results differ between kinds of devices.
    dtype : {"float32", "float64"}
        Precision of the paths. The samples' noise is drawn in it (in double precision it would cost almost
        three times as much), so for one seed the paths of the two precisions are different draws, with the
        same law. Only class means of "exact", and of "torchsde" for a plain SDE with a kernel of classes and
        time, are drawn in double precision always and agree between the two.
    memory_limit : float or str, optional
        Bytes, or a text such as "500 MB", that the result and the working arrays may take, including tables
        over pairs of classes. It sets how many blocks of replicates are advanced side by side and never
        changes the result. Default: 80 % of the available memory, where working arrays take at most half of
        what the result leaves.
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
    asked = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    check_choice("dtype", dtype, ("float32", "float64"))
    check_choice("keep", keep, ("features", "statistics"))
    check_flag("progress", progress)
    first_replicate = check_first_replicate(first_replicate)
    seed, limit, on = check_seed(seed), read_memory(memory_limit), read_device(device)
    rates, batched = read_learning_rates(learning_rate)
    if isinstance(process, LESDE):
        made = read_engine(engine, process, rates is not None)
        process = made.process(process, initial, replicates)
    else:
        _check_process(process, initial, engine)

    counts, statistics = _counts(process), keep == "statistics"
    at = getattr(process, "at", None)
    cells: list[Any] = [process]
    if rates is not None:
        cells = [at(float(h)) if at else process for h in rates]
    result = _Result(len(cells), replicates, asked, counts, getattr(torch, dtype), statistics)
    # What cannot fit is refused before anything is computed, where the process says what it takes.
    p = getattr(process, "n_features", None) if hasattr(process, "memory") else None
    memory = None if p is None else result.room(result.known_shapes(int(p)), limit, on)
    block_bytes = 0.0
    if memory is not None:
        sizes = [one.memory(asked, statistics, replicates) for one in cells]
        tables, block_bytes = (max(column) for column in zip(*sizes, strict=True))
        memory = _beside_tables(memory, tables, block_bytes, len(counts))
    if hasattr(process, "prepare"):
        cells = [one.prepare(asked, statistics) for one in cells]
    result.directions = getattr(cells[0], "directions", None) if statistics else None
    result.remedy = getattr(cells[0], "remedy", None)

    blocks = range(first_replicate // BLOCK, -(-(first_replicate + replicates) // BLOCK))

    def frames(cell: int, part: range) -> Iterator[Seen]:
        """Observations of some blocks at every saved time."""
        one, first = cells[cell], BLOCK * (part.start - blocks.start)
        wanted = min(BLOCK * len(part), replicates - first)
        rng = Random(seed, cell, part, on, result.dtype, first, wanted)
        state = one.start(rng, rng.replicates)
        yield result.seen(one, rng, state, 0)
        for i, (t0, t1) in enumerate(pairwise(asked.tolist()), start=1):
            state = one.advance(rng, state, t0, t1)
            yield result.seen(one, rng, state, i)

    with _one_thread(on) as threads:
        if memory is None:  # the variables of a process are known after the first observation
            shapes = {name: tuple(v.shape[1:]) for name, v in next(frames(0, blocks[:1])).items()}
            memory = result.room(shapes, limit, on)
            p = shapes["mean" if statistics else "features"][-1]
        most = getattr(cells[0], "most_blocks", None)
        most = most or max(1, FRAME_NUMBERS // (BLOCK * int(counts.sum()) * int(p or 1)))
        groups = _groups(blocks, min(most, MOST_BLOCKS), memory / threads, block_bytes, on)
        tasks = [(cell, part) for cell in range(len(cells)) for part in groups]
        workers = 1
        if getattr(cells[0], "parallel", False):
            size = max(1.0, block_bytes * len(groups[0]))
            workers = max(1, min(threads, len(tasks), int(memory // size)))
        # The first frame shows which variables there are.
        begun = frames(*tasks[0])
        opening = next(begun)
        result.allocate(opening)
        streams = {tasks[0]: chain([opening], begun)}
        total = len(cells) * len(blocks) * len(asked)
        bar = tqdm(total=total, disable=not progress, desc="simulate", unit="frame")
        lock = threading.Lock()

        def run(task: tuple[int, range]) -> None:
            cell, part = task
            first = BLOCK * (part.start - blocks.start)
            for index, seen in enumerate(
                streams.pop(task) if task in streams else frames(cell, part)
            ):
                result.write(cell, first, index, seen)
                with lock:
                    bar.update(len(range(part.start, min(part.stop, blocks.stop))))

        with bar:
            _run(run, tasks, workers)
    warn_of_lost_digits(result.last_means(), dtype)
    iterations = [one.iterations for one in cells if hasattr(one, "iterations")]
    seen = asked
    if iterations and rates is not None:
        seen = seen_times(asked, rates.tolist(), iterations)
    about = process.describe() if hasattr(process, "describe") else {"kind": type(process).__name__}
    return as_dataset(
        {name: (ENDS.get(name, ()), array) for name, array in result.arrays.items()},
        result.coords(),
        seen,
        first_replicate,
        rates,
        batched,
        about,
        {"engine": "process", "seed": seed, "dtype": dtype, **result.attributes(cells, batched)},
        fixed=result.fixed(),
        asked=asked,
        iterations=np.stack(iterations) if iterations else None,
    )


# --------------------------------------------------------------------------------------------------
# Arguments.


def read_learning_rates(value: Any) -> tuple[np.ndarray | None, bool]:
    """Learning rates (cell,), and whether they are a dimension of the result."""
    if value is None:
        return None, False
    if isinstance(value, str) or (
        not isinstance(value, Sequence) and bare_array("learning_rate", value).ndim == 0
    ):
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
    for name, value, default in (("initial", initial, None), ("engine", engine, "auto")):
        if not (value is default or (isinstance(value, str) and value == default)):
            raise ValueError(
                f"{name} is for a lesde.LESDE; {type(process).__name__} is a process, which knows its own "
                f"start and steps. Leave {name} out."
            )


_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


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


def _beside_tables(memory: float, tables: float, block_bytes: float, K: int) -> float:
    """The memory left beside tables that are held throughout, checked to be enough for one block."""
    if tables > max(memory, SMALL_TABLES):
        raise ValueError(
            f"memory_limit leaves {shown_bytes(memory)} to work in, but tables over all pairs of the {K} "
            f"classes take about {shown_bytes(tables)}; raise memory_limit, or use fewer classes."
        )
    left = memory if tables < SMALL_TABLES else memory - tables
    if block_bytes > left:
        raise ValueError(
            f"memory_limit leaves {left / 1e6:.3g} MB to work in, but one block of {BLOCK} replicates "
            f"needs {block_bytes / 1e6:.3g} MB; raise memory_limit, or use a smaller model."
        )
    return left


def _counts(process: Any) -> np.ndarray:
    """Samples per class."""
    counts = np.asarray(process.counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or (counts < 1).any():
        raise ValueError(
            f"process.counts must hold the samples of each class, positive integers; got "
            f"{shown(process.counts)}."
        )
    return counts.astype(np.int64)


# --------------------------------------------------------------------------------------------------
# Blocks of replicates side by side, in threads.


def _groups(
    blocks: range, most: int, memory: float, block_bytes: float, device: torch.device
) -> list[range]:
    """The blocks in groups that are worked on side by side, as many as the memory of a thread allows.

    On other devices than the CPU the bits of a product may depend on its size: groups have one size there,
    and what was not asked for is dropped.
    """
    size = max(1, int(min(most, memory // max(1.0, block_bytes))))
    stop = blocks.stop if device.type == "cpu" else blocks.stop + size
    return [range(i, min(i + size, stop)) for i in range(blocks.start, blocks.stop, size)]


def _run(run: Callable[[Any], None], tasks: list[Any], workers: int) -> None:
    """Do all tasks, several at a time in threads, each in one thread of torch's."""
    if workers == 1:
        for task in tasks:
            run(task)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = [pool.submit(run, task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done():
                future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


# --------------------------------------------------------------------------------------------------
# The arrays of the result.

Seen = dict[str, torch.Tensor]
"""The variables kept of a state, each (replicate, …)."""


class _Result:
    """The arrays of the result, filled frame by frame, each checked to be what it should be."""

    def __init__(
        self,
        cells: int,
        replicates: int,
        times: np.ndarray,
        counts: np.ndarray,
        dtype: torch.dtype,
        statistics: bool,
    ):
        self.lead = (cells, replicates, len(times))
        self.times, self.counts, self.dtype, self.statistics = times, counts, dtype, statistics
        self.kind = str(dtype).removeprefix("torch.")
        self.arrays: dict[str, np.ndarray] = {}
        self.directions: np.ndarray | None = None
        self.remedy: str | None = None
        """Of a path that stops being finite."""

    def known_shapes(self, p: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the variables that are always there, for p features."""
        K, N = len(self.counts), int(self.counts.sum())
        if self.statistics:
            return {"mean": (K, p), "within": (K, p, p), "reach": (K, K)}
        return {"features": (N, p)}

    def room(
        self, shapes: dict[str, tuple[int, ...]], limit: float | None, device: torch.device
    ) -> float:
        """Bytes to work in beside a result of these shapes."""
        numbers = sum(math.prod(map(float, shape)) for shape in shapes.values())
        size = math.prod(map(float, self.lead)) * numbers * torch.finfo(self.dtype).bits / 8
        cells, replicates, times = self.lead
        what = f"{int(self.counts.sum())} samples × {shapes.get('features', (0,))[-1]} features"
        if self.statistics:
            what = f"statistics of {len(self.counts)} classes in {shapes['mean'][-1]} features"
        several = f"{cells} learning rates × " if cells > 1 else ""
        text = f"{several}replicates={replicates} × times of length {times} × {what}, {self.kind}"
        return working_memory(limit, size, device, text)

    def seen(self, process: Any, rng: Random, state: Any, index: int) -> Seen:
        """Observe or reduce a state, and check the shapes."""
        reduce = getattr(process, "reduce", None) if self.statistics else None
        if reduce is not None:
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
        sizes = {"sample": int(self.counts.sum()), "class": len(self.counts), "feature": p}
        for name, values in seen.items():
            ends = ENDS.get(name, ())
            wanted = (rng.replicates, *(sizes[end.rstrip("_")] for end in ends))
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else None
            if shape not in (wanted, (rng.wanted, *wanted[1:])):
                raise ValueError(
                    f"{name} of the process must be a tensor ({', '.join(('replicate', *ends))}) of shape "
                    f"{wanted}; got {shape or shown(values)}."
                )
        if self.statistics and reduce is None:
            values = seen.pop("features")[: rng.wanted].detach()
            self._check(index, "features", values)
            along = None if self.directions is None else self.directions[index]
            reduced = map(torch.from_numpy, reduce_frame(values.cpu(), self.counts, along))
            names = ("mean", "within", "reach", "reach_expected")
            seen |= dict(zip(names, reduced, strict=False))
        return seen

    def allocate(self, seen: Seen) -> None:
        """Make the arrays for variables such as these."""
        for name, values in seen.items():
            self.arrays[name] = np.empty((*self.lead, *values.shape[1:]), self.kind)

    def write(self, cell: int, first: int, index: int, seen: Seen) -> None:
        """Put what is seen at a saved time into the arrays, of the replicates from ``first`` on."""
        if seen.keys() != self.arrays.keys():
            raise ValueError(
                f"process.observe must give the same names at every time; got {sorted(seen)} at time "
                f"{self.times[index]:g}, and {sorted(self.arrays)} at the start."
            )
        for name, values in seen.items():
            target = self.arrays[name][cell, first : first + len(values), index]
            part = values[: len(target)].detach().to(self.dtype)
            # A reach is NaN on the diagonal, and where class means coincide.
            if not name.startswith("reach"):
                self._check(index, name, part)
            torch.from_numpy(target).copy_(part)
        if self.statistics:
            self._check_spread(seen["mean"], seen["within"])

    def _check(self, index: int, name: str, values: torch.Tensor) -> None:
        # One sum is cheaper than a mask; where it overflows the mask decides.
        values = values.to(self.dtype)
        if not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
            what = "the features" if name in ("features", "mean", "within") else name
            raise Diverged(self.times[index], what, self.remedy)

    def _check_spread(self, mean: torch.Tensor, within: torch.Tensor) -> None:
        """Refuse a spread, if it is not rounding, whose square is too small for the precision."""
        limits = torch.finfo(self.dtype)
        squares = within.diagonal(dim1=-2, dim2=-1).amax(dim=(-2, -1))
        size = mean.abs().amax(dim=(-2, -1)).to(squares)
        lost = (squares > (limits.eps * size) ** 2) & (squares < limits.tiny / limits.eps)
        if bool(lost.any()):
            remedy = "give the model larger units"
            if self.dtype != torch.float64:
                remedy = "use dtype='float64'"
            raise ValueError(
                f"noise leaves a spread within classes of {float(squares[lost][0]) ** 0.5:.1g}, whose square "
                f"underflows dtype={self.kind!r} with keep='statistics'; {remedy}, or keep the features."
            )

    def last_means(self) -> np.ndarray:
        """Class means (learning_rate, replicate, class, feature) of the last time, float64."""
        if self.statistics:
            return self.arrays["mean"][:, :, -1].astype(np.float64)
        last = self.arrays["features"][:, :, -1].astype(np.float64)
        return class_average(last, self.counts)

    def coords(self) -> dict[str, Any]:
        """Coordinates of the variables' own dimensions."""
        if self.statistics:
            return {"count": ("class", self.counts, {"long_name": "samples of the class"})}
        labels = np.repeat(np.arange(len(self.counts)), self.counts)
        return {"label": ("sample", labels, {"long_name": "class"})}

    def fixed(self) -> dict[str, Any]:
        """Variables that are the same for all replicates."""
        if self.directions is None:
            return {}
        return {"direction": (("time", "class", "class_", "feature"), self.directions)}

    def attributes(self, cells: list[Any], batched: bool) -> dict[str, Any]:
        """The attributes of the cells; a list where the cells differ."""
        every = [getattr(one, "attributes", {}) for one in cells]
        found: dict[str, Any] = {}
        if self.statistics:
            own = hasattr(cells[0], "reduce") and cells[0].reduce is not None
            found = {"keep": "statistics", "joint": 1, "reach_paths": int(not own)}
        for name, value in every[0].items():
            values = [one[name] for one in every]
            found[name] = values if batched and any(v != value for v in values) else value
        return found
