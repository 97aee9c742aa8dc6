"""Modes against numerical eigenvalues, closed forms against integration, rates against metrics."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp

import lesde
from lesde import LESDE, ClassMatrix, Hierarchical, LabelNoise, TwoLevel
from lesde.model.formula import TIME, Formula
from tests.derivation.systems import CLOSED, OPEN, generator

ALPHA, BETA = TwoLevel().levels


def rate_values(model: LESDE, t: float) -> np.ndarray:
    """All rates at a time, each as often as its multiplicity says."""
    values = []
    for mode in lesde.derive(model).modes:
        real, imaginary = mode.rate.as_real_imag() if mode.rate.has(sp.I) else (mode.rate, 0)
        parts = [
            Formula(sp.sympify(part), model.entries.functions)(np.array([t]))[0]
            for part in (real, imaginary)
        ]
        values += [complex(*parts)] * mode.multiplicity
    return np.sort_complex(np.array(values))


@pytest.mark.parametrize("name", CLOSED)
def test_rates_and_multiplicities_are_the_eigenvalues(name):
    model = CLOSED[name]
    assert lesde.derive(model).is_closed
    for t in (0.2, 1.3):
        expected = np.linalg.eigvals(generator(model, t))
        got = rate_values(model, t)
        assert len(got) == model.n_classes * model.n_features
        for value in got:  # multiset comparison that rounding of equal real parts cannot disturb
            i = int(np.argmin(np.abs(expected - value)))
            assert abs(expected[i] - value) < 2e-7
            expected = np.delete(expected, i)


def test_complex_rates():
    """A cyclic kernel has complex eigenvalues."""
    model = LESDE(ClassMatrix([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), 3, 1)
    expected = np.sort_complex(np.exp(2j * np.pi * np.arange(3) / 3) / 3)
    np.testing.assert_allclose(rate_values(model, 0.0), expected, atol=1e-14)
    means = np.array([[1.0], [2.0], [-1.0]])
    times = np.array([0.0, 2.0])
    law = lesde.law(model, times, means)["mean"].values
    np.testing.assert_allclose(lesde.derive(model).solution.evaluate(times, means), law, rtol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 7])
def test_symbolic_rates_of_the_two_models(K):
    alpha, beta = ALPHA, BETA
    modes = {m.kind: m for m in lesde.derive(LESDE(TwoLevel(), K, 4)).modes}
    assert sp.simplify(modes["contrast"].rate - (alpha - beta) / K) == 0
    assert sp.simplify(modes["mean"].rate - (alpha + (K - 1) * beta) / K) == 0
    assert (modes["contrast"].multiplicity, modes["mean"].multiplicity) == (4 * (K - 1), 4)
    modes = {m.kind: m for m in lesde.derive(LESDE(TwoLevel(), K, K, transform="logits")).modes}
    assert sp.simplify(modes["mean"].rate - (alpha - beta) / K) == 0
    assert sp.simplify(modes["contrast"].rate - (alpha + beta / (sp.Integer(K) - 1)) / K) == 0
    multiplicities = [modes[kind].multiplicity for kind in ("mean", "contrast", "static")]
    assert multiplicities == [1, K - 1, K * K - K]


def test_symbolic_solution_is_that_of_the_mean_ode():
    """X̄(t) = m exp((A+(K−1)B)/K) + (X−m) exp((A−B)/K), differentiated, obeys the drift."""
    for model in (LESDE(TwoLevel(), 3, 2), LESDE(Hierarchical([0, 0, 1, 1]), 4, 2)):
        derivation = lesde.derive(model)
        means = [derivation.solution.mean(k) for k in range(model.n_classes)]
        M = derivation.class_matrix
        for k, mean in enumerate(means):
            drift = sum(M[k, l] * means[l] for l in range(model.n_classes))
            assert sp.simplify(sp.expand(sp.diff(mean, TIME) - drift)) == 0
            assert sp.simplify(mean.subs(TIME, 0).doit() - sp.Symbol(f"X_{k + 1}", real=True)) == 0


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_is_the_law_and_the_integration(name):
    model = CLOSED[name]
    K, p = model.n_classes, model.n_features
    times = np.array([0.3, 0.9, 2.0])
    initial = np.random.default_rng(5).normal(size=(K, p))
    closed = lesde.derive(model).solution.evaluate(times, initial)
    scale = np.abs(closed).max()
    law = lesde.law(model, times, initial)["mean"].values
    np.testing.assert_allclose(closed, law, atol=2e-11 * scale)
    solved = solve_ivp(
        lambda t, x: generator(model, t) @ x,
        (times[0], times[-1]),
        initial.ravel(),
        "DOP853",
        times,
        rtol=1e-12,
        atol=1e-13,
    )
    np.testing.assert_allclose(closed, solved.y.T.reshape(3, K, p), atol=1e-10 * scale)


@pytest.mark.parametrize("name", [n for n in CLOSED if n not in ("I callables", "I no primitive")])
def test_what_is_printed_is_what_is_evaluated(name):
    """The expression of the first mean in one feature, with numbers for its symbols."""
    model, t = CLOSED[name], 0.9
    solution, K = lesde.derive(model).solution, model.n_classes
    initial = np.random.default_rng(5).normal(size=(K, model.n_features))
    d = np.eye(K) - 1 / K
    numbers = {f"X_{l + 1}": initial[l, 0] for l in range(K)} | {"t": t}
    if solution.is_logits:
        numbers |= {f"d_{l + 1}": d[l, 0] for l in range(K)}
        numbers |= {f"s_{l + 1}": d[l] @ initial[l] / (d[l] @ d[l]) for l in range(K)}
    printed = solution.mean(0)
    printed = printed.subs({s: numbers[s.name] for s in printed.free_symbols}).evalf()
    expected = solution.evaluate([0, t], initial)[1, 0, 0]
    assert float(sp.re(printed)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", OPEN)
def test_no_closed_form_is_claimed_where_there_is_none(name):
    derivation = lesde.derive(OPEN[name])
    assert not derivation.is_closed
    assert derivation.solution is None
    assert derivation.separation_rate is None
    assert derivation.nc1_rate is None
    assert derivation.nc2_rate is None
    assert derivation.critical_constant is None


def metrics(C: np.ndarray, variance: float) -> tuple[float, float]:
    """NC1 with isotropic within-class covariance and the NC2 error, from the definitions."""
    K = len(C)
    centred = C - C.mean(0)
    nc1 = variance * np.trace(np.linalg.pinv(centred.T @ centred / K, rcond=1e-9)) / K
    gram = centred @ centred.T
    target = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    return nc1, np.linalg.norm(gram / np.linalg.norm(gram) - target)


RATES = {
    "I": (LESDE(TwoLevel("2/(1+t)", -0.5), 5, 6), 6.0, 1e-6),
    "I label noise": (LESDE(LabelNoise(TwoLevel("2/(1+t)", -0.5), 0.2), 5, 6), 6.0, 1e-6),
    "I groups": (LESDE(Hierarchical([0, 0, 1, 1, 2, 2], 2, 0.5, -0.5), 6, 6), 30.0, 1e-3),
    "L": (LESDE(TwoLevel(6, -4), 5, 5, transform="logits"), 14.0, 1e-3),
    "L static part": (LESDE(TwoLevel(-3, -6), 5, 5, transform="logits"), 18.0, 1e-3),
    "L repelling": (LESDE(TwoLevel(6, 4), 5, 5, transform="logits"), 12.0, 1e-3),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_log_derivatives_of_the_metrics(name):
    """Late on the exact means, by central differences of the metrics' definitions."""
    model, t, tolerance = RATES[name]
    K, p = model.n_classes, model.n_features
    sigma, spread, dt = 0.3, 0.2, 1e-3
    initial = np.random.default_rng(2).normal(size=(K, p))
    means = lesde.law(model, [0, t - dt, t + dt], initial)["mean"].values[1:]
    both = np.array(
        [
            metrics(C, spread**2 + sigma**2 * at)
            for C, at in zip(means, (t - dt, t + dt), strict=True)
        ]
    )
    measured = (np.log(both[1]) - np.log(both[0])) / (2 * dt)
    numbers = {"sigma": sigma, "s_0": spread, "t_0": 0.0, "t": t}
    derivation = lesde.derive(model)

    def number(rate):
        return float(rate.subs({s: numbers[s.name] for s in rate.free_symbols}))

    assert number(derivation.nc1_rate) == pytest.approx(measured[0], abs=tolerance)
    if derivation.nc2_rate is not None and name != "L repelling":
        assert number(derivation.nc2_rate) == pytest.approx(measured[1], abs=tolerance)
    if derivation.separation_rate is not None:
        gap = [np.linalg.norm(C[0] - C[1]) for C in means]
        growth = (np.log(gap[1]) - np.log(gap[0])) / (2 * dt)
        assert number(derivation.separation_rate) == pytest.approx(growth, abs=tolerance)


