"""The derived drift and diffusion against the enumeration of every possible draw."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import lesde
from lesde import LESDE, ClassMatrix, LabelNoise, TwoLevel
from lesde.derivation import rule as microscopic
from lesde.model.formula import TIME
from tests.derivation.systems import CLOSED, OPEN, kernel_values, logit_matrices, words

K, P, COUNTS = 3, 2, [2, 5, 3]


@pytest.fixture(params=["identity", "logits", "matrix"])
def system(request):
    """A model with nine unevaluated entries, and numbers for everything that it contains."""
    rng = np.random.default_rng(11)
    p = K if request.param == "logits" else P
    matrices = {
        "identity": np.stack([np.eye(p)] * K),
        "logits": logit_matrices(K),
        "matrix": rng.normal(size=(K, p, p)),
    }[request.param]
    transform = matrices if request.param == "matrix" else request.param
    kernel = ClassMatrix([[None] * K for _ in range(K)])
    model = LESDE(kernel, K, p, n_per_class=COUNTS, transform=transform, noise=0.3)
    E = rng.normal(size=(K, K))
    labels = np.repeat(np.arange(K), COUNTS)
    X = rng.normal(size=(len(labels), p)) + labels[:, None]
    scalars = {
        sp.Function(f"E_{k + 1}{l + 1}", real=True)(TIME): E[k, l]
        for k in range(K)
        for l in range(K)
    }
    # Every draw: class L with probability n_L/N, a sample in it with 1/n_L, so each sample with 1/N.
    kicks = np.stack(
        [[E[k, l] * matrices[l] @ x for l, x in zip(labels, X, strict=True)] for k in range(K)]
    )
    values = {}
    for l in range(K):
        own = X[labels == l]
        values |= {
            f"Xbar_{l + 1}": own.mean(0)[:, None],
            f"H_{l + 1}": matrices[l],
            f"H_{l + 1}^T": matrices[l].T,
            f"S_{l + 1}": own.T @ own / len(own),
        }
    return lesde.derive(model), scalars, values, kicks


def test_drift_is_the_mean_over_all_draws(system):
    derivation, scalars, values, kicks = system
    for k in range(K):
        drift = words(derivation.drift[k], scalars, values)[:, 0]
        np.testing.assert_allclose(drift, kicks[k].mean(0), rtol=1e-13)


def test_sampling_covariance_is_that_over_all_draws(system):
    derivation, scalars, values, kicks = system
    for k in range(K):
        b = words(derivation.drift[k], scalars, values)
        values |= {f"b_{k + 1}": b, f"b_{k + 1}^T": b.T}
    centred = kicks - kicks.mean(1, keepdims=True)
    for k in range(K):
        for m in range(K):
            C = words(derivation.diffusion.sampling(k, m), scalars, values)
            expected = centred[k].T @ centred[m] / kicks.shape[1]
            np.testing.assert_allclose(C, expected, rtol=1e-12, atol=1e-13)


def test_total_diffusion_adds_noise_and_h_times_sampling(system):
    derivation, scalars, values, _ = system
    h, sigma = 0.05, np.array([[0.3, 0.1], [0.0, 0.2]])
    p = derivation.model.n_features
    sigma = np.eye(p) * 0.3 + 0.1 * np.eye(p, k=1)
    scalars = {**scalars, sp.Symbol("h", positive=True): h}
    for k in range(K):
        b = words(derivation.drift[k], scalars, values)
        values |= {f"b_{k + 1}": b, f"b_{k + 1}^T": b.T}
        values |= {f"sigma_{k + 1}": sigma, f"sigma_{k + 1}^T": sigma.T}
    diffusion = derivation.diffusion
    C = words(diffusion.sampling(0, 0), scalars, values)
    own = words(diffusion.total(0, 0, same_sample=True), scalars, values)
    np.testing.assert_allclose(own, sigma @ sigma.T + h * C, rtol=1e-12)
    np.testing.assert_allclose(words(diffusion.total(0, 0), scalars, values), h * C, rtol=1e-12)
    mean = words(diffusion.class_mean(0), scalars, values)
    np.testing.assert_allclose(mean, sigma @ sigma.T / COUNTS[0] + h * C, rtol=1e-12)


def test_noise_terms_come_from_the_rule():
    """√h σ ζ has covariance h σσᵀ with itself and none with another sample's."""
    rule = microscopic.rule()
    assert (rule.noise, rule.noise_between) == (1, 0)


