"""numba: one compiled loop over steps, samples and features, replicates split over threads.

Two ways to draw: a NumPy generator for every thread (SFC64, the fastest of NumPy's), and normals
written so that the compiler vectorises them (a hashed counter, Box and Muller's transform,
polynomials of the Cephes library for logarithm and sine). The latter is as fast as a loop gets here.
Its counter has 32 bits: enough for a benchmark, too short a period for research.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from benchmarks.workloads import Workload

__all__ = ["numba_discrete", "numba_euler", "numba_feature_drift"]

f4, u4, i4 = np.float32, np.uint32, np.int32


@intrinsic
def _bits(context, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def _float(context, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@numba.njit(inline="always")
def _hash(x: Any) -> Any:
    x ^= x >> u4(16)
    x = u4(x * u4(0x21F0AAAD))
    x ^= x >> u4(15)
    x = u4(x * u4(0x735A2D97))
    x ^= x >> u4(15)
    return x


@numba.njit(inline="always", fastmath=True)
def _log(u: Any) -> Any:
    bits = _bits(u) - i4(0x3F3504F3)
    e = f4(bits >> i4(23))
    m = _float((bits & i4(0x007FFFFF)) + i4(0x3F3504F3)) - f4(1)
    z = m * m
    y = f4(7.0376836292e-2)
    y = y * m + f4(-1.1514610310e-1)
    y = y * m + f4(1.1676998740e-1)
    y = y * m + f4(-1.2420140846e-1)
    y = y * m + f4(1.4249322787e-1)
    y = y * m + f4(-1.6668057665e-1)
    y = y * m + f4(2.0000714765e-1)
    y = y * m + f4(-2.4999993993e-1)
    y = y * m + f4(3.3333331174e-1)
    return m + (y * m * z + e * f4(-2.12194440e-4) - f4(0.5) * z) + e * f4(0.693359375)


@numba.njit(fastmath=True)
def _fill(out: Any, key: Any, first: Any) -> None:
    """Standard normals for ``out`` (length), of the pairs ``first``, ``first + 1``, …"""
    half = len(out) // 2
    for i in range(half):
        counter = u4(u4(i) + first)
        a = _hash(u4(u4(counter * u4(2)) ^ key))
        b = _hash(u4(u4(counter * u4(2) + u4(1)) ^ key))
        u = (f4(i4(a >> u4(8))) + f4(0.5)) * f4(1 / 16777216)
        # The angle: two bits for the quarter turn, the others for the place in it.
        x = f4(i4(b << u4(2)) >> i4(8)) * f4(math.pi / 2 / 16777216)
        z = x * x
        s = ((f4(-1.9515295891e-4) * z + f4(8.3321608736e-3)) * z - f4(1.6666654611e-1)) * z * x + x
        c = (f4(2.443315711809948e-5) * z - f4(1.388731625493765e-3)) * z + f4(4.16666456829883e-2)
        c = c * z * z - f4(0.5) * z + f4(1)
        sign = f4(1) - f4(2) * f4(i4(b >> u4(31)))
        swap = f4(i4((b >> u4(30)) & u4(1)))
        r = math.sqrt(f4(-2) * _log(u)) * sign
        out[i] = r * (c + swap * (s - c))
        out[half + i] = r * (s - swap * (c + s))


@numba.njit(fastmath=True)
def _draw(noise: Any, rng: Any, key: Any, first: Any, vectorised: bool) -> None:
    if vectorised:
        _fill(noise, key, first)
    else:
        for i in range(len(noise)):
            noise[i] = rng.standard_normal()


@numba.njit(nogil=True, fastmath=True)
def _euler(
    y: Any, weights: Any, scale: Any, steps: int, rng: Any, key: Any, base: int, vectorised: bool
) -> None:
    """Euler's method on y (replicate, class, feature, sample of the class)."""
    R, K, p, n = y.shape
    half = (K * p * n + 1) // 2
    noise = np.empty(2 * half, f4)
    means = np.empty((K, p), f4)
    drift = np.empty((K, p), f4)
    for r in range(R):
        for k in range(K):
            for j in range(p):
                means[k, j] = y[r, k, j].mean()
        for m in range(steps):
            _draw(noise, rng, key, u4(u4((base + r) * steps + m) * u4(half)), vectorised)
            drift[:] = f4(0)
            for k in range(K):
                for l in range(K):
                    for j in range(p):
                        drift[k, j] += weights[k, l] * means[l, j]
            i = 0
            for k in range(K):
                for j in range(p):
                    push, total = drift[k, j], f4(0)
                    row = y[r, k, j]
                    for s in range(n):
                        row[s] += push + scale * noise[i + s]
                        total += row[s]
                    means[k, j] = total / f4(n)
                    i += n


