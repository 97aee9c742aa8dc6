"""One step of plain SGD for all networks of an ensemble at once.

Two ways to the same step. :func:`mapped_step` takes any architecture through ``torch.func``.
:class:`ChainStep` writes backpropagation out for chains of linear layers, convolutions, pooling and
activations, as batched matrix products: for small networks and small batches nearly all of the time of
the first way is the overhead of the transformations, and the second is many times faster.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .ensemble import Ensemble
from .stacked import Activation, Layer, Linear, stacked_layer

__all__ = ["LOSSES", "ChainStep", "chain_of", "make_step", "mapped_step"]

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
    layers = chain_of(ensemble)
    if layers is not None:
        return ChainStep(layers, loss, learning_rate)
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


class ChainStep:
    """The step for a ``Sequential`` of the layers of :mod:`lesde.networks.stacked`."""

    def __init__(self, layers: list[Layer], loss: str, learning_rate: float) -> None:
        self._layers, self._loss, self._rate = layers, loss, learning_rate

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self._layers:
            x = layer.forward(x)
        # The mean over the batch is taken here; both losses have this form of derivative.
        guess = torch.softmax(x, -1) if self._loss == "cross_entropy" else x
        delta: Tensor | None = (guess - y) / y.shape[1]
        for i, layer in reversed(list(enumerate(self._layers))):
            assert delta is not None
            delta = layer.backward(delta, self._rate, i > 0)
        return x


def chain_of(ensemble: Ensemble) -> list[Layer] | None:
    """The layers of an ensemble of such networks, all trained and no weights shared; else None."""
    base = ensemble.base
    names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    if type(base) is not nn.Sequential or ensemble.fixed or names != set(ensemble.parameters):
        return None
    layers: list[Layer] = []
    for child, module in base._modules.items():  # named_children leaves out what comes twice
        assert module is not None
        own = {
            name: ensemble.parameters[f"{child}.{name}"] for name, _ in module.named_parameters()
        }
        layer = stacked_layer(module, own)
        if layer is None:
            return None
        layers.append(layer)
    # A linear layer reads the last axis alone, so images that were not flattened are for the other way.
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, Linear)), 0)
    ends = bool(layers) and isinstance(layers[-1], Linear)
    flat = all(isinstance(layer, Linear | Activation) for layer in layers[first:])
    images = all(not isinstance(layer, Linear) for layer in layers[:first])
    return layers if ends and flat and images else None
