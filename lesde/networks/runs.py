"""What training is asked to do, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import Diverged
from .datasets import ImageData
from .ensemble import Ensemble, Evaluation
from .gradients import LOSSES
from .sharing import Share, one_after_another

__all__ = ["EnsembleRun", "Job", "Observer", "Record"]

Observer = Callable[[float, int, Ensemble], None]
"""Takes the learning rate, the number of a saved time, and the networks as they are then."""


@dataclass(frozen=True, eq=False)
class EnsembleRun:
    """All replicates of one learning rate, trained.

    Attributes
    ----------
    learning_rate : float
    replicates : int array (R,)
    times : float array (T,)
        At which the networks were seen, ``learning_rate * iterations`` up to rounding.
    asked_times : float array (T,)
        As asked for; ``times`` are those of the nearest iterations.
    iterations : int array (T,)
        SGD steps taken at each saved time.
    features : dict of str to array (R, T, sample, feature)
        By layer.
    loss, accuracy : float64 array (R, T)
        On the probe set.
    weights, bias : array (R, T, class, feature), (R, T, class), or None
        Of the last linear layer, when the layer ``"penultimate"`` is recorded (and it has a bias).
    architecture : str
        The text of the network.
    drawn_logits : array (R, D, class), or None
        Logits of every drawn training sample before the step on it, in the order drawn, where they
        were asked for; D is iterations times batch size.
    drawn_labels : int64 array (R, D), or None
        Their labels, wrong ones included.
    """

    learning_rate: float
    replicates: np.ndarray
    times: np.ndarray
    asked_times: np.ndarray
    iterations: np.ndarray
    features: dict[str, np.ndarray]
    loss: np.ndarray
    accuracy: np.ndarray
    weights: np.ndarray | None
    bias: np.ndarray | None
    architecture: str
    drawn_logits: np.ndarray | None = None
    drawn_labels: np.ndarray | None = None


@dataclass(frozen=True)
class Job:
    """Checked arguments that all learning rates share."""

    data: ImageData
    architecture: Callable[[], nn.Module]
    replicates: list[int]
    asked: np.ndarray
    times: np.ndarray
    layers: tuple[str, ...]
    loss: str
    batch_size: int
    sampling: str
    seed: int
    dtype: torch.dtype
    device: torch.device
    drawn: bool = False
    observe: Observer | None = None
    labels: np.ndarray | None = None

    def ensemble(self, first_only: bool = False) -> Ensemble:
        """The untrained networks, the same at every call."""
        return Ensemble(
            self.architecture,
            self.replicates[:1] if first_only else self.replicates,
            example=torch.as_tensor(self.data.probe_x[:2], dtype=self.dtype),
            n_classes=self.data.n_classes,
            layers=self.layers,
            seed=self.seed,
            dtype=self.dtype,
            device=self.device,
        )

    def one_hot(self, labels: np.ndarray) -> Tensor:
        """Targets (sample, class) of the given labels."""
        targets = torch.eye(self.data.n_classes, dtype=self.dtype)[torch.from_numpy(labels)]
        return targets.to(self.device)


@dataclass
class Record:
    """Arrays that fill as the saved times are reached."""

    job: Job
    rate: float
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, ensemble: Ensemble, index: int, share: Share = one_after_another) -> None:
        """Measure the networks as they are now, at saved time number ``index``."""
        job = self.job
        x = torch.as_tensor(job.data.probe_x, dtype=job.dtype, device=job.device)
        seen = ensemble.evaluate(x, share=share).cpu()
        measured = self._measure(seen, job.times[index])
        measured |= {f"features {layer}": x for layer, x in seen.features.items()}
        for name, tensor in (("weights", seen.weights), ("bias", seen.bias)):
            if tensor is not None:
                measured[name] = tensor
        for name, tensor in measured.items():
            if name not in self.arrays:
                shape = (tensor.shape[0], len(job.times), *tensor.shape[1:])
                self.arrays[name] = np.empty(shape, dtype=tensor.numpy().dtype)
            self.arrays[name][:, index] = tensor.numpy()
        if job.observe is not None:
            job.observe(self.rate, index, ensemble)

    def add_drawn(self, first: int, total: int, logits: Tensor, labels: np.ndarray) -> None:
        """Keep the logits of the draws of some steps, from iteration ``first`` of ``total``.

        Parameters
        ----------
        logits : Tensor (replicate, draw, class)
        labels : int array (replicate, draw)
        """
        replicates, draws = labels.shape
        values, begin = logits.cpu().numpy(), first * self.job.batch_size
        if "drawn logits" not in self.arrays:
            shape = (replicates, total * self.job.batch_size)
            self.arrays["drawn logits"] = np.empty((*shape, values.shape[-1]), dtype=values.dtype)
            self.arrays["drawn labels"] = np.empty(shape, dtype=np.int64)
        self.arrays["drawn logits"][:, begin : begin + draws] = values
        self.arrays["drawn labels"][:, begin : begin + draws] = labels

    def _measure(self, seen: Evaluation, time: float) -> dict[str, Tensor]:
        """Loss and accuracy of each replicate on the probe set; raises where the loss is not finite."""
        job = self.job
        targets, labels = job.one_hot(job.data.probe_y).cpu(), torch.from_numpy(job.data.probe_y)
        measure = LOSSES[job.loss]
        loss = torch.stack([measure(logits.double(), targets.double()) for logits in seen.logits])
        bad = ~torch.isfinite(loss)
        if bad.any():
            replicate = job.replicates[int(torch.nonzero(bad)[0])]
            raise Diverged(
                time,
                f"the loss of {int(bad.sum())} of {len(bad)} networks (the first is replicate "
                f"{replicate}) at learning rate {self.rate:g}",
                "use a smaller learning rate",
            )
        accuracy = (seen.logits.argmax(-1) == labels).double().mean(-1)
        return {"loss": loss, "accuracy": accuracy}

    def run(self, iterations: np.ndarray, architecture: str) -> EnsembleRun:
        """What was recorded, once all saved times are in."""
        return EnsembleRun(
            learning_rate=self.rate,
            replicates=np.asarray(self.job.replicates),
            times=self.job.times,
            asked_times=self.job.asked,
            iterations=iterations,
            features={layer: self.arrays[f"features {layer}"] for layer in self.job.layers},
            loss=self.arrays["loss"],
            accuracy=self.arrays["accuracy"],
            weights=self.arrays.get("weights"),
            bias=self.arrays.get("bias"),
            architecture=architecture,
            drawn_logits=self.arrays.get("drawn logits"),
            drawn_labels=self.arrays.get("drawn labels"),
        )
