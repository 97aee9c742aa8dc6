"""What recording costs a training loop: with a recorder against without, in one process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lesde
from benchmarks.timing import Row, Section
from lesde.networks import lenet, mlp, open_records

TITLE = "Recording a network while it trains"
ABOUT = """\
Steps a second of a plain training loop (SGD, batches of 64, one thread), alone and with `lesde.Recorder`. It records two layers, the
logits and what the last linear layer reads, on 1,500 images. All of it counts: the recorder's set-up, its records, and closing the
store (together about 0.2 s, once). A record costs one forward pass over the probe set, a training step
about three passes over its batch, so the cost depends on the images trained on between two records: 160 steps are 50 records in
8,000 steps, 320 steps 50 records in 16,000. The ratio is that of the rates: 0.92 means that recording took 8 % of the time. A row fails if the weights at the
end differ from those of the loop alone in any bit, or the store lacks a record."""
NOTES = {
    "training alone": "the loop without a recorder.",
    "to Zarr, twice as rarely": "`lesde.Recorder(…, store=…)`, a record every 320 steps.",
    "recorder, to Zarr": "the same, every 160 steps.",
    "recorder, in memory": "the same without a store.",
    "recorder, nothing due": "no record: what `step()` and the set-up cost.",
}
BATCH, EVERY, PROBE = 64, 160, 1500
ALONE = "training alone"


def train(
    network: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, **options: Any
) -> Any:
    """Weights at the end of training, and iterations that were recorded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        x, y = torch.rand(3000, *shape), torch.arange(3000) % 3
        order = torch.randint(len(x), (steps, BATCH))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = None
    if options:
        recorder = lesde.Recorder(
            model,
            ["logits", "penultimate"],
            (x[:PROBE], y[:PROBE]),
            learning_rate=optimiser,
            **options,
        )
    for rows in order:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
        if recorder is not None:
            recorder.step()
    if recorder is not None:
        recorder.close()
    return [p.detach().numpy().copy() for p in model.parameters()]


def rows(
    network: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, every: int
) -> list[Row]:
    """The loop alone and with recorders."""
    wanted: list[np.ndarray] = []

    def due(every: int) -> range:
        return range(every, steps + 1, every)

    def alone() -> Any:
        return train(network, shape, steps)

    def to_store(every: int) -> Any:
        folder = tempfile.mkdtemp(prefix="lesde-bench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        store = Path(folder) / "features.zarr"
        return train(network, shape, steps, iterations=due(every), store=store), store, every

    def unchanged(weights: Any) -> dict[str, int]:
        wanted[:] = wanted or alone()
        assert all(map(np.array_equal, weights, wanted)), "training is not what it was"
        return {"steps": steps}

    def stored(result: Any) -> dict[str, int]:
        weights, store, every = result
        paths = open_records(store, "penultimate").load()
        assert np.array_equal(paths.iteration, due(every)), "records are missing"
        assert np.isfinite(paths.features).all(), "records are not whole"
        return unchanged(weights) | {"records": len(due(every))}

    def row(name: str, call: Callable[[], Any], check: Callable[[Any], Any]) -> Row:
        return Row(name, lambda: call, steps, check, (1,))

    return [
        row(ALONE, alone, unchanged),
        row("to Zarr, twice as rarely", lambda: to_store(2 * every), stored),
        row("recorder, to Zarr", lambda: to_store(every), stored),
        row(
            "recorder, in memory",
            lambda: train(network, shape, steps, iterations=due(every)),
            unchanged,
        ),
        row(
            "recorder, nothing due",
            lambda: train(network, shape, steps, iterations=[steps + 1]),
            unchanged,
        ),
    ]


def sections(quick: bool) -> list[Section]:
    result = []
    for name, network, shape, steps in (
        ("Convolutional network, 61,111 weights, images of 32 by 32", lambda: lenet(3), (1, 32, 32), 640),
        ("Dense network, 784-256-128-3", lambda: mlp(784, (256, 128), 3), (784,), 3200),
    ):  # fmt: skip
        steps = steps // 2 if quick else steps
        result.append(
            Section(
                f"{name}: {steps:,} steps, {steps // EVERY} records",
                rows(network, shape, steps, EVERY),
                "steps/s",
                {ALONE: "× training alone"},
                {"steps": steps, "batch": BATCH, "every": EVERY, "probe": PROBE},
            )
        )
    return result
