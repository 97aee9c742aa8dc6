"""Training of many networks at once by plain SGD, with the features of a probe set recorded at saved times.

Time is learning rate × iteration, and saved times are rounded to iterations. Each replicate draws its samples in its
own order. Networks that are chains of known layers step in parts, one thread each.
"""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from lesde.clocks import common_step, seen_times
from lesde.errors import Diverged
from lesde.networks.data import ImageData
from lesde.networks.ensemble import (
    LOSSES,
    Ensemble,
    Share,
    child_seed,
    layer_names,
    make_step,
    one_after_another,
    parts_of,
    threads,
)

__all__ = [
    "EnsembleRun",
    "saving_times",
    "train_ensemble",
    "training_time",
]

SAMPLING = ("uniform", "epochs")
MOST_AT_ONCE = 10**6
"""Networks that train together, and samples per step: more is surely a mistake."""

_DRAWS = 4096  # samples drawn at once; part of what a seed means, so not to be tuned

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
    rates = _check_rates(learning_rates)
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


def _check_rates(learning_rates: float | Sequence[float]) -> list[float]:
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


class SampleOrder:
    """Streams of sample numbers, one per replicate, handed out in batches.

    A stream depends on its own seed only, and is the same however it is cut into calls of :meth:`take`. Epochs are one
    random permutation after another: a batch may hold the end of one and the beginning of the next.
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


@dataclass(frozen=True)
class Job:
    """Checked arguments that all learning rates share; ``labels`` are (replicate, sample)."""

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
    labels: np.ndarray
    drawn: bool = False
    observe: Observer | None = None

    def ensemble(self, replicates: Sequence[int]) -> Ensemble:
        """The untrained networks, the same at every call."""
        with threads(1, 1):  # many short operations
            return Ensemble(
                self.architecture,
                replicates,
                example=torch.as_tensor(self.data.probe_x[:2], dtype=self.dtype),
                n_classes=self.data.n_classes,
                layers=self.layers,
                seed=self.seed,
                dtype=self.dtype,
                device=self.device,
            )

    def one_hot(self, labels: np.ndarray) -> Tensor:
        """Targets (..., class) of the given labels."""
        targets = torch.eye(self.data.n_classes, dtype=self.dtype)[torch.from_numpy(labels)]
        return targets.to(self.device)


class Trainer:
    """Takes steps of plain SGD with all networks of a job at one learning rate.

    Chains of known layers are cut into parts that step in threads of their own: no network's result
    depends on the part it is in, and PyTorch lets other threads run while it computes.
    """

    def __init__(self, job: Job, rate: float) -> None:
        whole = self.ensemble = job.ensemble(job.replicates)
        x = torch.as_tensor(job.data.train_x, dtype=job.dtype, device=job.device)
        self._workers, self._each, slices = 1, torch.get_num_threads(), [slice(None)]
        weights = job.batch_size * sum(p[0].numel() for p in whole.parameters.values())
        if whole.chain() is None:
            if weights * len(job.replicates) < _WORTH_THREADS:
                self._each = 1
        elif weights < _WORTH_THREADS and job.device.type == "cpu":
            own, made = whole.numbers(x[:1])
            slices = parts_of(len(job.replicates), own + made * job.batch_size, self._each)
            self._workers, self._each = min(self._each, len(slices)), 1
        self._parts = [_Part(job, rate, whole.part(some), x, job.labels[some]) for some in slices]
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

    def advance(self, steps: int) -> tuple[Tensor, np.ndarray]:
        """Take steps; logits (replicate, draw, class) and labels (replicate, draw) of what was drawn, before them."""
        logits, labels = zip(
            *self._share(lambda part: part.advance(steps), self._parts), strict=True
        )
        return torch.cat(logits), np.concatenate(labels)


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

    def advance(self, steps: int) -> tuple[Tensor, np.ndarray]:
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
        in_order = logits.transpose(0, 1).flatten(1, 2)
        return in_order, labels.swapaxes(0, 1).reshape(replicates, -1)


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
        recorded at the same times: :func:`lesde.networks.saving_times` gives such times.
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
        Training labels of each replicate, in place of ``data.train_y``: for example with label noise drawn
        anew for each.
    drawn : bool
        Keep the logits of every drawn training sample before the step on it, with its label,
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
    the numbers of a replicate are the same to the last bit whichever others train beside it and in however
    many threads. Other networks take ``torch.func.vmap`` of the gradient, where rounding differs a little with
    the number of replicates in the stack, and training amplifies it. The two methods agree to rounding. Ctrl-C
    takes effect within a few hundred steps.

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
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress must be True, False or a function of (steps done, steps in all); got "
            f"{shown(progress)}."
        )
    if observe is not None and not callable(observe):
        raise TypeError(
            f"observe must be a function of (learning rate, number of the saved time, ensemble) or None; "
            f"got {shown(observe)}."
        )
    asked = check_times("times", times)
    if asked[0] != 0:
        raise ValueError(f"times[0] must be 0, the state before training; got {asked[0]:g}.")
    rates = _check_rates(learning_rates)
    iterations = [iterations_of(asked, rate) for rate in rates]
    numbered = _replicate_numbers(replicates)
    job = Job(
        data=data,
        architecture=architecture,
        replicates=numbered,
        asked=asked,
        times=seen_times(asked, rates, iterations),
        layers=layer_names(layers),
        loss=check_choice("loss", loss, LOSSES),
        batch_size=check_integer("batch_size", batch_size, 1, MOST_AT_ONCE),
        sampling=check_choice("sampling", sampling, SAMPLING),
        seed=check_seed(seed),
        dtype=getattr(torch, check_choice("dtype", dtype, ("float32", "float64"))),
        device=read_device(device),
        labels=_check_labels(labels, data, len(numbered)),
        drawn=check_flag("drawn", drawn),
        observe=observe,
    )
    job.ensemble(job.replicates[:1])  # report a wrong architecture now
    return _train_all(job, list(zip(rates, iterations, strict=True)), progress)


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
    trainer = Trainer(job, rate)
    R, T, last = len(job.replicates), len(iterations), int(iterations[-1])
    arrays: dict[str, np.ndarray] = {}
    logits = labels = None
    done = 0
    with trainer.running() as share:
        for saved, wanted in enumerate(iterations.tolist()):
            while done < wanted:
                steps = min(STEPS, wanted - done)
                new_logits, new_labels = trainer.advance(steps)
                if job.drawn:
                    if logits is None or labels is None:
                        labels = np.empty((R, last * job.batch_size), dtype=np.int64)
                        kind = new_logits.cpu().numpy().dtype
                        logits = np.empty((*labels.shape, job.data.n_classes), dtype=kind)
                    draws = slice(done * job.batch_size, (done + steps) * job.batch_size)
                    logits[:, draws], labels[:, draws] = new_logits.cpu().numpy(), new_labels
                done += steps
            for name, values in _measured(job, rate, saved, trainer.ensemble, share).items():
                if name not in arrays:
                    arrays[name] = np.empty((R, T, *values.shape[1:]), dtype=values.dtype)
                arrays[name][:, saved] = values
            if job.observe is not None:
                job.observe(rate, saved, trainer.ensemble)
            report(done)
    return EnsembleRun(
        learning_rate=rate,
        replicates=np.asarray(job.replicates),
        times=job.times,
        asked_times=job.asked,
        iterations=iterations,
        features={layer: arrays[f"features {layer}"] for layer in job.layers},
        loss=arrays["loss"],
        accuracy=arrays["accuracy"],
        weights=arrays.get("weights"),
        bias=arrays.get("bias"),
        architecture=str(trainer.ensemble.base),
        drawn_logits=logits,
        drawn_labels=labels,
    )


def _measured(
    job: Job, rate: float, saved: int, ensemble: Ensemble, share: Share = one_after_another
) -> dict[str, np.ndarray]:
    """The probe set as the networks see it at a saved time; raises where the loss is not finite."""
    x = torch.as_tensor(job.data.probe_x, dtype=job.dtype, device=job.device)
    seen = ensemble.evaluate(x, share=share)
    found = {f"features {layer}": values for layer, values in seen.features.items()}
    found |= {name: t for name in ("weights", "bias") if (t := getattr(seen, name)) is not None}
    logits, targets = seen.logits.cpu(), job.one_hot(job.data.probe_y).cpu().double()
    loss = torch.stack([LOSSES[job.loss](own.double(), targets) for own in logits])
    bad = ~torch.isfinite(loss)
    if bad.any():
        replicate = job.replicates[int(torch.nonzero(bad)[0])]
        raise Diverged(
            job.times[saved],
            f"the loss of {int(bad.sum())} of {len(bad)} networks (the first is replicate "
            f"{replicate}) at learning rate {rate:g}",
            "use a smaller learning rate",
        )
    right = logits.argmax(-1) == torch.from_numpy(job.data.probe_y)
    found |= {"loss": loss, "accuracy": right.double().mean(-1)}
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


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


def _check_labels(labels: Any, data: ImageData, replicates: int) -> np.ndarray:
    """Training labels (replicate, sample), those of the data where none are given."""
    shape = (replicates, len(data.train_y))
    if labels is None:
        return np.broadcast_to(data.train_y, shape)
    own, K = bare_array("labels", labels), data.n_classes
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

    A fresh ensemble of the asked size takes as many steps as fit into about a second, records the probe set a few
    times, and is thrown away. What else the machine does at that time counts in full.

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
        Seconds to make the networks, take ``iterations`` steps and take ``saved`` records.

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
    rate = (
        1e-6  # any will do: a step costs the same, and so small a one cannot diverge in a few steps
    )

    def seconds(images: ImageData, steps: Sequence[int]) -> list[float]:
        """Seconds to make the networks and a first record, then repeatedly for some steps and a record."""
        seen = [time.perf_counter()]
        times = rate * np.cumsum([0, *steps])
        runs = train_ensemble(
            images,
            architecture,
            rate,
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
    _, rows = np.unique(data.probe_y, return_index=True)
    few = dataclasses.replace(data, probe_x=data.probe_x[rows], probe_y=data.probe_y[rows])
    _, _, first = seconds(few, [1, 8])
    steps = min(max(8, round(8 / first)), 2000)  # about a second
    step = seconds(few, [1, steps])[-1] / steps
    record = max(0.0, min(records) - step)
    return start + step * iterations + record * saved
