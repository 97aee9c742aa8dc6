"""Ready-made networks to train; any ``torch.nn.Module`` whose forward returns logits will do as well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from lesde.checks import check_choice, check_flag, check_integer, check_sequence

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
    """A fully connected classifier with PyTorch's default initialisation.

    Parameters
    ----------
    n_inputs : int
    widths : sequence of int
        Widths of the hidden layers; empty for a linear classifier.
    n_classes : int
        Number of logits K.
    activation : {"relu", "tanh", "sigmoid"}
        After each hidden layer.
    bias : bool

    Returns
    -------
    torch.nn.Sequential
        Layers ``hidden1, activation1, hidden2, ..., logits``, from (batch, n_inputs) to (batch, n_classes).

    Examples
    --------
    >>> [name for name, _ in mlp(64, (32, 16), 4).named_children()]
    ['hidden1', 'activation1', 'hidden2', 'activation2', 'logits']
    """
    sizes = [check_integer("n_inputs", n_inputs)]
    listed = check_sequence("widths", widths, "a sequence of integers")
    sizes += [check_integer(f"widths[{i}]", width) for i, width in enumerate(listed)]
    n_classes = check_integer("n_classes", n_classes, 2)
    bias = check_flag("bias", bias)
    make_activation = _ACTIVATIONS[check_choice("activation", activation, _ACTIVATIONS)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate(pairwise(sizes), start=1):
        layers[f"hidden{i}"] = nn.Linear(before, after, bias=bias)
        layers[f"activation{i}"] = make_activation()
    layers["logits"] = nn.Linear(sizes[-1], n_classes, bias=bias)
    return nn.Sequential(layers)


def lenet(n_classes: int, channels: int = 1, size: int = 32) -> nn.Sequential:
    """A small convolutional classifier, with PyTorch's default initialisation.

    Two 5 by 5 convolutions (6 and 16 channels), each with ReLU and 2 by 2 maximum pooling, then dense
    layers of 120, 84 and K: the network of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960).

    Parameters
    ----------
    n_classes : int
        Number of logits K.
    channels : int, default 1
        Channels of an image: 1 for grey, 3 for colour.
    size : int, default 32
        Height and width of an image, at least 16.

    Returns
    -------
    torch.nn.Sequential
        Layers ``conv1, relu1, pool1, conv2, relu2, pool2, flat, hidden1, relu3, hidden2, relu4,
        logits``; input (batch, channels, size, size), output (batch, n_classes).

    Examples
    --------
    >>> sum(p.numel() for p in lenet(3).parameters())
    61111
    """
    n_classes = check_integer("n_classes", n_classes, 2)
    channels = check_integer("channels", channels)
    size = check_integer("size", size, 16, 10**6)
    side = ((size - 4) // 2 - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            hidden1=nn.Linear(16 * side * side, 120),
            relu3=nn.ReLU(),
            hidden2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            logits=nn.Linear(84, n_classes),
        )
    )
