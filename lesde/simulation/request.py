"""What a call of ``simulate`` asks for: learning rates, engine, device and memory, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lesde.checks import check_finite_array, check_real, shown, shown_bytes
from lesde.linear_system import linear_system
from lesde.simulation.result import available_memory

if TYPE_CHECKING:
    import torch

    from lesde.simulation.plan import Plan

__all__ = [
    "ENGINES",
    "SDES",
    "check_pairs",
    "check_process",
    "check_tables",
    "choose_engine",
    "read_device",
    "read_learning_rates",
    "read_memory",
    "working_memory",
]

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
                linear_system(coefficients)
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
        from lesde.simulation.own_parts import CHUNK, TABLE_BYTES

        assert plan.rates is not None
        iterations = (plan.times[-1] - plan.times[0]) / float(plan.rates.min())
        held = 1 if constant else min(iterations, max(CHUNK, TABLE_BYTES / (8 * K**2)))
        tables = 12 + 2 * held
    else:
        from lesde.simulation.brownian import prefetch_length
        from lesde.simulation.noise import BLOCK

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
