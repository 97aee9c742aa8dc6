"""Looking at a model without leaving a trace in it, or in anybody's random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["device_of", "evaluating", "kept_randomness", "quiet"]

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer of a model is; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def kept_randomness(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Put the global generators of torch, numpy and Python back as they were.

    Parameters
    ----------
    device : torch.device, optional
        Also the generator of this device.
    seed : int, optional
        Seed all of them inside the block, so that what is drawn there is the same every time.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                random.seed(seed)
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every submodule's own mode comes back at the end.

    Modes are set and put back one by one, so that layers which the user keeps in evaluation mode stay
    there, and a ``train`` of the user's own with side effects is not called.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and without autocast."""
    device = device_of(model)
    with ExitStack() as stack:
        # Not inference_mode: a model that caches a tensor in its forward could not train with it.
        stack.enter_context(torch.no_grad())
        if device.type in _AUTOCAST:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(evaluating(model))
        yield
