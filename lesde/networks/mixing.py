"""A check that a model maps each sample by itself and does not mix the samples of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["REFUSALS", "check_each_by_itself", "rounding", "tensors_in", "trial_rows"]

Run = Callable[[Sequence[int]], dict[str, Tensor]]
"""The outputs of a model, by name, for a batch of these samples, each time from the same state and with the
same random numbers; the first axis is the sample."""

REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)
"""Errors with which a model refuses a batch."""

_MUCH = 0.05  # of the spread of the samples: a larger change of the features is refused, a smaller one warned of
_FAR_LESS = 0.05


def rounding(dtype: torch.dtype) -> float:
    """Largest difference of two computations of the same numbers, relative to the largest number."""
    epsilon = torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps
    return max(4 * epsilon, epsilon**0.5) if epsilon < 1e-5 else 4 * epsilon


def trial_rows(count: int, most: int = 16) -> list[int]:
    """A few of ``count`` samples, two of them at least, spread over all."""
    number = max(1, min(8, (count + 1) // 2, most // 2))
    return np.linspace(0, count - 1, 2 * number).astype(int).tolist()


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dicts, in their order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for one in value for tensor in tensors_in(one)]
    return [value] if isinstance(value, Tensor) else []


def check_each_by_itself(
    model: nn.Module,
    run: Run,
    batch: Sequence[int],
    count: int,
    dtype: torch.dtype,
    name: str = "model",
) -> dict[str, Tensor]:
    """The outputs of a model for a batch; refuse a model whose answer for a sample depends on the others in it.

    The small half of the batch is also run in the company of its smallest sample in place of the large
    half, and the large half in that of its largest: a statistic of the batch, a mean or a largest value,
    then changes for one of them at least. Shapes, places, state and random numbers are the same, so that
    rounding, chance and counters cannot be mistaken for it. The small half is then run alone, in a shorter
    batch, if the model takes it. A change by more than a twentieth of the spread of the samples is an error, a
    smaller one that is more than rounding a warning.
    """
    first = run(batch)
    if count < 2 or not first:
        return first
    half = len(batch) // 2
    sizes = [*first.values()][-1].detach().cpu().double().reshape(len(batch), -1).norm(dim=1)
    batch = [batch[i] for i in sizes.argsort(stable=True)]
    small, large = batch[:half], batch[half:]
    base = run(batch)
    for other, part in (
        (small + [small[0]] * half, slice(half)),
        ([large[-1]] * half + large, slice(half, None)),
        (small, slice(half)),
    ):
        alone = len(other) < len(batch)
        try:
            second = run(other)
        except REFUSALS:
            if alone:  # a model of one batch size
                break
            raise
        # Other kernels run on a batch of another length, and round otherwise.
        tolerance = rounding(dtype) * (8 if alone else 1 / 8)
        for what, values in base.items():
            change = _change(values[part], second[what][part], tolerance)
            if not change:
                continue
            if alone:
                same = run(small[:1] * len(batch))[what]
                if _change(same, same[:1].expand_as(same), tolerance):
                    continue  # by chance: one sample, given several times, has several answers
            said = "logits" if what == "output" else f"features of {what!r}"
            message = (
                f"{name} must map each sample by itself, but the {said} depend on "
                f"{'the length' if alone else 'the other samples'} of the batch: "
                f"{_culprit(model, run, batch, other, part, change)} "
                f"{'uses it' if alone else 'mixes them'}, and "
                f"{'another length' if alone else 'other company'} changes them by "
                f"{100 * change:.2g} % of their spread"
            )
            if change > _MUCH:
                raise ValueError(
                    f"{message}. Results would depend on the batch size and the other samples. "
                    f"Normalise by running statistics (track_running_stats=True), or within each sample "
                    f"(LayerNorm, GroupNorm)."
                )
            warnings.warn(f"{message}.", stacklevel=5)
            return first
    return first


def _change(one: Tensor, other: Tensor, tolerance: float = 0.0) -> float:
    """Difference of the samples, relative to their spread; 0 within the tolerance of their size."""
    if one.shape != other.shape:
        return np.inf
    a, b = (
        value.detach().to("cpu", torch.float64).reshape(len(value), -1) for value in (one, other)
    )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return 0.0
    difference, size = float((a - b).norm()), max(float(a.norm()), float(b.norm()))
    if difference <= tolerance * size:
        return 0.0
    spread = max(float((z - z.mean(0)).norm()) for z in (a, b)) if len(a) > 1 else size
    return difference / spread if spread > 0 else np.inf


def _culprit(
    model: nn.Module,
    run: Run,
    one: Sequence[int],
    other: Sequence[int],
    part: slice,
    change: float,
) -> str:
    """The innermost module whose outputs differ, and by far more than its inputs."""

    def calls(rows: Sequence[int]) -> list[tuple[str, nn.Module, list[Tensor], list[Tensor]]]:
        made: list[tuple[str, nn.Module, list[Tensor], list[Tensor]]] = []
        open_: list[list[Tensor]] = []

        def samples(values: Any) -> list[Tensor]:
            found = [value for value in tensors_in(values) if value.ndim]
            return [value[part].detach().clone() for value in found if len(value) == len(rows)]

        def before(_: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            open_.append(samples((inputs, keywords)))

        with ExitStack() as stack:
            for name, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks

                def after(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                    made.append((name, module, open_.pop(), samples(output)))

                stack.callback(
                    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove
                )
                stack.callback(module.register_forward_hook(after).remove)
            run(rows)
        return made

    for (name, module, x, y), (*_, x2, y2) in zip(calls(one), calls(other), strict=False):
        if not x or len(x) != len(x2) or not y or len(y) != len(y2):
            continue
        before, after = (max(map(_change, *pair)) for pair in ((x, x2), (y, y2)))
        # A weak mixing is slightly above the rounding in one module and slightly below it in another.
        if after > _FAR_LESS * change and before < _FAR_LESS * after:
            kind = type(module).__name__
            return f"the module {name!r} ({kind})" if name else f"the forward of {kind}"
    return "some module"
