"""Training of many networks at once by plain SGD, with the features of a probe set recorded at saved times.

Time is learning rate × iteration, and saved times are rounded to iterations. Each replicate draws its samples in its
own order. Networks that are chains of known layers step in parts, one thread each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lesde.checks import (
    bare_array,
    check_choice,
    check_finite_array,
    check_flag,
    check_instance,
    check_integer,
    check_names,
    check_real,
    check_seed,
    check_times,
    read_device,
    real_array,
    shown,
)
from lesde.clocks import common_step, iteration_counts, seen_times
from lesde.errors import Diverged
from lesde.networks.data import ImageData
from lesde.networks.ensemble import (
    LOSSES,
    Ensemble,
    Share,
    child_seed,
    make_step,
    parts_of,
    threads,
)

_DRAWS = 4096  # samples drawn at once; part of what a seed means, so not to be tuned

_GATHER = 2**18  # inputs gathered for steps to come, in numbers: few enough to stay in the cache

STEPS = 256  # between two looks at what goes on outside, such as an interrupt

# Multiplications of a forward pass below which threads within an operation cost more than they bring.
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
    whole number of steps at every learning rate: the largest learning rate where the others divide it.

    Parameters
    ----------
    total : float
        Time at which training ends, at least that smallest time.
    learning_rates : float or sequence of float
    count : int
        Recorded times at most, not counting time 0; times that coincide are recorded once.
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
            f"learning_rates must share iterations up to total = {total:g}, as 0.01, 0.02 and 0.04 do; "
            f"those of {', '.join(map(repr, rates))} first meet at {step or 'no time'}. Take times for each "
            f"learning rate by itself."
        )
    count = check_integer("count", count)
    power = check_real("power", power, 0.0, open_minimum=True)
    wanted = total * (np.arange(count + 1) / count) ** power
    return np.round(step * np.unique(np.rint(wanted / step)), 12)  # so that 3 * 0.1 is 0.3


def _check_rates(learning_rates: float | Sequence[float]) -> list[float]:
    """Different positive learning rates, as a list."""
    given = np.atleast_1d(real_array("learning_rates", learning_rates))
    rates = check_finite_array("learning_rates", given, [("rate",)]).tolist()
    if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
        raise ValueError(
            f"learning_rates must hold at least one positive rate, and each only once; got "
            f"{shown(learning_rates)}."
        )
    return rates


@dataclass(frozen=True, eq=False)
class EnsembleRun:
    """All replicates of one learning rate, trained.

    Attributes
    ----------
    learning_rate, replicates : float, int array (R,)
    times, asked_times : float array (T,)
        When the networks were seen, ``learning_rate * iterations`` up to rounding; and as asked for.
    iterations : int array (T,)
        SGD steps taken at each saved time.
    features : dict of str to array (R, T, sample, feature)
        By layer.
    loss, accuracy : float64 array (R, T)
        On the probe set.
    weights, bias : array (R, T, class, feature), (R, T, class), or None
        Of the last linear layer, when the layer ``"penultimate"`` is recorded (and it has a bias).
    architecture : str
    drawn_logits, drawn_labels : array (R, D, class), int64 array (R, D), or None
        Logits of every drawn training sample before the step on it, in the order drawn, where they
        were asked for, and their labels, wrong ones included; D is iterations times batch size.
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
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._waiting = np.empty((len(seeds), 0), dtype=np.int64)
        self._n_samples, self._batch_size, self._sampling = n_samples, batch_size, sampling

    def take(self, steps: int) -> np.ndarray:
        """Sample numbers of the next steps, int64 (steps, replicate, batch)."""
        need = steps * self._batch_size
        pieces, have = [self._waiting], self._waiting.shape[1]
        while have < need:
            pieces.append(np.stack([self._draw(rng) for rng in self._rngs]))
            have += pieces[-1].shape[1]
        taken, self._waiting = np.split(np.concatenate(pieces, axis=1), [need], axis=1)
        shaped = taken.reshape(len(taken), steps, self._batch_size)
        return np.ascontiguousarray(shaped.swapaxes(0, 1))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        if self._sampling == "uniform":
            return rng.integers(self._n_samples, size=_DRAWS)
        return rng.permutation(self._n_samples)


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
    observe: Callable[[float, int, Ensemble], None] | None = None

    def ensemble(self, replicates: Sequence[int]) -> Ensemble:
        """The untrained networks, the same at every call."""
        with threads(1, 1):  # many short operations
            return Ensemble(
                self.architecture,
                replicates,
                example=torch.as_tensor(self.data.probe_x[:8], dtype=self.dtype),
                n_classes=self.data.n_classes,
                layers=self.layers,
                seed=self.seed,
                dtype=self.dtype,
                device=self.device,
            )


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
    observe: Callable[[float, int, Ensemble], None] | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Iterator[EnsembleRun]:
    """Train replicates of a network by plain SGD at each learning rate, one learning rate at a time.

    Time is t = learning rate x iteration, so a smaller learning rate takes more steps. No momentum,
    weight decay or schedule. A replicate's initialisation and its order of samples depend on ``seed`` and
    its number only: not on the learning rate (learning rates are compared pairwise), nor on how many
    train together, nor on which times are saved.

    Parameters
    ----------
    data : ImageData
        As :func:`lesde.networks.digits` makes.
    architecture : callable
        Makes a new network; see :func:`lesde.networks.mlp`. Any ``torch.nn.Module`` that maps a batch
        (n, ...) to logits (n, K), each row on its own (no batch normalisation, no dropout).
        Parameters with ``requires_grad=False`` stay as they are.
    learning_rates : float or sequence of float
        All different, in the order in which they are trained.
    replicates : int or sequence of int
        How many networks for each learning rate, or their numbers (to add to an earlier run).
    times : array (T,)
        When features are recorded, to the nearest iteration; the first is 0, before training. Several
        learning rates must be recorded at the same times: :func:`lesde.networks.saving_times` gives such.
    layers : sequence of str
        ``"logits"``, ``"penultimate"`` (what the last linear layer reads) or names of submodules.
    loss : {"cross_entropy", "mse"}
        ``"mse"`` is half the squared distance to the one-hot label, summed over classes and averaged
        over the batch.
    batch_size : int
        Samples per step; 1 as in the locally elastic model.
    sampling : {"uniform", "epochs"}
        Each sample drawn uniformly, as the model has it, or the training set in a new random order each
        epoch, as is common in practice.
    seed : int
    dtype : {"float32", "float64"}
        Of parameters and recorded features.
    device : str or torch.device, optional
        Default: the CPU. All devices train the same networks, to rounding.
    labels : int array (replicate, sample), optional
        Training labels of each replicate, in place of ``data.train_y``, as for label noise of its own.
    drawn : bool
        Keep the logits of every drawn training sample before the step on it, with its label,
        as the experiments of Zhang, Wang and Su (2021) do.
    observe : callable, optional
        Called with the learning rate, the number of the saved time and the
        :class:`lesde.networks.ensemble.Ensemble` at every saved time; it must not change the networks.
    progress : bool or callable
        ``True`` for a bar; a callable is given the steps done and the steps in all at every saved time.

    Yields
    ------
    EnsembleRun
        One per learning rate, as soon as it is trained.

    Raises
    ------
    Diverged
        If the loss of a network stops being finite; the message names the learning rate.

    Notes
    -----
    Chains (``torch.nn.Sequential``) of linear layers, convolutions with steps of one pixel, maxima over
    tiles and activations take a hand-written backward pass, in as many threads as PyTorch is set to use;
    a replicate is the same to the last bit whichever others train beside it and in however many threads.
    Other networks take ``torch.func.vmap`` of the gradient, several times slower where they are small, and
    rounding differs a little with the number of replicates.

    Examples
    --------
    >>> from lesde.networks import digits, mlp
    >>> data = digits(classes=4)
    >>> runs = train_ensemble(data, lambda: mlp(64, (32,), 4), (0.05, 0.1), 8, [0, 1, 2, 4])
    >>> [run.features["logits"].shape for run in runs]
    [(8, 4, 160, 4), (8, 4, 160, 4)]
    """
    check_instance("data", data, ImageData, "a lesde.networks.ImageData")
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a function; got {shown(progress)}.")
    if observe is not None and not callable(observe):
        raise TypeError(f"observe must be a function, or left out; got {shown(observe)}.")
    asked = check_times("times", times)
    if asked[0] != 0:
        raise ValueError(f"times[0] must be 0, the state before training; got {asked[0]:g}.")
    rates = _check_rates(learning_rates)
    iterations = [iteration_counts(asked, rate) for rate in rates]
    numbered = _replicate_numbers(replicates)
    job = Job(
        data=data,
        architecture=architecture,
        replicates=numbered,
        asked=asked,
        times=seen_times(asked, rates, iterations),
        layers=tuple(check_names("layers", layers)),
        loss=check_choice("loss", loss, LOSSES),
        batch_size=check_integer("batch_size", batch_size),
        sampling=check_choice("sampling", sampling, ("uniform", "epochs")),
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
    job: Job, plan: list[tuple[float, np.ndarray]], progress: bool | Callable[[int, int], None]
) -> Iterator[EnsembleRun]:
    total, before = sum(int(iterations[-1]) for _, iterations in plan), 0
    with tqdm(total=total, unit="step", desc="training", disable=progress is not True) as bar:

        def report(done: int) -> None:
            bar.update(before + done - bar.n)
            if callable(progress):
                progress(before + done, total)

        for rate, iterations in plan:
            yield _train_one(job, rate, iterations, report)
            before += int(iterations[-1])


