"""Running a model so that its buffers, modes and all random numbers stay as they were, and seeing what its layers give."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)
"""Errors with which a model refuses a batch."""


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of a model; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def float_type(model: nn.Module) -> torch.dtype:
    """The precision that a model computes in."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


@contextmanager
def kept_randomness(seed: int | None = None) -> Iterator[None]:
    """Put the global generators of torch, numpy and Python back as they were.

    With ``seed`` what is drawn in the block is the same every time.
    """
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                random.seed(seed)
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or autocast; modes, buffers and random numbers come back at the end."""
    # One by one: some layers may have been in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for module, _ in modes:
            module.training = False
        # Not inference_mode: a model that caches a tensor in its forward could not train with it.
        with (
            kept_randomness(),
            torch.no_grad(),
            torch.autocast(device_of(model).type, enabled=False),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, saved in buffers:
            if not torch.equal(buffer, saved):
                buffer.data.copy_(saved)


@contextmanager
def watching(
    model: nn.Module, layers: Collection[str], last: nn.Module | None = None
) -> Iterator[dict[str, Tensor]]:
    """The outputs of named layers as they run in the block, and as "penultimate" what the module ``last`` reads.

    They are copies, since a later layer may work in place. ``"logits"``, what the model returns, is left out.
    """
    seen: dict[str, Tensor] = {}

    def after(layer: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            while isinstance(output, tuple | list) and output:
                output = output[0]
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"layers must name submodules that return a tensor, or a tuple that begins with "
                    f"one; {layer!r} returns {type(output).__name__}."
                )
            seen[layer] = output.clone()

        return note

    def before(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        seen["penultimate"] = (inputs[0] if inputs else keywords["input"]).clone()

    asked = [layer for layer in layers if layer != "logits"]
    with ExitStack() as stack:
        for layer in asked:
            if layer != "penultimate":
                module = model.get_submodule(layer)
                stack.callback(module.register_forward_hook(after(layer)).remove)
            elif last is not None:
                handle = last.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
        yield seen
    for layer in asked:
        if layer not in seen:
            raise ValueError(f"layers must name submodules that run; {layer!r} never does.")


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dicts, in their order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for one in value for tensor in tensors_in(one)]
    return [value] if isinstance(value, Tensor) else []


def close(one: Tensor, other: Tensor, slack: float = 1.0) -> bool:
    """True where two tensors are the same up to rounding, and so many times more."""
    if one.shape != other.shape:
        return False
    epsilon = torch.finfo(other.dtype if other.is_floating_point() else torch.float32).eps
    rounding = max(4 * epsilon, epsilon**0.5) if epsilon < 1e-5 else 4 * epsilon
    worst = (one.double() - other.double()).abs().max()
    return not worst > slack * rounding * other.double().abs().max()


def check_each_by_itself(
    run: Callable[[Sequence[int]], Mapping[str, Tensor]], count: int, name: str = "model"
) -> None:
    """Refuse a model that does not give the same for a few of ``count`` samples in halves as in one batch.

    ``run`` gives the outputs by name for a batch of samples, each time with the same random numbers.
    """
    rows = np.linspace(0, count - 1, min(count, 8)).astype(int).tolist()
    half = len(rows) // 2
    if not half:
        return
    whole, *parts = run(rows), run(rows[:half]), run(rows[half:])
    for what, values in whole.items():
        # Other kernels run on a batch of another length, and round otherwise.
        if not close(torch.cat([part[what] for part in parts]), values, slack=8):
            raise ValueError(
                f"{name} must give the same {what} for a sample whatever else is in the batch and "
                f"without chance. Normalise by running statistics (track_running_stats=True) or within "
                f"each sample (LayerNorm, GroupNorm), and leave out what draws in evaluation mode."
            )