def test_no_etf_is_reached_where_contrasts_dominate():
    """L-model, β > 0, K = 5: the derivation says no decay, and the error of the means stays large."""
    model, t, _ = RATES["L repelling"]
    assert lesde.derive(model).nc2_rate == 0
    initial = np.random.default_rng(2).normal(size=(5, 5))
    early, late = (
        metrics(C, 1.0)[1] for C in lesde.law(model, [0, t / 2, t], initial)["mean"].values[1:]
    )
    assert early > 0.2
    assert abs(late - early) < 1e-2


@pytest.mark.parametrize("K", [2, 3, 5, 10])
def test_critical_constant(K):
    half = sp.Rational(K, 2)
    assert lesde.derive(LESDE(TwoLevel(), K, 3)).critical_constant == half
    assert lesde.derive(LESDE(TwoLevel("2/(1+t)", 0), K, 3)).critical_constant == half
    assert lesde.derive(LESDE(TwoLevel(), K, K, transform="logits")).critical_constant == half
    p = sp.Rational(1, 7)
    noisy = lesde.derive(LESDE(LabelNoise(TwoLevel(), p), K, 3)).critical_constant
    assert sp.simplify(noisy - half / (1 - p * K / (sp.Integer(K) - 1))) == 0
    at = lesde.derive(LESDE(LabelNoise(TwoLevel(), (K - 1) / K), K, 3))
    assert at.critical_constant == sp.oo
    assert sp.simplify(at.separation_rate) == 0
    beyond = LabelNoise(TwoLevel(), sp.Rational(2 * K - 1, 2 * K))
    assert lesde.derive(LESDE(beyond, K, 3)).critical_constant == sp.oo