def _train_one(
    job: Job, rate: float, iterations: np.ndarray, report: Callable[[int], None]
) -> EnsembleRun:
    ensemble = job.ensemble(job.replicates)
    slices, workers, each = _parts(job, ensemble)
    parts = [stepping(job, rate, ensemble.part(some), job.labels[some]) for some in slices]
    shape = len(job.replicates), len(iterations)
    arrays: dict[str, np.ndarray] = {}
    drawn: list[tuple[Tensor, np.ndarray]] = []
    done, cudnn = 0, torch.backends.cudnn
    # Convolutions on a GPU would be rounded to 10 bits, unlike those on the CPU.
    exact = cudnn.flags(cudnn.enabled, deterministic=cudnn.deterministic, allow_tf32=False)
    with threads(workers, each) as share, exact:
        for saved, wanted in enumerate(iterations.tolist()):
            while done < wanted:
                steps = min(STEPS, wanted - done)
                seen = share(lambda advance: advance(steps), parts)  # noqa: B023
                done += steps
                if job.drawn:
                    logits, labels = zip(*seen, strict=True)
                    drawn.append((torch.cat(logits).cpu(), np.concatenate(labels)))
            for name, values in _measured(job, rate, saved, ensemble, share).items():
                if name not in arrays:
                    arrays[name] = np.empty((*shape, *values.shape[1:]), dtype=values.dtype)
                arrays[name][:, saved] = values
            if job.observe is not None:
                job.observe(rate, saved, ensemble)
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
        architecture=str(ensemble.base),
        drawn_logits=torch.cat([one for one, _ in drawn], 1).numpy() if drawn else None,
        drawn_labels=np.concatenate([own for _, own in drawn], 1) if drawn else None,
    )


