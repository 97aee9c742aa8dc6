"""Paths of the torchsde engine as tensors, with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import xarray as xr

from lesde.checks import (
    check_choice,
    check_instance,
    check_integer,
    check_seed,
    check_times,
    read_device,
    shown,
)
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.laws.moments import read_learning_rates
from lesde.laws.values import BoundTable, numbers_of, read_parameters
from lesde.model.lesde import LESDE, Initial, read_initial
from lesde.paths import as_dataset, warn_of_lost_digits, working_memory
from lesde.processes.engines import TorchSDE
from lesde.processes.process import BLOCK, Random, check_first_replicate
from lesde.processes.samples import DTYPE, class_means, spread
from lesde.processes.torchsde import IntegratedPaths


@dataclass(frozen=True, eq=False)
class TensorPaths:
    """Simulated paths as tensors that are part of a graph, made by :func:`lesde.tensor_paths`.

    Attributes
    ----------
    features : tensor (replicate, time, sample, feature)
        Samples sorted by class; in the dtype asked for, on the device asked for.
    means : tensor (replicate, time, class, feature), float64
        Class means, before they are rounded to that dtype.
    times : tensor (time,), float64
    labels : tensor of int (sample,)
        The class of every sample.
    """

    features: torch.Tensor
    means: torch.Tensor
    times: torch.Tensor
    labels: torch.Tensor
    _dataset: tuple[Any, ...]

    def dataset(self) -> xr.Dataset:
        """The paths without gradients, as ``lesde.simulate`` returns them."""
        features = self.features.detach().cpu().numpy()[None]
        coords = {"label": ("sample", self.labels.numpy(), {"long_name": "class"})}
        variables: dict[str, Any] = {"features": (("sample", "feature"), features)}
        return as_dataset(variables, coords, self.times.numpy(), *self._dataset)


def tensor_paths(
    model: LESDE,
    times: Any,
    initial: Any = None,
    replicates: int = 256,
    *,
    parameters: Any = None,
    learning_rate: float | None = None,
    engine: TorchSDE | str = "torchsde",
    seed: int = 0,
    first_replicate: int = 0,
    device: Any = None,
    dtype: str = "float32",
) -> TensorPaths:
    """Paths integrated by torchsde with gradients to kernel parameters and the initial state.

    Gradients are those of the discrete scheme: back-propagation through every step, whose states stay
    in memory. Random numbers do not depend on the parameters, and are those of the same call without
    gradients, so that the paths are the same to rounding.

    Parameters
    ----------
    model : LESDE
        With a kernel that depends on classes and time only.
    times, replicates, seed, first_replicate, device, dtype
        As in :func:`lesde.simulate`.
    initial : None, tensor or array, optional
        As in :func:`lesde.simulate`; a tensor keeps its graph.
    parameters : mapping of str to number or 0-d tensor
        A value for every name in ``model.free_parameters``; tensors keep their graph. Names in the
        noise have no gradient here.
    learning_rate : float, optional
        The step where the engine has no ``dt``.
    engine : TorchSDE, or "torchsde"
        With ``noise="plain"``. The default of its ``dt`` depends on the parameters' values: give one to
        compare runs.

    Raises
    ------
    Diverged
        Where a path stops being finite.

    Examples
    --------
    >>> import lesde, torch
    >>> model = lesde.LESDE(lesde.TwoLevel("a", 0, {"a": None}), n_classes=2, n_features=1, noise=0.0)
    >>> a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> start = [[1.0], [-1.0]]
    >>> paths = lesde.tensor_paths(model, [0, 1], start, 1, parameters={"a": a}, engine=lesde.TorchSDE(dt=0.5))
    >>> paths.means[0, -1, 0, 0].backward()  # (1 + a/4)² after two steps
    >>> float(a.grad)
    0.75
    """
    check_instance("model", model, LESDE, "a lesde.LESDE")
    engine = TorchSDE() if isinstance(engine, str) and engine == "torchsde" else engine
    if not isinstance(engine, TorchSDE) or engine.noise != "plain":
        raise ValueError(
            f"engine must be lesde.TorchSDE(...) with noise='plain', whose steps have gradients; got "
            f"{shown(engine)}. For gradients of the exact law use lesde.tensor_law(model, ...)."
        )
    rates, batched = read_learning_rates(learning_rate)
    if batched:
        raise ValueError(
            "tensor_paths takes one learning_rate; got a sequence. Call it for each of them."
        )
    saved = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    check_choice("dtype", dtype, ("float32", "float64"))
    first_replicate = check_first_replicate(first_replicate)
    seed, on, kind = check_seed(seed), read_device(device), getattr(torch, dtype)
    values = read_parameters(model, parameters)
    noise = model.noise_table
    symbols = [] if noise.is_numeric else [e.free_symbols for e in noise.table.values]
    names = {symbol.name for each in symbols for symbol in each}
    moving = sorted(name for name in names & set(values) if values[name].requires_grad)
    if moving:
        raise ValueError(
            f"parameters has {', '.join(moving)}, in the formula of the noise, with requires_grad: paths "
            f"have no gradient to the noise. Give a number, or use lesde.tensor_law(model, ...)."
        )
    fixed = model.substitute(**numbers_of(values))
    start = read_initial(fixed, initial, replicates)
    offsets: Any = 0.0
    if isinstance(initial, torch.Tensor):  # in its graph
        whole = initial.to(on, DTYPE)
        if whole.shape[-2] != model.n_classes or start.offsets is not None:
            averages = class_means(whole, model.counts)
            if start.offsets is not None:  # added at all times
                offsets = (whole - spread(averages, model.counts)).to(kind).unsqueeze(-3)
            whole = averages
        start = Initial(whole, None)  # type: ignore[arg-type]
    process: Any = IntegratedPaths(fixed, start, engine.method, engine.dt, "plain")
    process.rate = None if rates is None else float(rates[0])
    process = process.prepare(saved, False)
    process.weights = BoundTable(derive(model).coefficients().drift_table, values, "kernel")

    K, N, p, steps = model.n_classes, model.n_samples, model.n_features, int(process.grid.saved[-1])
    # Of every step about three states of the class means stay, for the gradient.
    needed = replicates * (float(len(saved)) * N * p * kind.itemsize + 24.0 * steps * K * p)
    working_memory(None, needed, on, f"replicates={replicates} × {steps} steps")
    first = first_replicate // BLOCK
    rng = Random(seed, 0, range(first, first - (-replicates // BLOCK)), on, kind, 0, replicates)
    state = process.start(rng, rng.replicates)
    frames, means = [state.seen["features"].clone()], [state.seen["mean"]]
    for t0, t1 in pairwise(saved.tolist()):
        state = process.advance(rng, state, t0, t1)
        means.append(state.seen["mean"])
        if not bool(torch.isfinite(means[-1].detach().to(kind)).all()):
            raise Diverged(t1)
        frames.append(state.seen["features"].clone())
    result = torch.stack(means, 1)[:replicates]
    warn_of_lost_digits(result[:, -1].detach().cpu().numpy(), dtype)
    settings = {"seed": seed, "dtype": dtype, **process.attributes}
    return TensorPaths(
        features=torch.stack(frames, 1)[:replicates] + offsets,
        means=result,
        times=torch.from_numpy(saved.copy()),
        labels=torch.from_numpy(model.labels),
        _dataset=(first_replicate, rates, False, fixed.describe(), settings),
    )
