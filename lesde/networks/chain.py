"""A network that is a chain of known layers, as layers of many networks at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .convolution import Convolution
from .stacked import Activation, Layer, Linear, MaxPool, stacked_layer

__all__ = ["Chain", "chain_of"]


class Chain:
    """Layers of all replicates, from the inputs to the logits.

    Attributes
    ----------
    layers : list of Layer
    names : list of str or None
        The module whose output each layer gives; None for a layer whose output no module gives.
    """

    def __init__(self, layers: list[Layer], names: list[str | None]) -> None:
        self.layers, self.names = layers, names

    def forward(self, x: Tensor) -> Tensor:
        """Logits (replicate, batch, class) of inputs (replicate, batch, ...)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def features(self, x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
        """Logits, what the last layer reads (``"penultimate"``), and the outputs of named modules.

        Inputs (1, batch, ...) are shared by all replicates.
        """
        seen: dict[str, Tensor] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            if layer is self.layers[-1]:
                seen["penultimate"] = x
            x = layer.forward(x)
            if name is not None and name in wanted:
                seen[name] = x
        # What comes before any weights is the same for all, and there once.
        seen = {name: y.expand(len(x), *y.shape[1:]) for name, y in seen.items()}
        return seen | {"logits": x}

    def numbers(self, x: Tensor) -> tuple[int, int]:
        """Numbers of the weights, and of what an input makes on its way, for one replicate."""
        weights = images = 0
        for layer in self.layers:
            x = layer.forward(x)
            images += x[0, 0].numel()
            if isinstance(layer, Linear | Convolution):
                weights += layer.weight[0].numel()
            if isinstance(layer, Convolution):
                images += layer.patches_of_one
        return weights, images


def chain_of(
    base: nn.Module, parameters: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> Chain | None:
    """The layers of networks like ``base``, all trained and no weights shared; else None.

    Parameters
    ----------
    base : torch.nn.Module
    parameters, fixed : dict of str to Tensor
        Trained parameters, and all others and buffers, by name, with a leading replicate axis.
    """
    names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    if type(base) is not nn.Sequential or fixed or names != set(parameters):
        return None
    layers: list[Layer] = []
    children: list[str | None] = []
    for child, module in base._modules.items():  # named_children leaves out what comes twice
        assert module is not None
        own = {name: parameters[f"{child}.{name}"] for name, _ in module.named_parameters()}
        layer = stacked_layer(module, own)
        if layer is None:
            return None
        layers.append(layer)
        children.append(child)
    # A linear layer reads the last axis alone, so images that were not flattened are for the other way.
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, Linear)), 0)
    ends = bool(layers) and isinstance(layers[-1], Linear)
    flat = all(isinstance(layer, Linear | Activation) for layer in layers[first:])
    images = all(not isinstance(layer, Linear) for layer in layers[:first])
    return Chain(*_pooled_early(layers, children)) if ends and flat and images else None


def _pooled_early(
    layers: list[Layer], names: list[str | None]
) -> tuple[list[Layer], list[str | None]]:
    """Maxima before activations, which never decrease, and within the convolutions they follow."""
    layers, names = list(layers), list(names)
    for i in range(1, len(layers)):
        if isinstance(layers[i], MaxPool) and isinstance(layers[i - 1], Activation):
            layers[i - 1 : i + 1] = layers[i], layers[i - 1]
            names[i - 1] = None
    for i in range(len(layers) - 1, 0, -1):
        pool, before = layers[i], layers[i - 1]
        if isinstance(pool, MaxPool) and isinstance(before, Convolution):
            layers[i - 1 : i + 1] = [before.pooled(pool.tile)]
            names[i - 1 : i + 1] = [names[i]]
    return layers, names
