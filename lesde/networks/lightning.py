"""The recorder as a callback of Lightning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lesde.networks.record_store import clock_of
from lesde.networks.recorder import Recorder, rate_of

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
    gradients count once) and sums their learning rates, read before each step (that of the first group, with
    a warning, where the groups of an optimiser have several). A record is taken at the
    end of a batch; where a batch makes several steps, one at most, after the last. With several processes
    the first one records.

    Its clock is saved in checkpoints: a fit resumed from one continues recording there, and with
    ``resume=True`` drops later records from the store. A second fit of the same Trainer continues recording
    too. A fit resumed without the clock (from a checkpoint that was saved without this callback)
    begins at the Trainer's ``global_step``; the steps since the last record at or before it in the store,
    if any, else since 0, are assumed to have had the current learning rate. If the Trainer has a scheduler
    of the learning rate, or several rates, this cannot be assumed and the fit is refused. Then set the clock
    beforehand with ``recorder.load_state_dict({"iteration": ..., "time": ...})``, where ``time`` is the sum of
    the learning rates so far.

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
        When the fit starts, as :class:`lesde.Recorder`; also where the clock is not known.

    Examples
    --------
    >>> recorder = lesde.networks.LightningRecorder(
    ...     ["model.conv1", "penultimate"], probe, every=100, store="runs/features.zarr"
    ... )  # doctest: +SKIP
    >>> Trainer(callbacks=[recorder]).fit(module, loader)  # doctest: +SKIP
    >>> lesde.neural_collapse(recorder.paths("penultimate"))  # doctest: +SKIP
    """

    state_key: str  # as Lightning's Callback has it

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
        self._rate, self._warned = 0.0, False
        # Of steps not yet counted, by the global_step before each.
        self._rates: dict[int, float] = {}
        self._ahead = 0  # iteration of the recorder less global_step
        self._fitting = False
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
        # Used once: a later fit is to go on from the clock as it is then.
        state, self._state = self._state, None
        if self.recorder is not None and state is None and self._goes_on(trainer, pl_module):
            self.recorder._reopen()
        else:
            self._rate = self._rate_of(trainer.optimizers[0])
            self._rates.clear()
            self.recorder = Recorder(
                pl_module,
                *self._arguments,
                learning_rate=lambda: self._rate,
                state=self._supposed(trainer) if state is None else state,
                **self._options,
            )
            self._module, self._ahead = pl_module, self.recorder.iteration - trainer.global_step
        self._fitting = True
        self._count(trainer)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the learning rate, which a scheduler may change right after the step."""
        if self._fitting:
            self._rate = self._rates[trainer.global_step] = self._rate_of(optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps of the optimiser since the last batch."""
        self._count(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Count also the step of a batch that has not ended, when another callback saves."""
        if self.recorder is not None:
            self._count(trainer)
            # What state_dict gave to it was read before.
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what there is; an interrupt comes here too."""
        if self.recorder is not None:
            self.recorder.flush()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write all records."""
        self._fitting = False
        if self.recorder is not None:
            self.recorder.close()

    def state_dict(self) -> dict[str, float]:
        """The clock, for the checkpoint."""
        return {} if self.recorder is None else self.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The clock of the checkpoint."""
        self._state = dict(state_dict) or None

    def _rate_of(self, optimizer: Any) -> float:
        """The learning rate; of several that of the first group, with a warning, once."""
        try:
            return rate_of(optimizer)
        except ValueError:
            first = float(optimizer.param_groups[0]["lr"])
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the groups of the optimiser have several learning rates; the time of the records is "
                    f"the sum of those of the first group, now {first:g}.",
                    stacklevel=2,
                )
            return first

    def _count(self, trainer: Any) -> None:
        """Count the steps made since the last call, each at its own rate."""
        if self.recorder is None or not self._fitting:
            return
        steps = range(self.recorder.iteration - self._ahead, trainer.global_step)
        if len(steps):
            self.recorder._advance([self._rates.get(step, self._rate) for step in steps])
        self._rates.clear()

    def _goes_on(self, trainer: Any, pl_module: Any) -> bool:
        """True where the fit begins where the last one, of the same module, ended or was interrupted."""
        assert self.recorder is not None
        first = self.recorder.iteration - self._ahead
        known = all(step in self._rates for step in range(first, trainer.global_step))
        return pl_module is self._module and first <= trainer.global_step and known

    def _supposed(self, trainer: Any) -> dict[str, float]:
        """The clock at the start of a fit that comes without one."""
        step = trainer.global_step
        begun, time = 0, 0.0
        store = self._options.get("store")
        if store is not None and self._options.get("resume") and Path(store).expanduser().exists():
            times, iterations = clock_of(store)
            if step == 0 and len(times):
                last = {"iteration": int(iterations[-1]), "time": float(times[-1])}
                raise ValueError(
                    f"store {str(store)!r} holds records up to iteration {last['iteration']}, but the "
                    f"fit begins at step 0. Give it the checkpoint to go on from (ckpt_path=), name "
                    f"another store, or remove this one. If the model is as it was at the last record, "
                    f"call recorder.load_state_dict({last}) before the fit."
                )
            whole = int(np.searchsorted(iterations, step, side="right"))
            if whole:
                begun, time = int(iterations[whole - 1]), float(times[whole - 1])
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        several = len({float(group["lr"]) for group in groups}) > 1
        if begun < step and (trainer.lr_scheduler_configs or several):
            raise ValueError(
                f"the fit continues at step {step} without the clock of LightningRecorder (its checkpoint "
                f"was saved without the callback), and the learning rate "
                f"{'has several values' if several else 'follows a scheduler'}, so the time is "
                f"not known. Before the fit call recorder.load_state_dict({{'iteration': {step}, "
                f"'time': t}}), with t the sum of the learning rates of these steps."
            )
        return {"iteration": step, "time": time + (step - begun) * self._rate}
