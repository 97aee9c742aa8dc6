"""Whether a model maps each sample by itself, or mixes the samples of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["check_each_by_itself", "rounding", "trial_rows"]

Run = Callable[[Sequence[int]], dict[str, Tensor]]
"""What a model gives, by name, for a batch of these samples, each time from the same state and with the
same random numbers; the first axis is the sample."""

_KEPT = 8
_MUCH = 0.05  # of the spread of the samples: what moves features by more is refused, by less told


def rounding(dtype: torch.dtype) -> float:
    """By how much two ways to compute the same numbers may differ, relative to the largest."""
    epsilon = torch.finfo(dtype).eps if dtype.is_floating_point else torch.finfo(torch.float32).eps
    return max(4 * epsilon, epsilon**0.5) if epsilon < 1e-5 else 4 * epsilon


def trial_rows(count: int, most: int = 2 * _KEPT) -> list[int]:
    """A few of ``count`` samples, and the first of them as many times again as company."""
    number = max(1, min(_KEPT, count, most // 2))
    return np.linspace(0, count - 1, number).astype(int).tolist() + [0] * number


def check_each_by_itself(
    model: nn.Module,
    run: Run,
    batch: Sequence[int],
    count: int,
    dtype: torch.dtype,
    name: str = "model",
) -> dict[str, Tensor]:
    """What a model gives for a batch; refuse one whose answer for a sample depends on the others in it.

    The first half of the batch is run in other company too, that of the last of ``count`` samples in place
    of the first. Shapes, state and random numbers are the same, so that rounding, chance and counters do not
    tell the two apart.

    Raises
    ------
    ValueError
        If the answers differ by more than a twentieth of the spread of the samples. A smaller difference
        than that, but more than rounding, is a warning.
    """
    first = run(batch)
    if count < 2:
        return first
    half = len(batch) // 2
    other = [*batch[:half], *[count - 1] * half]
    second = run(other)
    for what, one in first.items():
        change = _change(one, second[what], dtype)
        if not change:
            continue
        told = "logits" if what == "output" else f"features of {what!r}"
        message = (
            f"{name} must map each sample by itself, but the {told} depend on the other samples of the "
            f"batch: {_culprit(model, run, batch, other, dtype)} mixes them, and other company changes "
            f"them by {100 * change:.2g} % of their spread"
        )
        if change > _MUCH:
            raise ValueError(
                f"{message}. What is measured would depend on the batch size and the company. Normalise by "
                f"running statistics (track_running_stats=True), or within each sample (LayerNorm, "
                f"GroupNorm)."
            )
        warnings.warn(f"{message}.", stacklevel=5)
        break
    return first


def _change(one: Tensor, other: Tensor, dtype: torch.dtype) -> float:
    """By how much the samples in front differ, relative to their spread; 0 within rounding."""
    number = len(one) // 2
    if one.shape != other.shape:
        return np.inf
    a, b = (
        value[:number].detach().to("cpu", torch.float64).reshape(number, -1)
        for value in (one, other)
    )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return 0.0
    difference, size = float((a - b).norm()), max(float(a.norm()), float(b.norm()))
    if difference <= rounding(dtype) * size:
        return 0.0
    spread = max(float((z - z.mean(0)).norm()) for z in (a, b)) if number > 1 else size
    return difference / spread if spread > 0 else np.inf


def _culprit(
    model: nn.Module, run: Run, one: Sequence[int], other: Sequence[int], dtype: torch.dtype
) -> str:
    """The innermost module whose inputs agree and whose outputs do not."""
    number = len(one)

    def calls(rows: Sequence[int]) -> list[tuple[str, nn.Module, Tensor | None, Tensor | None]]:
        made: list[tuple[str, nn.Module, Tensor | None, Tensor | None]] = []
        open_: list[Tensor | None] = []
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks

                def before(_: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
                    open_.append(_samples((*inputs, *keywords.values()), number))

                def after(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                    made.append((name, module, open_.pop(), _samples((output,), number)))

                stack.callback(
                    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove
                )
                stack.callback(module.register_forward_hook(after).remove)
            run(rows)
        return made

    for (name, module, x, y), (*_, x2, y2) in zip(calls(one), calls(other), strict=False):
        if x is None or x2 is None or y is None or y2 is None:
            continue
        if not _change(x, x2, dtype) and _change(y, y2, dtype):
            kind = type(module).__name__
            return f"the module {name!r} ({kind})" if name else f"the forward of {kind}"
    return "some module"


def _samples(values: Any, count: int) -> Tensor | None:
    """The first tensor that has the samples along its first axis."""
    for value in values:
        if isinstance(value, tuple | list):
            value = value[0] if value else None
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            return value.detach().clone()
    return None
