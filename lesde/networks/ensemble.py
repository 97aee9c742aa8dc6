"""Many networks of one architecture, their parameters stacked along a leading replicate axis.

Each is initialised from its own seed; they are observed, and moved together by one step of plain SGD. There are two
kinds of step. :func:`mapped_step` takes any architecture through ``torch.func``. :func:`chain_step` takes chains of
known layers (:mod:`lesde.networks.layers`). For small networks and batches it is many times faster, since nearly all
of the time of the first is the overhead of the transformations.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lesde.checks import NAMES, check_sequence, shown
from lesde.networks.layers import Chain, chain_of
from lesde.networks.mixing import check_each_by_itself, trial_rows
from lesde.networks.quiet import Kept, kept_randomness

__all__ = ["LOSSES", "Ensemble", "Evaluation", "Share", "child_seed", "layer_names", "make_step"]

# Numbers held by the networks stepped together (weights, and the values computed for an input). They should fit
# into the processor's cache, but be enough to keep a thread busy while another prepares its next operation.
_MOST, _LEAST = 2**21, 2**18

# Values that a network computes for the inputs it evaluates at once; more do not fit into the cache.
_AT_ONCE = 2**19

Share = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Applies a function to all items, perhaps in several threads; results in their order."""


def one_after_another(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """A :data:`Share` without threads."""
    return [function(item) for item in items]


@contextmanager
def threads(workers: int, each: int) -> Iterator[Share]:
    """Share among ``workers`` threads while the block runs, of ``each`` PyTorch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(each)
    try:
        if workers == 1:
            yield one_after_another
        else:
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(each,)
            ) as pool:
                yield lambda function, items: list(pool.map(function, items))
    finally:
        torch.set_num_threads(before)


def parts_of(replicates: int, numbers: int, workers: int) -> list[slice]:
    """Replicates that hold so many numbers each, cut into parts for ``workers`` threads.

    What a network computes must not depend on its part.
    """
    least = max(1, _LEAST // numbers)
    most = max(least, _MOST // numbers)
    parts = -(-replicates // most)
    if workers > 1:
        parts = min(-(-parts // workers) * workers, max(parts, replicates // least))
    edges = [replicates * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def layer_names(layers: str | Sequence[str]) -> tuple[str, ...]:
    """The layers that are asked for, each once."""
    names = (layers,) if isinstance(layers, str) else tuple(check_sequence("layers", layers, NAMES))
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"layers must be a name or a sequence of names; got {shown(layers)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"layers must hold at least one layer and each only once; got {shown(layers)}."
        )
    return names


def child_seed(seed: int, replicate: int, stream: int) -> np.random.SeedSequence:
    """The random stream of one replicate; it depends on nothing but these three numbers."""
    return np.random.SeedSequence(seed, spawn_key=(replicate, stream))


@dataclass(frozen=True)
class Evaluation:
    """Logits (replicate, sample, class), features of layers (replicate, sample, feature), and the last layer's weights.

    ``weights`` (replicate, class, feature) and ``bias`` (replicate, class) are None where ``"penultimate"`` was not
    asked for, or there is no bias.
    """

    logits: Tensor
    features: dict[str, Tensor]
    weights: Tensor | None = None
    bias: Tensor | None = None


class Ensemble:
    """Networks of one architecture, initialised on the CPU and then moved to a device.

    ``replicates`` are their numbers: replicate r is initialised with PyTorch's generator seeded from (seed, r), so it
    is the same network whichever others are in the ensemble. ``example`` are a few inputs to try. ``parameters`` are
    trained in place; ``fixed`` are buffers and parameters that do not require a gradient; ``base`` is the architecture
    that ``functional_call`` runs.
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
        device: torch.device | None = None,
    ) -> None:
        networks = [_initialised(architecture, seed, r).to(dtype) for r in replicates]
        self.base = networks[0]
        _check_independent_samples(self.base)
        self._last = _check_architecture(self.base, example, n_classes, layers)
        self.layers, self.replicates = tuple(layers), list(replicates)
        device = device or example.device
        trained = {name for name, p in self.base.named_parameters() if p.requires_grad}
        stacked, buffers = stack_module_state(networks)  # type: ignore[arg-type]
        stacked = {name: tensor.detach().to(device) for name, tensor in stacked.items()}
        self.parameters = {name: tensor for name, tensor in stacked.items() if name in trained}
        self.fixed = {name: tensor for name, tensor in stacked.items() if name not in trained}
        self.fixed |= {name: tensor.to(device) for name, tensor in buffers.items()}
        self.evaluate(example.to(device))  # refuse before training what cannot be recorded

    def part(self, which: slice) -> Ensemble:
        """Some of the networks; training the part trains them here."""
        part = copy.copy(self)
        part.replicates = self.replicates[which]
        part.parameters = {name: tensor[which] for name, tensor in self.parameters.items()}
        part.fixed = {name: tensor[which] for name, tensor in self.fixed.items()}
        return part

    def copies(self, index: Tensor) -> Ensemble:
        """Some of the networks, each as often as asked for, in float64 and apart from the originals."""
        copies = copy.copy(self)
        copies.replicates = [self.replicates[i] for i in index.tolist()]
        for name in ("parameters", "fixed"):
            taken = {key: value[index] for key, value in getattr(self, name).items()}
            taken = {k: v.double() if v.is_floating_point() else v for k, v in taken.items()}
            setattr(copies, name, taken)
        return copies

    def chain(self) -> Chain | None:
        """The networks as layers written out, where they are a chain of such."""
        return chain_of(self.base, self.parameters, self.fixed)

    @torch.no_grad()
    def numbers(self, x: Tensor) -> tuple[int, int]:
        """Number of weights of one network of a chain, and of values that it computes for one input (1, ...)."""
        chain = self.part(slice(1)).chain()
        assert chain is not None
        return chain.numbers(x[None])

    @torch.no_grad()
    def evaluate(
        self, x: Tensor, own: bool = False, share: Share = one_after_another
    ) -> Evaluation:
        """Logits and features for inputs (sample, ...), or with ``own`` for each network's own (replicate, sample, ...)."""
        chain = self.chain()
        if chain is not None and set(self.layers) <= {"logits", "penultimate", *chain.layers}:
            seen = self._seen_by_chain(x if own else x[None], share)
        else:
            seen = self._seen_by_mapping(x, own)
        logits = seen["logits"]
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

    def _seen_by_chain(self, x: Tensor, share: Share) -> dict[str, Tensor]:
        """Outputs by layer; ``x`` (replicate, sample, ...), or (1, sample, ...) shared by all."""
        weights, made = self.numbers(x[0, :1])
        # The number at once depends on the network alone, so that rounding does not depend on the others.
        several = max(1, _AT_ONCE // made)
        parts = parts_of(len(self.replicates), weights + several * made, os.cpu_count() or 1)

        @torch.no_grad()
        def look(which: slice) -> dict[str, Tensor]:
            chain = self.part(which).chain()
            assert chain is not None
            inputs = x if len(x) == 1 else x[which]
            blocks = [chain.features(some, set(self.layers)) for some in inputs.split(several, 1)]
            return {name: torch.cat([block[name] for block in blocks], 1) for name in blocks[0]}

        looks = share(look, parts)
        return {name: torch.cat([seen[name] for seen in looks]) for name in looks[0]}

    def _seen_by_mapping(self, x: Tensor, own: bool) -> dict[str, Tensor]:
        """Outputs by layer, from hooks on the modules themselves."""

        def one(parameters: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Any:
            seen: dict[str, Tensor] = {}
            with ExitStack() as stack:
                for layer in self.layers:
                    if layer == "penultimate":
                        last = self.base.get_submodule(self._last)
                        hook = last.register_forward_pre_hook(
                            lambda _, inputs: seen.update(penultimate=inputs[0].clone())
                        )
                        stack.callback(hook.remove)
                    elif layer != "logits":
                        module = self.base.get_submodule(layer)
                        hook = module.register_forward_hook(_note(seen, layer))
                        stack.callback(hook.remove)
                logits = functional_call(self.base, (parameters, fixed), (x,))
            return seen | {"logits": logits}

        places = (0, 0, 0 if own else None)
        seen = vmap(one, in_dims=places)(self.parameters, self.fixed, x)
        for layer in self.layers:
            if layer not in seen:
                raise ValueError(f"layers must name submodules that run; {layer!r} never does.")
        return seen


def _note(seen: dict[str, Tensor], layer: str) -> Callable[..., None]:
    """A hook that notes the output of a layer."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layers must name submodules that return a tensor; {layer!r} returns a "
                f"{type(output).__name__}."
            )
        seen[layer] = output.clone()  # a later layer may work in place

    return hook


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
    known = list(dict.fromkeys(["logits", "penultimate", *filter(None, names.values())]))
    for layer in layers:
        if layer not in known:
            raise ValueError(
                f"layers must be among {', '.join(map(repr, known))}; got {shown(layer)}."
            )
    linear: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as stack, torch.no_grad(), Kept(network):
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

    def run(rows: Sequence[int]) -> dict[str, Tensor]:
        with torch.no_grad(), kept_randomness(seed=0), Kept(network):
            return {"output": network(example[rows])}

    rows = trial_rows(len(example))
    check_each_by_itself(network, run, rows, len(example), example.dtype, "architecture")
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


Step = Callable[[Tensor, Tensor], Tensor]
"""Takes inputs (replicate, batch, ...) and one-hot targets (replicate, batch, class); returns the
logits (replicate, batch, class) before the step."""


def _squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (logits - targets).square().sum(-1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "mse": _squared_error,
}
"""Loss of logits (batch, class) against one-hot targets (batch, class), the mean over the batch."""


def make_step(ensemble: Ensemble, loss: str, learning_rate: float) -> Step:
    """The faster of the two steps that the architecture allows."""
    chain = ensemble.chain()
    if chain is not None:
        return chain_step(chain, loss, learning_rate)
    return mapped_step(ensemble, loss, learning_rate)


def mapped_step(ensemble: Ensemble, loss: str, learning_rate: float) -> Step:
    """The step for any architecture: the gradient of one network, mapped over the replicates."""
    measure = LOSSES[loss]

    def cost(
        parameters: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = functional_call(ensemble.base, (parameters, fixed), (x,))
        return measure(logits, y), logits

    gradient = vmap(grad(cost, has_aux=True))

    def step(x: Tensor, y: Tensor) -> Tensor:
        change, logits = gradient(ensemble.parameters, ensemble.fixed, x, y)
        with torch.no_grad():
            for name, parameter in ensemble.parameters.items():
                parameter.sub_(change[name], alpha=learning_rate)
        return logits

    return step


def chain_step(chain: Chain, loss: str, learning_rate: float) -> Step:
    """The step for a chain of layers, by backpropagation written out."""

    @torch.no_grad()
    def step(x: Tensor, y: Tensor) -> Tensor:
        logits = chain.forward(x)
        guess = torch.softmax(logits, -1) if loss == "cross_entropy" else logits
        # Both losses have this form of derivative; the mean over the batch is taken here.
        delta = guess - y if y.shape[1] == 1 else (guess - y) / y.shape[1]
        chain.backward(delta, learning_rate)
        return logits

    return step
