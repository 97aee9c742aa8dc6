"""The derivation of a feature kernel against the enumeration of every draw, and as a report."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
import sympy as sp
import torch

import lesde
from lesde import LESDE, FeatureKernel, TwoLevel
from lesde.derivation import rule as microscopic
from lesde.derivation.derivation import FeatureDerivation
from lesde.processes.pairs import PairInteraction
from tests.derivation.systems import logit_matrices, words

K, P, COUNTS, T = 3, 2, [2, 5, 3], 0.7
FORMULA = "s*2*exp(-r2/8) - (1-s)*exp(-r2/2)*c/(1+t) + 0.1*g"


def strength(x: np.ndarray, y: np.ndarray, same: bool, t: float) -> float:
    """FORMULA by hand."""
    r2, g = ((x - y) ** 2).sum(), x @ y
    c = g / np.linalg.norm(x) / np.linalg.norm(y)
    return (2 * np.exp(-r2 / 8) if same else -np.exp(-r2 / 2) * c / (1 + t)) + 0.1 * g


@pytest.fixture(params=["identity", "logits", "matrix"])
def system(request):
    """A model, samples, and the kick κ_iJ H_J X_J of every sample by every draw, (i, J, feature)."""
    rng = np.random.default_rng(11)
    p = K if request.param == "logits" else P
    matrices = {
        "identity": np.stack([np.eye(p)] * K),
        "logits": logit_matrices(K),
        "matrix": rng.normal(size=(K, p, p)),
    }[request.param]
    transform = matrices if request.param == "matrix" else request.param
    model = LESDE(FeatureKernel(FORMULA), K, p, COUNTS, transform, noise=0.3)
    labels = model.labels
    X = rng.normal(size=(len(labels), p)) + labels[:, None]
    pairs = [
        (x, y, k == l)
        for x, k in zip(X, labels, strict=True)
        for y, l in zip(X, labels, strict=True)
    ]
    kappa = np.array([strength(x, y, same, T) for x, y, same in pairs]).reshape(len(X), len(X))
    kicks = kappa[:, :, None] * np.stack([matrices[l] @ x for l, x in zip(labels, X, strict=True)])
    return model, matrices, X, kappa, kicks


def averages(system, i: int, j: int) -> dict[str, np.ndarray]:
    """Numbers for the symbols of the derivation, for samples i and j."""
    model, matrices, X, kappa, _ = system
    labels = model.labels
    k, m = labels[i] + 1, labels[j] + 1
    values = {}
    for l in range(K):
        own = labels == l
        values[f"H_{l + 1}"], values[f"H_{l + 1}^T"] = matrices[l], matrices[l].T
        values[f"kappaX_{k}_{l + 1}"] = (kappa[i, own] @ X[own] / own.sum())[:, None]
        weights = (kappa[i, own] * kappa[j, own])[:, None]
        values[f"kappakappaXX_{k}_{m}_{l + 1}"] = (weights * X[own]).T @ X[own] / own.sum()
    return values


def test_drift_is_the_mean_over_all_draws(system):
    model, _, X, _, kicks = system
    derivation = lesde.derive(model)
    numbers = PairInteraction(derivation.coefficients(), torch.float64).drift(
        torch.tensor(X)[None], T
    )
    for i, k in enumerate(model.labels):
        drift = words(derivation.drift[k], {}, averages(system, i, i))[:, 0]
        np.testing.assert_allclose(drift, kicks[i].mean(0), rtol=1e-12)
        np.testing.assert_allclose(numbers[0, i].numpy(), drift, rtol=1e-11, atol=1e-14)


def test_sampling_covariance_is_that_over_all_draws(system):
    model, _, _, _, kicks = system
    derivation = lesde.derive(model)
    centred = kicks - kicks.mean(1, keepdims=True)
    h = 0.05
    for i, j in [(0, 0), (0, 1), (0, 4), (9, 3), (5, 5)]:
        k, m = model.labels[[i, j]]
        values = averages(system, i, j)
        values |= {f"b_{k + 1}": kicks[i].mean(0)[:, None], f"b_{m + 1}^T": kicks[j].mean(0)[None]}
        C = words(derivation.diffusion.sampling(k, m), {}, values)
        expected = centred[i].T @ centred[j] / len(kicks)
        np.testing.assert_allclose(C, expected, rtol=1e-11, atol=1e-13)
        sigma = 0.3 * np.eye(model.n_features)
        values |= {f"sigma_{k + 1}": sigma, f"sigma_{k + 1}^T": sigma}
        total = derivation.diffusion.total(k, m, same_sample=i == j)
        total = words(total, {microscopic.LEARNING_RATE: h}, values)
        own = 0.09 * np.eye(model.n_features) if i == j else 0.0
        np.testing.assert_allclose(total, own + h * expected, rtol=1e-11, atol=1e-13)


def test_changing_the_rule_changes_the_answer(monkeypatch):
    """Nothing returns a stored answer: a rule with twice the kick gives twice the drift."""
    original = microscopic.increment
    monkeypatch.setattr(microscopic, "increment", lambda E, side="i": original(2 * E, side))
    changed = microscopic.rule.__wrapped__()
    w = sp.Symbol("w")
    assert (changed.drift(w, 1), changed.sampling(w, 1, 1)) == (2 * w, 4 * w)
    assert (changed.noise, changed.noise_between) == (1, 0)


def mean_drift(model: LESDE, means: np.ndarray) -> np.ndarray:
    """The drift of samples that are all at their class means, (class, feature)."""
    samples = torch.tensor(means[model.labels])[None]
    pairs = PairInteraction(lesde.derive(model).coefficients(), torch.float64)
    return pairs.drift(samples, T)[0].numpy()[np.unique(model.labels, return_index=True)[1]]


def test_mean_ode_is_the_drift_of_samples_at_their_class_means(system):
    model, matrices, X, _, _ = system
    means = np.stack([X[model.labels == k].mean(0) for k in range(K)])
    scalars = {sp.Symbol("t", real=True): T}
    for k in range(K):
        for l in range(k, K):
            g = means[k] @ means[l]
            norm = np.linalg.norm(means[k]) * np.linalg.norm(means[l])
            name = f"{k + 1}_{l + 1}"
            scalars[sp.Symbol(f"r2_{name}", nonnegative=True)] = ((means[k] - means[l]) ** 2).sum()
            scalars[sp.Symbol(f"g_{name}", real=True)] = g
            scalars[sp.Symbol(f"c_{name}", real=True)] = g / norm
    values = {f"Xbar_{l + 1}": means[l][:, None] for l in range(K)}
    values |= {f"H_{l + 1}": matrices[l] for l in range(K)}
    expected = mean_drift(model, means)
    for k, equation in enumerate(lesde.derive(model).mean_ode):
        right = words(equation.rhs, scalars, values)[:, 0]
        np.testing.assert_allclose(right, expected[k], rtol=1e-12)


def test_what_needs_a_linear_drift_is_absent_and_says_why():
    model = LESDE(FeatureKernel(FORMULA), 3, 2)
    d = lesde.derive(model)
    assert isinstance(d, FeatureDerivation)
    assert (d.modes, d.is_closed, d.solution, d.separation_rate) == ((), False, None, None)
    assert (d.nc1_rate, d.nc2_rate, d.critical_constant, d.class_model) == (None,) * 4
    assert "not linear" in d.why_open
    coefficients = d.coefficients()
    assert coefficients.depends_on_features
    assert (coefficients.n_features, coefficients.counts.tolist()) == (2, [100] * 3)
    calls = [lambda: d.class_matrix, lambda: lesde.law(model, [0, 1])]
    calls += [lambda: coefficients.weights(np.zeros(1)), lambda: coefficients.kicks(np.zeros(1))]
    for call in calls:
        with pytest.raises(ValueError, match=r"needs a kernel of classes and time.*engine='sgd'"):
            call()


def test_formula_without_features_has_a_class_model():
    model = LESDE(FeatureKernel("2*s - (1-s)/(1+t)"), 3, 2, [2, 3, 4], noise=0.2)
    twin = lesde.derive(model).class_model
    assert isinstance(twin.kernel, TwoLevel)
    assert twin.counts.tolist() == [2, 3, 4]
    assert twin.noise == 0.2
    assert "equals the one with this class kernel" in lesde.derive(model).text()
    assert "E_kk} &= 2" in lesde.derive(model).latex().replace("E_{kk", "E_kk")
    means = np.arange(6.0).reshape(3, 2) ** 2
    np.testing.assert_allclose(
        mean_drift(model, means),
        lesde.derive(twin).coefficients().weights(np.array([T]))[0] @ means,
        rtol=1e-14,
    )


REPORTED = {
    "all variables": LESDE(FeatureKernel(FORMULA), 3, 3, [3, 4, 5], "logits", noise="exp(-t)"),
    "powers": LESDE(FeatureKernel("r2**2*c**3/(1+r2)**2 if r2 < 1 else max(g, 0)"), 2, 2),
    "many classes": LESDE(FeatureKernel("exp(-r2/8)"), 12, 2),
    "free": LESDE(FeatureKernel("a*exp(-r2/8)", {"a": None}), 2, 2, transform=np.diag([1.0, 2.0])),
    "classes only": LESDE(FeatureKernel("2*s - (1-s)/(1+t)"), 3, 2),
}


@pytest.mark.parametrize("name", REPORTED)
def test_report_in_latex_balances_and_says_what_is_derived(name):
    latex = lesde.derive(REPORTED[name]).latex(document=True)
    assert latex.startswith(r"\documentclass")
    assert latex.rstrip().endswith(r"\end{document}")
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")
    for environment in re.findall(r"\\begin\{(.*?)\}", latex):
        assert latex.count(rf"\begin{{{environment}}}") == latex.count(rf"\end{{{environment}}}")
    assert not re.search(
        r"\^\{?[^{}]*\}?\^", latex.replace(r"\right)^", "")
    )  # no double superscript
    for title in ("Microscopic rule", "Drift", "Diffusion", "Small noise", "Modes"):
        assert rf"\subsection*{{{title}" in latex
    assert r"\langle\kappa_{iJ}X_J\rangle_{l}" in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_reports_compile(tmp_path):
    bodies = [lesde.derive(model).latex() for model in REPORTED.values()]
    first = lesde.derive(REPORTED["powers"]).latex(document=True)
    head = first[: first.index(r"\subsection*")]
    (tmp_path / "all.tex").write_text(head + "\n\\newpage\n".join(bodies) + "\\end{document}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_text_and_notebook_forms():
    derivation = lesde.derive(REPORTED["all variables"])
    text = derivation.text()
    for word in ("Microscopic rule", "‖X_i − X_J‖²", "κ(s=1)", "X̄", derivation.why_open):
        assert word in text
    assert "Σ(l)⋅wₗ" in text
    assert derivation._repr_latex_() == derivation.latex()
    assert repr(derivation).endswith("no closed form")
    assert "has no value for a" not in lesde.derive(REPORTED["free"]).text()
