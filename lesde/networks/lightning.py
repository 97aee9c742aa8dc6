"""The recorder as a callback of Lightning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from lesde.networks.recorder import Recorder


def _callback() -> type:
    """The class of callbacks of the Lightning that is in use, or installed; object where there is none."""
    # The one that is imported already is the user's.
    homes = ("lightning.pytorch", "pytorch_lightning")
    for home in sorted(homes, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(home).Callback
        except ImportError:
            continue
    return object


if TYPE_CHECKING:
    _Base = object
else:
    _Base = _callback()


class LightningRecorder(_Base):
    """Features of any layers of a LightningModule, recorded while a Trainer fits it.

    A :class:`lesde.Recorder` that counts the batches in which the Trainer makes a step (so accumulated
    gradients count once) and sums their learning rates, read before each step from the first group of its
    optimiser. With several processes the first one records.

    The clock is saved in checkpoints, and a fit resumed from one continues there (with ``resume=True`` later
    records are dropped from the store), as does a second fit of the same Trainer. Before a fit from a checkpoint
    without the clock, set it: ``recorder.load_state_dict({"iteration": ..., "time": ...})``.

    Parameters
    ----------
    layers : str or sequence of str
        As named by ``named_modules()`` of the LightningModule, such as ``"model.conv1"``.
    probe, **options
        As for :class:`lesde.Recorder`, all but ``model``, ``learning_rate`` and ``state``; they are checked when
        the fit starts.

    Examples
    --------
    >>> recorder = lesde.networks.LightningRecorder(
    ...     ["model.conv1", "penultimate"], probe, every=100, store="runs/features.zarr"
    ... )  # doctest: +SKIP
    >>> Trainer(callbacks=[recorder]).fit(module, loader)  # doctest: +SKIP
    >>> lesde.neural_collapse(recorder.paths("penultimate"))  # doctest: +SKIP
    """

    def __init__(self, layers: str | Sequence[str], probe: Any, **options: Any) -> None:
        if _Base is object:
            raise ImportError(
                "LightningRecorder needs Lightning, which is not installed: pip install "
                '"lesde[lightning]". lesde.Recorder serves a loop of your own.'
            )
        super().__init__()
        taken = sorted({"model", "learning_rate", "state"} & set(options))
        if taken:
            raise TypeError(f"LightningRecorder sets {', '.join(taken)} itself; leave it out.")
        self._arguments, self._options = (layers, probe), options
        self._state: dict[str, float] | None = None
        self._rate, self._steps = 0.0, 0  # of the steps of this batch; steps that are counted
        self._module: Any = None
        self.recorder: Recorder | None = None

    def paths(self, layer: str, probe: str | None = None) -> xr.Dataset:
        """The records so far of one layer, as :meth:`lesde.Recorder.paths`."""
        if self.recorder is None:
            raise ValueError("nothing is recorded before the fit starts (or in this process).")
        return self.recorder.paths(layer, probe)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the checkpoint or the fit before."""
        if not trainer.is_global_zero:
            return
        if self._module is not pl_module or self._state is not None:
            if trainer.global_step and self._state is None:
                raise ValueError(
                    f"the checkpoint, at step {trainer.global_step}, must hold the clock of LightningRecorder. "
                    f"Before the fit call recorder.load_state_dict({{'iteration': ..., 'time': ...}}), with "
                    f"the number of steps so far and the sum of their learning rates."
                )
            self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            options = {"learning_rate": lambda: self._rate, "state": self._state, **self._options}
            self.recorder = Recorder(pl_module, *self._arguments, **options)
            if self.recorder.iteration and self._state is None:
                raise ValueError(
                    f"the store holds records up to iteration {self.recorder.iteration}, but the fit begins at "
                    f"step 0. Give it the checkpoint to go on from (ckpt_path=), or name another store."
                )
            self._module, self._state = pl_module, None  # a later fit goes on from the clock then
        self._rate, self._steps = 0.0, trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the learning rate, which a scheduler may change right after the step."""
        self._rate += float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count the batch where it made a step."""
        if self.recorder is not None and trainer.global_step > self._steps:
            self.recorder.step()
            self._rate, self._steps = 0.0, trainer.global_step

    def on_exception(self, *_: Any) -> None:
        """Write what there is; an interrupt comes here too."""
        self.on_train_end()

    def on_train_end(self, *_: Any) -> None:
        """Write all records; a second fit may add more."""
        if self.recorder is not None:
            self.recorder.flush()

    def state_dict(self) -> dict[str, float]:
        """The clock, for the checkpoint."""
        return {} if self.recorder is None else self.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The clock of the checkpoint."""
        self._state = dict(state_dict) or None