@pytest.mark.parametrize(("factor", "sign"), [(0.8, -1), (1.25, 1)])
def test_critical_constant_is_where_the_gap_outgrows_the_spread(factor, sign):
    """Under the exact law with α − β = c/t, gap over √t falls below c = K/2 and grows above it."""
    K = 4
    c = factor * K / 2
    model = LESDE(TwoLevel(f"0.1/t + {c}/t", "0.1/t"), K, 3)
    times = np.array([1.0, 100.0, 1e4])
    means = lesde.law(model, times, np.random.default_rng(0).normal(size=(K, 3)))["mean"].values
    signal = np.linalg.norm(means[:, 0] - means[:, 1], axis=-1) / np.sqrt(times)
    slope = np.diff(np.log(signal)) / np.diff(np.log(times))
    np.testing.assert_allclose(slope, c / K - 0.5, atol=1e-6)
    assert (np.sign(slope) == sign).all()


def test_no_critical_constant_without_two_exchangeable_levels():
    assert lesde.derive(LESDE(ClassMatrix(np.eye(3)), 3, 2)).critical_constant is None
    assert lesde.derive(LESDE(TwoLevel(), 3, 2, [1, 2, 3])).critical_constant is None
    assert lesde.derive(LESDE(Hierarchical([0, 0, 1]), 3, 2)).critical_constant is None


def test_closed_form_says_what_it_lacks():
    solution = lesde.derive(LESDE(TwoLevel(), 3, 2)).solution
    with pytest.raises(ValueError, match="no value for alpha, beta; give the kernel numbers"):
        solution.evaluate([0, 1], np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"initial must have shape \(3, 2\)"):
        solution.evaluate([0, 1], np.ones((2, 3)))


