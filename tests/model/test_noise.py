"""Noise as numbers and functions of time: what is read, its integrals, what is refused."""

from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad, quad_vec

import lesde
from lesde import LESDE, TwoLevel

T = sp.Symbol("t")
TIMES = np.array([0.0, 0.3, 2.0])


def read_noise(noise, n_classes, n_features):
    """The noise of a model, with what it is at any time."""
    return LESDE(TwoLevel(), n_classes, n_features, noise=noise).noise_table


def ramp(t):
    return 1.0 + t


# argument, (constant, isotropic, shared), σ of class 1 (of three, in two dimensions) at t = 2
READ = {
    "number": (0.3, (1, 1, 1), 0.3 * np.eye(2)),
    "number as text": ("0.3", (1, 1, 1), 0.3 * np.eye(2)),
    "NumPy scalar": (np.float32(0.5), (1, 1, 1), 0.5 * np.eye(2)),
    "rational": (sp.Rational(1, 4), (1, 1, 1), 0.25 * np.eye(2)),
    "formula": ("0.3/(1+t)", (0, 1, 1), 0.1 * np.eye(2)),
    "SymPy": (sp.sqrt(2 * T), (0, 1, 1), 2 * np.eye(2)),
    "callable": (ramp, (0, 1, 1), 3 * np.eye(2)),
    "per class": (["t", 0.5, "1+t"], (0, 1, 0), 0.5 * np.eye(2)),
    "per class, alike": (["t", T, "t"], (0, 1, 1), 2 * np.eye(2)),
    "per class, object array": (np.array([1, "t", ramp], dtype=object), (0, 1, 0), 2 * np.eye(2)),
    "matrix": ([["t", 0], [-1, "1/t"]], (0, 0, 1), [[2, 0], [-1, 0.5]]),
    "SymPy matrix": (sp.Matrix([[T, 0], [1, 2]]), (0, 0, 1), [[2, 0], [1, 2]]),
    "matrix of callables": ([[ramp, 0], [0, 1]], (0, 0, 1), [[3, 0], [0, 1]]),
    "multiple of the identity": ([["t", 0], [0, "t"]], (0, 1, 1), 2 * np.eye(2)),
    "numbers in a matrix": ([["1", 0], ["1/2", 2]], (1, 0, 1), [[1, 0], [0.5, 2]]),
    "matrices": ([[["t", 0], [0, 1]], np.eye(2), np.ones((2, 2))], (0, 0, 0), np.eye(2)),
}


@pytest.mark.parametrize("name", READ)
def test_read(name):
    given, kinds, factor = READ[name]
    noise = LESDE(TwoLevel(), 3, 2, noise=given).noise_table
    assert (noise.is_constant, noise.is_isotropic, noise.is_shared) == tuple(map(bool, kinds))
    times = np.array([0.5, 2.0])
    np.testing.assert_allclose(noise.factor(times)[1, 1], factor, rtol=1e-15)
    assert noise.factor(times).shape == (2, 3, 2, 2)
    if noise.is_isotropic:
        assert noise.scale(times).shape == (2, 3)
        np.testing.assert_array_equal(noise.scale(times)[:, 1], noise.factor(times)[:, 1, 0, 0])
    else:
        with pytest.raises(ValueError, match=r"noise has p×p factors"):
            noise.scale(times)
    expression = sp.sympify(noise.expression(1)).subs("t", 2).subs(sp.Symbol("t", real=True), 2)
    if not expression.atoms(sp.Function):
        expected = factor[0][0] if noise.is_isotropic else factor
        np.testing.assert_allclose(np.array(expression).astype(float), expected, rtol=1e-15)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7234512345678912, 1e-300, 2**-0.5, 123456.789])
def test_a_constant_formula_is_the_number_bit_for_bit(value):
    for text in (repr(value), sp.Float(value, 17), [repr(value)] * 3):
        model = LESDE(TwoLevel(1, 0), 3, 2, noise=text)
        assert model.noise.dtype == np.float64
        assert (model.noise == value).all()
        assert (lesde.derive(model).coefficients().noise.scale([0.0]) == value).all()


