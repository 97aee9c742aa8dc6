"""A check that a model maps each sample by itself and does not mix the samples of a batch."""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = [
    "Kept",
    "check_each_by_itself",
    "device_of",
    "evaluating",
    "kept_randomness",
    "moved_parameters",
    "quiet",
    "rounding",
    "tensors_in",
    "trial_rows",
]


# --------------------------------------------------------------------------------------------------
# Looking at a model without leaving a trace in it, or in anybody's random numbers.

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
        Also the generators of all devices of this kind.
    seed : int, optional
        Seed all of them inside the block, so that what is drawn there is the same every time.
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


def _check_shape(tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ValueError(
            "model must have parameters whose shape is known, but it has lazy layers; pass a batch through "
            "it first."
        )


class Kept:
    """What a model is made of, as it is now, to be put back with :meth:`restore`.

    That is: the values of parameters, buffers and all other tensors and numpy arrays, the attributes of
    every submodule (numbers, lists, dicts, sets and what is in them, random generators), its hooks, and
    the variables that forward hooks count or collect in (of their closure, their module or their object).
    Objects of other classes are not looked into.

    While the block is open gradients are put aside.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # an id is a value's own only while the value is there
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
        if id(value) in self._seen or isinstance(value, str | int | float | None):
            return
        self._seen.add(id(value))
        self._alive.append(value)
        if isinstance(value, torch.jit.ScriptModule):
            self._add_scripted(value)
        elif isinstance(value, nn.Module):
            self._add(vars(value))
            for hooks in (value._forward_pre_hooks, value._forward_hooks):
                for hook in hooks.values():
                    self._add_hook(hook)
        elif isinstance(value, Tensor):
            _check_shape(value)
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._undo.append(_put(value.__setitem__, ..., value.copy()))
        elif isinstance(value, dict):
            self._add_container(value, dict(value), value.update)
            for one in value.values():
                self._add(one)
        elif isinstance(value, list | deque | set):
            saved = list(value)
            self._add_container(
                value, saved, value.update if isinstance(value, set) else value.extend
            )
            for one in saved:
                self._add(one)
        elif isinstance(value, tuple | frozenset):
            for one in value:
                self._add(one)
        elif isinstance(value, torch.Generator):
            self._undo.append(_put(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(_put(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self._undo.append(_put(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._undo.append(_put(setattr, bits, "state", bits.state))

    def _add_container(self, value: Any, saved: Any, fill: Callable[[Any], None]) -> None:
        def flat(one: Any) -> list[Any]:
            pairs = isinstance(one, Mapping)
            return [part for pair in one.items() for part in pair] if pairs else list(one)

        before = flat(saved)

        def undo() -> None:
            now = flat(value)
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                value.clear()
                fill(saved)

        self._undo.append(undo)

    def _add_tensor(self, tensor: Tensor) -> None:
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

    def _add_scripted(self, module: nn.Module) -> None:
        for part in module.modules():
            tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
            for name, tensor in tensors:
                self._undo.append(_put(setattr, part, name, tensor))
                self._add(tensor)

    def _add_hook(self, hook: Any) -> None:
        """What a hook remembers by: it is run in every pass, for it may be part of the model."""
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
            self._add_variable(cell)
        for name in hook.__code__.co_names:
            value = hook.__globals__.get(name)
            if isinstance(value, int | float):
                self._undo.append(_put(hook.__globals__.__setitem__, name, value))
            self._add_remembered(value)

    def _add_variable(self, cell: CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # not set yet
            return
        self._undo.append(_put(setattr, cell, "cell_contents", value))
        self._add_remembered(value)

    def _add_remembered(self, value: Any) -> None:
        # A network that a hook refers to is looked after where it is the model's.
        if not isinstance(value, nn.Module):
            self._add(value)


def _put(function: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    return lambda: function(*arguments)


# --------------------------------------------------------------------------------------------------

Run = Callable[[Sequence[int]], dict[str, Tensor]]
"""What a model gives, by name, for a batch of these samples, each time from the same state and with the
same random numbers; the first axis is the sample."""

_KEPT = 8
_MUCH = 0.05  # of the spread of the samples: what moves features by more is refused, by less told
_FAR_LESS = 0.05


def rounding(dtype: torch.dtype) -> float:
    """By how much two ways to compute the same numbers may differ, relative to the largest."""
    epsilon = torch.finfo(dtype).eps if dtype.is_floating_point else torch.finfo(torch.float32).eps
    return max(4 * epsilon, epsilon**0.5) if epsilon < 1e-5 else 4 * epsilon


def trial_rows(count: int, most: int = 2 * _KEPT) -> list[int]:
    """A few of ``count`` samples, two of them at least, spread over all."""
    number = max(1, min(_KEPT, (count + 1) // 2, most // 2))
    return np.linspace(0, count - 1, 2 * number).astype(int).tolist()


def check_each_by_itself(
    model: nn.Module,
    run: Run,
    batch: Sequence[int],
    count: int,
    dtype: torch.dtype,
    name: str = "model",
) -> dict[str, Tensor]:
    """What a model gives for a batch; refuse one whose answer for a sample depends on the others in it.

    The small half of the batch is also run in the company of its smallest sample in place of the large
    half, and the large half in that of its largest: what is taken over a batch, a mean or a largest value,
    then changes for one of them at least. Shapes, places, state and random numbers are the same, so that
    rounding, chance and counters do not tell the two apart. The small half is then run alone, in a shorter
    batch, if the model takes it.

    Raises
    ------
    ValueError
        If the answers differ by more than a twentieth of the spread of the samples. A smaller difference
        than that, but more than rounding, is a warning.
    """
    first = run(batch)
    if count < 2 or not first:
        return first
    half = len(batch) // 2
    sizes = [*first.values()][-1].detach().cpu().double().reshape(len(batch), -1).norm(dim=1)
    batch = [batch[i] for i in sizes.argsort(stable=True)]
    small, large = batch[:half], batch[half:]
    front, back = slice(half), slice(half, None)
    base = run(batch)
    for other, part in (
        (small + [small[0]] * half, front),
        ([large[-1]] * half + large, back),
        (small, front),
    ):
        alone = len(other) < len(batch)
        try:
            second = run(other)
        except (RuntimeError, TypeError, ValueError, IndexError):
            if alone:  # a model of one batch size
                break
            raise
        # Other kernels run on a batch of another length, and round otherwise.
        tolerance = rounding(dtype) * (8 if alone else 1 / 8)
        for what, values in base.items():
            change = _change(values[part], second[what][part], tolerance)
            if not change:
                continue
            if alone and _by_chance(run(small[:1] * len(batch))[what], tolerance):
                continue
            told = "logits" if what == "output" else f"features of {what!r}"
            message = (
                f"{name} must map each sample by itself, but the {told} depend on "
                f"{'the length' if alone else 'the other samples'} of the batch: "
                f"{_culprit(model, run, batch, other, part, change)} "
                f"{'uses it' if alone else 'mixes them'}, and "
                f"{'another length' if alone else 'other company'} changes them by "
                f"{100 * change:.2g} % of their spread"
            )
            if change > _MUCH:
                raise ValueError(
                    f"{message}. What is measured would depend on the batch size and the company. "
                    f"Normalise by running statistics (track_running_stats=True), or within each sample "
                    f"(LayerNorm, GroupNorm)."
                )
            warnings.warn(f"{message}.", stacklevel=5)
            return first
    return first


def _by_chance(same: Tensor, tolerance: float) -> bool:
    """Whether one sample, given several times, has several answers: which they are may go by the length."""
    return _change(same, same[:1].expand_as(same), tolerance) > 0


def _change(one: Tensor, other: Tensor, tolerance: float = 0.0) -> float:
    """By how much the samples differ, relative to their spread; 0 within the tolerance of their size."""
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
            return [
                value[part].detach().clone()
                for value in tensors_in(values)
                if value.ndim and len(value) == len(rows)
            ]

        with ExitStack() as stack:
            for name, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks

                def before(_: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
                    open_.append(samples((inputs, keywords)))

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
        # A weak mixing is a little over the rounding here and a little under there.
        if after > _FAR_LESS * change and before < _FAR_LESS * after:
            kind = type(module).__name__
            return f"the module {name!r} ({kind})" if name else f"the forward of {kind}"
    return "some module"


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dicts, in their order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for one in value for tensor in tensors_in(one)]
    return [value] if isinstance(value, Tensor) else []
