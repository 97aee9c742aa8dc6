"""Argument checks shared by every room.

Each check returns the value in the form the package works with, or raises one error that names
the argument, what was given and what is allowed.
"""

from __future__ import annotations

import difflib
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 2**53
"""Integers up to this are exact in float64."""
NAMES = "a name or a sequence of names"


def shown(value: Any, limit: int = 60) -> str:
    """The value as it appears in an error message, cut to one short line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # too deep, too many digits, or a class of the caller's
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown_bytes(number: float) -> str:
    """A number of bytes in the decimal unit that fits it, to three digits."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} B"


def check_instance(name: str, value: Any, kind: Any, wanted: str) -> None:
    """Refuse an argument that is not of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}; got {shown(value)}.")


def check_integer(name: str, value: Any, minimum: int = 1, maximum: float = LARGEST) -> int:
    """An integer of at least ``minimum``; a float is refused even when it is whole."""
    allowed = f"{name} must be an integer of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{allowed}; got {shown(value)}.")
    number = int(value)
    if not minimum <= number <= maximum:
        most = f" and at most {maximum}" if number > maximum else ""
        raise ValueError(f"{allowed}{most}; got {shown(number)}.")
    return number


def check_seed(value: Any, name: str = "seed") -> int:
    """A whole number of at least 0, of any size."""
    return check_integer(name, value, 0, np.inf)


def check_flag(name: str, value: Any) -> bool:
    """True or False; a text such as "no" would count as true."""
    check_instance(name, value, bool | np.bool_, "True or False")
    return bool(value)


def check_real(
    name: str,
    value: Any,
    minimum: float = -np.inf,
    maximum: float = np.inf,
    *,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> float:
    """A finite real number in the given range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.floating):
        raise TypeError(f"{name} must be a real number; got {shown(value)}.")
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction beyond all floats
        number = np.inf
    open_minimum |= minimum == -np.inf
    open_maximum |= maximum == np.inf
    low = number > minimum if open_minimum else number >= minimum
    high = number < maximum if open_maximum else number <= maximum
    if not (low and high):
        span = f"{'[('[open_minimum]}{minimum:g}, {maximum:g}{'])'[open_maximum]}"
        raise ValueError(f"{name} must be a finite number in {span}; got {shown(value)}.")
    return number


def check_fraction(name: str, value: Any) -> float:
    """A real number strictly between 0 and 1, such as a confidence level."""
    return check_real(name, value, 0.0, 1.0, open_minimum=True, open_maximum=True)


def check_path(name: str, value: Any) -> Path:
    """The path of a file or folder."""
    check_instance(name, value, str | os.PathLike, "a path")
    return Path(value)


def check_sequence(name: str, value: Any, of: str) -> list[Any]:
    """The entries of a list, tuple or array, in their order; ``of`` says what may be given."""
    unordered = isinstance(value, str | bytes | Mapping | set | frozenset)
    if not isinstance(value, Iterable) or unordered or getattr(value, "ndim", 1) == 0:
        raise TypeError(f"{name} must be {of}; got {shown(value)}.")
    return list(value)


def check_names(name: str, value: Any) -> list[str]:
    """One name or a sequence of them, each once, in their order."""
    found = [value] if isinstance(value, str) else check_sequence(name, value, NAMES)
    if not all(isinstance(entry, str) for entry in found):
        raise TypeError(f"{name} must be {NAMES}; got {shown(value)}.")
    return list(dict.fromkeys(map(str, found)))


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """One of a few words; a near miss is named in the error."""
    options = list(allowed)
    if isinstance(value, str) and value in options:
        return value
    close = difflib.get_close_matches(value, options, n=1) if isinstance(value, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"{name} must be one of {', '.join(map(repr, options))}; got {shown(value)}.{hint}"
    )


def check_choices(name: str, value: Any, allowed: Iterable[str]) -> list[str]:
    """One or more of a few words, each once, from a word or a sequence of words."""
    options = list(allowed)
    chosen = [check_choice(name, word, options) for word in check_names(name, value)]
    if not chosen:
        raise ValueError(f"{name} must name at least one of {', '.join(options)}; got none.")
    return chosen


