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
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .chain import Chain, chain_of
from .convolution import Convolution
from .ensemble import Ensemble
from .stacked import Linear

__all__ = ["LOSSES", "ChainStep", "make_step", "mapped_step"]

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
    chain = chain_of(ensemble.base, ensemble.parameters, ensemble.fixed)
    if chain is not None:
        return ChainStep(chain, loss, learning_rate)
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
    """The step for a chain of layers, by backpropagation written out."""

    def __init__(self, chain: Chain, loss: str, learning_rate: float) -> None:
        self._chain, self._loss, self._rate = chain, loss, learning_rate
        trained = (isinstance(layer, Linear | Convolution) for layer in chain.layers)
        self._first = list(trained).index(True)  # derivatives go no further

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self._chain.forward(x)
        guess = torch.softmax(logits, -1) if self._loss == "cross_entropy" else logits
        # Both losses have this form of derivative; the mean over the batch is taken here.
        delta: Tensor | None = guess - y if y.shape[1] == 1 else (guess - y) / y.shape[1]
        layers = self._chain.layers
        for i in range(len(layers) - 1, self._first - 1, -1):
            assert delta is not None
            delta = layers[i].backward(delta, self._rate, i > self._first)
        return logits
