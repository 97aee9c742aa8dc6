"""Pulses, jumps and end singularities of kernels and noise: the law against integrals known in closed form.

K = 2, one feature, equal classes: the gap grows by exp(∫(α − β)/2 dt), and with α = β = 0 the class
means have variance ∫σ² dt / n.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
from scipy.special import erf

import lesde

START = np.array([[1.0], [0.3]])
PLACES = np.linspace(0.1, 9.7, 30) + 0.0317
T = sp.Symbol("t", real=True)


def growth(alpha, beta=-0.5, times=(0, 10), how="law"):
    """log of the gap at the last time over that at the first."""
    model = lesde.LESDE(lesde.TwoLevel(alpha, beta), 2, 1, noise=1e-9)
    if how == "law":
        means = lesde.law(model, times, START)["mean"].values
    elif how == "moments":
        means = lesde.moments(model, times, START, process="plain")["mean"].values
    elif how == "closed":
        means = lesde.derive(model).solution.evaluate(times, START)
    elif how == "exact":
        paths = lesde.simulate(
            model, times, initial=START, replicates=2, engine="exact", dtype="float64"
        )
        means = paths["features"].groupby("label").mean().isel(replicate=0)
        means = means.transpose("time", "label", "feature").values
    else:
        lesde.law(model, times, START)
        law = lesde.tensor_law(model, times, torch.tensor(START), parameters={})
        means = law.mean.numpy()
    gap = means[:, 0, 0] - means[:, 1, 0]
    return np.log(gap[-1] / gap[0])


def spread(noise, times=(0, 10)):
    """n · variance of a class mean at the last time, and the variance of a sample about it."""
    law = lesde.law(lesde.LESDE(lesde.TwoLevel(0, 0), 2, 1, 10, noise=noise), times, START)
    return 10 * law["covariance"].values[-1, 0, 0, 0, 0], law["within"].values[-1, 0, 0, 0]


def box(at, width):
    return f"10 if {at:.6f} < t < {at + width:.6f} else 0.1"


@pytest.mark.parametrize("width", [0.1, 0.01, 1e-5])
def test_boxes_wherever_they_are(width):
    for at in PLACES:
        exact = (10 * 0.6 + 9.9 * width) / 2
        assert abs(growth(box(at, width)) - exact) < 1e-11


@pytest.mark.parametrize("how", ["moments", "closed", "exact", "gradients"])
def test_what_follows_the_law_sees_pulses(how):
    """The exact engine's means are the law's up to noise of 1e-9."""
    for at in PLACES[::10]:
        exact = (10 * 0.6 + 9.9 * 0.1) / 2
        assert abs(growth(box(at, 0.1), how=how) - exact) < (1e-7 if how == "exact" else 1e-11)
        bump = f"exp(-((t - {at:.6f})/0.02)**2)"
        area = 0.02 * np.sqrt(np.pi) / 2 * (erf((10 - at) / 0.02) + erf(at / 0.02))
        assert abs(growth(bump, 0, how=how) - area / 2) < (1e-7 if how == "exact" else 1e-11)


@pytest.mark.parametrize("width", [0.02, 1e-4])
def test_bumps_wherever_they_are(width):
    for at in PLACES:
        formulas = [f"exp(-((t - {at:.6f})/{width})**2)"]
        if width > 1e-3:
            formulas.append(lambda t, at=at: np.exp(-(((t - round(at, 6)) / width) ** 2)))
        for formula in formulas:
            exact = width * np.sqrt(np.pi) / 2
            assert abs(growth(formula, 0) - exact) < 1e-12


def test_single_jumps_of_formulas_and_callables():
    for at in [*PLACES[::3].tolist(), 9.999, 1e-6]:
        exact = (3 * at - (10 - at) + 5) / 2
        formulas = (f"3 if t < {at!r} else -1", lambda t, at=at: np.where(t < at, 3.0, -1.0))
        for formula in formulas:
            assert abs(growth(formula) - exact) < 1e-11
            assert abs(growth(formula, times=[0, at, 10]) - exact) < 1e-11


def test_pulses_of_callables_as_narrow_as_promised():
    """A box of 1/5000 of the times, the width that the documentation guarantees, at 30 places."""
    for at in PLACES:
        exact = (10 * 0.6 + 9.9 * 0.002) / 2

        def pulse(t, at=at):
            return np.where((t > at) & (t < at + 0.002), 10.0, 0.1)

        assert abs(growth(pulse) - exact) < 1e-11


PERIODIC = {
    "floor": (sp.floor(4 * T) - 2 * sp.floor(2 * T), 5.0),
    "mod": (sp.Piecewise((1, sp.Mod(T, sp.Rational(1, 5)) < sp.Rational(1, 50)), (0, True)), 1.0),
    "sawtooth": (sp.frac(3 * T), 5.0),
    "ceiling": (sp.ceiling(T), 55.0),
    "sign": (sp.sign(sp.sin(2 * sp.pi * T)), 0.0),
    "abs": (sp.Abs(sp.sin(sp.pi * T)), 20 / np.pi),
    # 8 − t until 4, then t
    "max": (sp.Max(T, 3, 8 - T), 66.0),
    "nested": (sp.Piecewise((5, sp.floor(T**2) >= 90), (0, True)), 5 * (10 - np.sqrt(90))),
    "narrow": (
        sp.Piecewise((100, sp.sin(T) > sp.Rational(999999, 1000000)), (0, True)),
        2 * 100 * 2 * np.arccos(0.999999),
    ),
}


@pytest.mark.parametrize("name", PERIODIC)
def test_every_kind_of_switch(name):
    formula, area = PERIODIC[name]
    assert abs(growth(formula, 0) - area / 2) < 1e-11 * max(1, area)


def test_pulses_of_the_noise():
    for at in PLACES[::3]:
        for width in (0.1, 0.001):
            exact = 0.01 * (10 - width) + 9 * width
            noise = f"3 if {at:.6f} < t < {at + width:.6f} else 0.1"
            np.testing.assert_allclose(spread(noise), exact, rtol=1e-12)
        bump = f"exp(-((t - {at:.6f})/0.02)**2)"
        tail = erf((10 - at) * np.sqrt(2) / 0.02) + erf(at * np.sqrt(2) / 0.02)
        exact = 0.02 * np.sqrt(np.pi / 2) / 2 * tail
        np.testing.assert_allclose(spread(bump), exact, rtol=1e-11)


HARMLESS = {
    "1-tanh(t)": ((0, 10), 10 - np.log(np.cosh(10))),
    "1-erf(t)": ((0, 10), 1 / np.sqrt(np.pi)),
    "sqrt(t-1)": ((1, 2), 2 / 3),
    "sqrt(1-t/2)": ((0, 2), 4 / 3),
    "t**0.3": ((0, 2), 2**1.3 / 1.3),
    "log(t)": ((0, 2), 2 * np.log(2) - 2),
    "t**-0.5": ((0, 4), 4.0),
    "sin(100*t)": ((0, 10), (1 - np.cos(1000)) / 100),
}


@pytest.mark.parametrize("formula", HARMLESS)
def test_harmless_kernels_are_integrated(formula):
    times, area = HARMLESS[formula]
    assert abs(growth(formula, 0, times) - area / 2) < 1e-12
    between = np.linspace(*times, 7)
    assert abs(growth(formula, 0, between) - area / 2) < 1e-12


AT_ZERO = {
    "log(t)": 10 * np.log(10) - 10,
    "t**(-0.5)": 2 * np.sqrt(10),
    "t*log(t)": 50 * np.log(10) - 25,
}


@pytest.mark.parametrize("how", ["law", "closed", "moments", "exact"])
@pytest.mark.parametrize("formula", AT_ZERO)
def test_kernels_without_a_value_at_the_first_time(formula, how):
    area = AT_ZERO[formula]
    error = abs(growth(formula, 0, how=how) - area / 2)
    assert error < (1e-6 if how == "exact" else 1e-10)


def test_noise_that_dies_out_is_integrated():
    """∫ (1 − tanh)² = 2 log 2 − 1 up to e^{-20}."""
    np.testing.assert_allclose(spread("1-tanh(t)"), 2 * np.log(2) - 1, rtol=1e-8)
    np.testing.assert_allclose(spread("1-tanh(t)", (0, 30)), 2 * np.log(2) - 1, rtol=1e-12)


@pytest.mark.parametrize("shape", ["1/t", "1/Abs(t - 3)", "1/(t - 3)**2"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_pole_blames_its_own_entry(shape, place):
    values = ["-0.5", "-0.5"]
    values[place] = shape
    name = ("alpha", "beta")[place]
    with pytest.raises(ValueError, match=f"^{name} = .* (not finite|changes too abruptly).* t = "):
        growth(*values)


def test_almost_equal_intervals_keep_their_own_widths():
    """Widths 1 % and 1e-6 apart: with constant rates each interval grows and spreads by its own."""
    times = np.cumsum([0, 1, 1.01, 1.01 * (1 + 1e-6), 0.985])
    law = lesde.law(lesde.LESDE(lesde.TwoLevel(2, -0.5), 2, 1, 10, noise=0.3), times, START)
    gap = law["mean"].values[:, 0, 0] - law["mean"].values[:, 1, 0]
    np.testing.assert_allclose(np.diff(np.log(gap)), np.diff(times) * 1.25, rtol=1e-13)
    alone = lesde.law(lesde.LESDE(lesde.TwoLevel(0, 0), 2, 1, 10, noise=0.3), times, START)
    added = np.diff(alone["covariance"].values[:, 0, 0, 0, 0])
    np.testing.assert_allclose(added, 0.009 * np.diff(times), rtol=1e-12)


# Formula: d gap / dc by hand is awkward; central differences of the law without gradients stand for it.
STEEP = [
    "1/(1+exp(20*(t-c)))",
    "1/(1+c*exp(20*t))",
    "1/cosh(20*(t-c))",
    "(1+exp(20*(t-c)))**(-c)",
    "exp(-exp(20*(t-c)))",
    "c*min(1, exp(20*(c-t)), exp(100*t))",
]


@pytest.mark.parametrize("formula", STEEP)
def test_gradients_where_exponents_overflow(formula):
    means, times = [[1, 0.2], [-0.1, 0.3]], [0, 1, 50]
    model = lesde.LESDE(lesde.TwoLevel(formula, 0.05, parameters={"c": None}), 2, 2)

    def gap(law):
        return law.mean[-1, 0] - law.mean[-1, 1]

    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    gap(lesde.tensor_law(model, times, means, parameters={"c": c})).norm().backward()
    values = []
    for shift in (1e-5, -1e-5):
        plain = lesde.LESDE(lesde.TwoLevel(formula, 0.05, parameters={"c": 1 + shift}), 2, 2)
        last = lesde.law(plain, times, means)["mean"].values[-1]
        values.append(np.linalg.norm(last[0] - last[1]))
    assert abs(float(c.grad) - (values[0] - values[1]) / 2e-5) < 1e-9
    if formula == STEEP[0]:
        assert abs(float(c.grad) - 0.2609) < 1e-4


def test_one_time_alone_is_the_start():
    model = lesde.LESDE(lesde.TwoLevel("1/(1+t)", 0), 2, 1, noise="exp(-t)")
    for law in (
        lesde.law(model, [2.0], START),
        lesde.moments(model, [2.0], START, process="plain"),
    ):
        np.testing.assert_allclose(law["mean"].values[0], START, rtol=1e-15)
        assert (law["covariance"].values == 0).all()


def test_calibration_where_exponents_overflow():
    """The place of a steep switch from exact paths of known c = 1: within 4 standard errors."""
    formula, means = "1/(1+exp(20*(t-c)))", [[1, 0.2], [-0.1, 0.3]]
    known = lesde.LESDE(lesde.TwoLevel(formula, 0.05, parameters={"c": 1.0}), 2, 2, 20, noise=0.05)
    paths = lesde.simulate(
        known, np.linspace(0, 50, 26), initial=means, replicates=16, engine="exact", dtype="float64"
    )
    free = lesde.LESDE(lesde.TwoLevel(formula, 0.05, parameters={"c": None}), 2, 2, 20, noise=0.05)
    fit = lesde.calibrate(paths, free, start={"c": 1.3})
    error = np.sqrt(float(fit["covariance"].values[0, 0]))
    assert 0 < error < 0.02
    assert abs(float(fit["estimate"].values[0]) - 1) < 4 * error
