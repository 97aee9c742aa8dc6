"""Networks trained as PyTorch's tutorials do it, and by ``torch.func``, on the samples we draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from lesde.networks import ImageData
from lesde.networks.ensemble import child_seed
from lesde.networks.training import SampleOrder

__all__ = ["Training", "mapped", "one_after_another"]


@dataclass(frozen=True)
class Training:
    """What all ways train: ``replicates`` networks for ``iterations`` steps at batch size 1."""

    data: ImageData
    architecture: Callable[[], nn.Module]
    replicates: int
    iterations: int
    rate: float
    seed: int = 0

    def networks(self) -> list[nn.Module]:
        """The networks that ours trains, untrained."""
        made = []
        for r in range(self.replicates):
            state = child_seed(self.seed, r, 0).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0] >> np.uint64(1)))
            made.append(self.architecture())
        return made

    def order(self) -> Tensor:
        """Samples (iteration, replicate) that they see."""
        seeds = [child_seed(self.seed, r, 1) for r in range(self.replicates)]
        order = SampleOrder(seeds, len(self.data.train_x), 1, "uniform")
        return torch.from_numpy(order.take(self.iterations)[:, :, 0])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Training inputs, labels and probe inputs."""
        return (
            torch.as_tensor(self.data.train_x),
            torch.as_tensor(self.data.train_y),
            torch.as_tensor(self.data.probe_x),
        )


def one_after_another(work: Training) -> np.ndarray:
    """Logits (replicate, probe sample, class) by a loop over networks and steps."""
    x, y, probe = work.tensors()
    order, found = work.order(), []
    for r, network in enumerate(work.networks()):
        optimiser = torch.optim.SGD(network.parameters(), lr=work.rate)
        for i in order[:, r]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[i : i + 1]), y[i : i + 1]).backward()
            optimiser.step()
        with torch.no_grad():
            found.append(network(probe).numpy())
    return np.stack(found)


def mapped(work: Training) -> np.ndarray:
    """The same with ``vmap`` of ``grad``, all networks a step together."""
    x, y, probe = work.tensors()
    networks = work.networks()
    base = networks[0]
    parameters, buffers = stack_module_state(networks)
    parameters = {name: tensor.detach() for name, tensor in parameters.items()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(base, (values, buffers), (x,)), y)

    gradient = vmap(grad(loss))
    with torch.no_grad():
        for rows in work.order():
            change = gradient(parameters, x[rows, None], y[rows, None])
            for name, tensor in parameters.items():
                tensor.sub_(change[name], alpha=work.rate)
        look = vmap(lambda values: functional_call(base, (values, buffers), (probe,)))
        return np.asarray(look(parameters))
