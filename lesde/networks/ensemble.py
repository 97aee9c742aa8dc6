"""Many networks of one architecture, their parameters stacked along a leading replicate axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..checks import shown

__all__ = ["Ensemble", "Evaluation", "child_seed"]


def child_seed(seed: int, replicate: int, stream: int) -> np.random.SeedSequence:
    """The random stream of one replicate; it depends on nothing but these three numbers."""
    return np.random.SeedSequence(seed, spawn_key=(replicate, stream))


@dataclass(frozen=True)
class Evaluation:
    """What an ensemble says about a set of inputs, on the CPU.

    ``logits`` (replicate, sample, class); ``features`` by layer, each (replicate, sample, feature);
    ``weights`` (replicate, class, feature) and ``bias`` (replicate, class) of the last linear layer,
    ``None`` when it was not asked for or has no bias.
    """

    logits: Tensor
    features: dict[str, Tensor]
    weights: Tensor | None = None
    bias: Tensor | None = None


class Ensemble:
    """Networks of one architecture with their parameters stacked.

    Parameters
    ----------
    architecture : callable
        Called once per replicate with no arguments; returns a ``torch.nn.Module``.
    replicates : sequence of int
        Numbers of the replicates. Replicate r is initialised with PyTorch's generator seeded from
        (seed, r), so it is the same network whichever others are in the ensemble.
    example : Tensor (n, ...)
        A few inputs, to see that the architecture takes them.
    n_classes : int
        Number of logits the architecture must give.
    layers : sequence of str
        What :meth:`evaluate` returns: ``"logits"`` (the output), ``"penultimate"`` (what the last
        linear layer reads) or the name of a submodule (its output), flattened to one axis.
    seed : int
    dtype : torch.dtype

    Attributes
    ----------
    base : torch.nn.Module
        The architecture that :func:`torch.func.functional_call` runs.
    parameters : dict of str to Tensor
        Trainable parameters, each (replicate, ...); training changes them in place.
    fixed : dict of str to Tensor
        Buffers and parameters that do not require a gradient, each (replicate, ...).
    """

    def __init__(
        self,
        architecture: Callable[[], nn.Module],
        replicates: Sequence[int],
        *,
        example: Tensor,
        n_classes: int,
        layers: Sequence[str],
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        networks = [_initialised(architecture, seed, r).to(dtype) for r in replicates]
        self.base = networks[0]
        _check_independent_samples(self.base)
        self._last = _check_architecture(self.base, example, n_classes, layers)
        self.layers = tuple(layers)
        parameters, self.fixed = stack_module_state(networks)  # type: ignore[arg-type]
        self.parameters: dict[str, Tensor] = {}
        trainable = {name for name, p in self.base.named_parameters() if p.requires_grad}
        for name, stacked in parameters.items():
            (self.parameters if name in trainable else self.fixed)[name] = stacked.detach()
        self.evaluate(example)  # what cannot be recorded is told before training

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> Evaluation:
        """Logits and the features of the asked layers for inputs ``x`` (sample, ...)."""

        def one(parameters: dict[str, Tensor], fixed: dict[str, Tensor]) -> Any:
            with ExitStack() as stack:
                seen = self._watch(stack)
                logits = functional_call(self.base, (parameters, fixed), (x,))
            return logits, seen

        logits, seen = vmap(one)(self.parameters, self.fixed)
        for layer in self.layers:
            if layer not in seen and layer != "logits":
                raise ValueError(f"layers must name submodules that run; {layer!r} never does.")
        seen["logits"] = logits
        features = {layer: seen[layer].reshape(*logits.shape[:2], -1) for layer in self.layers}
        if "penultimate" not in self.layers:
            return Evaluation(logits, features)
        everything = self.parameters | self.fixed
        # Looked up by identity, since a tied parameter goes by the name it has first. Training changes
        # parameters in place, so what is handed out must be a copy.
        names = {id(parameter): name for name, parameter in self.base.named_parameters()}
        last = self.base.get_submodule(self._last)
        weights, bias = (
            None if tensor is None else everything[names[id(tensor)]].clone()
            for tensor in (last.weight, last.bias)
        )
        return Evaluation(logits, features, weights, bias)

    def _watch(self, stack: ExitStack) -> dict[str, Tensor]:
        """Hooks that note the outputs of the asked layers while the stack is open."""
        seen: dict[str, Tensor] = {}

        def note_output(layer: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                if not isinstance(output, Tensor):
                    raise ValueError(
                        f"layers must name submodules that return a tensor; {layer!r} returns a "
                        f"{type(output).__name__}."
                    )
                seen[layer] = output.clone()  # a later layer may work in place

            return hook

        def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen["penultimate"] = inputs[0].clone()

        modules = dict(self.base.named_modules())
        for layer in self.layers:
            if layer == "penultimate":
                handle = modules[self._last].register_forward_pre_hook(note_input)
            elif layer != "logits":
                handle = modules[layer].register_forward_hook(note_output(layer))
            else:
                continue
            stack.callback(handle.remove)
        return seen


def _initialised(architecture: Callable[[], nn.Module], seed: int, replicate: int) -> nn.Module:
    if isinstance(architecture, nn.Module) or not callable(architecture):
        raise TypeError(
            f"architecture must be a function that makes a new torch.nn.Module, such as "
            f"lambda: mlp(64, (32, 32), 4), since every replicate is initialised anew; got "
            f"{shown(architecture)}."
        )
    # PyTorch initialises from its global generator: lend it a seed and put its state back.
    with torch.random.fork_rng(devices=[]):
        state = child_seed(seed, replicate, 0).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))
        network = architecture()
    if not isinstance(network, nn.Module):
        raise TypeError(f"architecture must return a torch.nn.Module; got {shown(network)}.")
    return network


def _check_independent_samples(network: nn.Module) -> None:
    for name, module in network.named_modules():
        batch_norm = isinstance(module, _NormBase) and (
            module.track_running_stats or "BatchNorm" in type(module).__name__
        )
        if batch_norm or (isinstance(module, _DropoutNd) and module.p > 0):
            raise ValueError(
                f"architecture must map each input to its logits in one fixed way; its layer "
                f"{name!r} is {type(module).__name__}, whose output depends on the rest of the "
                f"batch or on chance. Leave it out, or use GroupNorm or LayerNorm to normalise."
            )


def _check_architecture(
    network: nn.Module, example: Tensor, n_classes: int, layers: Sequence[str]
) -> str:
    """Name of the last linear layer; empty when no asked layer needs it."""
    names = {module: name for name, module in network.named_modules()}
    known = ["logits", "penultimate"] + [name for name in names.values() if name]
    for layer in layers:
        if layer not in known:
            raise ValueError(
                f"layers must be among {', '.join(map(repr, known))}; got {shown(layer)}."
            )
    linear: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as stack, torch.no_grad():
        for module in names:
            if isinstance(module, nn.Linear):
                hook = module.register_forward_hook(lambda m, _, out: linear.append((m, out)))
                stack.callback(hook.remove)
        try:
            logits = network(example)
        except RuntimeError as error:
            raise ValueError(
                f"architecture must take inputs of shape {tuple(example.shape)}, as data holds "
                f"them; it failed with: {error}"
            ) from error
    wanted = (len(example), n_classes)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"architecture must give logits of shape {wanted}, one for each of the {n_classes} "
            f"classes of data; got {given}."
        )
    if "penultimate" not in layers:
        return ""
    parameters = {id(parameter) for parameter in network.parameters()}
    if (
        not linear
        or linear[-1][1] is not logits
        or id(linear[-1][0].weight) not in parameters  # it has a parametrization, say
    ):
        raise ValueError(
            "layers may hold 'penultimate' only when the logits come straight from a "
            "plain torch.nn.Linear layer; ask for the features by the name of a submodule: "
            f"{', '.join(map(repr, known[2:]))}."
        )
    return names[linear[-1][0]]
