"""Networks to train. Any ``torch.nn.Module`` whose forward gives logits will do; this makes some."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from ..checks import check_choice, check_integer

__all__ = ["mlp"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def mlp(
    n_inputs: int,
    widths: Sequence[int],
    n_classes: int,
    *,
    activation: str = "relu",
    bias: bool = True,
) -> nn.Sequential:
    """A fully connected classifier with named layers and PyTorch's default initialisation.

    Parameters
    ----------
    n_inputs : int
        Length of an input.
    widths : sequence of int
        Widths of the hidden layers; empty for a linear classifier.
    n_classes : int
        Number of logits K.
    activation : {"relu", "tanh", "sigmoid"}
        After each hidden layer.
    bias : bool
        Whether the linear layers have biases.

    Returns
    -------
    torch.nn.Sequential
        Layers ``hidden1, activation1, hidden2, ..., logits``; input (batch, n_inputs), output
        (batch, n_classes).

    Raises
    ------
    TypeError, ValueError
        If a size is not a positive integer, or the activation is unknown.

    Examples
    --------
    >>> [name for name, _ in mlp(64, (32, 16), 4).named_children()]
    ['hidden1', 'activation1', 'hidden2', 'activation2', 'logits']
    """
    sizes = [check_integer("n_inputs", n_inputs)]
    sizes += [check_integer(f"widths[{i}]", width) for i, width in enumerate(widths)]
    n_classes = check_integer("n_classes", n_classes, 2)
    make_activation = _ACTIVATIONS[check_choice("activation", activation, _ACTIVATIONS)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate(pairwise(sizes), start=1):
        layers[f"hidden{i}"] = nn.Linear(before, after, bias=bias)
        layers[f"activation{i}"] = make_activation()
    layers["logits"] = nn.Linear(sizes[-1], n_classes, bias=bias)
    return nn.Sequential(layers)