@numba.njit(nogil=True, fastmath=True)
def _discrete(
    y: Any, elasticity: Any, scale: Any, drawn: Any, rng: Any, key: Any, base: int, vectorised: bool
) -> None:
    """The discrete process on y; ``drawn`` (iteration, replicate) are the samples' numbers."""
    R, K, p, n = y.shape
    steps = len(drawn)
    half = (K * p * n + 1) // 2
    noise = np.empty(2 * half, f4)
    sample = np.empty(p, f4)
    for r in range(R):
        for m in range(steps):
            _draw(noise, rng, key, u4(u4((base + r) * steps + m) * u4(half)), vectorised)
            L, J = drawn[m, base + r] // n, drawn[m, base + r] % n
            for j in range(p):
                sample[j] = y[r, L, j, J]
            i = 0
            for k in range(K):
                for j in range(p):
                    push = elasticity[k, L] * sample[j]
                    row = y[r, k, j]
                    for s in range(n):
                        row[s] += push + scale * noise[i + s]
                    i += n


def _start(workload: Workload) -> np.ndarray:
    R, K, n, p = workload.shape
    means = workload.means.astype(f4)[None, :, :, None]
    return np.ascontiguousarray(np.broadcast_to(means, (R, K, p, n)))


def _split(run: Callable[..., object], replicates: int) -> None:
    """Call ``run(first, end, thread)`` for equal shares of the replicates, one thread each."""
    count = numba.get_num_threads()
    edges = np.linspace(0, replicates, count + 1).astype(int)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, edges[:-1].tolist(), edges[1:].tolist(), range(count)))


def _generators() -> list[np.random.Generator]:
    seeds = np.random.SeedSequence(0).spawn(numba.config.NUMBA_NUM_THREADS)
    return [np.random.Generator(np.random.SFC64(seed)) for seed in seeds]


def numba_euler(workload: Workload, vectorised: bool = True) -> Callable[[], np.ndarray]:
    """Euler's method on all samples in one loop."""
    start = _start(workload)
    weights = (workload.dt * workload.weights).astype(f4)
    scale = f4(workload.noise * math.sqrt(workload.dt))
    keys = np.random.default_rng(0)
    rngs = _generators()

    def run() -> np.ndarray:
        y, key = start.copy(), keys.integers(2**32, dtype=u4)

        def share(first: int, end: int, thread: int) -> None:
            part = y[first:end]
            _euler(part, weights, scale, workload.steps, rngs[thread], key, first, vectorised)

        _split(share, workload.replicates)
        return y.swapaxes(2, 3)

    return run


def numba_discrete(workload: Workload, vectorised: bool = True) -> Callable[[], np.ndarray]:
    """The discrete process on all samples in one loop."""
    start = _start(workload)
    elasticity = (workload.dt * workload.elasticity).astype(f4)
    scale = f4(workload.noise * math.sqrt(workload.dt))
    keys = np.random.default_rng(0)
    rngs = _generators()

    def run() -> np.ndarray:
        y, key = start.copy(), keys.integers(2**32, dtype=u4)
        drawn = keys.integers(workload.n_samples, size=(workload.steps, workload.replicates))

        def share(first: int, end: int, thread: int) -> None:
            part = y[first:end]
            _discrete(part, elasticity, scale, drawn, rngs[thread], key, first, vectorised)

        _split(share, workload.replicates)
        return y.swapaxes(2, 3)

    return run


@numba.njit(parallel=True, fastmath=True)
def _feature(x: Any, labels: Any, out: Any, same: Any, other: Any) -> None:
    N, p = x.shape
    for i in numba.prange(N):
        total = np.zeros(p, f4)
        for j in range(N):
            r2 = f4(0)
            for a in range(p):
                r2 += (x[i, a] - x[j, a]) ** 2
            level = same if labels[i] == labels[j] else other
            strength = level * math.exp(f4(-0.5) * r2)
            for a in range(p):
                total[a] += strength * x[j, a]
        for a in range(p):
            out[i, a] = total[a] / f4(N)


def numba_feature_drift(
    features: np.ndarray, labels: np.ndarray, same: float, other: float
) -> Callable[[], np.ndarray]:
    """Drift (1/N) Σ_j level·exp(−r²/2) x_j of features (replicate, sample, feature)."""
    x = np.ascontiguousarray(features, dtype=f4)

    def run() -> np.ndarray:
        out = np.empty_like(x)
        for r in range(len(x)):
            _feature(x[r], labels, out[r], f4(same), f4(other))
        return out

    return run
