"""Expressions as torch functions: values against SymPy's own numbers, gradients against its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch

from lesde.model.compiled import compiled
from lesde.model.formula import TIME, parse_formula

TIMES = np.array([0.3, 0.7, 1.0, 2.5])
NUMBERS = {"a": 0.6, "b": -1.3, "r": 0.4}
SYMBOLS = [TIME, *(sp.Symbol(name, real=True) for name in NUMBERS)]
TEXTS = [
    "a",
    "3",
    "a*t + b",
    "a/(1+t)**r",
    "(a + t)**(-2) - sqrt(a*t) + sqrt(2)*log(3)",
    "exp(-a*t)*sin(b*t) + cos(a)*tan(r)",
    "log(a + t) - atan(b*t)",
    "sinh(a) + cosh(b*t) - tanh(r*t) + erf(a*t)",
    "abs(b) + max(a, t) - min(b*t, -1, r)",
    "a if t < 0.7 else b*t",
    "a if t <= 0.7 or t > 2 else r**t",
    "a if 0.5 < t and t < 2 else b",
    "(a if t < 0.7 else b*t if t < 2 else 3)*exp(a*t)",
    "Heaviside(t - 1)*a + 2",
    "t**a + pi*e*b",
    "3*t",
]


def evaluate(text: str, requires_grad: bool = False, times: np.ndarray = TIMES, **numbers: float):
    """Values of a text at the times as a tensor, and the tensors of the names in it."""
    values = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=requires_grad)
        for name, value in (NUMBERS | numbers).items()
    }
    expression = parse_formula("alpha", text, dict.fromkeys(NUMBERS)).expression
    function = compiled(expression, SYMBOLS, "torch", name="alpha")
    return function(torch.from_numpy(times), *values.values()), values


@pytest.mark.parametrize("text", TEXTS)
def test_values_and_gradients_are_those_of_the_expression(text):
    found, values = evaluate(text, requires_grad=True)
    expression = parse_formula("alpha", text, dict.fromkeys(NUMBERS)).expression
    numbers = dict(zip(SYMBOLS[1:], NUMBERS.values(), strict=True))
    exact = [complex(expression.subs({**numbers, TIME: t}).evalf(30)).real for t in TIMES]
    np.testing.assert_allclose(found.detach().numpy(), exact, rtol=1e-14, atol=1e-15)
    same = compiled(expression, SYMBOLS)(TIMES, *NUMBERS.values())
    np.testing.assert_allclose(same, exact, rtol=1e-14, atol=1e-15)
    for symbol in SYMBOLS[1:]:
        slope = expression.diff(symbol)
        for i, t in enumerate(TIMES):
            gradient = None
            if found.requires_grad:
                (gradient,) = torch.autograd.grad(
                    found[i], values[symbol.name], retain_graph=True, allow_unused=True
                )
            wanted = float(slope.subs({**numbers, TIME: t}).evalf(30))
            assert (0.0 if gradient is None else float(gradient)) == pytest.approx(
                wanted, rel=1e-12, abs=1e-14
            )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_leading_batch_broadcasts_and_keeps_its_dtype(text, dtype):
    expression = parse_formula("alpha", text, dict.fromkeys(NUMBERS)).expression
    batch = torch.rand(3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.1
    times = torch.rand(4, 1, generator=torch.Generator().manual_seed(1), dtype=dtype)
    function = compiled(expression, SYMBOLS, "torch")
    found = function(times, batch, torch.tensor(-1.3, dtype=torch.float64), 0.4)
    expected = compiled(expression, SYMBOLS)(
        times.double().numpy(), batch.double().numpy(), -1.3, 0.4
    )
    assert found.dtype == dtype
    assert found.shape == expected.shape == (3, 4, 2)
    np.testing.assert_allclose(found, expected, rtol=100 * torch.finfo(dtype).eps)


def test_a_case_is_evaluated_at_its_own_times_only():
    """√(t − 1) has neither value nor finite slope before t = 1, where the other case holds."""
    text = "a*sqrt(t - 1) + log(t - 0.9) if t > 1 else b"
    found, values = evaluate(text, requires_grad=True)
    found.sum().backward()
    assert float(values["a"].grad) == pytest.approx(np.sqrt(1.5), rel=1e-14)
    assert float(values["b"].grad) == 3.0
    found, values = evaluate("sqrt(t - a) if t > 1 else b", requires_grad=True, a=1.0)
    (slope,) = torch.autograd.grad(found.sum(), values["a"], create_graph=True)
    (curvature,) = torch.autograd.grad(slope, values["a"])
    assert float(slope.detach()) == pytest.approx(-0.5 * 1.5**-0.5, rel=1e-14)
    assert float(curvature) == pytest.approx(-0.25 * 1.5**-1.5, rel=1e-14)


@pytest.mark.parametrize(
    "text", ["1/(1 + a*exp(b*t))", "1/(1 + a*cosh(b*t))", "b/(1 + exp(b*t)**2)"]
)
def test_what_overflows_on_the_way_to_a_finite_value_has_gradient_zero(text):
    found, values = evaluate(text, requires_grad=True, times=np.array([1.0]), b=1000.0)
    assert float(found.detach()) == 0.0
    gradients = torch.autograd.grad(found.sum(), [values["a"], values["b"]], allow_unused=True)
    assert all(g is None or float(g) == 0.0 for g in gradients)


def test_callables_of_time_go_along():
    formula = parse_formula("alpha", lambda t: np.cos(t))
    a = sp.Symbol("a", real=True)
    for backend, times in (("numpy", TIMES), ("torch", torch.from_numpy(TIMES))):
        function = compiled(a * formula.expression, [TIME, a], backend, formula.functions)
        np.testing.assert_allclose(function(times, 0.6), 0.6 * np.cos(TIMES), rtol=1e-15)


@pytest.mark.parametrize("text", ["1 if t < a else 0", "Heaviside(t - a)", "b if t*a > 1 else 2"])
def test_a_switch_that_moves_is_refused_with_a_gradient_only(text):
    with pytest.raises(ValueError, match=r"alpha switches where .* depends on a: gradients"):
        evaluate(text, requires_grad=True)
    fixed, _ = evaluate(text)
    number = parse_formula("alpha", text, NUMBERS)(TIMES)
    np.testing.assert_allclose(fixed, number, rtol=1e-15)


def test_functions_without_a_gradient_are_named():
    from scipy.special import gamma

    a = sp.Symbol("a", real=True)
    moving = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    function = compiled(sp.gamma(a * TIME), [TIME, a], "torch", name="alpha")
    with pytest.raises(
        ValueError, match=r"alpha contains gamma\(a\*t\), a function that has no grad"
    ):
        function(torch.from_numpy(TIMES), moving)
    np.testing.assert_allclose(function(torch.from_numpy(TIMES), 0.6), gamma(0.6 * TIMES))
    product = compiled(a * sp.gamma(TIME), [TIME, a], "torch")(torch.from_numpy(TIMES), moving)
    np.testing.assert_allclose(product.detach(), 0.6 * gamma(TIMES), rtol=1e-14)


@pytest.mark.parametrize("given", ["__import__('os')", ["a", "t"], lambda t: t])
def test_only_expressions_are_compiled(given):
    """A text could be executed by SymPy: texts are read by `parse_formula`."""
    with pytest.raises(TypeError, match="must be a SymPy expression"):
        compiled(given, TIME)
