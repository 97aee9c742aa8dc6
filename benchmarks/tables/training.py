"""Training many networks: one after another, through ``torch.func``, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Row, Section

TITLE = "Training many networks"
ABOUT = """\
Trial-steps a second: networks × SGD steps / seconds, at batch size 1, each network with its own initialisation
and its own order of samples; making the networks and a look at 8 images is included. All ways start
from the same networks and see the same samples, and every row's logits after training must agree with those
of the plain loop to 1e-3 (training amplifies rounding), or the row fails. Images of CIFAR-10's shape are random numbers: the time is the same."""
NOTES = {
    "plain loop": "one network after another: `torch.nn`, `cross_entropy`, `backward`, `torch.optim.SGD`.",
    "torch.func": "`vmap(grad(...))` over the stacked parameters, all networks a step together.",
    "ours": "`lesde.networks.train_ensemble`, its checks and records included, in two threads.",
    "ours, 1 thread": "the same after `torch.set_num_threads(1)`.",
    "ours, drawn logits kept": "the same as *ours* with `drawn=True`, as the published experiments record.",
}
TOLERANCE = 1e-3


def _train(work: Any, **options: Any) -> np.ndarray:
    from lesde.networks import train_ensemble

    (run,) = train_ensemble(
        work.data,
        work.architecture,
        work.rate,
        work.replicates,
        [0, work.rate * work.iterations],
        seed=work.seed,
        **options,
    )
    return run.features["logits"][:, -1]


def rows(work: Any) -> list[Row]:
    """All ways to one workload, a :class:`benchmarks.peers.plain_training.Training`."""
    from benchmarks.peers import plain_training

    wanted: list[np.ndarray] = []

    def check(logits: np.ndarray) -> dict[str, float]:
        if not wanted:
            wanted.append(plain_training.one_after_another(work))
        worst = float(np.abs(logits - wanted[0]).max())
        assert worst < TOLERANCE, f"logits off by {worst:.2g}"
        return {"largest difference of logits": float(f"{worst:.1e}")}

    def row(name: str, call: Callable[[], np.ndarray], threads: tuple[int, ...] = ()) -> Row:
        steps = work.replicates * work.iterations
        return Row(name, lambda: call, steps, check, threads)

    both = (1, 2)
    return [
        row("plain loop", lambda: plain_training.one_after_another(work), both),
        row("torch.func", lambda: plain_training.mapped(work), both),
        row("ours, 1 thread", lambda: _train(work), (1,)),
        row("ours", lambda: _train(work)),
        row("ours, drawn logits kept", lambda: _train(work, drawn=True)),
    ]


def workloads(quick: bool) -> dict[str, Any]:
    """What is trained, by title."""
    from benchmarks.peers.plain_training import Training
    from lesde.networks import ImageData, digits, geo_mnist, lenet, mlp

    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    colour = rng.uniform(size=(608, 3, 32, 32)).astype(np.float32)
    shorter = 5 if quick else 1
    grey = geo_mnist(n_train_per_class=100, n_probe_per_class=3)
    return {
        "LeNet on GeoMNIST": Training(grey, lambda: lenet(3), 32, 200 // shorter, 0.005),
        "MLP 64-32-32-4 on digits": Training(
            digits(classes=4, n_probe_per_class=2),
            lambda: mlp(64, (32, 32), 4),
            32,
            400 // shorter,
            0.02,
        ),
        "LeNet on images of CIFAR-10's shape": Training(
            ImageData(colour[:600], labels, colour[600:], labels[:8]),
            lambda: lenet(3, channels=3),
            32,
            200 // shorter,
            0.001,
        ),
    }


def sections(quick: bool) -> list[Section]:
    references = {"plain loop": "× plain loop", "torch.func": "× torch.func"}
    result = []
    for title, work in workloads(quick).items():
        described = {
            "replicates": work.replicates,
            "iterations": work.iterations,
            "learning_rate": work.rate,
        }
        heading = f"{title}, {work.replicates} networks, {work.iterations} steps"
        result.append(Section(heading, rows(work), "trial-steps/s", references, described))
    return result
