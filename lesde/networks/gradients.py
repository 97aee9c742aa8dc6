"""One step of plain SGD for all networks of an ensemble at once.

Two ways to the same step. :func:`mapped_step` takes any architecture through ``torch.func``.
:class:`DenseStep` writes backpropagation out for chains of linear layers and activations, as batched
matrix products: for small networks and small batches nearly all of the time of the first way is the
overhead of the transformations, and the second is about ten times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .ensemble import Ensemble

__all__ = ["LOSSES", "DenseStep", "make_step", "mapped_step"]

Map = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor], None]
"""Takes inputs (replicate, batch, ...) and one-hot targets (replicate, batch, class)."""


def _squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (logits - targets).square().sum(-1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "mse": _squared_error,
}
"""Loss of logits (batch, class) against one-hot targets (batch, class), the mean over the batch."""

# An activation, and its derivative from its own output.
_ACTIVATIONS: dict[type[nn.Module], tuple[Map, Map]] = {
    nn.ReLU: (torch.relu, lambda y: y > 0),
    nn.Tanh: (torch.tanh, lambda y: 1 - y * y),
    nn.Sigmoid: (torch.sigmoid, lambda y: y * (1 - y)),
}


def make_step(ensemble: Ensemble, loss: str, learning_rate: float) -> Step:
    """The faster of the two steps that the architecture allows."""
    if DenseStep.allows(ensemble):
        return DenseStep(ensemble, loss, learning_rate)
    return mapped_step(ensemble, loss, learning_rate)


def mapped_step(ensemble: Ensemble, loss: str, learning_rate: float) -> Step:
    """The step for any architecture: the gradient of one network, mapped over the replicates."""
    measure = LOSSES[loss]

    def cost(
        parameters: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return measure(functional_call(ensemble.base, (parameters, fixed), (x,)), y)

    gradient = vmap(grad(cost))

    def step(x: Tensor, y: Tensor) -> None:
        change = gradient(ensemble.parameters, ensemble.fixed, x, y)
        with torch.no_grad():
            for name, parameter in ensemble.parameters.items():
                parameter.sub_(change[name], alpha=learning_rate)

    return step


class DenseStep:
    """The step for a ``Sequential`` of linear layers with at most one activation after each but the last."""

    def __init__(self, ensemble: Ensemble, loss: str, learning_rate: float) -> None:
        self._loss = loss
        self._rate = learning_rate
        self._weights: list[Tensor] = []
        self._biases: list[Tensor | None] = []
        self._activations: list[tuple[Map, Map] | None] = []
        names = {module: name for name, module in ensemble.base.named_children()}
        for module in _chain(ensemble.base):
            if isinstance(module, nn.Linear):
                self._weights.append(ensemble.parameters[f"{names[module]}.weight"])
                bias = ensemble.parameters.get(f"{names[module]}.bias")
                self._biases.append(None if bias is None else bias.unsqueeze(1))
                self._activations.append(None)
            else:
                self._activations[-1] = _ACTIVATIONS[type(module)]
        self._transposed = [weight.transpose(1, 2) for weight in self._weights]

    @staticmethod
    def allows(ensemble: Ensemble) -> bool:
        """Whether the architecture is of this kind, all of it is trained, and no weights are shared."""
        base = ensemble.base
        names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
        if type(base) is not nn.Sequential or ensemble.fixed or names != set(ensemble.parameters):
            return False
        kinds = [type(module) for module in _chain(base)]
        return (
            bool(kinds)
            and kinds[0] is kinds[-1] is nn.Linear
            and all(kind is nn.Linear or kind in _ACTIVATIONS for kind in kinds)
            and not any(one in _ACTIVATIONS and two in _ACTIVATIONS for one, two in pairwise(kinds))
        )

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> None:
        outputs = [x.flatten(2)]
        for weight, bias, activation in zip(
            self._transposed, self._biases, self._activations, strict=True
        ):
            below = outputs[-1]
            z = torch.bmm(below, weight) if bias is None else torch.baddbmm(bias, below, weight)
            outputs.append(z if activation is None else activation[0](z))
        logits = outputs.pop()
        # The mean over the batch is taken here; both losses have this form of derivative.
        guess = torch.softmax(logits, -1) if self._loss == "cross_entropy" else logits
        delta = (guess - y) / y.shape[1]
        for i in reversed(range(len(self._weights))):
            below, above = outputs[i], delta
            if i:  # through the weights before they change
                delta = torch.bmm(above, self._weights[i])
                activation = self._activations[i - 1]
                if activation is not None:
                    delta *= activation[1](below)
            self._weights[i].baddbmm_(above.transpose(1, 2), below, alpha=-self._rate)
            bias = self._biases[i]
            if bias is not None:
                if above.shape[1] > 1:
                    above = above.sum(1, keepdim=True)
                bias.sub_(above, alpha=self._rate)


def _chain(base: nn.Module) -> list[nn.Module]:
    """The modules of a ``Sequential`` in order, without a flattening at the start."""
    assert isinstance(base, nn.Sequential)
    modules = list(base)
    first = modules[0] if modules else None
    flattens = type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1)
    return modules[1:] if flattens else modules
