"""The call ``simulate``: arguments in, engine run, dataset out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lesde.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_real,
    check_seed,
    check_times,
)
from lesde.initial import read_initial
from lesde.iterations import seen_times
from lesde.simulation.request import (
    ENGINES,
    SDES,
    check_pairs,
    check_process,
    check_tables,
    choose_engine,
    read_device,
    read_learning_rates,
    read_memory,
    working_memory,
)
from lesde.simulation.result import as_dataset, warn_of_lost_digits

if TYPE_CHECKING:
    from lesde.model import LESDE
    from lesde.simulation.plan import Plan
    from lesde.simulation.process import Process

__all__ = ["simulate"]

METHODS = ("euler", "milstein", "srk")


def simulate(
    model: LESDE | Process,
    times: Any,
    initial: Any = None,
    replicates: int = 256,
    learning_rate: float | Sequence[float] | None = None,
    engine: str = "auto",
    dt: float | None = None,
    seed: int = 0,
    device: Any = None,
    dtype: str = "float32",
    progress: bool = False,
    method: str = "euler",
    first_replicate: int = 0,
    keep: str = "features",
    sde: str = "plain",
    memory_limit: float | str | None = None,
    differentiable: bool = False,
    parameters: Any = None,
) -> Any:
    """Simulate replicates of a model's features.

    Parameters
    ----------
    model : LESDE, or any process
        A process is an object with ``start``, ``advance``, ``observe`` and ``counts``; see
        :class:`lesde.simulation.process.Process`. It knows its own start and steps, so ``initial``,
        ``engine``, ``dt``, ``method``, ``sde``, ``differentiable`` and ``parameters`` are not for it.
    times : array, shape (time,)
        Saved times, strictly increasing; ``times[0]`` is the time of the initial state.
    initial : None or array, optional
        (class, feature): class means, every sample starts at its mean. (sample, feature): the
        samples, sorted by class. Either with a leading replicate dimension: a start for every
        replicate. None, the default: class means N(0, I/p) drawn for every replicate, every sample at
        its mean.
    replicates : int, default 256
        Independent copies.
    learning_rate : float or sequence of float, optional
        A sequence becomes the dimension ``learning_rate`` of the result, with independent noise
        for every entry. With engine "sgd" it is the step h of the discrete process. With
        "torchsde" and ``dt=None`` it is the integration step. The exact law does not depend on it:
        with "exact" the entries are independent copies.
    engine : {"auto", "exact", "torchsde", "sgd"}
        "exact" draws from the law of the LE-SDE at the saved times. "torchsde" integrates the LE-SDE
        step by step. "sgd" is the discrete process the LE-SDE approximates: at every iteration one
        sample is drawn and moves all others; the state is saved at the iteration nearest to each
        time, and ``time`` of the result is the time of that iteration.
        "auto" is "torchsde" where ``dt`` or another ``method`` than "euler" is given, else "sgd"
        where ``learning_rate`` is given, else "exact", or "torchsde" for a model whose exact law
        needs matrices too large to form.
    dt : float, optional
        Largest integration step of "torchsde"; every saved interval is divided evenly. By default
        the class means' growth over the run is right to about 1 %, and there are at least 100 steps.
    seed : int, default 0
        Same seed, same result: the noise depends on the seed, the index of the learning rate and the
        number of the replicate, not on how many replicates are asked for. Learning rates have
        independent noise, random initial means included: give ``initial`` to compare them from one start.
        So do "float32" and "float64" where samples are drawn; see ``dtype``.
    device : optional
        A torch device such as "cuda". Results differ between kinds of devices.
    dtype : {"float32", "float64"}
        Precision of the paths. The samples' noise is drawn in it (in double precision it would cost almost
        three times as much), so for one seed the paths of the two precisions are different draws, with the
        same law. Only class means of "exact", and of "torchsde" for a plain SDE with a kernel of classes and
        time, are drawn in double precision always and agree between the two.
    progress : bool, default False
        Whether to show a progress bar.
    method : {"euler", "milstein", "srk"}
        Method of "torchsde". Noise is additive, so "euler" and "milstein" are the same scheme, of
        strong order 1; "srk" (Rößler's SRA1) has strong order 1.5, for these linear drifts 2, and weak
        order 2.
    first_replicate : int, default 0
        A multiple of 32. Starts the stream there: ``replicates=64`` equals ``replicates=32`` followed
        by ``replicates=32, first_replicate=32``.
    keep : {"features", "statistics"}
        "features": every sample at every saved time. "statistics": class means, within-class
        covariances and the reach of classes toward each other, which is what the analyses need. Where
        kernel and noise let them be drawn directly ("exact", and "torchsde", for kernels of classes
        and time, from initial class means) the cost does not depend on the number of samples.
        Otherwise samples are simulated and reduced time by time. Class means and covariances have the
        law of samples either way, at all times together. Reaches drawn directly (attribute
        ``reach_paths`` 0) have that of samples at each time, given the class means there, but are drawn
        anew at every time and independently of the covariances: do not follow the reach of one replicate
        through time, as for the first time at which it is separated; keep the features for that.
    sde : {"plain", "sampling", "modified"}
        The SDE that "torchsde" integrates. "plain": the LE-SDE, the limit of small learning rates.
        "sampling": with the sampling noise √(hC) of SGD at ``learning_rate`` h as a further diffusion;
        an Euler step of length h, the default where saved times are multiples of h apart, has the first
        two moments of an iteration. "modified": also with
        drift and diffusion corrected at first order in h, so that moments differ from those of the
        discrete process by O(h²). See :func:`lesde.moments`.
    memory_limit : float or str, optional
        Bytes, or a text such as "500 MB", that the result and working arrays, tables over pairs of classes
        among them, may take; it decides how
        many blocks of replicates are worked on side by side and never changes the result. Default:
        80 % of what is available, at most half of the rest after the result for working arrays.
    differentiable : bool, default False
        With "torchsde": return tensors with the graph back to ``parameters`` and ``initial``; see
        :class:`lesde.differentiable.TensorPaths`.
    parameters : mapping, optional
        With ``differentiable``: torch values of the free names in the kernel's formulas.

    Returns
    -------
    xarray.Dataset, or TensorPaths where differentiable
        With ``keep="features"``: ``features`` ([learning_rate,] replicate, time, sample, feature),
        samples sorted by class. With ``keep="statistics"``: ``mean`` (…, class, feature); ``within``
        (…, class, feature, feature_), the empirical within-class covariance with divisor n_k; ``reach``
        (…, class, class_), the largest (μ_k − x)·u over samples x of class k, u the unit vector from
        μ_l to μ_k; where ``initial`` is given and the law is known, ``reach_expected``, the same along
        the expected gap, and ``direction`` (time, class, class_, feature), the unit vectors of that.
        Coordinates ``time``, ``label`` (sample), ``replicate``; ``learning_rate`` where given, and for
        "sgd" ``iteration`` ([learning_rate,] time), the number m of iterations done at a saved
        time, t = t₀ + m h, and ``asked_time`` (time), the times as given, where one of them lies
        between iterations. ``count`` (class) for statistics. Attributes record the
        model (JSON), the engine, seed and versions (JSON).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed.
    Diverged
        Where a path stops being finite, with the saved time at which that was seen.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=2, n_per_class=5)
    >>> paths = lesde.simulate(model, [0, 0.5, 1], replicates=8)
    >>> dict(paths.features.sizes)
    {'replicate': 8, 'time': 3, 'sample': 10, 'feature': 2}
    """
    from lesde.model import LESDE

    check_flag("progress", progress)
    check_flag("differentiable", differentiable)
    if not isinstance(model, LESDE):
        check_process(
            model,
            initial=initial,
            engine=engine,
            dt=dt,
            method=method,
            sde=sde,
            differentiable=differentiable,
            parameters=parameters,
        )
    if differentiable:
        assert isinstance(model, LESDE)
        from lesde.differentiable.paths import tensor_paths

        if memory_limit is not None:
            raise ValueError(
                "memory_limit does not go with differentiable=True, which keeps every step for the "
                "gradient; leave it out, or ask for fewer replicates."
            )
        return tensor_paths(
            model,
            times,
            initial,
            replicates,
            parameters=parameters,
            learning_rate=learning_rate,
            engine="torchsde" if engine == "auto" else engine,
            dt=dt,
            seed=seed,
            device=device,
            dtype=dtype,
            method=method,
            first_replicate=first_replicate,
            keep=keep,
            sde=sde,
        )
    if parameters is not None:
        raise ValueError(
            "parameters are for differentiable=True; give numbers to the kernel, or use "
            "model.substitute."
        )
    saved = check_times("times", times)
    replicates = check_integer("replicates", replicates)
    check_choice("engine", engine, ENGINES)
    check_choice("method", method, METHODS)
    check_choice("dtype", dtype, ("float32", "float64"))
    check_choice("keep", keep, ("features", "statistics"))
    check_choice("sde", sde, SDES)
    seed = check_seed(seed)
    first_replicate = check_integer("first_replicate", first_replicate, 0)
    if dt is not None:
        dt = check_real("dt", dt, 0.0, open_minimum=True)
    limit = read_memory(memory_limit)
    rates, batched = read_learning_rates(learning_rate)
    import torch

    from lesde.simulation.noise import BLOCK

    if first_replicate % BLOCK:
        raise ValueError(
            f"first_replicate must be a multiple of {BLOCK}, the replicates of a block of random "
            f"numbers; got {first_replicate}."
        )
    on = read_device(device)
    if not isinstance(model, LESDE):
        from lesde.simulation.process import process_paths

        return process_paths(
            model,
            saved,
            replicates=replicates,
            first_replicate=first_replicate,
            rates=rates,
            batched=batched,
            seed=seed,
            device=on,
            dtype=getattr(torch, dtype),
            keep=keep,
            memory=limit,
            progress=progress,
        )
    start = read_initial(model, initial, replicates)
    check_pairs(limit, model.n_classes)
    coefficients = model.derive().coefficients()
    engine = choose_engine(engine, coefficients, rates is not None, dt, method, sde)

    from lesde.simulation.engines import make_engine, make_keeper, run_engine
    from lesde.simulation.keeping import KEEPERS
    from lesde.simulation.plan import Plan
    from lesde.simulation.sgd import iteration_counts

    asked, iterations = saved, None
    if engine == "sgd" and rates is not None:
        iterations = np.stack([iteration_counts(asked, rate) for rate in rates.tolist()])
        saved = seen_times(asked, rates.tolist(), list(iterations))
    plan = Plan(
        coefficients=coefficients,
        times=saved,
        start=start,
        replicates=replicates,
        first_block=first_replicate // BLOCK,
        seed=seed,
        rates=rates,
        device=on,
        dtype=getattr(torch, dtype),
        sde=sde,
    )
    size = KEEPERS[keep].bytes(plan)
    shape = f"{_shape_text(plan, keep)}, {dtype}"
    memory = working_memory(limit, size, on, shape)
    plan = plan.with_memory(check_tables(plan, engine, memory))
    keeper = make_keeper(plan, keep, model)
    runner, steps = make_engine(plan, model, keeper, engine, method, dt)
    run_engine(runner, plan, progress)

    settings: dict[str, Any] = {"engine": engine, "seed": seed, "dtype": dtype, **keeper.attrs()}
    settings["initial"] = "random" if start.is_random else "given"
    if sde != "plain":
        settings["sde"] = sde
    if engine == "torchsde":
        settings |= {"method": method, "dt": steps if batched else steps[0]}
    warn_of_lost_digits(keeper.last_means(), dtype)
    return as_dataset(
        {name: (dims, keeper.arrays[name]) for name, dims in keeper.variables().items()},
        keeper.coords(),
        saved,
        first_replicate,
        rates,
        batched,
        model.describe(),
        settings,
        fixed=keeper.fixed(),
        asked=asked,
        iterations=iterations,
    )


def _shape_text(plan: Plan, keep: str) -> str:
    """What a result holds, for a message."""
    rates = f"{plan.cells} learning rates × " if plan.cells > 1 else ""
    frames = f"{rates}replicates={plan.replicates} × times of length {len(plan.times)}"
    if keep == "features":
        return f"{frames} × {plan.n_samples} samples × {plan.n_features} features"
    return f"{frames} × statistics of {plan.n_classes} classes in {plan.n_features} features"
