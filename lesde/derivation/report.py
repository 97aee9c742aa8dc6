"""A derivation as a person would print it: the same equations as text and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from lesde.derivation.integrals import abbreviate
from lesde.derivation.rule import matrix_symbol as _symbol
from lesde.derivation.rule import rule
from lesde.model.formula import VARIABLES
from lesde.text import in_ascii

__all__ = [
    "Section",
    "end_of_system",
    "feature_sections",
    "latex_report",
    "noise_equations",
    "sections",
    "text_report",
]


# --------------------------------------------------------------------------------------------------
# What a derivation says, in order: headings, equations and sentences.

EXPLICIT = 4  # classes written out one by one; beyond, a few stand for all


@dataclass
class Section:
    """A heading, sentences and equations (left side, right side)."""

    title: str
    equations: list[tuple[sp.Expr, sp.Expr]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sections(derivation: Any) -> list[Section]:
    """The parts of a derivation, in the order in which they follow from each other."""
    parts = [_rule(derivation), _drift(derivation), _diffusion(derivation), _modes(derivation)]
    parts += [_solution(derivation), _rates(derivation)]
    return parts


def _shown_classes(derivation: Any) -> Iterable[int]:
    K = derivation.model.n_classes
    if derivation.tree is not None and K > EXPLICIT:
        return [orbit[0] for orbit in derivation.tree.orbits][:EXPLICIT]
    return range(min(K, EXPLICIT))


def _rule(derivation: Any) -> Section:
    model = derivation.model
    h, E, zeta = sp.Symbol("h"), _symbol("E_kL"), _symbol("zeta_i")
    H = 1 if model.transform.kind == "identity" else _symbol("H_L")
    step = h * E * H * _symbol("X_J") + sp.sqrt(h) * _symbol("sigma_k") * zeta
    section = Section("Microscopic rule at learning rate h", [(_symbol("DeltaX_i"), step)])
    if model.kernel.levels is not None and len(model.entries.values) == 2:
        section.equations.append((sp.Symbol("E_kk"), model.entries[0, 0]))
        section.equations.append((sp.Symbol("E_kl"), model.entries[0, 1]))
    elif model.n_classes <= EXPLICIT:
        section.equations.append((_symbol("E"), model.entries.matrix()))
    end_of_system(derivation, section)
    return section


def end_of_system(derivation: Any, section: Section) -> None:
    """Transform, noise and sizes, which every model has."""
    model = derivation.model
    if model.transform.kind == "logits":
        d = _symbol("d_l")
        section.equations.append((_symbol("H_l"), d * _symbol("d_l^T") / sp.Symbol("|d_l|^2")))
        section.notes.append("d_l = e_l - 1/K are the logit directions; they sum to zero.")
    if not model.noise_table.is_numeric:
        noise_equations(derivation, section)
    sizes = model.counts.tolist() if not model.is_balanced else int(model.counts[0])
    section.notes.append(
        f"{model.n_classes} classes in {model.n_features} dimensions, samples a class: {sizes}."
    )


def noise_equations(derivation: Any, section: Section) -> None:
    """σ as a function of time, where it is one; a plain number stays with the model."""
    model = derivation.model
    noise = model.noise_table
    if not noise.is_isotropic and model.n_features > EXPLICIT:
        section.notes.append("The noise is a matrix of functions of time, not written out here.")
        return
    if noise.is_shared:
        section.equations.append((_symbol("sigma_k"), derivation.diffusion.factor(0)))
        return
    classes = list(_shown_classes(derivation))
    for k in classes:
        section.equations.append((_symbol(f"sigma_{k + 1}"), derivation.diffusion.factor(k)))
    if len(classes) < model.n_classes:
        section.notes.append("Every class has its own noise; that of some is shown.")


def _drift(derivation: Any) -> Section:
    section = Section("Drift: expectation over the drawn class and sample")
    table = derivation.coefficients().drift_table
    identity = derivation.model.transform.kind == "identity"
    single = derivation.tree is not None and len(derivation.tree.orbits) == 1
    if single and derivation.model.n_classes > 1:
        own = _symbol("Xbar_k") if identity else _symbol("H_k") * _symbol("Xbar_k")
        others = _symbol("sumX") if identity else _symbol("sumHX")
        section.equations.append((_symbol("b_k"), table[0, 0] * own + table[0, 1] * others))
    else:
        for k in _shown_classes(derivation):
            section.equations.append((_symbol(f"b_{k + 1}"), derivation.drift[k]))
    section.equations.append(
        (_symbol("dX_i"), _symbol("b_k") * _symbol("dt") + _symbol("sigma_k") * _symbol("dW_i"))
    )
    section.equations.append((_symbol("dXbar_k/dt"), _symbol("b_k")))
    return section


def _diffusion(derivation: Any) -> Section:
    section = Section("Diffusion: covariance of two samples i (class k) and j (class m)")
    noise = derivation.diffusion.noise * _symbol("sigma_k") * _symbol("sigma_k^T")
    section.equations.append((_symbol("Cov_ii"), noise + sp.Symbol("h") * _symbol("C_kk")))
    between = derivation.diffusion.noise_between * _symbol("sigma_k")
    section.equations.append((_symbol("Cov_ij"), between + sp.Symbol("h") * _symbol("C_km")))
    classes = list(_shown_classes(derivation))[:1]
    for k in classes:
        section.equations.append(
            (_symbol(f"C_{k + 1}{k + 1}"), derivation.diffusion.sampling(k, k))
        )
        if derivation.model.n_classes > 1:
            m = (k + 1) % derivation.model.n_classes
            section.equations.append(
                (_symbol(f"C_{k + 1}{m + 1}"), derivation.diffusion.sampling(k, m))
            )
    if derivation.model.n_classes > EXPLICIT:
        section.equations = section.equations[:2]
        S = _symbol("S_l") if derivation.model.transform.kind == "identity" else _symbol("HSH")
        general = _symbol("sumwEE") * S - _symbol("b_k") * _symbol("b_m^T")
        section.equations.append((_symbol("C_km"), general))
    section.notes.append("C is the sampling noise of SGD; it vanishes with h. S_l is the second")
    section.notes[-1] += " moment of class l's features."
    return section


def _modes(derivation: Any) -> Section:
    section = Section("Modes of the mean ODE")
    for i, mode in enumerate(derivation.modes):
        section.equations.append((sp.Symbol(f"lambda_{i + 1}"), mode.rate))
        section.notes.append(f"lambda_{i + 1}: {mode.name}, multiplicity {mode.multiplicity}")
    if not derivation.is_closed:
        section.notes.append(
            "What symmetry leaves coupled has no eigenvectors that are constant in time: there is no "
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
    meaning: dict[sp.Expr, sp.Expr] = {}
    if generic is not None:
        short, meaning = abbreviate(generic)
        section.equations.append((sp.Symbol("Xbar_k"), short))
        section.notes.append("X_k is the initial mean of class k, m the mean of all X_k.")
        if solution.is_logits:
            section.notes[-1] = (
                "X_k is the initial mean of class k, s_k its initial score, m_s the mean score, and "
                "D the sum of s_l d_l over classes."
            )
    else:
        for k in _shown_classes(derivation):
            short, more = abbreviate(solution.mean(k))
            meaning |= more
            section.equations.append((sp.Symbol(f"Xbar_{k + 1}"), short))
        section.notes.append("X_k is the initial mean of class k.")
    section.equations += list(meaning.items())
    return section


def _rates(derivation: Any) -> Section:
    section = Section("Rates")
    rows = [
        ("rate_gap", derivation.separation_rate),
        ("rate_NC1", derivation.nc1_rate),
        ("rate_NC2", derivation.nc2_rate),
        ("c_crit", derivation.critical_constant),
    ]
    section.equations = [(sp.Symbol(name), value) for name, value in rows if value is not None]
    if section.equations:
        section.notes.append(
            "These are d/dt of the logarithm of the gap of two class means, of NC1 and of the NC2 error, "
            "and the critical constant; s_0 is the spread within a class at t_0."
        )
    if derivation.critical_constant is not None:
        section.notes.append(
            "With alpha - beta = c/t the gap over the spread grows without bound iff c > c_crit."
            + (" This is for beta <= 0." if derivation.model.transform.kind == "logits" else "")
        )
    missing: dict[str, list[str]] = {}
    for name, value in rows:
        if value is None:
            missing.setdefault(_why_missing(derivation, name), []).append(name)
    for why, names in missing.items():
        section.notes.append(f"No closed form for {', '.join(names)}: {why}.")
    return section


def _why_missing(derivation: Any, name: str) -> str:
    """Why there is no such rate."""
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


# --------------------------------------------------------------------------------------------------
# What the derivation of a feature kernel says, in order: headings, equations and sentences.


def feature_sections(derivation: Any) -> list[Section]:
    """The parts of a derivation, in the order in which they follow from each other."""
    return [
        _rule_of_feature_report(derivation),
        _drift_of_feature_report(derivation),
        _diffusion_of_feature_report(derivation),
        _means(derivation),
        _closed(derivation),
    ]


def _transformed(derivation: Any, word: sp.Expr) -> sp.Expr:
    return word if derivation.model.transform.kind == "identity" else _symbol("H_l") * word


def _rule_of_feature_report(derivation: Any) -> Section:
    model = derivation.model
    h, kappa, zeta = (
        sp.Symbol("h"),
        _symbol("kappa_iJ"),
        _symbol("zeta_i"),
    )
    H = 1 if model.transform.kind == "identity" else _symbol("H_L")
    step = h * kappa * H * _symbol("X_J") + sp.sqrt(h) * _symbol("sigma_k") * zeta
    section = Section("Microscopic rule at learning rate h", [(_symbol("DeltaX_i"), step)])
    strength = derivation.strength
    section.equations.append((kappa, strength.expression))
    meanings = {"r2": "dist2", "g": "inner", "c": "cosine", "s": "indicator"}
    for name, meaning in meanings.items():
        if VARIABLES[name] in strength.expression.free_symbols:
            section.equations.append((VARIABLES[name], sp.Symbol(meaning)))
    if VARIABLES["s"] in strength.expression.free_symbols:
        section.equations.append((_symbol("kappa_same"), strength.at(True)))
        section.equations.append((_symbol("kappa_other"), strength.at(False)))
    end_of_system(derivation, section)
    return section


def _drift_of_feature_report(derivation: Any) -> Section:
    section = Section("Drift: expectation over the drawn class and sample")
    weight = rule().drift(_symbol("w_l"), 1)
    general = _symbol("sum") * weight * _transformed(derivation, _symbol("avgX"))
    section.equations.append((_symbol("b_i"), general))
    if derivation.model.n_classes <= EXPLICIT:
        for k, drift in enumerate(derivation.drift):
            section.equations.append((_symbol(f"b_{k + 1}"), drift))
        section.notes.append("The second index is the class that is averaged over.")
    section.equations.append(
        (
            _symbol("dX_i"),
            _symbol("b_i") * _symbol("dt") + _symbol("sigma_k") * _symbol("dW_i"),
        )
    )
    section.notes.insert(0, "Angle brackets are averages over the samples of a class.")
    return section


def _diffusion_of_feature_report(derivation: Any) -> Section:
    section = Section("Diffusion: covariance of two samples i (class k) and j (class m)")
    diffusion, h = derivation.diffusion, sp.Symbol("h")
    noise = diffusion.noise * _symbol("sigma_k") * _symbol("sigma_k^T")
    section.equations.append((_symbol("Cov_ii"), noise + h * _symbol("C_ii")))
    between = diffusion.noise_between * _symbol("sigma_k")
    section.equations.append((_symbol("Cov_ij"), between + h * _symbol("C_ij")))
    average = _transformed(derivation, _symbol("avgXX"))
    if derivation.model.transform.kind != "identity":
        average = average * _symbol("H_l^T")
    second = _symbol("sum") * rule().sampling(_symbol("w_l"), 1, 1) * average
    section.equations.append(
        (
            _symbol("C_ij"),
            second - _symbol("b_i") * _symbol("b_j^T"),
        )
    )
    section.notes.append("C is the sampling noise of SGD; it vanishes with h.")
    return section


def _means(derivation: Any) -> Section:
    section = Section("Small noise: all samples at their class means")
    mean = _transformed(derivation, _symbol("Xbar_l"))
    weight = rule().drift(_symbol("w_l"), 1)
    general = _symbol("sum") * weight * _symbol("kappa_kl") * mean
    section.equations.append((_symbol("dXbar_k/dt"), general))
    if derivation.model.n_classes <= EXPLICIT:
        for k, equation in enumerate(derivation.mean_ode):
            section.equations.append((_symbol(f"dXbar_{k + 1}/dt"), equation.rhs))
    section.notes.append(
        "This is exact without noise and for samples that start at their class means; with noise the class "
        "means do not obey an equation of their own."
    )
    return section


def _closed(derivation: Any) -> Section:
    section = Section("Modes, solution and rates")
    section.notes.append(derivation.why_open)
    if derivation.class_model is not None:
        strength = derivation.strength
        section.equations = [
            (_symbol("E_kk"), strength.at(True)),
            (_symbol("E_kl"), strength.at(False)),
        ]
        section.notes = [
            "The strength does not depend on the features, so the model equals the one with this class "
            "kernel, whose derivation has modes, solution and rates."
        ]
    return section


# --------------------------------------------------------------------------------------------------

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