def test_start_avoids_a_pole():
    assert lesde.derive(LESDE(TwoLevel("1/t", 0), 3, 2)).start == sp.Symbol("t_0", positive=True)
    assert lesde.derive(LESDE(TwoLevel("1/(1+t)", 0), 3, 2)).start == 0


@pytest.mark.parametrize(
    "text", ["(1+t+t**2+exp(t)+sin(t))**100", "*".join(f"(sin({i}*t)+{i})" for i in range(2, 30))]
)
def test_powers_of_long_sums_are_not_multiplied_out(text):
    derivation = lesde.derive(LESDE(TwoLevel(text, 0), 3, 2))
    assert [m.multiplicity for m in derivation.modes] == [4, 2]
    assert derivation.solution.mean(0).has(sp.Integral)


def test_modes_of_a_shared_matrix_are_those_of_the_full_system() -> None:
    """Against numpy's eigenvalues of the (Kp)×(Kp) matrix, with multiplicities."""
    H = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]) + 0.5 * np.eye(3)[::-1]
    for counts in (10, [5, 6, 7, 9]):
        model = LESDE(TwoLevel(2, -0.5), 4, 3, counts, transform=H)
        derivation = lesde.derive(model)
        found = [complex(m.rate) for m in derivation.modes for _ in range(m.multiplicity)]
        M = np.kron(np.asarray(derivation.class_matrix.tolist(), dtype=float), H)
        expected = np.linalg.eigvals(M)
        np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-9)
        assert derivation.solution is None
        assert derivation.separation_rate is derivation.critical_constant is None


def test_matrices_that_differ_between_classes_have_no_modes() -> None:
    H = np.stack([np.eye(2), 2 * np.eye(2)])
    derivation = lesde.derive(LESDE(TwoLevel(2, -1), 2, 2, transform=H))
    assert derivation.modes == ()
    assert not derivation.is_closed


def test_mean_ode_is_the_drift() -> None:
    derivation = lesde.derive(LESDE(TwoLevel(), 3, 2))
    assert [equation.rhs for equation in derivation.mean_ode] == list(derivation.drift)


@pytest.mark.parametrize(
    ("K", "alpha", "beta"),
    [(2, 2, 1), (2, 2, -1), (3, 2, 1), (3, 2, -1), (4, 2, 1), (4, 2, -1), (4, -2, -1), (5, 3, -1)],
)
def test_logit_rates_are_slopes_of_the_law(K, alpha, beta):
    """Late log-slopes of gap and NC2 error of the exact means, for all orders of α, β and 0."""
    derivation = lesde.derive(LESDE(TwoLevel(alpha, beta), K, K, 20, transform="logits", noise=0))
    times = np.linspace(0, 30, 61)
    initial = np.random.default_rng(1).normal(size=(K, K))
    centred = lesde.law(derivation.model, times, initial)["centred_mean"].values
    gap = np.linalg.norm(centred[:, 0] - centred[:, 1], axis=-1)
    late = slice(36, 41)  # before the NC2 error reaches rounding
    step = times[1] - times[0]
    slope = np.diff(np.log(gap))[late].mean() / step
    assert float(derivation.separation_rate) == pytest.approx(slope, abs=2e-3)
    if K == 2:
        assert derivation.nc2_rate is None
        return
    gram = centred @ centred.swapaxes(1, 2)
    gram /= np.linalg.norm(gram, axis=(1, 2))[:, None, None]
    error = np.linalg.norm(gram - (np.eye(K) - 1 / K) / np.sqrt(K - 1), axis=(1, 2))
    slope = np.diff(np.log(error))[late].mean() / step
    assert float(derivation.nc2_rate) == pytest.approx(slope, abs=2e-3)


def test_time_may_be_negative():
    model = LESDE(TwoLevel("abs(t)", 0), 2, 2, 5, noise=0)
    # ∫ |t|/2 from −2 to −1 is 3/4
    mean = lesde.law(model, [-2, -1], np.eye(2))["mean"].values[-1]
    np.testing.assert_allclose(mean, np.exp(0.75) * np.eye(2), rtol=1e-12, atol=1e-15)
