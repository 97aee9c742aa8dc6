"""How long a training run will take, measured before it starts."""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lesde.checks import (
    bare_array,
    check_choice,
    check_flag,
    check_integer,
    check_real,
    check_seed,
    check_sequence,
    check_times,
    read_device,
    shown,
)
from lesde.errors import Diverged
from lesde.networks.data import ImageData
from lesde.networks.ensemble import (
    LOSSES,
    Ensemble,
    Evaluation,
    Share,
    child_seed,
    layer_names,
    make_step,
    one_after_another,
    parts_of,
    threads,
)
from lesde.paths import common_step, seen_times

__all__ = [
    "SAMPLING",
    "Drawn",
    "EnsembleRun",
    "Job",
    "Observer",
    "Record",
    "SampleOrder",
    "Trainer",
    "check_rates",
    "iterations_of",
    "saving_times",
    "train_ensemble",
    "training_time",
]


# --------------------------------------------------------------------------------------------------
# From times to iterations: t = learning rate x iteration.


def saving_times(
    total: float,
    learning_rates: float | Sequence[float],
    count: int = 50,
    *,
    power: float = 2.0,
) -> np.ndarray:
    """Times at which to record, denser early, that fall on iterations of every learning rate.

    The times ``total * (i / count) ** power`` are rounded to multiples of the smallest time that is a
    whole number of steps at every learning rate, and repeated ones dropped, so there may be fewer than
    asked for. That is the largest learning rate where the others divide it.

    Parameters
    ----------
    total : float
        Time at which training ends, at least that smallest time.
    learning_rates : float or sequence of float
    count : int
        Recorded times at most, not counting time 0.
    power : float
        1 spaces the times evenly, more makes them denser early.

    Returns
    -------
    array (T,)
        Strictly increasing, from 0 to ``total`` (rounded).

    Examples
    --------
    >>> saving_times(40.0, (0.1, 0.5), count=4)
    array([ 0. ,  2.5, 10. , 22.5, 40. ])
    """
    rates = check_rates(learning_rates)
    total = check_real("total", total, max(rates))
    step = common_step(rates)
    if step is None or step > total:
        raise ValueError(
            f"learning_rates must share iterations up to total = {total:g}; those of "
            f"{', '.join(map(repr, rates))} first meet at "
            f"{'no time' if step is None else f'{step:g}'}. Give learning rates that divide one another, "
            f"such as 0.01, 0.02 and 0.04, or take times for each learning rate by itself."
        )
    count = check_integer("count", count, 1, 10**7)
    power = check_real("power", power, 0.0, open_minimum=True)
    wanted = total * (np.arange(count + 1) / count) ** power
    steps = np.unique(np.rint(wanted / step))
    # One division rather than a product: 3 / 10 prints as 0.3, 3 * 0.1 does not.
    inverse = 1 / step
    return steps / inverse if float(inverse).is_integer() else steps * step


def check_rates(learning_rates: float | Sequence[float]) -> list[float]:
    """Different positive learning rates, as a list."""
    if isinstance(learning_rates, numbers.Real):
        return [check_real("learning_rates", learning_rates, 0.0, open_minimum=True)]
    given = check_sequence(
        "learning_rates", learning_rates, "a positive number or a sequence of them"
    )
    rates = [
        check_real(f"learning_rates[{i}]", rate, 0.0, open_minimum=True)
        for i, rate in enumerate(given)
    ]
    if not rates or len(set(rates)) < len(rates):
        raise ValueError(
            f"learning_rates must hold at least one rate and each only once; got "
            f"{shown(learning_rates)}."
        )
    return rates


def iterations_of(times: np.ndarray, learning_rate: float) -> np.ndarray:
    """Iteration nearest to each time, int64; two times on one iteration are an error."""
    iterations = np.rint(times / learning_rate).astype(np.int64)
    same = np.flatnonzero(np.diff(iterations) == 0)
    if len(same):
        i = int(same[0])
        raise ValueError(
            f"times must be at least one step apart at every learning rate; {times[i]:g} and "
            f"{times[i + 1]:g} both fall on iteration {iterations[i]} at learning rate "
            f"{float(learning_rate)!r}. Space the times by at least the largest learning rate, for example "
            f"with lesde.networks.saving_times."
        )
    return iterations


# --------------------------------------------------------------------------------------------------
# The order in which each replicate sees the training samples.

SAMPLING = ("uniform", "epochs")

_DRAWS = 4096  # drawn at once; part of what a seed means, so not to be tuned