def test_coefficients_of_noise_in_time():
    coefficients = lesde.derive(LESDE(TwoLevel(1, 0), 3, 2, noise="1+t")).coefficients()
    np.testing.assert_array_equal(coefficients.noise.scale([1.0])[0], [2, 2, 2])
    assert coefficients.n_features == 2


# formula, the same in Python, where scipy needs to look
SHARP = {
    "smooth": ("0.3/(1+t)", lambda t: 0.3 / (1 + t), None),
    "fast": ("1 + sin(200*t)", lambda t: 1 + np.sin(200 * t), np.linspace(0, 5, 400)),
    "peak": ("exp(-1e5*(t-0.7)**2)", lambda t: np.exp(-1e5 * (t - 0.7) ** 2), [0.69, 0.7, 0.71]),
    "layer": ("exp(-1e6*t) + 0.01", lambda t: np.exp(-1e6 * t) + 0.01, [1e-6, 1e-5, 1e-4]),
    "jump": ("1 if t < 0.7123 else 3", lambda t: 1.0 if t < 0.7123 else 3.0, [0.7123]),
    "kink": ("abs(t - 1/3)", lambda t: abs(t - 1 / 3), [1 / 3]),
    "root": ("t**0.25", lambda t: t**0.25, None),
}


@pytest.mark.parametrize("name", SHARP)
def test_integrated_against_scipy(name):
    text, function, points = SHARP[name]
    times = np.array([0.0, 0.9, 5.0])
    got = read_noise([text, 2, "t"], 3, 2).integrated_scale(times)
    for i, (a, b) in enumerate(itertools.pairwise(times)):
        inside = None if points is None else [x for x in points if a < x < b] or None
        expected, _ = quad(
            lambda t: function(t) ** 2, a, b, points=inside, epsabs=0, epsrel=1e-13, limit=2000
        )
        np.testing.assert_allclose(got[i, 0], expected, rtol=2e-13)
        np.testing.assert_allclose(got[i, 1:], [4 * (b - a), (b**3 - a**3) / 3], rtol=1e-14)


