"""Formulas as torch functions: values against SymPy's own numbers, gradients against its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch

from lesde.laws.system import BoundTable, Evaluation
from lesde.model.formula import TIME, EntryTable, parse_formula

TIMES = np.array([0.3, 0.7, 1.0, 2.5])
NUMBERS = {"a": 0.6, "b": -1.3, "r": 0.4}
FREE = dict.fromkeys(NUMBERS)
TEXTS = [
    "a",
    "a*t + b",
    "a/(1+t)**r",
    "(a + t)**(-2) - sqrt(a*t)",
    "exp(-a*t)*sin(b*t) + cos(a)*tan(r)",
    "log(a + t) - atan(b*t)",
    "sinh(a) + cosh(b*t) - tanh(r*t) + erf(a*t)",
    "abs(b) + max(a, t) - min(b*t, -1, r)",
    "a if t < 0.7 else b*t",
    "a if t <= 0.7 or t > 2 else r**t",
    "a if 0.5 < t and t < 2 else b",
    "Heaviside(t - 1)*a + 2",
    "t**a + pi*e*b",
    "3*t",
]


def tensors(requires_grad: bool = False) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=requires_grad)
        for name, value in NUMBERS.items()
    }


def evaluate(text: str, values: dict[str, torch.Tensor]) -> torch.Tensor:
    formula = parse_formula("alpha", text, FREE)
    result = Evaluation(TIMES, values, formula.functions, "alpha")(formula.expression)
    return result.expand(len(TIMES))


@pytest.mark.parametrize("text", TEXTS)
def test_values_and_gradients_are_those_of_the_expression(text):
    values = tensors(requires_grad=True)
    found = evaluate(text, values)
    expression = parse_formula("alpha", text, FREE).expression
    symbols = {str(s): s for s in expression.free_symbols - {TIME}}
    numbers = {symbol: NUMBERS[name] for name, symbol in symbols.items()}
    exact = [complex(expression.subs({**numbers, TIME: t}).evalf(30)).real for t in TIMES]
    np.testing.assert_allclose(found.detach().numpy(), exact, rtol=1e-14, atol=1e-15)
    for name, symbol in symbols.items():
        slope = expression.diff(symbol)
        for i, t in enumerate(TIMES):
            (gradient,) = torch.autograd.grad(
                found[i], values[name], retain_graph=True, allow_unused=True
            )
            wanted = float(slope.subs({**numbers, TIME: t}).evalf(30))
            assert (0.0 if gradient is None else float(gradient)) == pytest.approx(
                wanted, rel=1e-12, abs=1e-14
            )


def test_a_case_is_evaluated_at_its_own_times_only():
    """√(t − 1) has neither value nor finite slope before t = 1, where the other case holds."""
    values = tensors(requires_grad=True)
    found = evaluate("a*sqrt(t - 1) + log(t - 0.9) if t > 1 else b", values)
    found.sum().backward()
    assert float(values["a"].grad) == pytest.approx(np.sqrt(1.5), rel=1e-14)
    assert float(values["b"].grad) == 3.0


def test_callables_of_time_go_along():
    formula = parse_formula("alpha", lambda t: np.cos(t))
    expression = sp.Symbol("a") * formula.expression
    found = Evaluation(TIMES, tensors(), formula.functions, "alpha")(expression)
    np.testing.assert_allclose(found.numpy(), 0.6 * np.cos(TIMES), rtol=1e-15)


@pytest.mark.parametrize("text", ["1 if t < a else 0", "Heaviside(t - a)", "b if t*a > 1 else 2"])
def test_a_switch_that_moves_is_refused_with_a_gradient_only(text):
    with pytest.raises(ValueError, match=r"alpha switches where .* depends on a: gradients"):
        evaluate(text, tensors(requires_grad=True))
    fixed = evaluate(text, tensors())
    number = parse_formula("alpha", text, NUMBERS)(TIMES)
    np.testing.assert_allclose(fixed.numpy(), number, rtol=1e-15)


def test_functions_without_a_gradient_are_named():
    a = sp.Symbol("a")
    with pytest.raises(
        ValueError, match=r"alpha contains gamma\(a\*t\), a function that has no grad"
    ):
        Evaluation(TIMES, tensors(), {}, "alpha")(sp.gamma(a * TIME))
    # Without a free name it is left to SciPy.
    found = Evaluation(TIMES, tensors(), {}, "alpha")(a * sp.gamma(TIME))
    from scipy.special import gamma

    np.testing.assert_allclose(found.numpy(), 0.6 * gamma(TIMES), rtol=1e-14)


def test_tables_keep_their_index_and_name_bad_values():
    formulas = {
        "alpha": parse_formula("alpha", "a*t", FREE),
        "beta": parse_formula("beta", "log(b + t)", FREE),
    }
    table = EntryTable.from_formulas(formulas, np.array([[0, 1], [1, 0]]))
    values = tensors()
    found = BoundTable(table, values, "kernel")(TIMES[3:])
    expected = np.log(1.2)
    np.testing.assert_allclose(found.numpy(), [[[1.5, expected], [expected, 1.5]]], rtol=1e-14)
    with pytest.raises(
        ValueError,
        match=r"beta = log\(b \+ t\) is not a finite real number at t = 0.3 for b = -1.3",
    ):
        BoundTable(table, values, "kernel")(TIMES)
