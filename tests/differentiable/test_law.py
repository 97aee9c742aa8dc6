"""The law as tensors: against the law without gradients, and its gradients against differences.

The law without gradients shares formulas with the tensors, not the integration of them; its own tests
compare it with an ODE solver.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
import xarray as xr
from scipy.stats import multivariate_normal
from torch.autograd import gradcheck, gradgradcheck

import lesde
from lesde import LESDE, ClassMatrix, Diverged, Hierarchical, LabelNoise, TwoLevel
from lesde.laws.system import clean
from lesde.laws.transitions import transitions

RNG = np.random.default_rng(42)
MATRIX = RNG.normal(size=(3, 3, 3)) * 0.7
FULL = RNG.normal(size=(3, 3)) * 0.3
PER_CLASS = RNG.normal(size=(3, 3, 3)) * 0.3
INITIAL = np.random.default_rng(0).normal(size=(3, 3))
TIMES = np.array([0.1, 0.6, 1.1, 3.0])
COUNTS = (3, 20, 8)
VARIABLES = ("mean", "covariance", "centred_mean", "centred_covariance", "within")


def free(*names):
    return dict.fromkeys(names)


# name: (kernel, values of its names)
KERNELS = {
    "constant": (TwoLevel("a", "b", free("a", "b")), {"a": 2.0, "b": -0.5}),
    "power": (
        TwoLevel("a/(0.1+t)**r", "-b", free("a", "b", "r")),
        {"a": 2.0, "b": 0.5, "r": 0.7},
    ),
    "matrix": (
        ClassMatrix(
            [["2+sin(c*t)", "-t", 0.3], ["exp(-t)", "1/(1+t)", -0.5], ["d*t", 0, "cos(2*t)"]],
            free("c", "d"),
        ),
        {"c": 1.0, "d": 0.2},
    ),
    "hierarchical": (
        Hierarchical([0, 0, 1], "a", "b/(1+t)", "g", free("a", "b", "g")),
        {"a": 2.0, "b": 1.0, "g": -0.5},
    ),
    "label noise": (
        LabelNoise(TwoLevel("a/(1+t)", -1, free("a")), sp.Symbol("q")),
        {"a": 2.0, "q": 0.2},
    ),
}
TRANSFORMS = {"I": "identity", "L": "logits", "matrix": MATRIX}
# name: (noise, its free names)
NOISES = {
    "scalar": (0.2, {}),
    "per class": ([0.1, 0.3, 0.2], {}),
    "full": (FULL, {}),
    "full per class": (PER_CLASS, {}),
    "in time": ("0.2+0.1*sin(t)", {}),
    "free": ("s*exp(-t/3)", {"s": 0.4}),
    "free constants": (["s", 0.1, "2*s"], {"s": 0.2}),
    "free matrix": ([["s", 0, 0.1], [0, 0.2, 0], ["-t/10", 0, "s"]], {"s": 0.4}),
}


def model_of(kernel: str, transform: str, noise: str, counts=COUNTS):
    given, values = KERNELS[kernel]
    sigma, names = NOISES[noise]
    model = LESDE(
        given, 3, 3, counts, TRANSFORMS[transform], sigma, parameters=free(*names) or None
    )
    return model, {**values, **names}


def relative(got, expected):
    """Largest error at a time, relative to the largest value there."""
    axes = tuple(range(1, expected.ndim))
    scale = np.abs(expected).max(axes)
    error = np.abs(np.asarray(got) - expected).max(axes)
    return (error[scale > 0] / scale[scale > 0]).max(initial=0.0)


CASES = [(k, t, "scalar", "given") for k in KERNELS for t in TRANSFORMS]
CASES += [("constant", t, n, "given") for t in ("I", "L") for n in NOISES]
CASES += [("power", "I", n, "random") for n in NOISES]
CASES += [("constant", t, n, "random") for t in TRANSFORMS for n in ("per class", "full")]


@pytest.mark.parametrize(("kernel", "transform", "noise", "start"), CASES)
def test_equals_the_law_without_gradients(kernel, transform, noise, start):
    initial = INITIAL if start == "given" else None
    model, values = model_of(kernel, transform, noise)
    law = lesde.tensor_law(model, TIMES, initial, parameters=values)
    expected = lesde.law(model.substitute(**values), TIMES, initial)
    for name in VARIABLES:
        assert relative(getattr(law, name), expected[name].values) < 1e-12
        assert getattr(law, name).dtype == torch.float64
    found = law.dataset()
    xr.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)
    assert found.attrs == expected.attrs
    np.testing.assert_array_equal(law.times, TIMES)


def test_the_contrasts_keep_their_digits():
    """At t = 60 the grand mean is 1e17 times the contrasts."""
    kernel = TwoLevel("a", "b", free("a", "b"))
    model = LESDE(kernel, 4, 2, 10)
    means = RNG.normal(size=(4, 2))
    law = lesde.tensor_law(model, [0, 60], means, parameters={"a": 1.0, "b": 0.9})
    expected = means - means.mean(0)
    np.testing.assert_allclose(law.centred_mean[1], np.exp(0.1 / 4 * 60) * expected, rtol=1e-11)


def differences(model, values, name, initial, step=2e-3):
    """Fourth-order central differences of the law without gradients: an error of about step⁴."""
    total = 0.0
    for k, weight in ((1, 8.0), (2, -1.0)):
        up, down = (
            lesde.law(
                model.substitute(**{**values, name: values[name] + sign * k * step}), TIMES, initial
            )
            for sign in (1, -1)
        )
        total = total + weight * (up[list(VARIABLES)] - down[list(VARIABLES)])
    return total / (12 * step)


@pytest.mark.parametrize(
    ("kernel", "transform", "noise"),
    [
        ("constant", "I", "scalar"),
        ("constant", "L", "free constants"),
        ("constant", "matrix", "full"),
        ("power", "I", "free"),
        ("power", "L", "scalar"),
        ("power", "matrix", "scalar"),
        ("matrix", "I", "full per class"),
        ("matrix", "L", "in time"),
        ("matrix", "matrix", "free matrix"),
        ("hierarchical", "I", "full"),
        ("label noise", "I", "per class"),
        ("label noise", "L", "scalar"),
    ],
)
def test_gradients_are_the_differences_of_the_law_without_them(kernel, transform, noise):
    """Tolerance 1e-8 of the largest derivative: step⁴ = 1.6e-11 times fifth derivatives of some 10²."""
    model, values = model_of(kernel, transform, noise)
    for name in values:
        wanted = differences(model, values, name, INITIAL)
        at = torch.tensor(values[name], dtype=torch.float64)

        def law(value, name=name):
            found = lesde.tensor_law(model, TIMES, INITIAL, parameters={**values, name: value})
            return tuple(getattr(found, variable) for variable in VARIABLES)

        # A vector through the tensors: the derivative of every entry in one pass.
        _, slopes = torch.autograd.functional.jvp(law, at, torch.ones_like(at))
        for variable, slope in zip(VARIABLES, slopes, strict=True):
            expected = wanted[variable].values
            size = np.abs(expected).max()
            assert np.abs(slope.numpy() - expected).max() <= 1e-8 * max(size, 1e-3), variable


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kernel", ["constant", "label noise"])
def test_reverse_gradients_to_parameters_and_initial_state(kernel, transform):
    model, values = model_of(kernel, transform, "scalar")
    names = list(values)

    def law(initial, *at):
        found = lesde.tensor_law(
            model, TIMES[:3], initial, parameters=dict(zip(names, at, strict=True))
        )
        return found.mean[1:], found.covariance[1:]

    points = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values.values()]
    means = torch.tensor(INITIAL, requires_grad=True)
    assert gradcheck(law, (means, *points), fast_mode=True)
    assert gradgradcheck(law, (means, *points), fast_mode=True)


def test_gradients_to_samples_reach_every_sample():
    model, values = model_of("constant", "I", "scalar")
    samples = torch.tensor(RNG.normal(size=(31, 3)), requires_grad=True)
    law = lesde.tensor_law(model, [0, 1], samples, parameters=values)
    law.mean[1, 1, 0].backward()
    means = torch.tensor(INITIAL, requires_grad=True)
    lesde.tensor_law(model, [0, 1], means, parameters=values).mean[1, 1, 0].backward()
    each = means.grad / torch.tensor(COUNTS)[:, None]
    expected = each.repeat_interleave(torch.tensor(COUNTS), 0)
    torch.testing.assert_close(samples.grad, expected, rtol=1e-14, atol=0)
    assert "offset" in law.dataset()


def test_a_strength_that_is_zero_now_has_a_gradient():
    """At d = 0 the classes do not mix: what is cleaned of rounding must not lose its derivative."""
    kernel = ClassMatrix([["a", "d"], [0, "a"]], free("a", "d"))
    model = LESDE(kernel, 2, 1, 10)
    d = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    start = [[1.0], [1.0]]
    law = lesde.tensor_law(model, [0, 1], start, parameters={"a": 1.0, "d": d})
    law.mean[1, 0, 0].backward()  # X̄¹ grows by d X̄²/2 per unit of time: slope exp(1/2)/2
    assert float(d.grad) == pytest.approx(np.exp(0.5) / 2, rel=1e-13)
    matrix = torch.tensor([[[1.0, 1e-17], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    cleaned = clean(matrix)
    assert float(cleaned[0, 0, 1].detach()) == 0.0
    cleaned.sum().backward()
    assert (matrix.grad == 1).all()


def test_jumps_and_kinks_at_fixed_places():
    kernel = TwoLevel("a if t < 0.7123 else b", "max(c - t, 0)", free("a", "b", "c"))
    values = {"a": 2.0, "b": -1.0, "c": 1.3}
    model = LESDE(kernel, 3, 2)
    means = INITIAL[:, :2]
    law = lesde.tensor_law(model, [0, 2.0], means, parameters=values)
    expected = lesde.law(model.substitute(**values), [0, 2.0], means)
    assert relative(law.mean, expected["mean"].values) < 1e-12
    assert relative(law.covariance, expected["covariance"].values) < 1e-12
    # Contrasts grow with ∫(α − β)/3 = (0.7123 a + 1.2877 b − c²/2)/3.
    slopes = {"a": 0.7123, "b": 1.2877, "c": -values["c"]}
    for name, slope in slopes.items():
        at = torch.tensor(values[name], dtype=torch.float64, requires_grad=True)
        found = lesde.tensor_law(model, [0, 2.0], means, parameters={**values, name: at})
        (gradient,) = torch.autograd.grad(found.centred_mean[1, 0, 0], at)
        expected_slope = slope / 3 * float(found.centred_mean[1, 0, 0].detach())
        assert float(gradient) == pytest.approx(expected_slope, rel=1e-10)


@pytest.mark.parametrize("transform", ["I", "matrix"])
@pytest.mark.parametrize("noise", ["scalar", "full", "full per class", "in time"])
def test_likelihood_is_that_of_the_gaussian_transitions(transform, noise):
    model, values = model_of("power", transform, noise)
    law = lesde.tensor_law(model, TIMES, INITIAL, parameters=values)
    paths = RNG.normal(size=(5, 4, 3, 3))
    expected = 0.0
    plain = transitions(lesde.derive(model.substitute(**values)).coefficients(), TIMES)
    for i, step in enumerate(plain.in_classes()):
        phi, C = (x.reshape(9, 9).numpy() for x in step)
        for x, m in zip(paths[:, i + 1].reshape(5, 9), paths[:, i].reshape(5, 9), strict=True):
            expected += multivariate_normal.logpdf(x, phi @ m, C)
        found = [x.reshape(9, 9).detach() for x in law.transitions[i]]
        np.testing.assert_allclose(found[0], phi, atol=1e-13)
        np.testing.assert_allclose(found[1], C, rtol=1e-11, atol=1e-16)
    assert float(law.log_likelihood(paths)) == pytest.approx(expected, rel=1e-11)
    single = law.log_likelihood(paths[0]) + law.log_likelihood(torch.tensor(paths[1:]))
    assert float(single) == pytest.approx(expected, rel=1e-11)


def test_bad_arguments():
    model, values = model_of("constant", "I", "scalar")
    law = lesde.tensor_law(model, TIMES, INITIAL, parameters=values)
    with pytest.raises(
        ValueError, match=r"means must have shape \(replicate, 4, 3, 3\).*\(2, 4, 3, 2\)"
    ):
        law.log_likelihood(np.zeros((2, 4, 3, 2)))
    with pytest.raises(ValueError, match="means must be finite"):
        law.log_likelihood(np.full((1, 4, 3, 3), np.nan))
    one = lesde.tensor_law(model, [0.0], INITIAL, parameters=values)
    assert one.mean.shape == (1, 3, 3)
    with pytest.raises(ValueError, match="at least 2 times"):
        one.log_likelihood(np.zeros((1, 1, 3, 3)))
    still = LESDE(TwoLevel(1, 0), 3, 3, noise=[0.1, 0.0, 0.1])
    silent = lesde.tensor_law(still, [0, 1], INITIAL)
    with pytest.raises(ValueError, match="noise must move the class means in every direction"):
        silent.log_likelihood(np.zeros((1, 2, 3, 3)))
    with pytest.raises(ValueError, match="no value for b"):
        lesde.tensor_law(model, TIMES, INITIAL, parameters={"a": 1.0})
    with pytest.raises(ValueError, match=r"initial must have shape"):
        lesde.tensor_law(model, TIMES, torch.zeros(2, 3), parameters=values)


def test_kernels_of_the_features_are_refused():
    model = LESDE(lesde.FeatureKernel("exp(-r2)"), 2, 2, 5)
    with pytest.raises(ValueError, match="needs a kernel of classes and time"):
        lesde.tensor_law(model, [0, 1])


@pytest.mark.parametrize(("alpha", "a"), [("a", 2000.0), ("a + t", 100.0)])
def test_overflow_is_told_with_its_time(alpha, a):
    model = LESDE(TwoLevel(alpha, 0, free("a")), 2, 2)
    with pytest.raises(
        Diverged, match=r"stopped being finite at time .*weaken the kernel"
    ) as error:
        lesde.tensor_law(model, [0, 0.01, 20.0], np.eye(2), parameters={"a": a})
    assert 0.01 < error.value.time <= 20


def test_a_pole_is_told():
    model = LESDE(TwoLevel("a/(1-t)", 0, free("a")), 2, 2)
    with pytest.raises(ValueError, match=r"alpha = a/\(1 - t\) .*t = 1 for a = 2"):
        lesde.tensor_law(model, [0, 2], np.eye(2), parameters={"a": 2.0})
    with pytest.raises(
        ValueError, match=r"alpha = a/\(1 - t\) is not a finite real number at t = 1"
    ):
        lesde.tensor_law(model, [0, 1], np.eye(2), parameters={"a": 2.0})
