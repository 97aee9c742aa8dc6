"""Kernels of the features against sums over all pairs written out, their invariances, and their class limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
import torch
from scipy.spatial.distance import cdist

import lesde
from lesde import LESDE, FeatureKernel, TwoLevel
from lesde.processes.pairs import PairInteraction

T = 0.7
FORMULAS = [
    "s*2*exp(-r2/8) - (1-s)*exp(-r2/2)/(1+t)",
    "c*exp(-r2*t) + g/(1+r2)**1.3 + sinh(c)",
    "s*exp(-r2) - (1-s)*0.5",
    "s*0.5 - (1-s)/((1+r2)*(1+t))",
    "g",
    "s*t*(1 + 2*g) - (1-s)*(c - 0.3*g/(1+t))",
    "s*max(g, 0) + c",
    "1 if r2 < 2 else c",
    "2*s - (1-s)*t",
]
MATRICES = np.random.default_rng(5).normal(size=(3, 3, 3))
SYSTEMS = {
    "small classes": ([5, 9, 3], "identity", 2),
    "unbalanced": ([60, 49, 20], "identity", 3),
    "one feature": ([7, 50], "identity", 1),
    "logits": ([50, 3, 4, 20], "logits", 4),
    "matrices": ([7, 60, 5], MATRICES, 3),
    "shared matrix": ([7, 60], MATRICES[0], 3),
}
LARGE = {
    "several blocks of a class": ([420, 60], "identity", 3),
    "several blocks of classes": ([9] * 33, MATRICES[0], 3),
}


def make_model(formula: str, name: str) -> LESDE:
    counts, transform, p = (SYSTEMS | LARGE)[name]
    return LESDE(FeatureKernel(formula), len(counts), p, counts, transform, noise=0)


def kicks_of_all_draws(model: LESDE, X: np.ndarray, t: float) -> np.ndarray:
    """κ_ij H_j X_j for all i and j, (i, j, feature), float64, from differences of all pairs."""
    labels, H = model.labels, model.transform_array()
    r2 = ((X[:, None] - X) ** 2).sum(-1)
    norms = np.linalg.norm(X, axis=1)
    norms = norms[:, None] * norms
    c = np.divide(X @ X.T, norms, out=np.zeros_like(norms), where=norms > 0).clip(-1, 1)
    kappa = model.kernel.formula(r2, X @ X.T, c, labels[:, None] == labels, t)
    return kappa[:, :, None] * np.einsum("jab,jb->ja", H[labels], X)


def samples_of(model: LESDE, replicates: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(replicates, model.n_samples, model.n_features))
    X[0, 1] = 0.0  # a sample at the origin: its cosines are 0
    X[0, 3] = X[0, 4]  # two samples in one place
    return X


def one_step(model: LESDE, X: np.ndarray, engine: object = None, dtype: str = "float64", **given):
    """What one step of length 1 without noise adds to samples (replicate, sample, feature)."""
    engine = lesde.TorchSDE(dt=1.0) if engine is None else engine
    settings = {"initial": X, "replicates": len(X), "engine": engine, "dtype": dtype, **given}
    x = lesde.simulate(model, [T, T + 1], **settings).features.values.astype(float)
    return x[:, 1] - x[:, 0]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_drift_and_kicks_are_those_of_all_pairs(formula, name):
    """In float64 to rounding; every iteration of SGD adds the kick of one draw."""
    model = make_model(formula, name)
    X = samples_of(model, 2)
    for x, b in zip(X, one_step(model, X), strict=True):
        np.testing.assert_allclose(
            b, kicks_of_all_draws(model, x, T).mean(1), rtol=1e-11, atol=1e-13
        )
    kicks = kicks_of_all_draws(model, X[0], T).swapaxes(0, 1).reshape(model.n_samples, -1)
    moved = one_step(model, X[[0] * 32], "sgd", learning_rate=1.0).reshape(32, -1)
    error = cdist(moved, kicks, "chebyshev")
    assert error.min(1).max() < 1e-13 * max(1.0, np.abs(kicks).max())
    assert len(set(error.argmin(1))) > model.n_samples / 10


@pytest.mark.parametrize("formula", [FORMULAS[0], FORMULAS[5]])
@pytest.mark.parametrize("name", LARGE)
def test_several_blocks_of_samples(formula, name):
    model = make_model(formula, name)
    X = samples_of(model, 2)
    for x, b in zip(X, one_step(model, X), strict=True):
        np.testing.assert_allclose(
            b, kicks_of_all_draws(model, x, T).mean(1), rtol=1e-11, atol=1e-13
        )


@pytest.mark.parametrize("formula", [FORMULAS[0], FORMULAS[1], FORMULAS[5]])
@pytest.mark.parametrize("name", ["unbalanced", "matrices"])
def test_single_precision(formula, name):
    """float32 agrees with float64 to some 20 units of rounding of the largest drift."""
    model = make_model(formula, name)
    X = samples_of(model, 3).astype(np.float32).astype(float)
    coefficients = lesde.derive(model).coefficients()
    exact, single = (
        PairInteraction(coefficients, dtype).drift(torch.tensor(X, dtype=dtype), T)
        for dtype in (torch.float64, torch.float32)
    )
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 20 * 1.2e-7 * float(exact.abs().max())


@pytest.mark.parametrize("formula", [FORMULAS[0], FORMULAS[5]])
def test_sampling_noise_has_the_covariance_of_the_kicks(formula):
    """Exactly: the sum over unit vectors ξ = e_j of outer products is C_ij of all pairs of samples."""
    model = make_model(formula, "small classes")
    X = samples_of(model, 1)
    N = model.n_samples
    work = PairInteraction(lesde.derive(model).coefficients(), torch.float64)
    copies = torch.tensor(X).expand(N, -1, -1)
    drift, columns = work.drift_and_sampling(copies, T, torch.eye(N, dtype=torch.float64))
    torch.testing.assert_close(drift, work.drift(copies, T), rtol=1e-12, atol=1e-14)
    columns = columns.reshape(N, -1).numpy()
    kicks = kicks_of_all_draws(model, X[0], T).swapaxes(0, 1).reshape(N, -1)
    np.testing.assert_allclose(
        columns.T @ columns, np.cov(kicks.T, bias=True), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("transform", ["identity", "logits"])
@pytest.mark.parametrize("by_pairs", [False, True])
def test_constant_formula_is_the_class_kernel(transform, by_pairs):
    """To rounding, by sums over classes and, with a formula whose features cancel out, by pairs."""
    formula = "2*s/(1+t) - 0.5*(1-s)"
    twin = LESDE(TwoLevel("2/(1+t)", -0.5), 4, 4, [60, 11, 300, 8], transform, noise=0)
    if by_pairs:  # 1 for every pair in float64, but nobody simplifies that
        formula = f"({formula})*tanh(1e3+r2)"
    model = twin.replace(kernel=FeatureKernel(formula))
    assert bool(model.kernel.formula.uses) is by_pairs
    X = samples_of(model, 2)
    np.testing.assert_allclose(one_step(model, X), one_step(twin, X), rtol=1e-12, atol=2e-14)


@pytest.mark.parametrize("formula", FORMULAS)
def test_rotation_turns_the_drift(formula):
    """r2, g and c do not change under a rotation of all features, so the I-model's drift turns along."""
    model = make_model(formula, "unbalanced")
    Q = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    X = samples_of(model, 1)
    turned, plain = one_step(model, X @ Q.T), one_step(model, X)
    np.testing.assert_allclose(turned, plain @ Q.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counts", [[60, 70], [20, 30]], ids=["a block each", "one block"])
def test_distances_within_a_collapsed_class_far_away_keep_their_digits(counts):
    """Spread 0.05 about class means 1,000 apart, in float32, against float64 on the same numbers.

    About the origin or the mean of all, r2 of some 0.01 would drown in rounding errors of 0.03.
    """
    model = LESDE(FeatureKernel("s*exp(-r2*1000)*1000"), 2, 3, counts, noise=0)
    centres = np.array([[500.0, 0, 0], [-500.0, 0, 0]])[model.labels]
    X = centres + 0.05 * np.random.default_rng(3).normal(size=centres.shape)
    X = X.astype(np.float32)[None]
    work = PairInteraction(lesde.derive(model).coefficients())
    exact = kicks_of_all_draws(model, X[0].astype(float), T).mean(1)
    single = work.drift(torch.tensor(X), T)[0]
    np.testing.assert_allclose(single, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize("deviation", ["r2", "1 - c"])
def test_a_sample_is_at_distance_zero_and_has_cosine_one_with_itself(deviation):
    """Exactly: sqrt would turn a rounding error of 1e-7 into 3e-4."""
    formula = f"s*Heaviside(1e-6 - sqrt({deviation}))"
    model = LESDE(FeatureKernel(formula), 2, 2, [60, 5], noise=0)
    X = samples_of(model, 1, seed=9) * 10
    X[0, 3] += 1.0  # no two samples in one place or one direction
    moved = one_step(model, X, dtype="float32")
    np.testing.assert_allclose(moved, X / model.n_samples, rtol=0, atol=1e-5)


def test_large_features_have_finite_cosines():
    model = LESDE(FeatureKernel("c"), 2, 2, [60, 5], noise=0)
    tiled = LESDE(FeatureKernel("c*tanh(1e3 + r2)"), 2, 2, [60, 5], noise=0)
    X = samples_of(model, 1)
    plain = one_step(model, X, dtype="float32")
    for each in (model, tiled):
        large = one_step(each, X * 2.0**60, dtype="float32")
        np.testing.assert_allclose(large / 2.0**60, plain, rtol=1e-4, atol=1e-6)


def test_functions_that_torch_lacks_are_left_to_scipy():
    formula = sp.gamma(1 + sp.Symbol("r2")) / 10
    model = LESDE(FeatureKernel(formula), 2, 2, [5, 4], noise=0)
    X = samples_of(model, 1) / 3
    expected = kicks_of_all_draws(model, X[0], T).mean(1)
    np.testing.assert_allclose(one_step(model, X)[0], expected, rtol=1e-12, atol=1e-14)


def test_values_that_are_missing_or_not_finite():
    free = LESDE(FeatureKernel("a*exp(-r2)", {"a": None}), 2, 2)
    with pytest.raises(ValueError, match=r"no value for a.*parameters=\{"):
        lesde.simulate(free, [0, 1])
    pole = LESDE(FeatureKernel("exp(-r2)/t"), 2, 2, 60)
    with pytest.raises(ValueError, match=r"strength.* not finite.* at t = 0"):
        lesde.simulate(pole, [0, 1])
    inside = LESDE(FeatureKernel("exp(-r2/(t-1))"), 2, 2, 60)
    with pytest.raises(lesde.Diverged, match="formula of the FeatureKernel is finite"):
        lesde.simulate(inside, [1, 1.1], replicates=2)


PROGRAM = """
import re
from pathlib import Path
import numpy as np
import lesde

model = lesde.LESDE(lesde.FeatureKernel("tanh(g)*exp(-r2) + c**3"), 2, 2, [5000, 4000], noise=0.1)

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

def run(model):
    lesde.simulate(model, [0, 1], np.eye(2), 1, engine=lesde.TorchSDE(dt=1.0), keep="statistics")

run(model.replace(n_per_class=60))
before = peak()
run(model)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc"
)
def test_pairs_are_never_held_at_once():
    # One array over all pairs of 9,000 samples would take 324 MB.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 6e7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("formula", FORMULAS)
def test_on_a_gpu(formula):
    for name in SYSTEMS | LARGE:
        model = make_model(formula, name)
        X = samples_of(model, 3)
        cpu, gpu = (one_step(model, X, device=device) for device in ("cpu", "cuda"))
        np.testing.assert_allclose(cpu, gpu, rtol=1e-10, atol=1e-12)
        coefficients = lesde.derive(model).coefficients()
        J, xi = torch.tensor([0, 5, 9]), torch.tensor(X[:, :, 0])
        for device in ("cpu", "cuda"):
            work, x = (
                PairInteraction(coefficients, torch.float64, device),
                torch.tensor(X).to(device),
            )
            found = [work.kick(x, J.to(device), T), *work.drift_and_sampling(x, T, xi.to(device))]
            if device == "cpu":
                expected = found
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=1e-10, atol=1e-12)
