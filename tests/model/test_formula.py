"""Formulas: what they evaluate to, and that hostile or wrong text gives one clear error."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from lesde import TwoLevel

TIMES = np.array([0.0, 0.05, 0.5, 1.0, 1.75, 30.0])


def values(formula, parameters=None, times=TIMES):
    """α at the times, of a kernel made with this formula."""
    return TwoLevel(formula, 0, parameters).entries(1)(times)[:, 0, 0]


def expression(formula, parameters=None):
    return TwoLevel(formula, 0, parameters).levels[0]


@pytest.fixture
def time_limit():
    """Ends a test that hangs; a parser that computes a huge power would never return."""

    def expired(*_):
        raise TimeoutError("the parser did not return")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


VALUES = [
    ("2/(1+t)", lambda t: 2 / (1 + t)),
    ("-t**2 + 3*t - 1e-3", lambda t: -(t**2) + 3 * t - 1e-3),
    ("exp(-2*t)*cos(pi*t)", lambda t: np.exp(-2 * t) * np.cos(np.pi * t)),
    ("e**(-t)", lambda t: np.exp(-t)),
    ("log(1+t) + sqrt(t) + ln(2)", lambda t: np.log1p(t) + np.sqrt(t) + np.log(2)),
    ("2 if t < 1 else 3", lambda t: np.where(t < 1, 2.0, 3.0)),
    (
        "t if 0.5 <= t < 1.5 else (2 if t > 20 or t < 0.1 else -1)",
        lambda t: np.where((t >= 0.5) & (t < 1.5), t, np.where((t > 20) | (t < 0.1), 2.0, -1.0)),
    ),
    ("1 if t > 0.2 and t <= 1.75 else 0", lambda t: ((t > 0.2) & (t <= 1.75)) * 1.0),
    ("max(0, 1 - t)", lambda t: np.maximum(0, 1 - t)),
    ("min(t, 1, 2 - t)", lambda t: np.minimum(np.minimum(t, 1), 2 - t)),
    ("abs(t - 1) + Heaviside(t - 0.7)", lambda t: np.abs(t - 1) + (t > 0.7)),
    ("tanh(t) - atan(t)", lambda t: np.tanh(t) - np.arctan(t)),
    ("0.12345678912345678*t", lambda t: 0.12345678912345678 * t),
    ("exp(-1000000*t)", lambda t: np.exp(-1e6 * t)),
]


@pytest.mark.parametrize(("text", "expected"), VALUES, ids=[v[0] for v in VALUES])
def test_text_evaluates_as_numpy_does(text, expected):
    np.testing.assert_allclose(values(text), expected(TIMES), rtol=4e-16, atol=1e-15)


def test_numbers_of_every_kind():
    for value in (0.5, 1 / 3, np.float32(0.1), np.int64(3), -7, 0.12345678912345678, 1e-300):
        assert values(value)[2] == float(value)
    assert expression(0.1) == sp.Rational(1, 10)
    assert expression(2 / 3) == sp.Rational(2, 3)


def test_float_survives_exactness():
    """Whatever the float, the exact number that stands for it rounds back to it."""
    rng = np.random.default_rng(0)
    for value in np.concatenate([rng.normal(size=200), 10.0 ** rng.uniform(-300, 300, 200)]):
        assert float(expression(float(value))) == value


def test_parameters_and_foreign_symbols():
    np.testing.assert_array_equal(values("a*t + b", {"a": 2, "b": -0.25}), 2 * TIMES - 0.25)
    foreign, rate = sp.symbols("t r")  # a `t` without the package's assumptions
    decay = sp.exp(-rate * foreign)
    assert expression(decay, {"r": 0.5}) == expression("exp(-t/2)")
    np.testing.assert_allclose(values(decay, {"r": 0.5}), np.exp(-TIMES / 2), rtol=1e-15)
    piecewise = sp.Piecewise((1, foreign < 1), (foreign, True))
    np.testing.assert_array_equal(values(piecewise), np.where(TIMES < 1, 1, TIMES))


def test_callable_keeps_its_name_and_values():
    assert str(expression(np.exp)) == "alpha(t)"
    np.testing.assert_array_equal(values(np.exp), np.exp(TIMES))
    np.testing.assert_array_equal(values(lambda t: 2.0), np.full(TIMES.shape, 2.0))

    class Unhashable:
        __hash__ = None

        def __call__(self, t):
            return 3 * t

    np.testing.assert_array_equal(values(Unhashable()), 3 * TIMES)


def test_two_callables_of_one_name_are_not_confused():
    first, second = TwoLevel(np.exp, 0).entries(1), TwoLevel(np.cos, 0).entries(1)
    np.testing.assert_array_equal(first(TIMES)[:, 0, 0], np.exp(TIMES))
    np.testing.assert_array_equal(second(TIMES)[:, 0, 0], np.cos(TIMES))


HOSTILE = [
    "__import__('os').system('touch {0}')",
    "__import__('pathlib').Path('{0}').touch()",
    "open('{0}', 'w')",
    "exec(\"open('{0}','w')\")",
    "(lambda: open('{0}', 'w'))()",
    "[open('{0}', 'w') for x in (1,)]",
    "exp(open('{0}', 'w'))",
    "1 if open('{0}', 'w') else 2",
    "f\"{{open('{0}', 'w')}}\"",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_runs_nothing(text, tmp_path):
    target = tmp_path / "x"
    with pytest.raises(ValueError, match=r"alpha = .* is not a usable formula"):
        TwoLevel(text.format(target))
    assert not Path(target).exists()


REFUSED = [
    *[
        (text, r"is not allowed; use numbers, t, .* \+ - \* / \*\* \(not \^\), .* exp, ")
        for text in (
            *("t.__class__", "().__class__.__bases__[0]", "exp.__globals__", "[t]", "(t:=3)"),
            *("t^2", "t//2", "t != 1", "'a'", "1j", "True"),
            *("exp()", "exp(1, 2)", "exp(t=2)", "foo(t)"),
        )
    ],
    ("__builtins__", "unknown symbol '__builtins__'; known are t, pi, e, E"),
    ("exp", "unknown symbol 'exp'"),
    ("a*t", r"unknown symbol 'a'.*parameters=\{'a': \.\.\.\}"),
    ("2*", "syntax error"),
    ("", "syntax error"),
    ("t t", "syntax error"),
    ("\x00", "syntax error|null bytes"),
    ("t > 1", r"the condition 't > 1' stands where a number must"),
    ("(t > 1) + 1", r"the condition 't > 1' stands where a number must"),
    ("-(t > 1)", "stands where a number must"),
    ("abs(t > 1)", "stands where a number must"),
    ("min(t > 1, 2)", "stands where a number must"),
    ("(t < 1) < 2", "stands where a number must"),
    ("1 if t else 2", "the number 't' stands where a condition must"),
    ("t and 1", "stands where a condition must"),
    ("1 if sqrt(-1) < 2 else 1", "cannot be computed"),
    ("1/0", "'1 / 0' is not finite"),
    ("0*log(0)", r"'log\(0\)' is not finite"),
    ("0/0", "is not finite"),
    ("max(1/0, 1)", "is not finite"),
    ("10**400", "an exponent may be at most 100"),
    ("1e400", "too large for a floating-point number"),
    ("9" * 400, "too large for a floating-point number"),
    ("10**100*10**100*10**100*10**100", "too large for a floating-point number"),
    ("exp(1000)", "an exponent may be at most 700"),
    ("exp(10**9*log(2))", "an exponent may be at most 700"),
    ("2**(t + 10**9)", "numbers in an exponent"),
    ("2**exp(exp(exp(100)))", "too large|exponent"),
    ("1 if exp(exp(exp(9))) > 1 else 2", "too large|exponent"),
    ("9**9**9**9", "an exponent may be at most 100"),
    ("t**" * 100 + "2", "nested too deeply"),
    ("exp(" * 90 + "t" + ")" * 90, "nested too deeply"),
    ("1/(1+" * 80 + "t" + ")" * 80, "nested too deeply"),
    ("-" * 450 + "t", "nested too deeply"),
    ("(" * 240 + "t" + ")" * 240, "syntax error"),
    ("t+" * 300 + "1", "at most 500 characters, and has 601"),
]


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[r[0][:30] or "empty" for r in REFUSED])
def test_refused_text_says_why(text, message):
    with pytest.raises(ValueError, match=message) as error:
        TwoLevel(text)
    assert str(error.value).startswith("alpha = ")


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize(
    "text",
    ["((((10**-100)**100)**100)**100)**100", "(((1+1/10**6)**100)**100)**100*t", "t+" * 99 + "1"],
)
def test_long_but_harmless_text_is_read_quickly(text):
    assert np.isfinite(values(text, times=np.array([1.0]))).all()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            {},
            TypeError,
            r"beta must be a number, a string or SymPy expression in t, or .*got \{\}",
        ),
        (True, TypeError, "beta must be a number.*got True"),
        ([1, 2], TypeError, r"beta must be a number.*got \[1, 2\]"),
        (float("nan"), ValueError, "beta must be a finite number.*got nan"),
        (float("-inf"), ValueError, "beta must be a finite number.*got -inf"),
        (10**400, ValueError, "beta must be a finite number"),
        (sp.oo, ValueError, "beta = oo must be real and finite"),
        (sp.I, ValueError, "beta = I must be real and finite"),
        ("(-1)**0.5", ValueError, "beta = .* must be real and finite; it is I"),
    ],
)
def test_unusable_values(value, error, message):
    with pytest.raises(error, match=message):
        TwoLevel(0, value)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"a": "2"}, TypeError, r"parameters\['a'\] must be a real number; got '2'"),
        ({"a": True}, TypeError, r"parameters\['a'\]"),
        ({"a": float("nan")}, ValueError, r"parameters\['a'\] must be a finite number.*got nan"),
        ({"t": 1}, ValueError, "may not contain 't', a variable"),
    ],
)
def test_unusable_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        TwoLevel(0, "t", parameters)


def test_names_without_a_value_are_named_at_evaluation():
    formula = sp.Symbol("c") / (1 + sp.Symbol("t")) + sp.Function("g")(sp.Symbol("t"))
    with pytest.raises(ValueError, match=r"alpha = .* has no value for c, g.*parameters=\{"):
        values(formula)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqrt(1 - t)", r"alpha = sqrt\(1 - t\) is not finite at t = 1\.75; it must be real"),
        ("1/t", "alpha = 1/t is not finite at t = 0;"),
        ("1/(t - 0.5)", "is not finite at t = 0.5;"),
        (
            "exp(exp(t))",
            "is not finite at t = 30; .*real and finite.*Change the formula or the times",
        ),
        ("log(t - 1)", "at t = 0;"),
    ],
)
def test_bad_value_at_some_time_names_it(text, message):
    with pytest.raises(ValueError, match=message):
        values(text)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda t: 1.0 if t > 1 else 0.0, "alpha cannot be evaluated.*ValueError.*numpy.where"),
        (lambda t: t.nothing, "alpha cannot be evaluated.*AttributeError"),
        (lambda t: t[:2], r"alpha must return one value per time: given times of shape \(6,\)"),
        (lambda t: None, "alpha must return one value per time: .* returned None|array"),
        (lambda t: t + 1j, r"alpha = alpha\(t\) is .* at t = 0;"),
        (lambda t: np.full_like(t, np.nan), "is not finite at t = 0;"),
    ],
)
def test_bad_callables(function, message):
    with pytest.raises(ValueError, match=message):
        values(function)
