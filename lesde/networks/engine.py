"""The steps that an ensemble takes, with the samples they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .ensemble import Ensemble, child_seed
from .gradients import make_step
from .runs import Job
from .sampling import SampleOrder
from .sharing import Share, parts_of, threads

__all__ = ["Drawn", "Trainer"]

# Inputs gathered for steps to come, in numbers: large enough to hide the cost of a gather, and small
# enough to be still in the cache when they are read.
_GATHER = 2**18

# Steps between two looks at what goes on outside, such as an interrupt.
STEPS = 256

# Multiplications of one forward pass of a network, or of the whole stack where ``torch.func`` maps over
# it, below which threads within an operation cost more than they bring: a step of small networks is many
# short operations, and threads that wait for one another at each of them can make it ten times slower,
# more when other programs want the cores.
_WORTH_THREADS = 2**23


class Drawn(NamedTuple):
    """What some steps drew: logits (replicate, draw, class) before them, labels (replicate, draw)."""

    logits: Tensor
    labels: np.ndarray


class Trainer:
    """Takes steps of plain SGD with all networks of a job at one learning rate.

    Chains of known layers are cut into parts that step in threads of their own: no network's result
    depends on the part it is in, and PyTorch lets other threads run while it computes.
    """

    def __init__(self, job: Job, rate: float) -> None:
        with threads(1, 1):  # making networks is many short operations too
            whole = self.ensemble = job.ensemble()
        x = torch.as_tensor(job.data.train_x, dtype=job.dtype, device=job.device)
        shape = (len(job.replicates), len(x))
        labels = np.broadcast_to(job.data.train_y, shape) if job.labels is None else job.labels
        self._workers, self._each, slices = 1, torch.get_num_threads(), [slice(None)]
        weights = job.batch_size * sum(p[0].numel() for p in whole.parameters.values())
        if whole.chain() is None:
            if weights * len(job.replicates) < _WORTH_THREADS:
                self._each = 1
        elif weights < _WORTH_THREADS and job.device.type == "cpu":
            own, images = whole.numbers(x[:1])
            held = own + images * job.batch_size
            slices = parts_of(len(job.replicates), held, self._each)
            self._workers, self._each = min(self._each, len(slices)), 1
        self._parts = [_Part(job, rate, whole.part(which), x, labels[which]) for which in slices]
        self._share: Share

    @contextmanager
    def running(self) -> Iterator[Share]:
        """Threads ready to work while the block runs."""
        short = torch.backends.cudnn.allow_tf32
        try:
            # Convolutions on a GPU would be rounded to 10 bits, unlike those on the CPU.
            torch.backends.cudnn.allow_tf32 = False
            with threads(self._workers, self._each) as self._share:
                yield self._share
        finally:
            torch.backends.cudnn.allow_tf32 = short

    def advance(self, steps: int) -> Drawn:
        """Take steps, and tell what was drawn. Within :meth:`running`."""
        drawn = self._share(lambda part: part.advance(steps), self._parts)
        if len(drawn) == 1:
            return drawn[0]
        return Drawn(
            torch.cat([part.logits for part in drawn]),
            np.concatenate([part.labels for part in drawn]),
        )


class _Part:
    """Some replicates, which step together."""

    def __init__(
        self, job: Job, rate: float, part: Ensemble, x: Tensor, labels: np.ndarray
    ) -> None:
        seeds = [child_seed(job.seed, r, 1) for r in part.replicates]
        self._order = SampleOrder(seeds, len(x), job.batch_size, job.sampling)
        self._block = max(1, _GATHER // (len(seeds) * job.batch_size * x[0].numel()))
        self._step = make_step(part, job.loss, rate)
        self._x, self._labels, self._one_hot = x, labels, job.one_hot

    def advance(self, steps: int) -> Drawn:
        drawn = self._order.take(steps)  # (step, replicate, batch)
        replicates = drawn.shape[1]
        rows = torch.from_numpy(drawn).to(self._x.device)
        labels = self._labels[np.arange(replicates)[:, None], drawn]
        targets = self._one_hot(labels)
        logits = torch.empty_like(targets)
        done = 0
        for some in rows.split(self._block):
            for x, y in zip(self._x[some], targets[done : done + len(some)], strict=True):
                logits[done] = self._step(x, y)
                done += 1
        return Drawn(
            logits.transpose(0, 1).flatten(1, 2), labels.swapaxes(0, 1).reshape(replicates, -1)
        )
