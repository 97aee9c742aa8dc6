"""The microscopic rule stands once: changed there, everything follows as if the kernel were changed so.

A rule with c times the strength is the rule for a kernel c times as strong, and one with c times the noise ζ that for
c times the noise σ. Each route to a result is asked twice: with the changed rule, and with the plain rule for the
changed model.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import lesde
from lesde.derivation import rule as microscopic

TIMES = [0.0, 0.4, 1.0]
MEANS = np.array([[1.0, 0.2, 0.0], [-0.3, 0.6, 0.4], [0.1, -0.5, 0.8]])


def classes(factor: float, transform: str = "identity") -> lesde.LESDE:
    kernel = lesde.TwoLevel(alpha=f"{factor}*1.5/(1+t)", beta=factor * -0.5)
    return lesde.LESDE(kernel, 3, 3, [4, 6, 5], transform, noise=0.2)


def pairs(factor: float) -> lesde.LESDE:
    kernel = lesde.FeatureKernel(f"{factor}*(s*exp(-r2/8) - 0.3*(1-s)*c)")
    return lesde.LESDE(kernel, 3, 3, [4, 6, 5], noise=0.2)


def noisy_classes(factor: float) -> lesde.LESDE:
    return lesde.LESDE(lesde.TwoLevel("1.5/(1+t)", -0.5), 3, 3, [4, 6, 5], noise=factor * 0.2)


def changing_noise(factor: float) -> lesde.LESDE:
    kernel = lesde.TwoLevel("1.5/(1+t)", -0.5)
    return lesde.LESDE(kernel, 3, 3, [4, 6, 5], noise=f"{factor}*(0.2 + 0.1*t)")


def noisy_pairs(factor: float) -> lesde.LESDE:
    kernel = lesde.FeatureKernel("s*exp(-r2/8) - 0.3*(1-s)*c")
    return lesde.LESDE(kernel, 3, 3, [4, 6, 5], noise=factor * 0.2)


def simulated(model: lesde.LESDE, **settings) -> np.ndarray:
    paths = lesde.simulate(model, TIMES, initial=MEANS, replicates=3, dtype="float64", **settings)
    return paths["features"].values


def of_law(model: lesde.LESDE) -> np.ndarray:
    law = lesde.law(model, TIMES, MEANS)
    return np.concatenate([law["mean"].values.ravel(), law["covariance"].values.ravel()])


def of_gradients(model: lesde.LESDE) -> np.ndarray:
    law = lesde.tensor_law(model, TIMES, MEANS)
    paths = np.stack([MEANS, 1.1 * MEANS, 1.2 * MEANS])
    return np.append(law.mean.numpy().ravel(), float(law.log_likelihood(paths)))


def of_moments(model: lesde.LESDE) -> np.ndarray:
    processes = ["sgd", "plain", "sampling", "modified"]
    found = lesde.moments(model, TIMES, MEANS, learning_rate=0.1, process=processes)
    return np.concatenate([found[name].values.ravel() for name in ("mean", "covariance")])


def of_solution(model: lesde.LESDE) -> np.ndarray:
    return lesde.derive(model).solution.evaluate(TIMES, MEANS)


CLASS_ROUTES = {
    "derivation": lambda model: str(lesde.derive(model).drift),
    "law": of_law,
    "law with gradients": of_gradients,
    "moments": of_moments,
    "exact engine": lambda model: simulated(model, engine="exact"),
    "torchsde engine": lambda model: simulated(model, engine="torchsde", learning_rate=0.05),
    "sgd": lambda model: simulated(model, engine="sgd", learning_rate=0.05),
}
for kind in ("sampling", "modified"):
    CLASS_ROUTES[f"torchsde engine, {kind}"] = lambda model, kind=kind: simulated(
        model, engine=lesde.TorchSDE(noise=kind, dt=0.05), learning_rate=0.05
    )
PAIR_ROUTES = {
    "torchsde engine": lambda model: simulated(model, engine="torchsde", learning_rate=0.05),
    "sgd": lambda model: simulated(model, engine="sgd", learning_rate=0.05),
}


@pytest.fixture
def change(monkeypatch):
    """A function that multiplies the strength in the rule, until the test ends."""
    original = microscopic.increment

    def change(factor: float) -> None:
        monkeypatch.setattr(
            microscopic, "increment", lambda E, side="i": original(int(factor) * E, side)
        )
        microscopic.rule.cache_clear()

    yield change
    microscopic.rule.cache_clear()


@pytest.fixture
def change_noise(monkeypatch):
    """A function that multiplies the noise in the rule, until the test ends."""
    original = microscopic.increment

    def louder(factor: float, E: sp.Expr, side: str) -> sp.Expr:
        zeta = microscopic.ZETA[side][0]
        return original(E, side).subs(zeta, factor * zeta)

    def change(factor: float) -> None:
        monkeypatch.setattr(
            microscopic, "increment", lambda E, side="i": louder(int(factor), E, side)
        )
        microscopic.rule.cache_clear()

    yield change
    microscopic.rule.cache_clear()


def follows(route, make, change, factor: float) -> None:
    plain, stronger = route(make(1)), route(make(factor))
    change(factor)
    found = route(make(1))
    if isinstance(found, str):
        assert found == stronger
        assert found != plain
    else:
        np.testing.assert_allclose(found, stronger, rtol=1e-9, atol=1e-12)
        assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize("factor", [2, -1])
@pytest.mark.parametrize("route", CLASS_ROUTES)
def test_classes_follow_the_rule(route, factor, change):
    follows(CLASS_ROUTES[route], classes, change, factor)


def test_sampling_covariance_follows_the_rule(change):
    follows(lambda model: str(lesde.derive(model).diffusion.sampling(0, 1)), classes, change, 2)


@pytest.mark.parametrize("factor", [2, -1])
@pytest.mark.parametrize("route", PAIR_ROUTES)
def test_pairs_follow_the_rule(route, factor, change):
    follows(PAIR_ROUTES[route], pairs, change, factor)


@pytest.mark.parametrize("factor", [2, -1])
def test_logits_and_closed_forms_follow_the_rule(factor, change):
    def logits(factor: float) -> lesde.LESDE:
        return lesde.LESDE(lesde.TwoLevel(factor * 1.5, factor * -0.5), 3, 3, 5, "logits", 0.2)

    follows(of_solution, logits, change, factor)


NOISE_ROUTES = {name: route for name, route in CLASS_ROUTES.items() if name != "derivation"}


@pytest.mark.parametrize("make", [noisy_classes, changing_noise])
@pytest.mark.parametrize("route", NOISE_ROUTES)
def test_noise_follows_the_rule(route, make, change_noise):
    follows(NOISE_ROUTES[route], make, change_noise, 2)


@pytest.mark.parametrize("route", PAIR_ROUTES)
def test_noise_about_feature_kernels_follows_the_rule(route, change_noise):
    follows(PAIR_ROUTES[route], noisy_pairs, change_noise, 2)


def test_derived_noise_follows_the_rule(change_noise):
    assert float(lesde.derive(noisy_classes(1)).diffusion.noise) == 1
    change_noise(2)
    assert float(lesde.derive(noisy_classes(1)).diffusion.noise) == 4
