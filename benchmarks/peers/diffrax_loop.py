"""diffrax: Euler's method, compiled, all replicates as one batched state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np

from benchmarks.workloads import Workload

__all__ = ["diffrax_euler"]


def diffrax_euler(workload: Workload, tree: bool = False) -> Callable[[], np.ndarray]:
    """``diffeqsolve`` with UnsafeBrownianPath, or with VirtualBrownianTree where ``tree``.

    Of the adjoints (recursive checkpoints, direct, forward) and ways to write the constant diffusion,
    this is the fastest on the CPU. The tree always spans 1,000 steps, whatever the run's length.
    """
    shape, sigma, dt = workload.shape, workload.noise, workload.dt
    weights = jnp.asarray(workload.weights, jnp.float32)
    first = jnp.broadcast_to(jnp.asarray(workload.means, jnp.float32)[None, :, None], shape)
    span = max(workload.span, 1000 * dt)

    def drift(t: Any, y: Any, args: Any) -> Any:
        means = jnp.einsum("kl,rlp->rkp", weights, y.mean(2))
        return jnp.broadcast_to(means[:, :, None], shape)

    def diffusion(t: Any, y: Any, args: Any) -> Any:
        return lineax.DiagonalLinearOperator(jnp.full(shape, sigma, jnp.float32))

    def solve(key: Any, y0: Any) -> Any:
        path: Any
        if tree:
            path = diffrax.VirtualBrownianTree(0.0, span, tol=dt / 2, shape=shape, key=key)
        else:
            path = diffrax.UnsafeBrownianPath(shape=shape, key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))
        solution = diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            workload.span,
            dt0=dt,
            y0=y0,
            saveat=diffrax.SaveAt(t1=True),
            max_steps=workload.steps + 8,
            adjoint=diffrax.DirectAdjoint(),
        )
        return solution.ys[0]

    compiled = jax.jit(solve)
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 10_000))

    def run() -> np.ndarray:
        return np.asarray(compiled(next(keys), first))

    return run
