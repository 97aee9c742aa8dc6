"""The exact law against an integration of the moment equations written from their definition.

With M_kl = w_l E_kl H_l: dm/dt = M m, dP/dt = M P + P Mᵀ + diag(σ_kσ_kᵀ/n_k); within grows by σσᵀ t.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad, quad_vec, solve_ivp
from scipy.special import exp1

import lesde
from lesde import LESDE, ClassMatrix, Diverged, LabelNoise, TwoLevel
from lesde.laws.transitions import transitions

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
# Noise that depends on time: (argument, σσᵀ of every class at a time, written again)
FULL_IN_TIME = [["0.3 + t", "-t**2/5", 0.1], ["cos(3*t)", 0.2, 0], [0, "exp(-t)", "1/(1+t)"]]


def _full(t):
    s = np.array(
        [[0.3 + t, -(t**2) / 5, 0.1], [np.cos(3 * t), 0.2, 0], [0, np.exp(-t), 1 / (1 + t)]]
    )
    return s @ s.T


def _multiples(*scales):
    return np.array(scales)[:, None, None] ** 2 * np.eye(3)


def _callable_slope(t):
    return 0.2 + np.sin(t) ** 2


NOISES_IN_TIME = {
    "scalar": ("0.5*exp(-t) + 0.1", lambda t: _multiples(*[0.5 * np.exp(-t) + 0.1] * 3)),
    "per class": (
        ["0.3/(1+t)", 0.2, "0.1*t**2"],
        lambda t: _multiples(0.3 / (1 + t), 0.2, 0.1 * t**2),
    ),
    "callable": (_callable_slope, lambda t: _multiples(*[_callable_slope(t)] * 3)),
    "full": (FULL_IN_TIME, lambda t: np.stack([_full(t)] * 3)),
    "full per class": (
        [FULL_IN_TIME, (0.3 * np.eye(3)).tolist(), np.diag([1, 2, 3.0])],
        lambda t: np.stack([_full(t), 0.09 * np.eye(3), np.diag([1.0, 4, 9])]),
    ),
}
TIMES = np.array([0.1, 0.6, 1.1, 3.0])
INITIAL = np.random.default_rng(0).normal(size=(3, 3))


def integrate(E, H, counts, noise, times, initial):
    """Mean and covariance of the class means by DOP853 at a relative tolerance of 1e-12."""
    n = initial.size
    w = np.array(counts) / np.sum(counts)

    def intensity(t):
        Q = np.zeros((n, n))
        covariance = noise(t) if callable(noise) else noise
        for k, count in enumerate(counts):
            block = slice(k * initial.shape[1], (k + 1) * initial.shape[1])
            Q[block, block] = covariance[k] / count
        return Q

    def slope(t, state):
        m, P = state[:n], state[n:].reshape(n, n)
        M = np.einsum("kl,l,lij->kilj", E(t), w, H).reshape(n, n)
        MP = M @ P
        return np.concatenate([M @ m, (MP + MP.T + intensity(t)).ravel()])

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
    law = lesde.law(LESDE(kernel, 3, 3, counts, given, sigma), TIMES, INITIAL)
    mean, P = integrate(E, H, counts, covariance, TIMES, INITIAL)
    assert relative(law["mean"].values.reshape(mean.shape), mean) < 1e-10
    assert relative(law["covariance"].values.reshape(P.shape), P) < 1e-10
    within = (TIMES - TIMES[0])[:, None, None, None] * covariance
    np.testing.assert_allclose(law["within"].values, within, rtol=1e-13, atol=1e-16)
    assert law["mean"].dtype == law["covariance"].dtype == np.float64


IN_TIME = [(k, t, n) for k in ("constant", "non-commuting") for t in ("I", "L", "matrix")
           for n in NOISES_IN_TIME]  # fmt: skip


@pytest.mark.parametrize("counts", [(7, 7, 7), (3, 20, 8)], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize(("kernel", "transform", "noise"), IN_TIME)
def test_law_with_noise_that_depends_on_time(kernel, transform, noise, counts):
    """The same integration with σ(t) inside; `within` is ∫σσᵀ by an independent quadrature."""
    kernel, E = KERNELS[kernel]
    given, H = TRANSFORMS[transform]
    sigma, covariance = NOISES_IN_TIME[noise]
    law = lesde.law(LESDE(kernel, 3, 3, counts, given, sigma), TIMES, INITIAL)
    mean, P = integrate(E, H, counts, covariance, TIMES, INITIAL)
    assert relative(law["mean"].values.reshape(mean.shape), mean) < 1e-10
    assert relative(law["covariance"].values.reshape(P.shape), P) < 1e-10
    within, _ = quad_vec(lambda t: covariance(t), TIMES[0], TIMES[-1], epsabs=0, epsrel=1e-13)
    np.testing.assert_allclose(law["within"].values[-1], within, rtol=1e-12, atol=1e-13)
    assert (law["within"].values[0] == 0).all()


def test_noise_in_time_to_twelve_digits():
    """I-model, constant kernel, σ = s/√(1+t): the contrasts' variance is an exponential integral.

    ∫₀ᵗ exp(2r(t−u)) s²/(1+u) du = s² exp(2r(1+t)) (E₁(2r) − E₁(2r(1+t))), r the contrast rate.
    """
    K, n, s, r = 4, 10, 0.3, 2.5 / 4
    times = np.array([0.0, 1e-3, 1.0, 5.0])
    model = LESDE(TwoLevel(2, -0.5), K, 2, n, noise="s/sqrt(1+t)", parameters={"s": s})
    law = lesde.law(model, times, np.zeros((K, 2)))
    P = law["centred_covariance"].values[:, :, 0, :, 0]
    gap = P[:, 0, 0] + P[:, 1, 1] - 2 * P[:, 0, 1]
    grown = np.exp(2 * r * (1 + times)) * (exp1(2 * r) - exp1(2 * r * (1 + times)))
    np.testing.assert_allclose(gap[2:], 2 * s**2 / n * grown[2:], rtol=3e-13)
    np.testing.assert_allclose(gap[1], 2 * s**2 / n * grown[1], rtol=1e-11)  # E₁ − E₁ cancels
    within = s**2 * np.log1p(times)
    np.testing.assert_allclose(law["within"].values[:, 1, 1, 1], within, rtol=1e-14)


@pytest.mark.parametrize("transform", ["identity", "logits"])
@pytest.mark.parametrize(
    "noise", ["0.3", 0.3, [0.1, "0.2", 0.3], [["1", 0, 0], [2, 1, 0], [0, 0, 1]]]
)
def test_constant_noise_is_the_same_however_it_is_written(noise, transform):
    """A formula without time takes the path of the number: bit for bit the same law."""
    numbers = np.vectorize(float)(np.array(noise, dtype=object))
    numbers = float(numbers) if numbers.ndim == 0 else numbers
    kernel = KERNELS["non-commuting"][0]
    a = lesde.law(LESDE(kernel, 3, 3, (3, 20, 8), transform, noise), TIMES, INITIAL)
    b = lesde.law(LESDE(kernel, 3, 3, (3, 20, 8), transform, numbers), TIMES, INITIAL)
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values)


@pytest.mark.parametrize("transform", ["identity", "logits"])
@pytest.mark.parametrize("noise", [0.3, [0.1, 0.0, 0.3], FULL, PER_CLASS], ids=list(NOISES))
def test_both_ways_to_integrate_the_noise_agree(noise, transform):
    """Constant noise as functions of time goes the general way, with constant and varying kernels."""
    delayed = np.array(noise, dtype=object)
    for index in np.ndindex(delayed.shape):
        delayed[index] = partial(np.full_like, fill_value=float(delayed[index]))
    delayed = delayed[()] if delayed.ndim == 0 else delayed
    for kernel in KERNELS.values():
        a = lesde.law(LESDE(kernel[0], 3, 3, (3, 20, 8), transform, noise), TIMES, INITIAL)
        b = lesde.law(LESDE(kernel[0], 3, 3, (3, 20, 8), transform, delayed), TIMES, INITIAL)
        for name in ("covariance", "centred_covariance", "within"):
            assert relative(b[name].values, a[name].values) < 1e-12
        np.testing.assert_allclose(a["mean"], b["mean"], rtol=1e-12)


def test_noise_that_jumps_or_peaks_is_resolved():
    """σ that jumps: two constant laws in a row. σ with a narrow peak: by quadrature."""
    at, end, means = 0.7123, 2.0, INITIAL
    kernel = TwoLevel("2/(1+t)", -0.5)
    first = lesde.law(LESDE(kernel, 3, 3, 10, noise=0.1), [0, at], means)["covariance"].values[-1]
    later = LESDE(kernel, 3, 3, 10, noise=2.0)
    second = lesde.law(later, [at, end], means)["covariance"].values[-1]
    steps = transitions(lesde.derive(later).coefficients(), np.array([at, end]))
    phi = steps.in_classes()[0][0].reshape(9, 9).numpy()
    expected = phi @ first.reshape(9, 9) @ phi.T + second.reshape(9, 9)
    for noise in (f"0.1 if t < {at} else 2", lambda t: np.where(t < at, 0.1, 2.0)):
        law = lesde.law(LESDE(kernel, 3, 3, 10, noise=noise), [0, end], means)
        assert relative(law["covariance"].values[-1].reshape(1, 9, 9), expected[None]) < 1e-12
    peaked = lesde.law(
        LESDE(TwoLevel(2, -0.5), 2, 1, 5, noise="exp(-2e4*(t-0.613)**2)"), [0, 1], [[0], [0]]
    )
    gap = np.array([1, -1]) @ peaked["covariance"].values[-1, :, 0, :, 0] @ [1, -1]
    rate = 2.5 / 2
    expected, _ = quad(
        lambda u: 2 / 5 * np.exp(2 * rate * (1 - u) - 4e4 * (u - 0.613) ** 2),
        0, 1, points=[0.6, 0.613, 0.626], epsabs=0, epsrel=1e-13,
    )  # fmt: skip
    np.testing.assert_allclose(gap, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("noise", "integral"),
    [
        ("exp(-1e6*t) + 0.01", (1 - np.exp(-4e6)) / 2e6 + 2e-8 * (1 - np.exp(-2e6)) + 2e-4),
        ("t**0.25", 2**1.5 * 2 / 3),
        ("1 if t < 1 else 2", 5.0),  # jumps at a saved time
        ("2 if 0.3 < t < 0.4 else 1", 2.3),
        ("1 + sin(300*t)", 3 - np.sin(1200) / 1200 + (1 - np.cos(600)) / 150),
    ],
)
def test_without_a_kernel_means_spread_like_samples(noise, integral):
    """α = β = 0: a class mean has ∫σ² ds/n, whatever hides between the saved times."""
    law = lesde.law(LESDE(TwoLevel(0, 0), 2, 1, 5, noise=noise), [0.0, 1.0, 2.0], [[0.0], [0.0]])
    np.testing.assert_allclose(law["within"].values[-1, 0], integral, rtol=1e-12)
    np.testing.assert_allclose(law["covariance"].values[-1, 0, 0, 0, 0], integral / 5, rtol=1e-12)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("1 - t", r"noise must not be negative at any time; noise = 1 - t is -1 at t = 2"),
        ([1, "cos(t)", 1], r"not be negative.*noise\[1\] = cos\(t\) is -0\.416147 at t = 2"),
        ("1/t", r"noise = 1/t is not finite at t = 0"),
        ("sqrt(1-t)", r"noise = sqrt\(1 - t\) is not finite at t = 2"),
        ("1/Abs(t-0.7)", r"noise( = 1/Abs.* is not finite at t = 0\.7| changes too abruptly)"),
        (sp.Symbol("s") * sp.Symbol("t"), r"noise = s\*t has no value for s; .* not evaluated"),
        (sp.Symbol("s"), r"noise = s has no value for s; .* not evaluated"),
        (lambda t: 1.0 if t < 1 else 2.0, "noise cannot be evaluated at an array of times"),
    ],
)
def test_noise_that_cannot_be_used_is_told(noise, message):
    model = LESDE(TwoLevel(1, 0), 3, 2, noise=noise)
    assert r"\sigma_{" in lesde.derive(model).latex()  # it can be derived from
    with pytest.raises(ValueError, match=message):
        lesde.law(model, [0.0, 2.0], np.ones((3, 2)))


def test_matrix_noise_in_time_beyond_dense_sizes_is_refused():
    noise = [["t" if i == j else 0.1 for j in range(25)] for i in range(25)]
    with pytest.raises(ValueError, match=r"noise with a matrix that changes.*= 2500, more than"):
        transitions(
            lesde.derive(LESDE(TwoLevel(1, 0), 100, 25, noise=noise)).coefficients(),
            np.array([0.0, 1.0]),
        )


def test_prediction_with_noise_in_time_against_simulated_paths():
    """K = 2, I-model, σ = 0.8 exp(−t): P(projection separates along the known mean gap).

    The paths are written here: samples split into means and deviations, Gaussian transitions of a
    scheme of 2,000 Euler steps whose bias (1e-3 in growth and spread) is far below the tolerance,
    5 standard errors of 20,000 independent paths. Along the gap only one coordinate matters.
    """
    n, paths, steps, end = 20, 20_000, 2_000, 1.5
    alpha, beta, gap = 1.0, -1.0, 0.5
    means = np.array([[0.0, 0.0], [gap, 0.0]])
    model = LESDE(TwoLevel(alpha, beta), 2, 2, n, noise="0.8*exp(-t)")
    predicted = lesde.predict_separation(model, [0.0, end], means)["probability"].values[-1]
    rng = np.random.default_rng(11)
    h = end / steps
    x = np.broadcast_to(means[:, 0], (paths, 2)).copy()
    spread = 0.0  # variance of a sample's own noise, summed along the same steps
    E = np.array([[alpha, beta], [beta, alpha]]) / 2
    for i in range(steps):
        sigma = 0.8 * np.exp(-i * h)
        x += h * x @ E.T + np.sqrt(h / n) * sigma * rng.normal(size=x.shape)
        spread += h * sigma**2
    own = np.sqrt(spread) * rng.normal(size=(paths, 2, n))
    samples = x[:, :, None] + own - own.mean(2, keepdims=True)
    separated = samples[:, 1].min(1) > samples[:, 0].max(1)
    error = np.sqrt(predicted * (1 - predicted) / paths)
    assert 0.2 < predicted < 0.8
    assert abs(separated.mean() - predicted) < 5 * error


def test_random_initial_means_add_their_covariance():
    model = LESDE(KERNELS["non-commuting"][0], 3, 3, (3, 20, 8), ROTATION, 0.0)
    law = lesde.law(model, TIMES)
    columns = [
        lesde.law(model, TIMES, e.reshape(3, 3))["mean"].values.reshape(4, 9) for e in np.eye(9)
    ]
    phi = np.stack(columns, -1)
    expected = phi @ phi.swapaxes(1, 2) / 3
    assert relative(law["covariance"].values.reshape(4, 9, 9), expected) < 1e-12
    assert (law["mean"].values == 0).all()
    assert law.attrs["initial"] == "random"


def test_samples_are_split_into_means_and_offsets():
    model = LESDE(TwoLevel(1, 0), 2, 2, [2, 3])
    samples = np.random.default_rng(1).normal(size=(5, 2))
    law = lesde.law(model, [0, 1], samples)
    means = np.stack([samples[:2].mean(0), samples[2:].mean(0)])
    np.testing.assert_allclose(law["mean"].values[0], means, rtol=1e-15)
    np.testing.assert_allclose(
        law["offset"].values + means[law["label"].values], samples, rtol=1e-14
    )
    assert law["count"].values.tolist() == [2, 3]
    assert law["label"].values.tolist() == [0, 0, 1, 1, 1]
    assert (law["within"].values[0] == 0).all()
    assert "offset" not in lesde.law(model, [0, 1], means)
    assert json.loads(law.attrs["model"])["n_per_class"] == [2, 3]


def test_closed_form_of_the_covariance():
    """I-model, constant kernel: contrasts are Ornstein–Uhlenbeck with rate r = (α−β)/K each, so the
    variance of X̄¹ − X̄² is 2 σ²/n (exp(2rt) − 1)/(2r)."""
    K, n, sigma, r = 4, 10, 0.3, (2 - -0.5) / 4
    times = np.array([0.0, 1e-8, 1.0, 100.0])
    law = lesde.law(LESDE(TwoLevel(2, -0.5), K, 1, n, noise=sigma), times, np.zeros((K, 1)))
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
    law = lesde.law(LESDE(TwoLevel(f"{c}/t", 0), K, 2, n, noise=sigma), times, means)
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

    first = lesde.law(model(3), [0, at], means)
    second = lesde.law(model(-1), [at, end], first["mean"].values[-1])["mean"].values[-1]
    for alpha in (
        f"3 if t < {at} else -1",
        f"3 - 4*Heaviside(t - {at})",
        lambda t: np.where(t < at, 3.0, -1.0),
    ):
        law = lesde.law(model(alpha), [0, end], means)["mean"].values[-1]
        np.testing.assert_allclose(law, second, rtol=1e-11)


def test_label_noise_is_the_law_of_its_matrix():
    E, p = np.random.default_rng(5).normal(size=(3, 3)), 0.3
    Q = np.where(np.eye(3), 1 - p, p / 2)
    noisy = lesde.law(LESDE(LabelNoise(ClassMatrix(E), p), 3, 2), [0, 2], INITIAL[:, :2])
    plain = lesde.law(LESDE(ClassMatrix(E @ Q.T), 3, 2), [0, 2], INITIAL[:, :2])
    np.testing.assert_allclose(noisy["mean"].values, plain["mean"].values, rtol=1e-12)
    np.testing.assert_allclose(noisy["covariance"].values, plain["covariance"].values, rtol=1e-12)


@pytest.mark.parametrize("alpha", [2000.0, "1000 + t", lambda t: 1000 + t])
def test_overflow_is_told_with_its_time(alpha):
    with pytest.raises(
        Diverged, match=r"stopped being finite at time .*weaken the kernel"
    ) as error:
        lesde.law(LESDE(TwoLevel(alpha, 0), 2, 2), [0, 0.1, 20.0], np.ones((2, 2)))
    assert 0.1 < error.value.time <= 20


@pytest.mark.parametrize("alpha", ["exp(t)", "-exp(t)", lambda t: np.exp(t)])
def test_a_kernel_too_strong_to_integrate_is_refused(alpha):
    with pytest.raises(ValueError, match=r"too strong.*from t = 0 to 40.*End `times` earlier"):
        lesde.law(LESDE(TwoLevel(alpha, 0), 2, 1), [0, 40], np.ones((2, 1)))


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
        lesde.law(LESDE(TwoLevel(1, 0), 3, 2), times, initial)


def test_kernel_that_fails_inside_the_interval_names_the_time():
    with pytest.raises(ValueError, match=r"alpha = sqrt\(1 - t\) is not finite at t = 3;"):
        lesde.law(LESDE(TwoLevel("sqrt(1-t)", 0), 3, 2), [0, 3], np.ones((3, 2)))


def test_results_too_large_are_refused():
    model = LESDE(TwoLevel(1, 0), 100, 100)
    with pytest.raises(ValueError, match=r"times has 1000 entries.*1600 GB; give fewer times"):
        lesde.law(model, np.arange(1000), None)
    with pytest.raises(ValueError, match=r"n_classes·n_features = 2500, more than 2000"):
        lesde.law(LESDE(TwoLevel(1, 0), 50, 50, transform="logits"), [0, 1])


@pytest.mark.parametrize("engine", ["exact", "torchsde"])
def test_a_pole_between_saved_times_names_the_value(engine):
    model = LESDE(TwoLevel("1/(1-t)", 0), 2, 2, 5)
    with pytest.raises(
        ValueError, match=r"alpha = 1/\(1 - t\) (is not finite|changes too abruptly)"
    ):
        lesde.simulate(model, [0, 2], np.eye(2), replicates=2, engine=engine)


@pytest.mark.parametrize("verb", [lesde.law, lesde.tensor_law, lesde.tensor_paths])
@pytest.mark.parametrize("given", [None, "model", TwoLevel(2, -1)])
def test_what_is_no_model_is_refused_by_name(verb, given):
    with pytest.raises(TypeError, match=r"model must be a lesde\.LESDE; got"):
        verb(given, [0, 1], [[1.0], [0.0]])
