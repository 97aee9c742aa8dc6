"""The derivation as text and LaTeX: it compiles, and says what the object says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

import lesde
from lesde import LESDE, ClassMatrix, LabelNoise, TwoLevel
from tests.derivation.systems import CLOSED, OPEN

REPORTED = {
    **CLOSED,
    **OPEN,
    "unevaluated I": LESDE(TwoLevel(), 3, 2),
    "unevaluated L": LESDE(TwoLevel(), 5, 5, transform="logits"),
    "unevaluated matrix": LESDE(ClassMatrix([[None] * 3 for _ in range(3)]), 3, 2, [1, 2, 3]),
    "unevaluated noise": LESDE(LabelNoise(TwoLevel(), 0.25), 4, 2),
    "hundred": LESDE(TwoLevel("c/(1+t)", -0.5, {"c": 2}), 100, 100),
    "one class": LESDE(TwoLevel(1, 0), 1, 2),
    "noise in time": LESDE(TwoLevel(), 3, 2, noise="s/(1+t)", parameters={"s": 0.3}),
    "noise of classes": LESDE(TwoLevel(2, -0.5), 6, 2, noise=["t", 1, 2, "sqrt(t)", 1, 0]),
    "noise matrix": LESDE(TwoLevel(2, -0.5), 3, 2, noise=[["exp(-t)", 0], ["t", 1]]),
    "noise callables": LESDE(TwoLevel(2, -0.5), 2, 2, noise=[[abs, 0], [0, abs]]),
    "noise matrix, large": LESDE(
        TwoLevel(2, -0.5), 3, 9, noise=[["t" if i >= j else 0 for i in range(9)] for j in range(9)]
    ),
}


def equations(latex: str) -> list[str]:
    lines = []
    for block in re.findall(r"\\begin\{align\*\}(.*?)\\end\{align\*\}", latex, re.S):
        lines += [line.replace("&", "").strip() for line in block.split("\\\\\n")]
    return lines


@pytest.mark.parametrize(
    "name", ["unevaluated I", "unevaluated L", "I in time", "L in time", "hundred"]
)
def test_equations_are_read_by_mathtext(name):
    """A second reader of TeX; it knows no matrices, conditions or \\operatorname*."""
    mathtext = pytest.importorskip("matplotlib.mathtext")
    parser = mathtext.MathTextParser("path")
    read = 0
    for line in equations(lesde.derive(REPORTED[name]).latex()):
        if r"\begin" in line or "operatorname" in line:
            continue
        line = line.replace(r"\quad", r"\ ").replace(r"\limits", "")
        line = re.sub(r"\\(mathopen|mathclose)\{\}", "", line)
        if line.count(r"\left") != line.count(r"\right"):
            continue  # a line of a formula broken inside a bracket
        parser.parse(f"${line}$")
        read += 1
    assert read >= 8


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_all_reports_compile(tmp_path):
    """One document of all models, without errors and without lines wider than the page."""
    bodies = [lesde.derive(model).latex() for model in REPORTED.values()]
    first = lesde.derive(REPORTED["unevaluated I"]).latex(document=True)
    head = first[: first.index(r"\subsection*")]
    (tmp_path / "all.tex").write_text(head + "\n\\newpage\n".join(bodies) + "\\end{document}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("name", REPORTED)
def test_braces_and_environments_balance(name):
    latex = lesde.derive(REPORTED[name]).latex(document=True)
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") - latex.count(r"\leftarrow") == latex.count(r"\right")
    for environment in re.findall(r"\\begin\{(.*?)\}", latex):
        assert latex.count(rf"\begin{{{environment}}}") == latex.count(rf"\end{{{environment}}}")


def test_what_is_printed_is_what_is_derived():
    latex = lesde.derive(LESDE(TwoLevel(), 3, 2)).latex()
    text = " ".join(latex.split())
    assert r"\frac{\alpha{\left(t \right)} - \beta{\left(t \right)}}{3}" in text
    assert r"c^{*} &= \frac{3}{2}" in text
    assert "multiplicity 4" in text
    assert r"\sigma_{k}" in text
    changed = lesde.derive(LESDE(TwoLevel(), 5, 2)).latex()
    assert r"c^{*} &= \frac{5}{2}" in changed
    for title in ("Microscopic rule", "Drift", "Diffusion", "Modes", "Solution", "Rates"):
        assert rf"\subsection*{{{title}" in latex


def test_noise_is_shown_as_a_function_of_time():
    in_time = lesde.derive(REPORTED["noise in time"])
    assert r"\sigma_{k} &= \frac{3}{10 \left(t + 1\right)}" in in_time.latex()
    assert "10⋅(t + 1)" in in_time.text()
    assert in_time.diffusion.factor(1).subs({"t": 2}).is_positive is not False
    # NC1 grows with the variance that has built up: σ²(t) / (s₀² + ∫σ²), not σ²/(s₀² + σ²(t − t₀)).
    assert r"\int\limits_{t_{0}}^{t} \sigma^{2}{\left(\tau \right)}" in in_time.latex()
    assert in_time.critical_constant is None
    assert "No closed form for c_crit: the noise depends on time." in in_time.text()
    classes = lesde.derive(REPORTED["noise of classes"]).text()
    assert "σ₁ = t" in classes
    assert "Every class has its own noise" in classes
    assert r"\left[\begin{matrix}e^{- t} & 0\\t & 1\end{matrix}\right]" in (
        lesde.derive(REPORTED["noise matrix"]).latex()
    )
    callables = lesde.derive(REPORTED["noise callables"]).latex()
    assert r"\sigma_{k} &= \sigma_{1 1}{\left(t \right)}" in callables
    assert "not written out" in lesde.derive(REPORTED["noise matrix, large"]).text()
    plain = lesde.derive(LESDE(TwoLevel(), 3, 2, noise=0.3))
    assert r"\sigma_{k} &=" not in plain.latex()
    assert float(plain.critical_constant) == 1.5


def test_text_and_notebook_forms():
    derivation = lesde.derive(LESDE(TwoLevel("2/(1+t)", -0.5), 3, 2))
    text = derivation.text()
    for word in ("Microscopic rule", "X̄", "multiplicity 4"):
        assert word in text
    assert max(map(len, text.splitlines())) < 400
    assert derivation._repr_latex_() == derivation.latex()
    assert repr(derivation).endswith("2 modes, closed form")
