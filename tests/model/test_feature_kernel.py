"""Feature kernels as the user meets them: formulas, refusals, the model around them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sympy as sp
import torch

import lesde
from lesde import LESDE, FeatureKernel, LabelNoise, TwoLevel
from lesde.model.formula import FEATURE_VARIABLES, TIME, compiled, parse_pair_formula

FORMULA = "s*a*exp(-r2/8) - (1-s)*exp(-r2/2)/(1+t)"


def test_formula_and_parameters():
    kernel = FeatureKernel(FORMULA, {"a": 2})
    assert kernel.depends_on_features
    assert not TwoLevel(1, 0).depends_on_features
    assert kernel.levels is None
    value = kernel.formula(r2=3.0, g=0.1, c=0.2, s=[1, 0], t=0.5)
    np.testing.assert_allclose(value, [2 * np.exp(-3 / 8), -np.exp(-1.5) / 1.5], rtol=1e-15)
    free = FeatureKernel(FORMULA, {"a": None})
    assert free.formula.unresolved() == ["a"]
    assert free.with_parameters({"a": 2}).formula == kernel.formula
    assert json.loads(json.dumps(kernel.describe())) == {
        "kind": "FeatureKernel",
        "strength": "2*s*exp(-r2/8) - (1 - s)*exp(-r2/2)/(t + 1)",
    }
    assert repr(kernel).startswith("FeatureKernel(strength=2*s*exp(-r2/8)")


def test_symbols_of_the_user_are_known_by_name():
    r2, s, t, a = sp.symbols("r2 s t a")
    given = FeatureKernel(s * a * sp.exp(-r2 / 8) - (1 - s) * sp.exp(-r2 / 2) / (1 + t), {"a": 2})
    assert given.formula == FeatureKernel(FORMULA, {"a": 2}).formula
    assert FeatureKernel(0.5).formula.expression == sp.Rational(1, 2)


@pytest.mark.parametrize(
    ("strength", "parameters", "error", "message"),
    [
        ("d*r2", None, ValueError, "unknown symbol 'd'; known are r2, g, c, s, t, pi, e"),
        ("d*r2", {"a": 1}, ValueError, "known are r2, g, c, s, t, pi, e, E, a"),
        ("r2*c", {"c": 1}, ValueError, "may not contain 'c', a variable of the formula"),
        ("r2*t", {"t": 1}, ValueError, "may not contain 't', a variable"),
        ("1/r2", None, ValueError, r"not finite at r2 = 0.*write for example 1/\(1 \+ r2\)"),
        ("log(r2)*s", None, ValueError, "not finite at r2 = 0"),
        ("r2/s", None, ValueError, r"not finite at s = 0.*s\*a \+ \(1-s\)\*b"),
        ("r2 < 1", None, ValueError, "the condition .* stands where"),
        ("r2.real", None, ValueError, "use numbers, r2, g, c, s, t,"),
        (lambda t: t, None, TypeError, "a number, or a formula in r2, g, c, s and t; got"),
        (None, None, TypeError, "strength must be a number"),
        (True, None, TypeError, "strength must be a number"),
        (float("nan"), None, ValueError, "strength must be a finite number"),
    ],
)
def test_unusable_formulas(strength, parameters, error, message):
    with pytest.raises(error, match=message):
        FeatureKernel(strength, parameters)


def test_other_kernels_still_know_t_only():
    with pytest.raises(ValueError, match="unknown symbol 'r2'; known are t, pi, e, E"):
        TwoLevel("exp(-r2)", 0)


def test_model_with_a_feature_kernel():
    model = LESDE(FeatureKernel(FORMULA, {"a": 2}), 3, 2, [3, 4, 5], noise=0.2)
    assert model.entries is None
    assert lesde.derive(model) is lesde.derive(model)
    assert json.loads(json.dumps(model.describe()))["kernel"]["kind"] == "FeatureKernel"
    assert model.replace(n_features=4).n_features == 4
    with pytest.raises(ValueError, match=r"law needs a kernel of classes.*engine='torchsde'"):
        lesde.law(model, [0, 1], np.ones((3, 2)))
    with pytest.raises(ValueError, match="engine='torchsde'"):
        lesde.predict_separation(model, [0, 1], np.ones((3, 2)))


def test_label_noise_needs_a_table():
    with pytest.raises(TypeError, match=r"no table of strengths between classes.*\(r2\)"):
        LESDE(LabelNoise(FeatureKernel("exp(-r2)"), 0.1), 3, 2)


def test_class_kernel_of_a_formula_without_features():
    kernel = FeatureKernel("2*s - (1-s)/(1+t) + 0*r2")
    assert kernel.class_kernel is not None
    assert kernel.class_kernel.levels == TwoLevel(2, "-1/(1+t)").levels
    assert FeatureKernel("s*r2").class_kernel is None
    table = LESDE(LabelNoise(kernel, 0.3), 3, 2).entries
    same = LESDE(LabelNoise(TwoLevel(2, "-1/(1+t)"), 0.3), 3, 2).entries
    np.testing.assert_allclose(table(np.array([0.7])), same(np.array([0.7])), rtol=1e-15)


PROGRAMS = [
    "exp(-r2/8)", "-exp(-r2/2)/(1+t)", "exp(-r2/8)*r2/8", "1/(1+r2)", "(1+r2)**-1.5", "(1+r2)**2.3*g",
    "r2**7", "r2**13*g**6", "sqrt(1+g**2)*c", "tanh(g)*exp(-r2*t)+c**3/(1+r2)**2",
    "max(g,0)*min(c,r2,0.5)", "1-r2 if r2<1 else 0", "exp(-r2) if t<2 and r2<1 or c>0.2 else g*c",
    "abs(g)**0.5", "2**c", "c", "-g", "3*g-2*c+1-r2", "log(1+r2)/log(2+t)", "Heaviside(g)",
    "cos(g)+sin(g)+erf(c)+atan(r2)+sinh(c)+cosh(c)+tan(c)", "(g+c)**2/(g+c+20)+1/(g+c+20)",
    "(1+abs(g))**c", "1 if t<1 else c", "g**2*c**2/(1+r2)/(2+c)", "min(t, g)", "max(2*t, g, c)",
]  # fmt: skip


@pytest.mark.parametrize("text", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula_in_torch_equals_numpy(text, dtype):
    formula = parse_pair_formula("strength", text)
    function = compiled(formula.at(True), [*FEATURE_VARIABLES.values(), TIME], "torch")
    rng = np.random.default_rng(3)
    values = {"r2": rng.exponential(size=(3, 16, 8))}
    values["g"], values["c"] = rng.normal(size=(3, 16, 8)), rng.uniform(-1, 1, size=(3, 16, 8))
    tensors = [torch.tensor(values[name], dtype=dtype) for name in FEATURE_VARIABLES]
    values = {name: tensor.double().numpy() for name, tensor in zip(values, tensors, strict=True)}
    for t in (0.3, 1.7, 2.5):
        found = function(*tensors, t)
        assert found.dtype == dtype
        expected = formula(**values, s=1.0, t=t)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("formula", ["a*s*exp(-b*r2)", "a*s/(b+t)"])
def test_free_names_are_the_models(formula):
    kernel = lesde.FeatureKernel(formula, parameters={"a": None, "b": None})
    model = lesde.LESDE(kernel, 2, 2, 3)
    assert model.free_parameters == ("a", "b")
    half = model.substitute(a=2)
    assert half.free_parameters == ("b",)
    whole = half.substitute(b=0.5)
    same = formula.replace("a*", "2*").replace("b", "0.5")
    direct = lesde.LESDE(lesde.FeatureKernel(same), 2, 2, 3)
    times = [0, 0.2, 0.4]
    paths = [
        lesde.simulate(m, times, np.eye(2), 4, engine=lesde.TorchSDE(dt=0.1))
        for m in (whole, direct)
    ]
    np.testing.assert_allclose(paths[0].features, paths[1].features, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"no value for b.*model\.substitute"):
        lesde.simulate(half, times)
    with pytest.raises(ValueError, match="calibrate needs a kernel of classes and time"):
        lesde.calibrate(paths[0], model, {"a": 1, "b": 1})


def test_a_formula_that_is_not_finite_for_some_pair_is_told():
    model = lesde.LESDE(lesde.FeatureKernel("sqrt(g)"), 2, 2, 3)
    with pytest.raises(
        lesde.Diverged, match="formula of the FeatureKernel is finite for all pairs"
    ):
        lesde.simulate(model, [0, 0.2], [[1, 0], [-1, 0]], 2, engine=lesde.TorchSDE(dt=0.1))


def test_too_many_samples_for_pairs_are_refused():
    model = lesde.LESDE(lesde.FeatureKernel("exp(-r2)"), 2, 2, 10**7)
    for settings in ({"engine": lesde.TorchSDE(dt=0.1)}, {"learning_rate": 0.1}):
        with pytest.raises(ValueError, match=r"pairs of samples at every step, 4e\+14"):
            lesde.simulate(model, [0, 1], np.eye(2), 4, keep="statistics", **settings)
