"""The exact law against an integration of the moment equations written from their definition.

With M_kl = w_l E_kl H_l: dm/dt = M m, dP/dt = M P + P Mᵀ + diag(σ_kσ_kᵀ/n_k); within grows by σσᵀ t.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import lesde
from lesde import LESDE, ClassMatrix, Diverged, LabelNoise, TwoLevel

RNG = np.random.default_rng(42)
ROTATION = RNG.normal(size=(3, 3, 3))
FULL = RNG.normal(size=(3, 3)) * 0.3
PER_CLASS = RNG.normal(size=(3, 3, 3)) * 0.3
ENTRIES = [
    [lambda t: 2 + np.sin(t), lambda t: -t, lambda t: 0.3 + 0 * t],
    [lambda t: np.exp(-t), lambda t: 1 / (1 + t), lambda t: -0.5 + 0 * t],
    [lambda t: 0.2 * t, lambda t: 0 * t, lambda t: np.cos(2 * t)],
]
TEXT = [["2 + sin(t)", "-t", "0.3"], ["exp(-t)", "1/(1+t)", "-0.5"], ["0.2*t", "0", "cos(2*t)"]]

# name: (kernel, E(t) written again)
KERNELS = {
    "constant": (TwoLevel(2, -0.5), lambda t: np.where(np.eye(3), 2.0, -0.5)),
    "commuting": (
        TwoLevel("2/(1+t)", "-exp(-t)"),
        lambda t: np.where(np.eye(3), 2 / (1 + t), -np.exp(-t)),
    ),
    "non-commuting": (
        ClassMatrix(TEXT),
        lambda t: np.array([[f(t) for f in row] for row in ENTRIES]),
    ),
}
TRANSFORMS = {
    "I": ("identity", np.stack([np.eye(3)] * 3)),
    "L": (
        "logits",
        np.stack([np.outer(d, d) / (d @ d) for d in np.eye(3) - 1 / 3]),
    ),
    "matrix": (ROTATION, ROTATION),
    "low rank": (ROTATION[0, :, :1] * ROTATION[1, :1, :], None),
}
NOISES = {
    "scalar": (0.2, np.stack([0.04 * np.eye(3)] * 3)),
    "per class": ([0.1, 0.3, 0.0], np.array([0.01, 0.09, 0.0])[:, None, None] * np.eye(3)),
    "full": (FULL, np.stack([FULL @ FULL.T] * 3)),
    "full per class": (PER_CLASS, PER_CLASS @ PER_CLASS.swapaxes(1, 2)),
}
TIMES = np.array([0.1, 0.6, 1.1, 3.0])
INITIAL = np.random.default_rng(0).normal(size=(3, 3))


def integrate(E, H, counts, noise, times, initial):
    """Mean and covariance of the class means by DOP853 at a relative tolerance of 1e-12."""
    n = initial.size
    w = np.array(counts) / np.sum(counts)
    Q = np.zeros((n, n))
    for k, count in enumerate(counts):
        block = slice(k * initial.shape[1], (k + 1) * initial.shape[1])
        Q[block, block] = noise[k] / count

    def slope(t, state):
        m, P = state[:n], state[n:].reshape(n, n)
        M = np.einsum("kl,l,lij->kilj", E(t), w, H).reshape(n, n)
        MP = M @ P
        return np.concatenate([M @ m, (MP + MP.T + Q).ravel()])

    start = np.concatenate([initial.ravel(), np.zeros(n * n)])
    solved = solve_ivp(slope, (times[0], times[-1]), start, "DOP853", times, rtol=1e-12, atol=1e-14)
    return solved.y[:n].T, solved.y[n:].T.reshape(len(times), n, n)


def relative(got, expected):
    """Largest error at a time, relative to the largest value there."""
    axes = tuple(range(1, expected.ndim))
    scale = np.abs(expected).max(axes)
    return (np.abs(got - expected).max(axes)[scale > 0] / scale[scale > 0]).max()


CASES = [(k, t, "scalar") for k in KERNELS for t in TRANSFORMS]
CASES += [("non-commuting", t, n) for t in ("I", "L", "matrix") for n in NOISES if n != "scalar"]
CASES += [("constant", t, n) for t in ("I", "matrix") for n in NOISES if n != "scalar"]


@pytest.mark.parametrize("counts", [(7, 7, 7), (3, 20, 8)], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize(("kernel", "transform", "noise"), CASES)
def test_law_is_the_integral_of_the_moment_equations(kernel, transform, noise, counts):
    kernel, E = KERNELS[kernel]
    given, H = TRANSFORMS[transform]
    H = np.stack([given] * 3) if H is None else H
    sigma, covariance = NOISES[noise]
    law = LESDE(kernel, 3, 3, counts, given, sigma).law(TIMES, INITIAL)
    mean, P = integrate(E, H, counts, covariance, TIMES, INITIAL)
    assert relative(law["mean"].values.reshape(mean.shape), mean) < 1e-10
    assert relative(law["covariance"].values.reshape(P.shape), P) < 1e-10
    within = (TIMES - TIMES[0])[:, None, None, None] * covariance
    np.testing.assert_allclose(law["within"].values, within, rtol=1e-13, atol=1e-16)
    assert law["mean"].dtype == law["covariance"].dtype == np.float64


def test_random_initial_means_add_their_covariance():
    model = LESDE(KERNELS["non-commuting"][0], 3, 3, (3, 20, 8), ROTATION, 0.0)
    law = model.law(TIMES)
    columns = [model.law(TIMES, e.reshape(3, 3))["mean"].values.reshape(4, 9) for e in np.eye(9)]
    phi = np.stack(columns, -1)
    expected = phi @ phi.swapaxes(1, 2) / 3
    assert relative(law["covariance"].values.reshape(4, 9, 9), expected) < 1e-12
    assert (law["mean"].values == 0).all()
    assert law.attrs["initial"] == "random"


def test_samples_are_split_into_means_and_offsets():
    model = LESDE(TwoLevel(1, 0), 2, 2, [2, 3])
    samples = np.random.default_rng(1).normal(size=(5, 2))
    law = model.law([0, 1], samples)
    means = np.stack([samples[:2].mean(0), samples[2:].mean(0)])
    np.testing.assert_allclose(law["mean"].values[0], means, rtol=1e-15)
    np.testing.assert_allclose(
        law["offset"].values + means[law["label"].values], samples, rtol=1e-14
    )
    assert law["count"].values.tolist() == [2, 3]
    assert law["label"].values.tolist() == [0, 0, 1, 1, 1]
    assert (law["within"].values[0] == 0).all()
    assert "offset" not in model.law([0, 1], means)
    assert json.loads(law.attrs["model"])["n_per_class"] == [2, 3]


def test_closed_form_of_the_covariance():
    """I-model, constant kernel: contrasts are Ornstein–Uhlenbeck with rate r = (α−β)/K each, so the
    variance of X̄¹ − X̄² is 2 σ²/n (exp(2rt) − 1)/(2r)."""
    K, n, sigma, r = 4, 10, 0.3, (2 - -0.5) / 4
    times = np.array([0.0, 1e-8, 1.0, 100.0])
    law = LESDE(TwoLevel(2, -0.5), K, 1, n, noise=sigma).law(times, np.zeros((K, 1)))
    P = law["covariance"].values[:, :, 0, :, 0]
    gap = P[:, 0, 0] + P[:, 1, 1] - 2 * P[:, 0, 1]
    expected = 2 * sigma**2 / n * np.expm1(2 * r * times) / (2 * r)
    np.testing.assert_allclose(gap[:3], expected[:3], rtol=1e-13)
    np.testing.assert_allclose(gap[3], expected[3], rtol=1e-12)


def test_power_law_from_near_zero_to_a_million():
    """α = c/t, β = 0: contrasts and mean both grow as (t/t₀)^{c/K}, over eight decades."""
    K, c, n, sigma = 3, 0.9, 5, 0.4
    times = np.geomspace(0.01, 1e6, 9)
    means = np.arange(6.0).reshape(3, 2) + 1
    law = LESDE(TwoLevel(f"{c}/t", 0), K, 2, n, noise=sigma).law(times, means)
    growth = (times / times[0]) ** (c / K)
    np.testing.assert_allclose(law["mean"].values, growth[:, None, None] * means, rtol=1e-12)
    a = 1 - 2 * c / K  # ∫ (t/s)^{2c/K} ds
    variance = sigma**2 / n * times ** (2 * c / K) * (times**a - times[0] ** a) / a
    np.testing.assert_allclose(law["covariance"].values[:, 0, 0, 0, 0], variance, rtol=1e-11)


def test_jump_in_the_kernel():
    """A step at an odd place, as condition, Heaviside and callable: two constant laws in a row."""
    at, end = 0.7123, 2.0
    means = np.random.default_rng(3).normal(size=(3, 2))

    def model(alpha):
        return LESDE(TwoLevel(alpha, -0.5), 3, 2, 10)

    first = model(3).law([0, at], means)
    second = model(-1).law([at, end], first["mean"].values[-1])["mean"].values[-1]
    for alpha in (
        f"3 if t < {at} else -1",
        f"3 - 4*Heaviside(t - {at})",
        lambda t: np.where(t < at, 3.0, -1.0),
    ):
        law = model(alpha).law([0, end], means)["mean"].values[-1]
        np.testing.assert_allclose(law, second, rtol=1e-11)


def test_label_noise_is_the_law_of_its_matrix():
    E, p = np.random.default_rng(5).normal(size=(3, 3)), 0.3
    Q = np.where(np.eye(3), 1 - p, p / 2)
    noisy = LESDE(LabelNoise(ClassMatrix(E), p), 3, 2).law([0, 2], INITIAL[:, :2])
    plain = LESDE(ClassMatrix(E @ Q.T), 3, 2).law([0, 2], INITIAL[:, :2])
    np.testing.assert_allclose(noisy["mean"].values, plain["mean"].values, rtol=1e-12)
    np.testing.assert_allclose(noisy["covariance"].values, plain["covariance"].values, rtol=1e-12)


@pytest.mark.parametrize("alpha", [2000.0, "2000 + t", "exp(t)", lambda t: np.exp(t)])
def test_overflow_is_told_with_its_time(alpha):
    with pytest.raises(
        Diverged, match=r"stopped being finite at time .*weaken the kernel"
    ) as error:
        LESDE(TwoLevel(alpha, 0), 2, 2).law([0, 0.1, 20.0], np.ones((2, 2)))
    assert 0.1 < error.value.time <= 20


def test_a_kernel_too_strong_to_integrate_ends(monkeypatch):
    """A decay that would take 10^17 steps: the count of steps ends it (lowered here, for time)."""
    monkeypatch.setattr("lesde.collocation.MOST_STEPS", 300)
    with pytest.raises(ValueError, match=r"too strong.*from t = 0 to 40.*End `times` earlier"):
        LESDE(TwoLevel("-exp(t)", 0), 2, 1).law([0, 40], np.ones((2, 1)))


@pytest.mark.parametrize(
    ("times", "initial", "error", "message"),
    [
        (
            [0, 1, 1],
            None,
            ValueError,
            "times must be strictly increasing; got 1 followed by 1 at index 2",
        ),
        ([0, np.nan], None, ValueError, r"times must be finite; got nan at index \(1,\)"),
        ([], None, ValueError, "times must hold at least 1"),
        ([[0, 1]], None, ValueError, r"times must have shape \(T\)"),
        (["0", "1"], None, TypeError, "times must be an array of real numbers"),
        (
            [0, 1],
            np.ones((3, 3)),
            ValueError,
            r"initial must have shape \(3, 2\) or \(300, 2\); got",
        ),
        ([0, 1], np.full((3, 2), np.inf), ValueError, r"initial must be finite; got inf at"),
        ([0, 1], np.ones((3, 2)) * 1j, TypeError, "initial must be an array of real numbers"),
        ([0, 1], "random", TypeError, "initial must be an array of real numbers; got 'random'"),
    ],
)
def test_bad_arguments(times, initial, error, message):
    with pytest.raises(error, match=message):
        LESDE(TwoLevel(1, 0), 3, 2).law(times, initial)


def test_kernel_that_fails_inside_the_interval_names_the_time():
    with pytest.raises(ValueError, match=r"alpha = sqrt\(1 - t\) is complex .* at t = 3;"):
        LESDE(TwoLevel("sqrt(1-t)", 0), 3, 2).law([0, 3], np.ones((3, 2)))


def test_results_too_large_are_refused():
    model = LESDE(TwoLevel(1, 0), 100, 100)
    with pytest.raises(ValueError, match=r"times has 1000 entries.*1600 GB; give fewer times"):
        model.law(np.arange(1000), None)
    with pytest.raises(ValueError, match=r"n_classes·n_features = 2500, more than 2000"):
        LESDE(TwoLevel(1, 0), 50, 50, transform="logits").law([0, 1])


@pytest.mark.parametrize("engine", ["exact", "torchsde"])
def test_a_pole_between_saved_times_names_the_value(engine):
    model = LESDE(TwoLevel("1/(1-t)", 0), 2, 2, 5)
    with pytest.raises(
        ValueError, match=r"alpha = 1/\(1 - t\) (is not finite|changes too abruptly)"
    ):
        lesde.simulate(model, [0, 2], np.eye(2), replicates=2, engine=engine)
