"""The call ``simulate``: arguments in, engine run, dataset out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lesde.checks import (
    check_choice,
    check_finite_array,
    check_integer,
    check_real,
    check_times,
    shown,
)
from lesde.initial import read_initial
from lesde.linear_system import linear_system
from lesde.simulation.result import allocate, as_dataset, warn_of_lost_digits

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from lesde.derivation.coefficients import Coefficients
    from lesde.model import LESDE
    from lesde.simulation.plan import Plan

__all__ = ["simulate"]

ENGINES = ("auto", "exact", "torchsde", "sgd")
METHODS = ("euler", "milstein", "srk")


def simulate(
    model: LESDE,
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
) -> xr.Dataset:
    """Simulate replicates of a model's features.

    Parameters
    ----------
    model : LESDE
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
        sample is drawn and moves all others; saved times are rounded to the nearest iteration.
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
    device : optional
        A torch device such as "cuda". Results differ between devices.
    dtype : {"float32", "float64"}
        Precision of the paths.
    progress : bool, default False
        Whether to show a progress bar.
    method : {"euler", "milstein", "srk"}
        Method of "torchsde". Noise is additive, so "euler" and "milstein" are the same scheme, of
        strong order 1; "srk" (Rößler's SRA1) has strong order 1.5, for these linear drifts 2, and weak
        order 2.
    first_replicate : int, default 0
        A multiple of 32. Starts the stream there: ``replicates=64`` equals ``replicates=32`` followed
        by ``replicates=32, first_replicate=32``.

    Returns
    -------
    xarray.Dataset
        ``features`` ([learning_rate,] replicate, time, sample, feature), samples sorted by class, with
        coordinates ``time``, ``label`` (sample), ``replicate``; ``learning_rate`` where given, and for
        "sgd" ``iteration`` ([learning_rate,] time), the number m of iterations done at a saved
        time, t = t₀ + m h. Attributes record the model (JSON), the engine, seed and versions (JSON).

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
    from lesde.model import LESDE

    if not isinstance(model, LESDE):
        raise TypeError(f"model must be a lesde.LESDE; got {shown(model)}.")
    saved = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    start = read_initial(model, initial, replicates)
    rates, batched = _learning_rates(learning_rate)
    check_choice("engine", engine, ENGINES)
    check_choice("method", method, METHODS)
    check_choice("dtype", dtype, ("float32", "float64"))
    seed = check_integer("seed", seed, 0)
    first_replicate = check_integer("first_replicate", first_replicate, 0)
    if dt is not None:
        dt = check_real("dt", dt, 0.0, open_minimum=True)
    coefficients = model.derive().coefficients()
    engine = _engine(engine, coefficients, rates is not None, dt, method)

    import torch

    from lesde.simulation.noise import BLOCK
    from lesde.simulation.plan import Plan

    if first_replicate % BLOCK:
        raise ValueError(
            f"first_replicate must be a multiple of {BLOCK}, the replicates of a block of random "
            f"numbers; got {first_replicate}."
        )
    plan = Plan(
        coefficients=coefficients,
        times=saved,
        start=start,
        replicates=replicates,
        first_block=first_replicate // BLOCK,
        seed=seed,
        rates=rates,
        device=_device(device),
        dtype=getattr(torch, dtype),
    )
    runner, steps = _runner(plan, engine, method, dt)
    cells = 1 if rates is None else len(rates)
    out = allocate((cells, replicates, len(saved), model.n_samples, model.n_features), dtype)
    _run(runner, plan, out, progress)

    settings: dict[str, Any] = {"engine": engine, "seed": seed, "dtype": dtype}
    settings["initial"] = "random" if start.is_random else "given"
    if engine == "torchsde":
        settings |= {"method": method, "dt": steps if batched else steps[0]}
    warn_of_lost_digits(out[:, :, -1], model, dtype)
    iterations = np.stack(runner.iterations) if engine == "sgd" else None
    return as_dataset(model, saved, out, rates, batched, iterations, first_replicate, settings)


def _run(runner: Any, plan: Plan, out: np.ndarray, progress: bool) -> None:
    from tqdm import tqdm

    total = len(out) * sum(1 for _ in plan.blocks()) * (len(plan.times) - 1)
    bar = tqdm(total=total, disable=not progress, desc="simulate", unit="frame")
    with bar, _one_thread(plan.device):
        for cell in range(len(out)):
            runner.run(cell, out[cell], bar.update)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Run torch's CPU loops in one thread, and put the setting back.

    A block's arrays are small and drawing normals is serial, so threads gain little; on a busy
    machine they wait for one another and a run takes many times as long.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _learning_rates(value: Any) -> tuple[np.ndarray | None, bool]:
    """Learning rates (cell,), and whether they are a dimension of the result."""
    if value is None:
        return None, False
    if np.ndim(value) == 0:
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


def _engine(
    engine: str, coefficients: Coefficients, has_rates: bool, dt: float | None, method: str
) -> str:
    """The engine that runs, after checking that it has what it needs and nothing it ignores."""
    if engine == "auto":
        if dt is not None or method != "euler":
            engine = "torchsde"
        elif has_rates:
            engine = "sgd"
        else:
            try:
                linear_system(coefficients)
                engine = "exact"
            except ValueError:
                engine = "torchsde"
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
    return engine


def _device(device: Any) -> torch.device:
    import torch

    if device is None:
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
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


def _runner(plan: Plan, engine: str, method: str, dt: float | None) -> tuple[Any, list[float]]:
    """The engine object, and the integration step of every cell."""
    if engine == "exact":
        from lesde.simulation.exact import ExactEngine

        return ExactEngine(plan), []
    if engine == "sgd":
        from lesde.simulation.sgd import SGDEngine

        return SGDEngine(plan), []
    from lesde.simulation.integrator import IntegratorEngine, default_step

    plan.coefficients.weights(plan.times)  # a kernel that is not finite there says so by name
    if dt is not None:
        steps = [dt] * (1 if plan.rates is None else len(plan.rates))
    elif plan.rates is not None:
        steps = plan.rates.tolist()
    else:
        steps = [default_step(plan.coefficients, plan.times, method)]
    return IntegratorEngine(plan, method, steps), steps
