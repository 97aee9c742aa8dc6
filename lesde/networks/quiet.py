"""Looking at a model without leaving a trace in it, or in anybody's random numbers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = [
    "Kept",
    "device_of",
    "evaluating",
    "float_type",
    "kept_randomness",
    "moved_parameters",
    "quiet",
]


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
def kept_randomness(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Put the global generators of torch (all devices of this kind), numpy and Python back as they were.

    With ``seed`` what is drawn in the block is the same every time.
    """
    kind = "cpu" if device is None else device.type
    # A model may be spread over several devices; what is not a GPU has one generator at most.
    count = torch.cuda.device_count() if kind == "cuda" else int(kind in ("mps", "xpu"))
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if count:
                forked = torch.random.fork_rng(devices=list(range(count)), device_type=kind)
                stack.enter_context(forked)
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
    kind = device_of(model).type
    with ExitStack() as stack:
        # Not inference_mode: a model that caches a tensor in its forward could not train with it.
        stack.enter_context(torch.no_grad())
        if kind in ("cpu", "cuda", "mps", "xpu"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(evaluating(model))
        yield


def moved_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that are trained, each a little away from where it is."""
    moved: dict[str, Tensor] = {}
    with kept_randomness(device_of(model), seed=0), torch.no_grad():
        for name, value in model.named_parameters():
            _check_shape(value)
            if value.requires_grad and value.is_floating_point() and value.numel():
                size = value.square().mean().sqrt()
                # What is zero moves as far as it would be initialised.
                fan_in = value[0].numel() if value.ndim > 1 else 1
                step = torch.where(size > 0, 0.1 * size, fan_in**-0.5)
                moved[name] = value + step * torch.randn_like(value)
    return {name: value.requires_grad_() for name, value in moved.items()}


def _check_shape(tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ValueError(
            "model must have parameters whose shape is known, but it has lazy layers; pass a batch through "
            "it first."
        )


class Kept:
    """The state of a model, as it is now, to be put back with :meth:`restore` and at the end of the block.

    That is: the values of parameters, buffers and all other tensors and numpy arrays, the attributes of
    every submodule (numbers, lists, dicts, sets and what is in them, random generators), its hooks, and
    the variables that forward hooks count or collect in (of their closure, their module or their object).
    Objects of other classes are not looked into. While the block is open gradients are put aside.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Callable[[], object]] = []
        self._alive: dict[int, Any] = {}  # an id is a value's own only while the value is there
        self._gradients: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            self._add(model)

    def __enter__(self) -> Kept:
        for tensor, _ in self._gradients:
            tensor.grad = None
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        for tensor, gradient in self._gradients:
            tensor.grad = gradient

    @torch.no_grad()
    def restore(self) -> None:
        """Put all back that has changed."""
        for undo in self._undo:
            undo()

    def _add(self, value: Any) -> None:
        if id(value) in self._alive or isinstance(value, str | int | float | None):
            return
        self._alive[id(value)] = value
        if isinstance(value, torch.jit.ScriptModule):
            for part in value.modules():
                tensors = (
                    *part.named_parameters(recurse=False),
                    *part.named_buffers(recurse=False),
                )
                for name, tensor in tensors:
                    self._undo.append(partial(setattr, part, name, tensor))
                    self._add(tensor)
        elif isinstance(value, nn.Module):
            self._add(vars(value))
            for hooks in (value._forward_pre_hooks, value._forward_hooks):
                for hook in hooks.values():
                    self._add_hook(hook)
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._undo.append(partial(value.__setitem__, ..., value.copy()))
        elif isinstance(value, dict | list | deque | set):
            self._add_container(value)
        elif isinstance(value, tuple | frozenset):
            for one in value:
                self._add(one)
        elif isinstance(value, torch.Generator | np.random.RandomState):
            self._undo.append(partial(value.set_state, value.get_state()))  # type: ignore[arg-type]
        elif isinstance(value, random.Random):
            self._undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._undo.append(partial(setattr, bits, "state", bits.state))

    def _add_container(self, value: Any) -> None:
        def contents() -> list[Any]:
            return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)

        saved: Any = dict(value) if isinstance(value, dict) else list(value)
        fill = value.update if isinstance(value, dict | set) else value.extend
        before = contents()

        def undo() -> None:
            now = contents()
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                value.clear()
                fill(saved)

        self._undo.append(undo)
        for one in before:
            self._add(one)

    def _add_tensor(self, tensor: Tensor) -> None:
        _check_shape(tensor)
        saved, version, wanted = tensor.detach().clone(), tensor._version, tensor.requires_grad
        if tensor.is_leaf and tensor.grad is not None:
            self._gradients.append((tensor, tensor.grad))

        def undo() -> None:
            if tensor.is_leaf:
                tensor.requires_grad_(wanted)
                if tensor.grad is not None:
                    tensor.grad = None
            if tensor.layout != torch.strided:
                if tensor._version != version:
                    tensor.data = saved.clone()
            elif tensor.shape != saved.shape or tensor.dtype != saved.dtype:
                tensor.data = saved.clone()
            elif not torch.equal(tensor, saved):
                # Through .data, so that a graph that holds the tensor does not take it for changed.
                tensor.data.copy_(saved)

        self._undo.append(undo)

    def _add_hook(self, hook: Any) -> None:
        """The variables that a hook remembers by: it is run in every pass, for it may be part of the model."""
        if isinstance(hook, partial):
            self._add_remembered(hook.args)
            self._add_remembered(hook.keywords)
            hook = hook.func
        if isinstance(hook, MethodType):
            self._add_hook(hook.__func__)
            hook = hook.__self__
        if not isinstance(hook, FunctionType):
            self._add(hook if isinstance(hook, nn.Module) else getattr(hook, "__dict__", None))
            return
        for cell in hook.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self._undo.append(partial(setattr, cell, "cell_contents", value))
            self._add_remembered(value)
        for name in hook.__code__.co_names:
            value = hook.__globals__.get(name)
            if isinstance(value, int | float):
                self._undo.append(partial(hook.__globals__.__setitem__, name, value))
            self._add_remembered(value)

    def _add_remembered(self, value: Any) -> None:
        # A network that a hook refers to is looked after where it is the model's.
        if not isinstance(value, nn.Module):
            self._add(value)
