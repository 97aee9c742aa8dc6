"""Plain SGD on many networks at once, with the features of a probe set recorded as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..checks import (
    bare_array,
    check_choice,
    check_flag,
    check_integer,
    check_seed,
    check_sequence,
    check_times,
    shown,
)
from ..iterations import seen_times
from ..simulation.request import read_device
from .datasets import ImageData
from .engine import STEPS, Trainer
from .ensemble import layer_names
from .gradients import LOSSES
from .runs import EnsembleRun, Job, Observer, Record
from .sampling import SAMPLING
from .schedule import check_rates, iterations_of
from .sharing import threads

__all__ = ["train_ensemble"]

MOST_AT_ONCE = 10**6
"""Networks that train together, and samples of a step: more is a slip of the pen."""


def train_ensemble(
    data: ImageData,
    architecture: Callable[[], nn.Module],
    learning_rates: float | Sequence[float],
    replicates: int | Sequence[int],
    times: Sequence[float] | np.ndarray,
    *,
    layers: Sequence[str] = ("logits",),
    loss: str = "cross_entropy",
    batch_size: int = 1,
    sampling: str = "uniform",
    seed: int = 0,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    labels: np.ndarray | Sequence[Sequence[int]] | None = None,
    drawn: bool = False,
    observe: Observer | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Iterator[EnsembleRun]:
    """Train replicates of a network by plain SGD at each learning rate, one learning rate at a time.

    Time is t = learning rate x iteration, so that all learning rates run for the same time and a
    smaller one takes more steps. No momentum, weight decay or schedule. All replicates of a learning
    rate train together in one stack. A replicate's initialisation and its order of samples depend on
    ``seed`` and its number only: not on the learning rate (learning rates are compared pairwise),
    nor on how many train together, nor on which times are saved.

    Parameters
    ----------
    data : ImageData
        As :func:`lesde.networks.digits` makes.
    architecture : callable
        Makes a new network; see :func:`lesde.networks.mlp`. Any ``torch.nn.Module`` that maps a batch
        (n, ...) to logits (n, K), each row on its own (no batch normalisation, no dropout).
        Parameters with ``requires_grad=False`` stay as they are.
    learning_rates : float or sequence of float
        One or several, all different, in the order in which they are trained.
    replicates : int or sequence of int
        How many networks for each learning rate, or their numbers (to add to an earlier run).
    times : array (T,)
        When features are recorded; the first is 0, before training. Each is recorded at the nearest
        iteration, and the time of that iteration is kept with the record. Several learning rates must be
        seen at the same times: :func:`lesde.networks.saving_times` makes such.
    layers : sequence of str
        ``"logits"``, ``"penultimate"`` (what the last linear layer reads) or names of submodules.
    loss : {"cross_entropy", "mse"}
        ``"mse"`` is half the squared distance to the one-hot label, summed over classes and averaged
        over the batch.
    batch_size : int
        Samples per step; 1 is the sampling of the locally elastic model.
    sampling : {"uniform", "epochs"}
        Each sample drawn uniformly from the training set, as the model has it, or the training set
        in a new random order each epoch, as is common in practice.
    seed : int
    dtype : {"float32", "float64"}
        Of parameters and recorded features.
    device : str or torch.device, optional
        Where networks train, ``"cpu"`` or ``"cuda"``; the CPU by default. Initialisation and order of samples
        are drawn on the CPU, so devices train the same networks, to rounding.
    labels : int array (replicate, sample), optional
        Training labels of every replicate's own, in place of ``data.train_y``: label noise drawn anew
        for each, for example.
    drawn : bool
        Whether to keep the logits of every drawn training sample before the step on it, with its label,
        as the experiments of Zhang, Wang and Su (2021) do.
    observe : callable, optional
        Called with the learning rate, the number of the saved time and the
        :class:`lesde.networks.ensemble.Ensemble` at every saved time, once its features are recorded. It
        may look at the networks but must not change them.
    progress : bool or callable
        ``True`` for a progress bar; a callable is given the steps done and the steps in all, over
        all learning rates, at every saved time.

    Yields
    ------
    EnsembleRun
        One per learning rate, as soon as it is trained. Arguments are checked before the first.
        Stopping early (an interrupt, a ``break``) loses nothing that was yielded.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the network does not fit the data, two times fall on one
        iteration, or learning rates would be seen at different times.
    Diverged
        If the loss of a network stops being finite; the message names the learning rate.

    Notes
    -----
    Chains (``torch.nn.Sequential``) of linear layers, convolutions with steps of one pixel, maxima over
    tiles and activations take a hand-written backward pass of batched matrix products; on the CPU they are
    cut into parts that train in as many threads as PyTorch is set to use (``torch.set_num_threads``), and
    the numbers of a replicate are the same to the last bit whichever train beside it and in however many
    threads. Other networks take ``torch.func.vmap`` of the gradient, where rounding differs a little with the
    number of replicates in the stack, and training amplifies it. The two ways agree to rounding. Ctrl-C is
    heard every few hundred steps.

    Examples
    --------
    >>> from lesde.networks import digits, mlp
    >>> data = digits(classes=4)
    >>> runs = train_ensemble(data, lambda: mlp(64, (32,), 4), (0.05, 0.1), 8, [0, 1, 2, 4])
    >>> [run.features["logits"].shape for run in runs]
    [(8, 4, 160, 4), (8, 4, 160, 4)]
    """
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be a lesde.networks.ImageData; got {type(data).__name__}.")
    check_choice("loss", loss, LOSSES)
    check_choice("sampling", sampling, SAMPLING)
    check_choice("dtype", dtype, ("float32", "float64"))
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress must be True, False or a function of (steps done, steps in all); got "
            f"{shown(progress)}."
        )
    asked = _check_start(check_times("times", times))
    job = Job(
        data=data,
        architecture=architecture,
        replicates=_replicate_numbers(replicates),
        asked=asked,
        times=asked,
        layers=layer_names(layers),
        loss=loss,
        batch_size=check_integer("batch_size", batch_size, 1, MOST_AT_ONCE),
        sampling=sampling,
        seed=check_seed(seed),
        dtype=getattr(torch, dtype),
        device=read_device(device),
        drawn=check_flag("drawn", drawn),
        observe=observe,
    )
    if observe is not None and not callable(observe):
        raise TypeError(
            f"observe must be a function of (learning rate, number of the saved time, ensemble) or None; "
            f"got {shown(observe)}."
        )
    if labels is not None:
        job = replace(job, labels=_check_own_labels(labels, job))
    rates = check_rates(learning_rates)
    iterations = [iterations_of(job.asked, rate) for rate in rates]
    job = replace(job, times=seen_times(job.asked, rates, iterations))
    plan = list(zip(rates, iterations, strict=True))
    with threads(1, 1):
        job.ensemble(
            first_only=True
        )  # what is wrong with the architecture is told now, not at the end
    return _train_all(job, plan, progress)


def _train_all(
    job: Job,
    plan: list[tuple[float, np.ndarray]],
    progress: bool | Callable[[int, int], None],
) -> Iterator[EnsembleRun]:
    total = sum(int(iterations[-1]) for _, iterations in plan)
    bar = None
    if progress is True:
        from tqdm.auto import tqdm

        bar = tqdm(total=total, unit="step", desc="training")
    done = 0
    try:
        for rate, iterations in plan:

            def report(steps: int, before: int = done) -> None:
                if bar is not None:
                    bar.update(before + steps - bar.n)
                elif callable(progress):
                    progress(before + steps, total)

            yield _train_one(job, rate, iterations, report)
            done += int(iterations[-1])
    finally:
        if bar is not None:
            bar.close()


def _train_one(
    job: Job, rate: float, iterations: np.ndarray, report: Callable[[int], None]
) -> EnsembleRun:
    trainer, record = Trainer(job, rate), Record(job, rate)
    with trainer.running() as share:
        record.add(trainer.ensemble, 0, share)
        report(0)
        done, last = 0, int(iterations[-1])
        for saved, wanted in enumerate(iterations.tolist()[1:], start=1):
            while done < wanted:
                steps = min(STEPS, wanted - done)
                drawn = trainer.advance(steps)
                if job.drawn:
                    record.add_drawn(done, last, drawn.logits, drawn.labels)
                done += steps
            record.add(trainer.ensemble, saved, share)
            report(done)
    return record.run(iterations, str(trainer.ensemble.base))


def _check_start(times: np.ndarray) -> np.ndarray:
    if times[0] != 0:
        raise ValueError(f"times[0] must be 0, the state before training; got {times[0]:g}.")
    return times


def _replicate_numbers(replicates: int | Sequence[int]) -> list[int]:
    if isinstance(replicates, Sequence | np.ndarray):
        given = check_sequence("replicates", replicates, "a sequence of integers")
        numbers = [check_integer(f"replicates[{i}]", r, 0) for i, r in enumerate(given)]
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(
                f"replicates must be a number of networks or different numbers of replicates; got "
                f"{shown(replicates)}."
            )
        return numbers
    return list(range(check_integer("replicates", replicates, 1, MOST_AT_ONCE)))


def _check_own_labels(labels: np.ndarray | Sequence[Sequence[int]], job: Job) -> np.ndarray:
    own, K = bare_array("labels", labels), job.data.n_classes
    shape = (len(job.replicates), len(job.data.train_y))
    if own.shape != shape or own.dtype.kind not in "iu":
        raise ValueError(
            f"labels must hold an integer for each of the {shape[1]} training samples of each of the "
            f"{shape[0]} replicates, shape {shape}; got {own.dtype} of shape {own.shape}."
        )
    if own.min() < 0 or own.max() >= K:
        raise ValueError(
            f"labels must be classes 0..{K - 1} of the data; got {own.min()}..{own.max()}."
        )
    return own.astype(np.int64)