def _parts(job: Job, ensemble: Ensemble) -> tuple[list[slice], int, int]:
    """Replicates that step together, the number of threads for them, and of PyTorch's threads within each.

    No network of a chain depends on the part it is in, and PyTorch lets other threads run while it computes.
    """
    replicates, each = len(job.replicates), torch.get_num_threads()
    work = job.batch_size * ensemble.weights
    if ensemble.chain() is None:
        return [slice(None)], 1, 1 if work * replicates < _WORTH_THREADS else each
    if work >= _WORTH_THREADS or job.device.type != "cpu":
        return [slice(None)], 1, each
    slices = parts_of(replicates, ensemble.weights + ensemble.made * job.batch_size, each)
    return slices, min(each, len(slices)), 1


def stepping(
    job: Job, rate: float, part: Ensemble, labels: np.ndarray
) -> Callable[[int], tuple[Tensor, np.ndarray]]:
    """A function that takes so many steps with some networks; ``labels`` (replicate, sample) are theirs.

    It returns logits (replicate, draw, class) and labels (replicate, draw) of what was drawn, before the step on it.
    """
    x = torch.as_tensor(job.data.train_x, dtype=job.dtype, device=job.device)
    seeds = [child_seed(job.seed, r, 1) for r in part.replicates]
    order = SampleOrder(seeds, len(x), job.batch_size, job.sampling)
    block = max(1, _GATHER // (len(seeds) * job.batch_size * x[0].numel()))
    step = make_step(part, job.loss, rate)

    def advance(steps: int) -> tuple[Tensor, np.ndarray]:
        drawn = order.take(steps)  # (step, replicate, batch)
        own = labels[np.arange(len(seeds))[:, None], drawn]
        targets = F.one_hot(torch.from_numpy(own), job.data.n_classes).to(x.device, x.dtype)
        logits = torch.empty_like(targets)
        done = 0
        for rows in torch.from_numpy(drawn).to(x.device).split(block):
            for inputs in x[rows]:
                logits[done] = step(inputs, targets[done])
                done += 1
        return logits.transpose(0, 1).flatten(1, 2), own.swapaxes(0, 1).reshape(len(seeds), -1)

    return advance


def _measured(
    job: Job, rate: float, saved: int, ensemble: Ensemble, share: Share
) -> dict[str, np.ndarray]:
    """The probe set as the networks see it at a saved time; raises where the loss is not finite."""
    x = torch.as_tensor(job.data.probe_x, dtype=job.dtype, device=job.device)
    seen = ensemble.evaluate(x, share=share)
    found = {f"features {layer}": seen[layer] for layer in job.layers} | ensemble.classifier()
    labels, logits = torch.from_numpy(job.data.probe_y), seen["logits"].cpu()
    targets = F.one_hot(labels, job.data.n_classes).double()
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
    found |= {"loss": loss, "accuracy": (logits.argmax(-1) == labels).double().mean(-1)}
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


def _replicate_numbers(replicates: int | Sequence[int]) -> list[int]:
    if bare_array("replicates", replicates).ndim == 0:
        return list(range(check_integer("replicates", replicates, 1, 10**6)))
    numbers = [check_integer(f"replicates[{i}]", r, 0) for i, r in enumerate(replicates)]  # type: ignore[arg-type]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"replicates must be a number of networks or different numbers of replicates; got "
            f"{shown(replicates)}."
        )
    return numbers


