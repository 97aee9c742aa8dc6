"""Transitions: paths that must agree with each other, and composition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

import lesde
from lesde import LESDE, ClassMatrix, Diverged, TwoLevel
from lesde.laws.transitions import transitions

RNG = np.random.default_rng(8)
E = RNG.normal(size=(3, 3)) * 4
H = RNG.normal(size=(3, 2, 2))
NOISE = RNG.normal(size=(3, 2, 2)) * 0.4
SETTINGS = [
    ("identity", 3, 0.2),
    ("identity", 2, NOISE),
    ("logits", 3, [0.1, 0.2, 0.3]),
    (H, 2, NOISE),
]


def steps_of(model, times):
    return transitions(lesde.derive(model).coefficients(), np.asarray(times, dtype=float))


def of(model, times):
    """Φ and the covariance of every interval as matrices over classes and features."""
    n = model.n_classes * model.n_features
    return [[x.reshape(n, n).numpy() for x in step] for step in steps_of(model, times).in_classes()]


def delayed(value):
    """A constant that looks like a function of time, so that the general path is taken."""
    return lambda t: np.full_like(t, value)


@pytest.mark.parametrize(("transform", "p", "noise"), SETTINGS)
@pytest.mark.parametrize("width", [1e-9, 0.3, 4.0])
def test_doubling_and_collocation_agree(transform, p, noise, width):
    constant = LESDE(ClassMatrix(E), 3, p, [4, 5, 9], transform, noise)
    varying = constant.replace(kernel=ClassMatrix([[delayed(x) for x in row] for row in E]))
    ((phi, C),), (other,) = of(constant, [1, 1 + width]), of(varying, [1, 1 + width])
    np.testing.assert_allclose(phi, other[0], atol=1e-12 * np.abs(phi).max())
    np.testing.assert_allclose(C, other[1], atol=1e-11 * np.abs(C).max())


@pytest.mark.parametrize(("transform", "p", "noise"), SETTINGS)
def test_constant_flow_is_the_matrix_exponential(transform, p, noise):
    model = LESDE(ClassMatrix(E), 3, p, [4, 5, 9], transform, noise)
    ((phi, _),) = of(model, [0, 0.7])
    w = np.array([4, 5, 9]) / 18
    M = np.einsum("kl,l,lij->kilj", E, w, model.transform_array()).reshape(3 * p, 3 * p)
    np.testing.assert_allclose(phi, expm(0.7 * M), atol=1e-13 * np.abs(phi).max())


@pytest.mark.parametrize(("transform", "p", "noise"), SETTINGS)
def test_transitions_compose(transform, p, noise):
    kernel = ClassMatrix(
        [[f"{x:.3f}*cos({k + l}*t)" for l, x in enumerate(r)] for k, r in enumerate(E)]
    )
    model = LESDE(kernel, 3, p, [4, 5, 9], transform, noise)
    (first, C), (second, added) = of(model, [0, 0.4, 1.5])
    ((phi, whole),) = of(model, [0, 1.5])
    np.testing.assert_allclose(phi, second @ first, atol=1e-12 * np.abs(phi).max())
    expected = second @ C @ second.T + added
    np.testing.assert_allclose(whole, expected, atol=1e-12 * np.abs(whole).max())


def test_equal_steps_share_one_exponential():
    steps = steps_of(LESDE(TwoLevel(1, 0), 3, 2), np.linspace(0, 10, 101))
    assert len(steps.phi) == 1
    assert len(steps.kind) == 100


def test_tiny_steps_of_different_width_are_not_shared():
    """Beside a long interval, widths of 1e-10 and 2e-10 must stay different."""
    steps = of(LESDE(TwoLevel(1, 0), 2, 1, 1, noise=1.0), [0, 1e-10, 3e-10, 1e6 / 2**14])
    variances = [C[0, 0] for _, C in steps[:2]]
    np.testing.assert_allclose(variances, [1e-10, 2e-10], rtol=1e-9)


@pytest.mark.parametrize("difference", [1e-2, 1e-6, 1e-9])
def test_steps_that_are_nearly_equal_are_not_taken_for_equal(difference):
    """Against the closed form e^{rate t} of the contrast and its variance, where every step is a little longer."""
    times = np.cumsum([0, *(1 + difference * np.arange(8))])
    steps = of(LESDE(TwoLevel(2, -1), 2, 1, 1, noise=1.0), times)
    growth = [(phi @ [1, -1])[0] for phi, _ in steps]  # rate (α − β)/K
    variance = [np.array([1, -1]) @ C @ [1, -1] for _, C in steps]
    np.testing.assert_allclose(growth, np.exp(1.5 * np.diff(times)), rtol=1e-12)
    np.testing.assert_allclose(variance, 2 * np.expm1(3 * np.diff(times)) / 3, rtol=1e-12)


def test_no_noise_and_no_motion():
    ((phi, C),) = of(LESDE(TwoLevel(0, 0), 3, 2, transform=np.zeros((2, 2)), noise=0.0), [0, 5])
    np.testing.assert_allclose(phi, np.eye(6), atol=1e-15)
    assert (C == 0).all()


def test_a_pole_inside_the_interval_is_told():
    with pytest.raises((ValueError, Diverged), match=r"too abruptly|too strong|finite"):
        of(LESDE(TwoLevel("1/(t - 0.3)**2", 0), 3, 2), [0, 1])