def test_integrated_matrices_against_scipy():
    text = [["0.3 + t", "-t**2/5"], ["cos(30*t)", "exp(-t)"]]
    noise = read_noise([text, np.eye(2), [["t", 0], [0, "2*t"]]], 3, 2)
    got = noise.integrated(TIMES)

    def square(t):
        s = np.array([[0.3 + t, -(t**2) / 5], [np.cos(30 * t), np.exp(-t)]])
        return s @ s.T

    for a, b, part in zip(TIMES, TIMES[1:], got, strict=False):
        expected, _ = quad_vec(square, a, b, epsabs=1e-15, limit=5000)
        np.testing.assert_allclose(part[0], expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(part[1], (b - a) * np.eye(2), rtol=1e-14)
        np.testing.assert_allclose(part[2], (b**3 - a**3) / 3 * np.diag([1, 4.0]), rtol=1e-14)


def test_integrated_is_exact_for_numbers_and_adds_up():
    noise = read_noise([[1.0, 0.5], [0, 2]], 3, 2)
    factor = noise.factor(TIMES[:1])
    expected = np.diff(TIMES)[:, None, None, None] * (factor @ factor.swapaxes(-1, -2))
    np.testing.assert_array_equal(noise.integrated(TIMES), expected)
    peaked = read_noise("exp(-1e8*(t-1.5)**2)", 2, 1)
    total = peaked.integrated_scale([0.0, 1.4999, 1.5001, 2.0]).sum(0)  # edges on its flanks
    # On the flanks the rounding of a time near 1.5 alone changes the integrand by 4e8·1e-4·1e-16.
    np.testing.assert_allclose(total, np.sqrt(np.pi / 2e8), rtol=1e-11)
    assert peaked.integrated_scale([1.0]).shape == (0, 2)
    assert peaked.integrated([1.0]).shape == (0, 2, 1, 1)


@pytest.mark.parametrize("start", [1e4, 1e6, 1e8])
def test_integrals_at_late_times_end_where_rounding_begins(start):
    """At t = 1e8 a time is known to 1e-8 only, and so is sin(100 t): the integral ends there."""
    times = np.array([start, start + 1.0])
    got = read_noise("1 + 0.5*sin(100*t)", 1, 1).integrated_scale(times)[0, 0]
    a, b = sp.Float(start, 40), sp.Float(start + 1, 40)
    u = sp.Symbol("u")
    F = sp.integrate((1 + sp.sin(100 * u) / 2) ** 2, u)
    np.testing.assert_allclose(got, float(F.subs(u, b) - F.subs(u, a)), rtol=100 * 2e-16 * start)
    jump = read_noise(f"1 if t < {start + 0.25} else 2", 1, 1).integrated_scale(times)[0, 0]
    np.testing.assert_allclose(jump, 0.25 + 4 * 0.75, rtol=2e-16 * start)


def test_parameters_and_replace():
    model = LESDE(TwoLevel(1, 0), 3, 2, noise=["s/(1+t)", 0.1, "s"], parameters={"s": 0.3})
    np.testing.assert_allclose(model.noise_table.scale([0, 1]), [[0.3, 0.1, 0.3], [0.15, 0.1, 0.3]])
    other = model.replace(parameters={"s": 0.6})
    np.testing.assert_allclose(other.noise_table.scale([0.0]), [[0.6, 0.1, 0.6]])
    same = model.replace(n_per_class=7)
    np.testing.assert_array_equal(same.noise_table.scale([1.0]), model.noise_table.scale([1.0]))
    constant = LESDE(TwoLevel(1, 0), 3, 2, noise="s/10", parameters={"s": 3})
    assert (constant.noise, constant.replace(parameters={"s": 5}).noise) == (0.3, 0.5)
    wider = LESDE(TwoLevel(1, 0), 3, 2, noise="t").replace(n_classes=5, n_features=4)
    assert wider.noise_table.factor([1.0]).shape == (1, 5, 4, 4)


def test_a_name_left_free_can_be_derived_from_but_not_evaluated():
    model = LESDE(TwoLevel(1, 0), 3, 2, noise="s/(1+t)", parameters={"s": None})
    assert "s/(t + 1)" in str(lesde.derive(model).diffusion.factor(0))
    with pytest.raises(ValueError, match=r"noise = s/\(t \+ 1\) has no value for s"):
        lesde.law(model, [0.0, 1.0])
    assert model.replace(parameters={"s": 2}).noise_table.scale([1.0])[0, 0] == 1


def test_what_is_given_can_change_later():
    given = [["t", 0.0], [0.0, "1"]]
    model = LESDE(TwoLevel(1, 0), 3, 2, noise=given)
    given[0][0] = 7
    assert model.replace().noise_table.factor([3.0])[0, 0, 0, 0] == 3
    with pytest.raises(ValueError, match="read-only"):
        model.noise[0, 0] = 1


@pytest.mark.parametrize("name", [n for n in READ if "callable" not in n and "object" not in n])
def test_described_as_json_and_read_back(name):
    model = LESDE(TwoLevel("1/(1+t)", 0), 3, 2, noise=READ[name][0])
    text = json.loads(json.dumps(model.describe()))["noise"]
    again = model.replace(noise=text)
    times = np.array([0.5, 2.0])
    # SymPy may order the text's operations otherwise: equal to rounding.
    np.testing.assert_allclose(
        again.noise_table.factor(times), model.noise_table.factor(times), rtol=4e-16
    )


@pytest.mark.parametrize("name", READ)
def test_pickled(name):
    noise = LESDE(TwoLevel(1, 0), 3, 2, noise=READ[name][0])
    copy = pickle.loads(pickle.dumps(noise))
    times = np.array([0.5, 2.0])
    np.testing.assert_array_equal(copy.noise_table.factor(times), noise.noise_table.factor(times))
    assert repr(copy) == repr(noise)


def test_shown():
    assert "noise='3/(10*(t + 1))')" in repr(LESDE(TwoLevel(1, 0), 3, 2, noise="0.3/(1+t)"))
    assert "noise=array(3,))" in repr(LESDE(TwoLevel(1, 0), 3, 2, noise=[1, "t", 2]))
    assert LESDE(TwoLevel(1, 0), 3, 2, noise=[1, "t", ramp]).describe()["noise"] == [
        1.0,
        "t",
        "sigma_3(t)",
    ]


def test_factor_of_the_model_at_a_time():
    model = LESDE(TwoLevel(1, 0), 3, 2, noise="1+t")
    np.testing.assert_array_equal(model.noise_factor(2.0)[0], 3 * np.eye(2))
    with pytest.raises(ValueError, match=r"time must be given, as the noise.*got None"):
        model.noise_factor()


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        ("1/", ValueError, r"noise = '1/' is not a usable formula: syntax error"),
        ("s*t", ValueError, r"noise = 's\*t' is not a usable formula: unknown symbol 's'"),
        ("-1/2", ValueError, r"noise must not be negative .* noise is -0\.5"),
        (["t", -1, 2], ValueError, r"noise must not be negative .* -1 for class 1"),
        (["t", "1"], ValueError, r"noise must be one value or of shape \(3,\) or \(2, 2\).*\(2,\)"),
        ([["t", 1], [0]], TypeError, "noise must be an array"),
        ([["t", None], [0, 1]], TypeError, r"noise\[0\]\[1\] must be a number, a string.*got None"),
        (["t", True, 1], TypeError, r"noise\[1\] must be a number, .* got True"),
        (["t", np.nan, 1], ValueError, r"noise\[1\] must be a finite number.*got nan"),
        ("sqrt(-1)", ValueError, r"noise = 'sqrt\(-1\)' must be real"),
        (1j, TypeError, "noise must be an array of real numbers; got 1j"),
        (True, TypeError, "noise must be an array of real numbers; got True"),
        ({}, TypeError, "noise must be a number, a string.*got {}"),
    ],
)  # fmt: skip
def test_refused(noise, error, message):
    with pytest.raises(error, match=message):
        LESDE(TwoLevel(1, 0), 3, 2, noise=noise)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"s": "1"}, TypeError, r"parameters\['s'\] must be a real number.*; got '1'"),
        ({"t": 1.0}, ValueError, "parameters may not contain 't'"),
        ([1.0], TypeError, r"parameters must be a mapping of names to numbers.*got \[1\.0\]"),
    ],
)
def test_parameters_refused(parameters, error, message):
    for noise in (0.1, "0.1*t"):
        with pytest.raises(error, match=message):
            LESDE(TwoLevel(1, 0), 3, 2, noise=noise, parameters=parameters)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("1/(t - 0.7)**2", r"noise( = .* is not finite| changes too abruptly).* t = 0\.7"),
        (
            lambda t: 1 / np.abs(t - 0.3141) ** 0.5,
            r"noise( = .* is not finite| changes too abruptly).* t = 0\.3141",
        ),
        ("log(t)", r"noise = log\(t\) is not finite at t = 0"),
        ("1 - t", r"noise must not be negative at any time; noise = 1 - t is -1 at t = 2"),
        (["1", "1", "0.5 - t"], r"noise\[2\] = 1/2 - t is -1\.5 at t = 2"),
        (lambda t: t * 1j, r"noise = sigma\(t\) is not finite at t = 0\.3"),
        (lambda t: np.ones(3 + t.size), "noise must return one value per time"),
        (T * sp.Symbol("s"), r"noise = s\*t has no value for s"),
    ],
)
def test_integrals_that_do_not_exist(noise, message):
    with pytest.raises(ValueError, match=message):
        read_noise(noise, 3, 2).integrated_scale(TIMES)