def _check_labels(labels: Any, data: ImageData, replicates: int) -> np.ndarray:
    """Training labels (replicate, sample), those of the data where none are given."""
    shape = (replicates, len(data.train_y))
    if labels is None:
        return np.broadcast_to(data.train_y, shape)
    own, most = bare_array("labels", labels), data.n_classes - 1
    fits = own.shape == shape and own.dtype.kind in "iu"
    if not fits or own.min() < 0 or own.max() > most:
        raise ValueError(
            f"labels must hold an integer from 0 to {most} for each of the {shape[1]} training samples of "
            f"each of the {shape[0]} replicates, shape {shape}; got {own.dtype} of shape {own.shape}."
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
    """Seconds that a run of :func:`lesde.networks.train_ensemble` will take, from about a second of its steps.

    Parameters
    ----------
    data, architecture, replicates, **options
        As for :func:`lesde.networks.train_ensemble`.
    iterations, saved : int
        Steps that each network will take, and times at which the probe set will be recorded, over all learning
        rates.

    Returns
    -------
    float
        Seconds to make the networks, take ``iterations`` steps and take ``saved`` records.

    Examples
    --------
    >>> from lesde.networks import digits, mlp
    >>> seconds = training_time(digits(classes=4), lambda: mlp(64, (32,), 4), 8, 10_000)
    >>> 0 < seconds < 600
    True
    """
    iterations, saved = check_integer("iterations", iterations), check_integer("saved", saved)
    rate = 1e-6  # any will do, since a step costs the same; so small a one cannot diverge

    def seconds(*steps: int) -> np.ndarray:
        """Seconds to make the networks and a first record, then repeatedly for some steps and a record."""
        seen = [time.perf_counter()]
        times = rate * np.cumsum([0, *steps])

        def note(done: int, total: int) -> None:
            seen.append(time.perf_counter())

        next(train_ensemble(data, architecture, rate, replicates, times, progress=note, **options))
        return np.diff(seen)

    start, _, one, few = seconds(1, 1, 8)
    number = int(np.clip(7 / max(few - one, 1e-9), 8, 2000))  # about a second
    *_, again, many = seconds(1, 1, number)
    step = (many - again) / (number - 1)
    record = max(0.0, min(one, again) - step)
    return float(start + step * iterations + record * saved)
