"""A derivation as a person would print it: the same equations as text and as LaTeX."""

from __future__ import annotations

import re

import sympy as sp

from lesde.derivation.sections import Section
from lesde.plain_text import in_ascii

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
    "kappa_iJ": r"\kappa_{iJ}",
    "kappa_same": r"\kappa|_{s=1}",
    "kappa_other": r"\kappa|_{s=0}",
    "r2": r"r^{2}",
    "dist2": r"\|X_i-X_J\|^{2}",
    "inner": r"\langle X_i,X_J\rangle",
    "cosine": r"\frac{\langle X_i,X_J\rangle}{\|X_i\|\,\|X_J\|}",
    "indicator": r"\mathbf{1}_{k(i)=k(J)}",
    "kappa_kl": r"\kappa(\bar{X}^{k},\bar{X}^{l})",
    "avgX": r"\langle\kappa_{iJ}X_J\rangle_{l}",
    "avgXX": r"\langle\kappa_{iJ}\kappa_{jJ}X_JX_J^{\top}\rangle_{l}",
    "sum": r"\sum_{l}",
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
    "kappa_iJ": "κ_iJ",
    "kappa_same": "κ(s=1)",
    "kappa_other": "κ(s=0)",
    "dist2": "‖X_i − X_J‖²",
    "inner": "⟨X_i, X_J⟩",
    "cosine": "⟨X_i, X_J⟩/(‖X_i‖‖X_J‖)",
    "indicator": "1[class of i = class of J]",
    "kappa_kl": "κ(X̄_k, X̄_l)",
    "avgX": "⟨κ_iJ⋅X_J⟩ₗ",
    "avgXX": "⟨κ_iJ⋅κ_jJ⋅X_J⋅X_Jᵀ⟩ₗ",
    "sum": "Σ(l)",
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
    if match := re.fullmatch(r"dXbar_(\w+)/dt", name):
        return rf"\frac{{\mathrm{{d}}\bar{{X}}^{{{match[1]}}}}}{{\mathrm{{d}}t}}"
    if match := re.fullmatch(r"kappaX_(\w+)_(\w+)", name):
        return rf"\langle\kappa X\rangle_{{{match[1]},{match[2]}}}"
    if match := re.fullmatch(r"(r2|g|c)_(\d+)_(\d+)", name):
        base = "r^{2}" if match[1] == "r2" else match[1]
        return rf"{base}_{{{match[2]},{match[3]}}}"
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


def latex_report(sections: list[Section], document: bool) -> str:
    """A derivation's sections in LaTeX; see :meth:`lesde.derivation.Derivation.latex`."""
    lines: list[str] = []
    for section in sections:
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


def _plain(expression: sp.Basic, unicode: bool) -> sp.Basic:
    """Symbols under the names that a terminal shows well."""

    def name(symbol: sp.Symbol) -> str:
        return shown(symbol) if unicode else in_ascii(shown(symbol))

    def shown(symbol: sp.Symbol) -> str:
        if match := re.fullmatch(r"(\w+)_(\w+)\^T", symbol.name):
            base = "σ" if match[1] == "sigma" else match[1]
            return base + match[2].translate(_SUBSCRIPTS) + "ᵀ"
        if match := re.fullmatch(r"kappaX_(\w+)_(\w+)", symbol.name):
            return f"⟨κX⟩{match[1]},{match[2]}".translate(_SUBSCRIPTS)
        if match := re.fullmatch(r"(r2|g|c)_(\d+)_(\d+)", symbol.name):
            base = "r²" if match[1] == "r2" else match[1]
            return base + f"{match[2]},{match[3]}".translate(_SUBSCRIPTS)
        return _TEXT_FIXED.get(symbol.name, symbol.name)

    symbols = expression.atoms(sp.Symbol)
    swaps = {s: sp.Symbol(name(s), **s.assumptions0) for s in symbols if name(s) != s.name}
    return expression.xreplace(swaps)


def text_report(sections: list[Section], unicode: bool) -> str:
    """A derivation's sections as text; see :meth:`lesde.derivation.Derivation.text`."""
    blocks: list[str] = []
    for section in sections:
        blocks.append(f"{section.title}\n{'─' * len(section.title)}")
        for left, right in section.equations:
            equation = sp.Eq(_plain(left, unicode), _plain(right, unicode), evaluate=False)
            text = sp.pretty(equation, use_unicode=unicode, wrap_line=False)
            blocks.append("\n".join("    " + line for line in text.splitlines()))
        blocks += ["  " + note for note in section.notes]
    text = "\n\n".join(blocks) + "\n"
    return text.replace("Xbar", "X̄") if unicode else in_ascii(text)
