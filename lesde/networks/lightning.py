"""The recorder as a callback of Lightning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from .callback import Recorder

__all__ = ["LightningRecorder"]

_HOMES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> type | None:
    """The class of callbacks of the Lightning that is in use, or installed."""
    # The one that is imported already is the user's.
    for home in sorted(_HOMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(home).Callback
        except ImportError:
            continue
    return None


if TYPE_CHECKING:
    _Base = object
else:
    _Base = _callback() or object


class LightningRecorder(_Base):
    """Features of any layers of a LightningModule, recorded while a Trainer fits it.

    A :class:`lesde.Recorder` that counts the Trainer's optimiser steps (``global_step``, so accumulated
    gradients count once) and sums their learning rates, read before each step. Its clock is saved in
    checkpoints: a fit that goes on from one records on from there, and with ``resume=True`` drops the
    records of the store after it. With several processes the first one records.

    Parameters
    ----------
    layers : str or sequence of str
        As named by ``named_modules()`` of the LightningModule, such as ``"model.conv1"``.
    probe : DataLoader, Dataset, (inputs, labels), ImageData, or dict of str to these
    options
        Any other argument of :class:`lesde.Recorder` but ``model``, ``learning_rate`` and ``state``.

    Raises
    ------
    ImportError
        If neither lightning nor pytorch_lightning is installed.
    TypeError, ValueError
        When the fit starts, as :class:`lesde.Recorder`.

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
                "LightningRecorder needs Lightning, which is not installed: "
                'pip install "lesde[lightning]", or pip install lightning. '
                "lesde.Recorder serves a loop of your own."
            )
        super().__init__()
        taken = sorted({"model", "learning_rate", "state"} & set(options))
        if taken:
            raise TypeError(f"LightningRecorder sets {', '.join(taken)} itself; leave it out.")
        self._arguments = (layers, probe)
        self._options = options
        self._state: dict[str, float] | None = None
        self._rate = 0.0
        self.recorder: Recorder | None = None

    def paths(self, layer: str, probe: str | None = None) -> xr.Dataset:
        """The records so far of one layer, as :meth:`lesde.Recorder.paths`."""
        if self.recorder is None:
            raise ValueError("nothing is recorded before the fit starts (or in this process).")
        return self.recorder.paths(layer, probe)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the checkpoint that the fit began with."""
        if not trainer.is_global_zero:
            return
        self._read_rate(trainer.optimizers[0])
        self.recorder = Recorder(
            pl_module,
            *self._arguments,
            learning_rate=lambda: self._rate,
            state=self._state,
            **self._options,
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the learning rate, which a scheduler may change right after the step."""
        self._read_rate(optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps of the optimiser since the last batch."""
        if self.recorder is not None:
            while self.recorder.iteration < trainer.global_step:
                self.recorder.step()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what there is; an interrupt comes here too."""
        if self.recorder is not None:
            self.recorder.flush()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write all records."""
        if self.recorder is not None:
            self.recorder.close()

    def state_dict(self) -> dict[str, float]:
        """The clock, for the checkpoint."""
        return {} if self.recorder is None else self.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The clock of the checkpoint."""
        self._state = dict(state_dict) or None

    def _read_rate(self, optimizer: Any) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])
