"""A derivation as a person would print it: the same equations as text and as LaTeX."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import sympy as sp

from lesde.derivation.sections import sections

if TYPE_CHECKING:
    from lesde.derivation.core import Derivation

__all__ = ["latex_report", "text_report"]

_LATEX_FIXED = {
    "DeltaX_i": r"\Delta X_i",
    "E_kL": r"E_{kL}(t)",
    "E_kk": r"E_{kk}",
    "E_kl": r"E_{kl}",
    "X_J": r"X_J",
    "sumX": r"\sum_{l\neq k}\bar{X}^{l}",
    "sumHX": r"\sum_{l\neq k}H_l\bar{X}^{l}",
    "sumwEE": r"\sum_l w_l E_{kl}E_{ml}\,",
    "HSH": r"H_lS_lH_l^{\top}",
    "dX_i": r"\mathrm{d}X_i",
    "dW_i": r"\mathrm{d}W_i",
    "dt": r"\mathrm{d}t",
    "dXbar_k/dt": r"\frac{\mathrm{d}\bar{X}^{k}}{\mathrm{d}t}",
    "Cov_ii": r"\frac{\operatorname{Cov}(\Delta X_i,\Delta X_i)}{h}",
    "Cov_ij": r"\frac{\operatorname{Cov}(\Delta X_i,\Delta X_j)}{h}",
    "rate_gap": r"\frac{\mathrm{d}}{\mathrm{d}t}\log\|\bar{X}^{k}-\bar{X}^{l}\|",
    "rate_NC1": r"\frac{\mathrm{d}}{\mathrm{d}t}\log\mathrm{NC1}",
    "rate_NC2": r"\frac{\mathrm{d}}{\mathrm{d}t}\log\mathrm{NC2}",
    "c_crit": r"c^{*}",
    "|d_l|^2": r"\|d_l\|^2",
}
_TEXT_FIXED = {
    "DeltaX_i": "ΔX_i",
    "sumX": "Σ(l≠k) X̄ˡ",
    "sumHX": "Σ(l≠k) Hˡ⋅X̄ˡ",
    "sumwEE": "Σ(l) wˡ⋅Eᵏˡ⋅Eᵐˡ",
    "HSH": "Hˡ⋅Sˡ⋅Hˡᵀ",
    "dXbar_k/dt": "dX̄_k/dt",
    "|d_l|^2": "‖dₗ‖²",
    "Cov_ii": "Cov(ΔX_i, ΔX_i)/h",
    "Cov_ij": "Cov(ΔX_i, ΔX_j)/h",
}


def _latex_name(name: str, solution: bool) -> str:
    """How a symbol is set: class numbers of vectors as superscripts, transposes as ⊤."""
    if name in _LATEX_FIXED:
        return _LATEX_FIXED[name]
    if match := re.fullmatch(r"Xbar_(\w+)", name):
        argument = "(t)" if solution else ""
        return rf"\bar{{X}}^{{{match[1]}}}{argument}"
    if match := re.fullmatch(r"X_(\w+)", name):
        return rf"\bar{{X}}^{{{match[1]}}}_0"
    if match := re.fullmatch(r"(\w+)_(\w+)\^T", name):
        base = r"\sigma" if match[1] == "sigma" else match[1]
        return rf"{base}_{{{match[2]}}}^{{\top}}"
    if match := re.fullmatch(r"C_(\w+)", name):
        return rf"C_{{{match[1]}}}"
    return sp.latex(sp.Symbol(name))


def _set(expression: sp.Basic, solution: bool) -> str:
    symbols = expression.atoms(sp.Symbol)
    names = {symbol: _latex_name(symbol.name, solution) for symbol in symbols}
    return sp.latex(expression, symbol_names=names, mul_symbol=None, ln_notation=False)


LINE = 150  # characters of LaTeX that fit a line of an article, about


def _broken(expression: sp.Basic, solution: bool) -> str:
    """The expression, its terms over several lines where one would be too wide."""
    whole = _set(expression, solution)
    if len(whole) <= LINE or not isinstance(expression, sp.Add):
        return whole
    lines = [""]
    for term in expression.as_ordered_terms():
        text = _set(term, solution)
        sign = "" if text.startswith("-") or lines == [""] else "+ "
        if lines[-1] and len(lines[-1]) + len(text) > LINE:
            lines.append("")
        lines[-1] += f" {sign}{text}"
    return " \\\\\n  &\\quad ".join(line.strip() for line in lines)


def _latex_note(note: str) -> str:
    """A sentence with its symbols in math mode."""
    pattern = r"e_l - 1/K|\bbeta <= 0|\b(?:lambda|rate|c|s|d|t|X|S|m)_\w+|\balpha - beta = c/t|\bc > c_crit"

    def math(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("e_l"):
            return "$e_l-1/K$"
        if text.startswith("beta"):
            return r"$\beta\leq 0$"
        if text.startswith("alpha"):
            return r"$\alpha-\beta=c/t$"
        if text.startswith("c >"):
            return r"$c>c^{*}$"
        if text.startswith("rate_"):
            return text.split("_")[1].replace("gap", "the gap's rate")
        base, index = text.split("_", 1)
        if base == "X":
            return rf"$\bar{{X}}^{{{index}}}_0$"
        base = r"\lambda" if base == "lambda" else base
        return rf"${base}_{{{index}}}$"

    return re.sub(pattern, math, note)


def latex_report(derivation: Derivation, document: bool) -> str:
    """The derivation in LaTeX; see :meth:`lesde.derivation.Derivation.latex`."""
    lines: list[str] = []
    for section in sections(derivation):
        lines.append(
            rf"\subsection*{{{section.title.replace('at learning rate h', 'at learning rate $h$')}}}"
        )
        if section.equations:
            body = []
            in_solution = section.title.startswith("Solution")
            for left, right in section.equations:
                body.append(f"  {_set(left, in_solution)} &= {_broken(right, in_solution)}")
            lines += [r"\begin{align*}", " \\\\\n".join(body), r"\end{align*}"]
        lines += [_latex_note(note) + r"\par" for note in section.notes]
    body_text = "\n".join(lines)
    if not document:
        return body_text
    head = "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage{amsmath,amssymb}",
            r"\allowdisplaybreaks",
            r"\begin{document}",
            r"\section*{Locally elastic SDE}",
        ]
    )
    return f"{head}\n{body_text}\n\\end{{document}}\n"


_SUBSCRIPTS = str.maketrans("0123456789klmi", "₀₁₂₃₄₅₆₇₈₉ₖₗₘᵢ")


def _plain(expression: sp.Basic) -> sp.Basic:
    """Symbols under the names that a terminal shows well."""

    def name(symbol: sp.Symbol) -> str:
        if match := re.fullmatch(r"(\w+)_(\w+)\^T", symbol.name):
            base = "σ" if match[1] == "sigma" else match[1]
            return base + match[2].translate(_SUBSCRIPTS) + "ᵀ"
        return _TEXT_FIXED.get(symbol.name, symbol.name)

    symbols = expression.atoms(sp.Symbol)
    swaps = {s: sp.Symbol(name(s), **s.assumptions0) for s in symbols if name(s) != s.name}
    return expression.xreplace(swaps)


def text_report(derivation: Derivation) -> str:
    """The derivation as text; see :meth:`lesde.derivation.Derivation.text`."""
    blocks: list[str] = []
    for section in sections(derivation):
        blocks.append(f"{section.title}\n{'─' * len(section.title)}")
        for left, right in section.equations:
            equation = sp.Eq(_plain(left), _plain(right), evaluate=False)
            text = sp.pretty(equation, use_unicode=True, wrap_line=False)
            blocks.append("\n".join("    " + line for line in text.splitlines()))
        blocks += ["  " + note for note in section.notes]
    text = "\n\n".join(blocks) + "\n"
    return text.replace("Xbar", "X̄")
