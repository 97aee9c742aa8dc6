"""Many networks of one architecture, their parameters stacked along a leading replicate axis.

Each is initialised from its own seed; they are observed, and moved together by one step of plain SGD: of any
architecture through ``torch.func``, of chains of known layers by :mod:`lesde.networks.layers`, which is many times
faster where networks and batches are small.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from lesde.checks import check_choices, shown
from lesde.networks.layers import Chain, chain_of
from lesde.networks.quiet import check_each_by_itself, kept_randomness, watching

# Numbers held by the networks stepped together (weights, and the values computed for an input). They should fit
# into the processor's cache, but be enough to keep a thread busy while another prepares its next operation.
_MOST, _LEAST = 2**21, 2**18

_AT_ONCE = 2**19  # values that a network computes for the inputs it evaluates at once, likewise

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


def child_seed(seed: int, replicate: int, stream: int) -> np.random.SeedSequence:
    """The random stream of one replicate; it depends on nothing but these three numbers."""
    return np.random.SeedSequence(seed, spawn_key=(replicate, stream))


class Ensemble:
    """Networks of one architecture, initialised on the CPU and then moved to a device.

    ``replicates`` are their numbers: replicate r is initialised with PyTorch's generator seeded from (seed, r), so it
    is the same network whichever others are in the ensemble. ``example`` are a few inputs to try. ``parameters`` are
    trained in place; ``fixed`` are buffers and parameters that do not require a gradient; ``base`` is the architecture
    that ``functional_call`` runs. ``weights`` and ``made`` are the number of parameters of one network, and of the
    values that it computes for one input.
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
        self.layers, self.replicates = tuple(layers), list(replicates)
        self._last, self.made = _check_architecture(self.base, example, n_classes, layers)
        device = device or example.device
        trained = {name for name, p in self.base.named_parameters() if p.requires_grad}
        stacked, buffers = stack_module_state(networks)  # type: ignore[arg-type]
        stacked = {name: tensor.detach().to(device) for name, tensor in stacked.items()}
        self.weights = sum(tensor[0].numel() for tensor in stacked.values())
        self.parameters = {name: tensor for name, tensor in stacked.items() if name in trained}
        self.fixed = {name: tensor for name, tensor in stacked.items() if name not in trained}
        self.fixed |= {name: tensor.to(device) for name, tensor in buffers.items()}
        self.evaluate(example.to(device))  # refuse before training what cannot be recorded

    def part(self, which: slice | np.ndarray) -> Ensemble:
        """Some of the networks: those of a slice themselves, so that training trains them here, else copies."""
        part = copy.copy(self)
        part.replicates = np.array(self.replicates)[which].tolist()
        part.parameters = {name: tensor[which] for name, tensor in self.parameters.items()}
        part.fixed = {name: tensor[which] for name, tensor in self.fixed.items()}
        return part

    def copies(self, index: Tensor) -> Ensemble:
        """Some of the networks, each as often as asked for, in float64 and apart from the originals."""
        copies = self.part(index.numpy())
        for tensors in (copies.parameters, copies.fixed):
            tensors |= {k: t.double() for k, t in tensors.items() if t.is_floating_point()}
        return copies

    def chain(self) -> Chain | None:
        """The networks as layers written out, where they are a chain of such."""
        return chain_of(self.base, self.parameters, self.fixed)

    def classifier(self) -> dict[str, Tensor]:
        """Copies of the ``weights`` and ``bias`` of the last layer, where "penultimate" is asked for."""
        everything = self.parameters | self.fixed
        # Looked up by identity, since a tied parameter goes by the name it has first.
        names = {id(parameter): name for name, parameter in self.base.named_parameters()}
        own = {"weights": self._last.weight, "bias": self._last.bias} if self._last else {}
        return {
            name: everything[names[id(tensor)]].clone()
            for name, tensor in own.items()
            if tensor is not None
        }

    def evaluate(
        self, x: Tensor, own: bool = False, share: Share = one_after_another
    ) -> dict[str, Tensor]:
        """Logits and features by layer (replicate, sample, feature).

        Inputs are (sample, ...), or with ``own`` those of each network (replicate, sample, ...).
        """
        x = x if own else x[None]
        chain = self.chain()
        if chain is not None and not set(self.layers) <= {"logits", "penultimate", *chain.layers}:
            chain = None
        # The number at once depends on the network alone, so that rounding does not depend on the others.
        several = max(1, _AT_ONCE // self.made)
        parts = [slice(None)]
        if chain is not None:
            held = self.weights + several * self.made
            parts = parts_of(len(self.replicates), held, os.cpu_count() or 1)

        @torch.no_grad()  # in every thread
        def look(which: slice) -> dict[str, Tensor]:
            part = self.part(which)
            inputs = x if len(x) == 1 else x[which]
            written_out = None if chain is None else part.chain()
            outputs = part._mapped_outputs if written_out is None else written_out.features
            blocks = [outputs(some, self.layers) for some in inputs.split(several, 1)]
            return {name: torch.cat([block[name] for block in blocks], 1) for name in blocks[0]}

        looks = share(look, parts)
        wanted = ("logits", *self.layers)
        return {name: torch.cat([one[name] for one in looks]).flatten(2) for name in wanted}

    def _mapped_outputs(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Outputs by layer; ``x`` (replicate, sample, ...), or (1, sample, ...) shared by all."""

        def one(parameters: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Any:
            with watching(self.base, layers, self._last) as seen:
                logits = functional_call(self.base, (parameters, fixed), (x,))
            return seen | {"logits": logits}

        if len(x) == 1:
            return vmap(one, in_dims=(0, 0, None))(self.parameters, self.fixed, x[0])
        return vmap(one)(self.parameters, self.fixed, x)


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


@torch.no_grad()
def _check_architecture(
    network: nn.Module, example: Tensor, n_classes: int, layers: Sequence[str]
) -> tuple[nn.Linear | None, int]:
    """The last linear layer, if "penultimate" is asked for, and the number of values computed for one input."""
    names = [name for name, _ in network.named_modules() if name]
    check_choices("layers", layers, dict.fromkeys(["logits", "penultimate", *names]))
    linear: list[tuple[nn.Linear, Tensor]] = []
    made = [example[0].numel()]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Linear):
            linear.append((module, output))
        if isinstance(output, Tensor):
            made.append(output[0].numel())
        if isinstance(module, nn.Conv2d):  # and the patches that it takes of the images
            made.append(output[0, 0].numel() * module.weight[0].numel())

    def run(rows: Sequence[int]) -> dict[str, Tensor]:
        linear.clear()
        made[1:] = []
        with kept_randomness(seed=0):
            return {"logits": network(example[rows])}

    leaves = [module for module in network.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    wanted = (len(example), n_classes)
    try:
        logits = run(range(len(example)))["logits"]
        last = linear[-1][0] if linear and linear[-1][1] is logits else None
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"architecture must give logits of shape {wanted}, one for each of the {n_classes} "
                f"classes of data; got {given}."
            )
        check_each_by_itself(run, len(example), "architecture")
    except RuntimeError as error:
        raise ValueError(
            f"architecture must take inputs of shape {tuple(example.shape)}, as data holds them; it "
            f"failed with: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if "penultimate" not in layers:
        return None, sum(made)
    if last is None or not isinstance(last.weight, nn.Parameter):
        raise ValueError(
            "layers may hold 'penultimate' only when the logits come straight from a plain "
            "torch.nn.Linear layer; ask for the features by the name of a submodule: "
            f"{', '.join(map(repr, names))}."
        )
    return last, sum(made)


Step = Callable[[Tensor, Tensor], Tensor]
"""Takes inputs (replicate, batch, ...) and one-hot targets (replicate, batch, class); returns the
logits (replicate, batch, class) before the step."""


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "mse": lambda logits, targets: 0.5 * (logits - targets).square().sum(-1).mean(),
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