class SampleOrder:
    """Streams of sample numbers, one per replicate, handed out in batches.

    Parameters
    ----------
    seeds : sequence of numpy.random.SeedSequence
        One per replicate. A stream depends on its own seed only, and is the same however it is cut
        into calls of :meth:`take`.
    n_samples : int
        Size of the training set.
    batch_size : int
    sampling : {"uniform", "epochs"}
        Independent uniform draws, or one random permutation after another. A batch may hold the end
        of one epoch and the beginning of the next, so that all batches have one size.
    """

    def __init__(
        self,
        seeds: Sequence[np.random.SeedSequence],
        n_samples: int,
        batch_size: int,
        sampling: str,
    ) -> None:
        self._batch_size = batch_size
        self._streams = [_draws(np.random.default_rng(s), n_samples, sampling) for s in seeds]
        self._waiting = [np.empty(0, dtype=np.int64) for _ in seeds]

    def take(self, steps: int) -> np.ndarray:
        """Sample numbers of the next steps, int64 (steps, replicate, batch)."""
        need = steps * self._batch_size
        taken = np.empty((len(self._streams), need), dtype=np.int64)
        for row, stream in enumerate(self._streams):
            pieces = [self._waiting[row]]
            have = len(pieces[0])
            while have < need:
                pieces.append(next(stream))
                have += len(pieces[-1])
            joined = np.concatenate(pieces)
            taken[row], self._waiting[row] = joined[:need], joined[need:]
        shaped = taken.reshape(len(taken), steps, self._batch_size)
        return np.ascontiguousarray(shaped.swapaxes(0, 1))


def _draws(rng: np.random.Generator, n_samples: int, sampling: str) -> Iterator[np.ndarray]:
    while True:
        if sampling == "uniform":
            yield rng.integers(n_samples, size=_DRAWS)
        else:
            yield rng.permutation(n_samples)


# --------------------------------------------------------------------------------------------------
# What training is asked to do, and what it hands back.

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


# --------------------------------------------------------------------------------------------------
# The steps that an ensemble takes, with the samples they read.

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


# --------------------------------------------------------------------------------------------------
# Plain SGD on many networks at once, with the features of a probe set recorded as it goes.

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


# --------------------------------------------------------------------------------------------------

# Any rate will do: a step costs the same, and so small a one cannot diverge in a few steps.
_RATE = 1e-6

# Steps timed at first, and seconds that the timed steps should take in all.
_STEPS, _SECONDS = 8, 1.0


def training_time(
    data: ImageData,
    architecture: Callable[[], nn.Module],
    replicates: int | Sequence[int],
    iterations: int,
    *,
    saved: int = 50,
    **options: Any,
) -> float:
    """Seconds that a run of :func:`lesde.networks.train_ensemble` will take, from a few of its steps.

    A fresh ensemble of the asked size takes as many steps as fit into about a second, and records the probe set a few times, and is thrown
    away. What else the machine does at that time counts in full.

    Parameters
    ----------
    data, architecture, replicates
        As for :func:`lesde.networks.train_ensemble`.
    iterations : int
        Steps of SGD that each network will take, over all learning rates.
    saved : int, default 50
        Times at which the probe set will be recorded, over all learning rates.
    **options
        ``layers``, ``loss``, ``batch_size``, ``sampling``, ``dtype``, ``drawn`` and ``device``, as for
        :func:`lesde.networks.train_ensemble`.

    Returns
    -------
    float
        Seconds: of making the networks, of ``iterations`` steps and of ``saved`` records.

    Raises
    ------
    TypeError, ValueError
        As :func:`lesde.networks.train_ensemble`.

    Examples
    --------
    >>> from lesde.networks import digits, mlp
    >>> seconds = training_time(digits(classes=4), lambda: mlp(64, (32,), 4), 8, 10_000)
    >>> 0 < seconds < 600
    True
    """
    iterations = check_integer("iterations", iterations)
    saved = check_integer("saved", saved)

    def seconds(images: ImageData, steps: Sequence[int]) -> list[float]:
        """Of making the networks and a first record, then of some steps and a record, again and again."""
        seen = [time.perf_counter()]
        times = _RATE * np.cumsum([0, *steps])
        runs = train_ensemble(
            images,
            architecture,
            _RATE,
            replicates,
            times,
            progress=lambda done, total: seen.append(time.perf_counter()),
            **options,
        )
        next(iter(runs))
        return np.diff(seen).tolist()

    # The first step and the first record set things up; they count as making the networks.
    start, *records = seconds(data, [1, 1])
    # Steps are timed with a probe set so small that its records take no time beside them.
    few = _one_of_each_class(data) if isinstance(data, ImageData) else data
    _, _, first = seconds(few, [1, _STEPS])
    steps = min(max(_STEPS, round(_SECONDS * _STEPS / first)), 2000)
    step = seconds(few, [1, steps])[-1] / steps
    record = max(0.0, min(records) - step)
    return start + step * iterations + record * saved


def _one_of_each_class(data: ImageData) -> ImageData:
    _, rows = np.unique(data.probe_y, return_index=True)
    return dataclasses.replace(data, probe_x=data.probe_x[rows], probe_y=data.probe_y[rows])