def check_finite_array(
    name: str, value: Any, shapes: Sequence[tuple[int | str, ...]] | None = None
) -> np.ndarray:
    """A finite real float64 array, of one of the given shapes (a string entry matches any size)."""
    array = real_array(name, value).astype(np.float64)
    fits = [
        len(array.shape) == len(shape)
        and all(isinstance(n, str) or n == size for n, size in zip(shape, array.shape, strict=True))
        for shape in shapes or []
    ]
    if shapes is not None and not any(fits):
        wanted = " or ".join("(" + ", ".join(map(str, shape)) + ")" for shape in shapes)
        raise ValueError(f"{name} must have shape {wanted}; got an array of shape {array.shape}.")
    bad = np.argwhere(~np.isfinite(array)).tolist()
    if bad:
        raise ValueError(
            f"{name} must be finite; got {array[tuple(bad[0])]} at index {tuple(bad[0])}. Remove or replace the "
            f"{len(bad)} such value(s)."
        )
    return array


def real_array(name: str, value: Any) -> np.ndarray:
    """The real numbers of an array, nested sequence or tensor; no complex numbers, texts, dates or truth values."""
    array = bare_array(name, value)
    if array.dtype == object and array.ndim:  # such as fractions
        entries = [check_real(name, entry) for entry in array.flat]
        array = np.array(entries, dtype=np.float64).reshape(array.shape)
    if array.dtype.kind not in "iuf" and array.size:
        raise TypeError(f"{name} must be an array of real numbers; got {shown(value)}.")
    return array


def bare_array(name: str, value: Any) -> np.ndarray:
    """An array of anything, from a tensor, nested sequences or a masked array that masks nothing."""
    parts = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(
            f"{name} must not be masked; got an array with masked entries. Leave these out, or fill them with "
            f".filled(...)."
        )
    try:
        if hasattr(value, "detach"):
            tensor = value.detach().cpu()
            return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be an array of real numbers; got {shown(value)}.") from None


def check_times(name: str, value: Any, minimum_length: int = 2) -> np.ndarray:
    """Strictly increasing finite times, float64, at least ``minimum_length`` of them."""
    times = check_finite_array(name, value, [("T",)])
    if len(times) < minimum_length:
        raise ValueError(
            f"{name} must hold at least {minimum_length} times, from that of the initial state; got {len(times)}."
        )
    if (np.diff(times) <= 0).any():
        i = int(np.argmax(np.diff(times) <= 0))
        raise ValueError(
            f"{name} must be strictly increasing; got {times[i]:g} followed by {times[i + 1]:g} at "
            f"index {i + 1}. Sort the times and remove duplicates."
        )
    return times


def check_labels(name: str, value: Any) -> np.ndarray:
    """Integer class labels 0..K-1 with every class present."""
    labels = bare_array(name, value)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} must be a one-dimensional array of integers; got {shown(value)}.")
    present = np.unique(labels)
    if not len(present) or (present != np.arange(len(present))).any():
        raise ValueError(
            f"{name} must be the integers 0 to K-1, each present at least once; got the values "
            f"{shown(present.tolist())}. Renumber them with numpy.unique(labels, return_inverse=True)."
        )
    return labels.astype(np.int64)


def power_of_two(sizes: Any) -> np.ndarray:
    """The powers of two at or below positive numbers, 1 for 0: units in which squares stay in the range of floats."""
    return np.where(np.asarray(sizes) > 0, np.ldexp(1.0, np.frexp(sizes)[1] - 1), 1.0)


def read_device(device: Any) -> Any:
    """The torch device of a run: the CPU, or a CUDA device by its index."""
    import torch  # heavy, and not needed by what only checks arguments

    try:
        chosen = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError):
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device must be a torch device such as 'cpu' or 'cuda'; got {shown(device)}."
        )
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ValueError(
                f"device={device!r} was asked for, but torch sees {count} CUDA devices."
            )
        # With its index, so that every tensor of the run agrees on its device.
        index = torch.cuda.current_device() if chosen.index is None else chosen.index
        chosen = torch.device("cuda", index)
    return chosen


def available_memory() -> float:
    """Bytes that can still be allocated: what the system says is available, within its limits."""
    found = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup")
    try:
        available = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
        if available is not None:
            found.append(1024.0 * int(available[1]))
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(float(limit) - float((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not every system has these files
    return max(0.0, min(found))