def test_changing_the_rule_changes_the_answer(monkeypatch):
    """Nothing returns a stored answer: a rule with twice the kick gives twice the drift."""
    original = microscopic.increment
    monkeypatch.setattr(microscopic, "increment", lambda E, side="i": original(2 * E, side))
    changed = microscopic.rule.__wrapped__()
    w, E, F = sp.symbols("w E F")
    assert sp.expand(changed.drift(w, E) - 2 * w * E) == 0
    assert sp.expand(changed.sampling(w, E, F) - 4 * w * E * F) == 0
    assert changed.kick(E) == 2 * E


@pytest.mark.parametrize("name", [*CLOSED, *OPEN])
def test_coefficients_are_weight_times_kernel(name):
    model = {**CLOSED, **OPEN}[name]
    times = np.array([0.3, 1.7])
    coefficients = lesde.derive(model).coefficients()
    w = np.array(model.counts) / np.sum(model.counts)
    for i, t in enumerate(times):
        E = kernel_values(model, t)
        np.testing.assert_allclose(coefficients.kicks(times)[i], E, rtol=1e-14)
        np.testing.assert_allclose(coefficients.weights(times)[i], E * w, rtol=1e-14)


def test_kernel_entry_arrives_in_coefficients_and_law():
    """One entry is changed: one coefficient, and the mean of the one class that it moves."""
    matrix = [[1.0, 0.2, -0.3], [0.1, 1.5, 0.4], [0.0, -0.2, 2.0]]
    before = LESDE(ClassMatrix(matrix), 3, 2, n_per_class=[1, 2, 3])
    matrix[1][2] = 5.0
    after = before.replace(kernel=ClassMatrix(matrix))
    times = np.array([0.0, 1e-6])
    for method, factor in (("kicks", 1.0), ("weights", 0.5)):
        change = getattr(lesde.derive(after).coefficients(), method)(times) - getattr(
            lesde.derive(before).coefficients(), method
        )(times)
        expected = np.zeros((3, 3))
        expected[1, 2] = 4.6 * factor
        np.testing.assert_allclose(change[0], expected, atol=1e-14)
    initial = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]])
    moved = [lesde.law(m, times, initial)["mean"].values[1] for m in (before, after)]
    change = (moved[1] - moved[0]) / 1e-6
    np.testing.assert_allclose(change[1], 4.6 * 0.5 * initial[2], rtol=1e-5)
    np.testing.assert_allclose(change[[0, 2]], 0, atol=1e-5)


@pytest.mark.parametrize("transform", ["identity", "logits"])
def test_structure_stays_small(transform):
    """100 classes in 100 dimensions: two values, whatever is asked, and no p×p matrix."""
    model = LESDE(TwoLevel("2/(1+t)", -0.5), 100, 100, transform=transform)
    derivation = lesde.derive(model)
    coefficients = derivation.coefficients()
    assert len(coefficients.drift_table.values) == len(coefficients.kick_table.values) == 2
    assert coefficients.transform.matrices is None
    assert len(derivation.tree.orbits) == 1
    assert len(derivation.modes) == (2 if transform == "identity" else 3)
    noisy = LESDE(LabelNoise(TwoLevel("2/(1+t)", -0.5), 0.1), 100, 100)
    assert len(lesde.derive(noisy).coefficients().drift_table.values) == 2


def test_unevaluated_kernels_can_be_derived_and_say_why_they_cannot_be_run():
    model = LESDE(TwoLevel(), 3, 2)
    assert lesde.derive(model).drift[0].has(sp.Function("alpha", real=True)(TIME))
    with pytest.raises(ValueError, match=r"alpha.*has no value for alpha.*not evaluated"):
        lesde.law(model, [0, 1], np.ones((3, 2)))
