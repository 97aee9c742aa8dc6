"""Formulas that SymPy searches for ever: derivations, reports, reading and messages have an end."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time

import mpmath
import numpy as np
import pytest
import sympy as sp

import lesde

# Seconds of processor time for a derivation with both reports; each of these took minutes.
ENOUGH = 10.0

ENDLESS = [
    "1/(1+exp(-3.14159*(t-1)))",
    "exp(-0.12345*t)/(1+exp(-0.54321*t))",
    "t/(1+exp(-3.14159*t))",
    "atan(tan(t+8)*tan(t)+t)",
    "exp(700)",
    "exp(exp(1e222-t))",
    "(1+t)**99.5",
    "1/(1+exp(20*(t-1)))",
    "1/(1+t**37+t**5)",
]


@pytest.mark.parametrize("text", ENDLESS)
def test_a_derivation_and_its_reports_have_an_end(text):
    model = lesde.LESDE(lesde.TwoLevel(text, -0.5), 3, 3, transform="logits")
    start = time.thread_time()
    derivation = lesde.derive(model)
    assert "Solution of the mean ODE" in derivation.text()
    assert r"\bar{X}" in derivation.latex()
    assert time.thread_time() - start < ENOUGH


def test_it_ends_in_a_thread_of_its_own_too():
    """Nothing here needs signals, which only the main thread can handle."""
    texts = []

    def work():
        kernel = lesde.TwoLevel("atan(tan(t+7)*tan(t)+t)", -0.5)
        texts.append(lesde.derive(lesde.LESDE(kernel, 3, 3)).text())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=90)
    assert len(texts) == 1
    assert sys.getprofile() is None


def test_the_command_ends():
    command = ["derive", "--alpha", "1/(1+exp(-3.14159*(t-1)))", "--beta=-0.5", "--classes", "3"]
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from lesde.cli import main; sys.exit(main())",
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    assert "Solution of the mean ODE" in run.stdout


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("1/(1+exp(-3.14159*(t-1)))", lambda t: 1 / (1 + mpmath.exp(-3.14159 * (t - 1)))),
        ("exp(-0.3*t)/(1+exp(-0.6*t))", lambda t: 0.5 / mpmath.cosh(0.3 * t)),
        ("1/(2+exp(-t)-exp(-2*t))", lambda t: 1 / (2 + mpmath.exp(-t) - mpmath.exp(-2 * t))),
        ("1/(1+exp(2.718281828459045*t))", lambda t: 1 / (1 + mpmath.exp(2.718281828459045 * t))),
        ("t/(1+exp(-3.14159*t))", lambda t: t / (1 + mpmath.exp(-3.14159 * t))),
        ("1/(2+cos(t))", lambda t: 1 / (2 + mpmath.cos(t))),
        ("1/(1+sin(t)**2)", lambda t: 1 / (1 + mpmath.sin(t) ** 2)),
    ],
)
def test_values_are_right_whether_or_not_the_integral_stands(text, function):
    """The gap grows by exp(∫α/2) in the I-model with β = 0 and K = 2, by mpmath's quadrature."""
    solution = lesde.derive(lesde.LESDE(lesde.TwoLevel(text, 0), 2, 1)).solution
    got = solution.evaluate([0.25, 1, 7], [[1.0], [-1.0]])[:, 0, 0]
    area = [mpmath.quad(function, np.linspace(0.25, end, 15).tolist()) for end in (1, 7)]
    np.testing.assert_allclose(got, [1, *(math.exp(a / 2) for a in area)], rtol=1e-11)
    numbers = {"t": 7, "X_1": 1, "X_2": -1}
    printed = solution.mean(0)
    printed = printed.subs({s: numbers[s.name] for s in printed.free_symbols}).evalf()
    whole = mpmath.quad(function, np.linspace(0, 7, 15).tolist())
    assert float(sp.re(printed)) == pytest.approx(math.exp(whole / 2), rel=1e-11)


@pytest.mark.parametrize(
    "text", ["1/(1+exp(-3.14159*(t-1)))", "1/(1+exp(20*(t-1)))", "t*exp(-t)", "2/(1+t)"]
)
def test_ordinary_formulas_keep_their_closed_forms(text):
    derivation = lesde.derive(lesde.LESDE(lesde.TwoLevel(text, 0), 2, 1))
    assert "Integral" not in str(derivation.solution.mean(0))


@pytest.mark.parametrize("where", ["noise", "alpha"])
@pytest.mark.parametrize("text", ["exp(exp(1e222-t))", "tan(exp(exp(1000-t)))"])
def test_a_formula_beyond_floating_point_is_refused_at_once(where, text):
    alpha, noise = (text, 0.1) if where == "alpha" else (2, text)
    model = lesde.LESDE(lesde.TwoLevel(alpha, -0.5), 2, 2, 5, noise=noise)
    start = time.thread_time()
    with pytest.raises(ValueError, match=rf"{where} = .* is not finite at t = 0"):
        lesde.simulate(model, [0, 1], seed=0)
    assert time.thread_time() - start < 5


@pytest.mark.parametrize(
    "text", ["s*exp(exp(1e222-t))", "exp(700)*s", "s*atan(tan(r2+8)*tan(t)+t)"]
)
def test_a_feature_kernel_is_derived_at_once(text):
    start = time.thread_time()
    derivation = lesde.derive(lesde.LESDE(lesde.FeatureKernel(text), 2, 2, 5))
    assert "Small noise" in derivation.text()
    assert r"\kappa" in derivation.latex()
    assert time.thread_time() - start < 5
