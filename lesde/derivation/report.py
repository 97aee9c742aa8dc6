"""A derivation as a person would print it: the same equations as text and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from lesde.derivation.integrals import abbreviate
from lesde.derivation.rule import LEARNING_RATE, NOISE, H, increment, rule
from lesde.derivation.rule import matrix_symbol as word
from lesde.model.formula import VARIABLES
from lesde.text import in_ascii

__all__ = ["Section", "feature_sections", "latex_report", "sections", "text_report"]

EXPLICIT = 4
"""Classes written out one by one; beyond, a few stand for all."""
LINE = 150
"""Characters of LaTeX that fit a line of an article, about."""


@dataclass
class Section:
    """A heading, equations (left side, right side) and sentences."""

    title: str
    equations: list[tuple[sp.Expr, sp.Expr]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, left: str, right: sp.Expr) -> None:
        """Add an equation for a symbol of this name."""
        self.equations.append((sp.Symbol(left), right))


# --------------------------------------------------------------------------------------------------
# What a derivation says, in order: headings, equations and sentences.


def sections(derivation: Any) -> list[Section]:
    """The parts of a derivation for a kernel of classes, in the order in which they follow from each other."""
    parts = [_rule, _drift, _diffusion, _modes, _solution, _rates]
    return [part(derivation) for part in parts]


def feature_sections(derivation: Any) -> list[Section]:
    """The parts of a derivation for a kernel of features, in the order in which they follow from each other."""
    parts = [_feature_rule, _feature_drift, _feature_diffusion, _small_noise, _feature_modes]
    return [part(derivation) for part in parts]


def _shown_classes(derivation: Any) -> Iterable[int]:
    K = derivation.model.n_classes
    if derivation.tree is not None and K > EXPLICIT:
        return [orbit[0] for orbit in derivation.tree.orbits][:EXPLICIT]
    return range(min(K, EXPLICIT))


def _transformed(derivation: Any, vector: sp.Expr, label: str = "l") -> sp.Expr:
    return vector if derivation.model.transform.kind == "identity" else word(f"H_{label}") * vector


def _microscopic(derivation: Any, strength: sp.Symbol) -> Section:
    identity = derivation.model.transform.kind == "identity"
    swaps = {H: sp.Integer(1) if identity else H, NOISE["i"][0]: word("sigma_k")}
    section = Section("Microscopic rule at learning rate h")
    section.add("DeltaX_i", increment(strength).xreplace(swaps))
    return section


def _rule(derivation: Any) -> Section:
    model = derivation.model
    section = _microscopic(derivation, word("E_kL"))
    if model.kernel.levels is not None and len(model.entries.values) == 2:
        section.add("E_kk", model.entries[0, 0])
        section.add("E_kl", model.entries[0, 1])
    elif model.n_classes <= EXPLICIT:
        section.add("E", model.entries.matrix())
    _add_system(derivation, section)
    return section


def _feature_rule(derivation: Any) -> Section:
    section = _microscopic(derivation, word("kappa_iJ"))
    strength = derivation.strength
    section.add("kappa_iJ", strength.expression)
    meanings = {"r2": "dist2", "g": "inner", "c": "cosine", "s": "indicator"}
    for name, meaning in meanings.items():
        if VARIABLES[name] in strength.expression.free_symbols:
            section.add(name, sp.Symbol(meaning))
    if VARIABLES["s"] in strength.expression.free_symbols:
        section.add("kappa_same", strength.at(True))
        section.add("kappa_other", strength.at(False))
    _add_system(derivation, section)
    return section


def _add_system(derivation: Any, section: Section) -> None:
    """Transform, noise and sizes, which every model has."""
    model = derivation.model
    noise = model.noise_table
    if model.transform.kind == "logits":
        section.add("H_l", word("d_l") * word("d_l^T") / sp.Symbol("|d_l|^2"))
        section.notes.append("d_l = e_l - 1/K are the logit directions; they sum to zero.")
    if not noise.is_numeric:  # a plain number stays with the model
        classes = list(_shown_classes(derivation))
        if not noise.is_isotropic and model.n_features > EXPLICIT:
            section.notes.append(
                "The noise is a matrix of functions of time, not written out here."
            )
        elif noise.is_shared:
            section.add("sigma_k", derivation.diffusion.factor(0))
        else:
            for k in classes:
                section.add(f"sigma_{k + 1}", derivation.diffusion.factor(k))
            if len(classes) < model.n_classes:
                section.notes.append("Every class has its own noise; that of some is shown.")
    sizes = model.counts.tolist() if not model.is_balanced else int(model.counts[0])
    section.notes.append(
        f"{model.n_classes} classes in {model.n_features} dimensions, samples per class: {sizes}."
    )


def _drift(derivation: Any) -> Section:
    section = Section("Drift: expectation over the drawn class and sample")
    table = derivation.coefficients().drift_table
    identity = derivation.model.transform.kind == "identity"
    single = derivation.tree is not None and len(derivation.tree.orbits) == 1
    if single and derivation.model.n_classes > 1:
        own = _transformed(derivation, word("Xbar_k"), "k")
        others = word("sumX" if identity else "sumHX")
        section.add("b_k", table[0, 0] * own + table[0, 1] * others)
    else:
        for k in _shown_classes(derivation):
            section.add(f"b_{k + 1}", derivation.drift[k])
    section.add("dX_i", word("b_k") * word("dt") + word("sigma_k") * word("dW_i"))
    section.add("dXbar_k/dt", word("b_k"))
    return section


def _feature_drift(derivation: Any) -> Section:
    section = Section("Drift: expectation over the drawn class and sample")
    factor = word("sum") * rule().drift(word("w_l"), 1)
    section.add("b_i", factor * _transformed(derivation, word("avgX")))
    section.notes.append("Angle brackets are averages over the samples of a class.")
    if derivation.model.n_classes <= EXPLICIT:
        for k, drift in enumerate(derivation.drift):
            section.add(f"b_{k + 1}", drift)
        section.notes.append("The second index is the class that is averaged over.")
    section.add("dX_i", word("b_i") * word("dt") + word("sigma_k") * word("dW_i"))
    return section


def _covariances(derivation: Any, own: str, other: str) -> Section:
    section = Section("Diffusion: covariance of two samples i (class k) and j (class m)")
    h, diffusion = LEARNING_RATE, derivation.diffusion
    noise = diffusion.noise * word("sigma_k") * word("sigma_k^T")
    section.add("Cov_ii", noise + h * word(own))
    section.add("Cov_ij", diffusion.noise_between * word("sigma_k") + h * word(other))
    return section


def _diffusion(derivation: Any) -> Section:
    section = _covariances(derivation, "C_kk", "C_km")
    K = derivation.model.n_classes
    if K > EXPLICIT:
        S = word("S_l" if derivation.model.transform.kind == "identity" else "HSH")
        section.add("C_km", word("sumwEE") * S - word("b_k") * word("b_m^T"))
    else:
        k = next(iter(_shown_classes(derivation)))
        for m in dict.fromkeys([k, (k + 1) % K]):
            section.add(f"C_{k + 1}{m + 1}", derivation.diffusion.sampling(k, m))
    section.notes.append(
        "C is the sampling noise of SGD; it vanishes with h. S_l is the second moment of class l's features."
    )
    return section


def _feature_diffusion(derivation: Any) -> Section:
    section = _covariances(derivation, "C_ii", "C_ij")
    average = _transformed(derivation, word("avgXX"))
    if derivation.model.transform.kind != "identity":
        average = average * word("H_l^T")
    second = word("sum") * rule().sampling(word("w_l"), 1, 1) * average
    section.add("C_ij", second - word("b_i") * word("b_j^T"))
    section.notes.append("C is the sampling noise of SGD; it vanishes with h.")
    return section


def _modes(derivation: Any) -> Section:
    section = Section("Modes of the mean ODE")
    for i, mode in enumerate(derivation.modes, start=1):
        section.add(f"lambda_{i}", mode.rate)
        section.notes.append(f"lambda_{i}: {mode.name}, multiplicity {mode.multiplicity}")
    if not derivation.is_closed:
        section.notes.append(
            "The part that symmetry leaves coupled has no eigenvectors that are constant in time: there is no "
            "closed form, and the law integrates it numerically."
        )
    return section


def _solution(derivation: Any) -> Section:
    section = Section("Solution of the mean ODE")
    solution = derivation.solution
    if solution is None:
        section.notes.append(
            "Not written out here; lesde.law(model, times) integrates it to 1e-12."
        )
        return section
    generic = solution.generic()
    means = {"k": generic} if generic is not None else {
        str(k + 1): solution.mean(k) for k in _shown_classes(derivation)
    }  # fmt: skip
    meaning: dict[sp.Expr, sp.Expr] = {}
    for label, mean in means.items():
        short, more = abbreviate(mean)
        meaning |= more
        section.add(f"Xbar_{label}", short)
    note = "X_k is the initial mean of class k"
    if generic is not None and solution.is_logits:
        note += ", s_k its initial score, m_s the mean score, and D the sum of s_l d_l over classes"
    elif generic is not None:
        note += ", m the mean of all X_k"
    section.notes.append(f"{note}.")
    section.equations += list(meaning.items())
    return section


def _rates(derivation: Any) -> Section:
    section = Section("Rates")
    rows = {
        "rate_gap": derivation.separation_rate,
        "rate_NC1": derivation.nc1_rate,
        "rate_NC2": derivation.nc2_rate,
        "c_crit": derivation.critical_constant,
    }
    missing: dict[str, list[str]] = {}
    for name, value in rows.items():
        if value is None:
            missing.setdefault(_why_missing(derivation, name), []).append(name)
        else:
            section.add(name, value)
    if section.equations:
        section.notes.append(
            "These are d/dt of the logarithm of the gap of two class means, of NC1 and of the NC2 error, "
            "and the critical constant; s_0 is the spread within a class at t_0."
        )
    if rows["c_crit"] is not None:
        section.notes.append(
            "With alpha - beta = c/t the gap over the spread grows without bound iff c > c_crit."
            + (" This is for beta <= 0." if derivation.model.transform.kind == "logits" else "")
        )
    for why, names in missing.items():
        section.notes.append(f"No closed form for {', '.join(names)}: {why}.")
    return section


def _why_missing(derivation: Any, name: str) -> str:
    """The reason why there is no such rate."""
    model = derivation.model
    if name == "rate_NC2" and model.n_classes < 3:
        return "two centred class means are a simplex always"
    if model.transform.kind == "matrix":
        return "they depend on the direction"
    if name == "c_crit" and not model.noise_table.is_constant:
        return "the noise depends on time"
    if not derivation.is_closed:
        return "the modes have no closed form"
    return (
        "classes are not exchangeable, and the late class means oscillate, differ between pairs of "
        "classes, or depend on which of several functions of time wins"
    )


def _small_noise(derivation: Any) -> Section:
    section = Section("Small noise: all samples at their class means")
    factor = word("sum") * rule().drift(word("w_l"), 1) * word("kappa_kl")
    section.add("dXbar_k/dt", factor * _transformed(derivation, word("Xbar_l")))
    if derivation.model.n_classes <= EXPLICIT:
        for k, equation in enumerate(derivation.mean_ode):
            section.add(f"dXbar_{k + 1}/dt", equation.rhs)
    section.notes.append(
        "This is exact without noise and for samples that start at their class means; with noise the class "
        "means do not obey an equation of their own."
    )
    return section


def _feature_modes(derivation: Any) -> Section:
    section = Section("Modes, solution and rates")
    if derivation.class_model is None:
        section.notes.append(derivation.why_open)
        return section
    section.add("E_kk", derivation.strength.at(True))
    section.add("E_kl", derivation.strength.at(False))
    section.notes.append(
        "The strength does not depend on the features, so the model equals the one with this class "
        "kernel, whose derivation has modes, solution and rates."
    )
    return section


# --------------------------------------------------------------------------------------------------
# Setting it in LaTeX and in text.

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


_LATEX_PATTERNS = [
    (r"Xbar_(\w+)", r"\\bar{X}^{\1}"),
    (r"X_(\w+)", r"\\bar{X}^{\1}_0"),
    (r"sigma_(\w+)\^T", r"\\sigma_{\1}^{\\top}"),
    (r"(\w+)_(\w+)\^T", r"\1_{\2}^{\\top}"),
    (r"dXbar_(\w+)/dt", r"\\frac{\\mathrm{d}\\bar{X}^{\1}}{\\mathrm{d}t}"),
    (r"kappaX_(\w+)_(\w+)", r"\\langle\\kappa X\\rangle_{\1,\2}"),
    (r"r2_(\d+)_(\d+)", r"r^{2}_{\1,\2}"),
    (r"(g|c)_(\d+)_(\d+)", r"\1_{\2,\3}"),
    (r"C_(\w+)", r"C_{\1}"),
]
"""Class numbers of vectors are superscripts, transposes ⊤."""
_TEXT_PATTERNS = [
    (r"sigma_(\w+)\^T", r"σ\1ᵀ"),
    (r"(\w+)_(\w+)\^T", r"\1\2ᵀ"),
    (r"kappaX_(\w+)_(\w+)", r"⟨κX⟩\1,\2"),
    (r"r2_(\d+)_(\d+)", r"r²\1,\2"),
    (r"(g|c)_(\d+)_(\d+)", r"\1\2,\3"),
]
_NOTE_PATTERNS = [
    ("e_l - 1/K", "$e_l-1/K$"),
    (r"\bbeta <= 0", r"$\\beta\\leq 0$"),
    (r"\balpha - beta = c/t", r"$\\alpha-\\beta=c/t$"),
    (r"\bc > c_crit", "$c>c^{*}$"),
    (r"\brate_gap\b", "the gap's rate"),
    (r"\brate_(\w+)", r"\1"),
    (r"\bX_(\w+)", r"$\\bar{X}^{\1}_0$"),
    (r"\blambda_(\w+)", r"$\\lambda_{\1}$"),
    (r"\b([csdtSm])_(\w+)", r"$\1_{\2}$"),
]
"""Symbols in a sentence, set in math mode."""
_SUBSCRIPTS = str.maketrans("0123456789klmi", "₀₁₂₃₄₅₆₇₈₉ₖₗₘᵢ")


def _latex_name(name: str, solution: bool) -> str:
    if name in _LATEX_FIXED:
        return _LATEX_FIXED[name]
    for pattern, template in _LATEX_PATTERNS:
        if match := re.fullmatch(pattern, name):
            # In the solution the means are functions of time.
            return match.expand(template) + ("(t)" if solution and name.startswith("Xbar") else "")
    return sp.latex(sp.Symbol(name))


def _text_name(name: str) -> str:
    for pattern, template in _TEXT_PATTERNS:
        if match := re.fullmatch(pattern, name):
            base = match.expand(template)
            return base[:1] + base[1:].translate(_SUBSCRIPTS)
    return _TEXT_FIXED.get(name, name)


def _set(expression: sp.Basic, solution: bool) -> str:
    symbols = expression.atoms(sp.Symbol)
    names = {symbol: _latex_name(symbol.name, solution) for symbol in symbols}
    return sp.latex(expression, symbol_names=names, mul_symbol=None, ln_notation=False)


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
    for pattern, replacement in _NOTE_PATTERNS:
        note = re.sub(pattern, replacement, note)
    return note


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


def _plain(expression: sp.Basic, unicode: bool) -> sp.Basic:
    """Symbols under the names that a terminal shows well."""
    swaps = {}
    for symbol in expression.atoms(sp.Symbol):
        name = _text_name(symbol.name) if unicode else in_ascii(_text_name(symbol.name))
        if name != symbol.name:  # a replacement by the same would multiply out what contains it
            swaps[symbol] = sp.Symbol(name, **symbol.assumptions0)
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
