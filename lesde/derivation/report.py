"""A derivation as a person would print it: the same equations as text and as LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from lesde.derivation.rule import LEARNING_RATE, NOISE, H, increment, rule
from lesde.derivation.rule import matrix_symbol as word
from lesde.model.formula import VARIABLES
from lesde.text import in_ascii

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

    def note(self, sentence: str) -> None:
        """Add a sentence."""
        self.notes.append(sentence)


# --------------------------------------------------------------------------------------------------
# What a derivation says, in order: headings, equations and sentences.


def _sections(derivation: Any) -> list[Section]:
    """The parts of a derivation, in the order in which they follow from each other."""
    parts = [_rule, _drift, _diffusion]
    parts += [_small_noise, _no_modes] if _of_pairs(derivation) else [_modes, _solution, _rates]
    return [part(derivation) for part in parts]


def _of_pairs(derivation: Any) -> bool:
    return derivation.model.kernel.depends_on_features


def _shown_classes(derivation: Any) -> list[int]:
    K = derivation.model.n_classes
    if derivation.tree is not None and K > EXPLICIT:
        return [orbit[0] for orbit in derivation.tree.orbits][:EXPLICIT]
    return list(range(min(K, EXPLICIT)))


def _transformed(derivation: Any, vector: sp.Expr, label: str = "l") -> sp.Expr:
    return vector if derivation.model.transform.kind == "identity" else word(f"H_{label}") * vector


def _rule(derivation: Any) -> Section:
    model, section = derivation.model, Section("Microscopic rule at learning rate h")
    swaps = {NOISE["i"][0]: word("sigma_k")}
    if model.transform.kind == "identity":
        swaps[H] = sp.Integer(1)
    strength = "kappa_iJ" if _of_pairs(derivation) else "E_kL"
    section.add("DeltaX_i", increment(word(strength)).xreplace(swaps))
    if _of_pairs(derivation):
        kappa = derivation.strength
        section.add("kappa_iJ", kappa.expression)
        meanings = {"r2": "dist2", "g": "inner", "c": "cosine", "s": "indicator"}
        for name, meaning in meanings.items():
            if VARIABLES[name] in kappa.expression.free_symbols:
                section.add(name, sp.Symbol(meaning))
        if VARIABLES["s"] in kappa.expression.free_symbols:
            section.add("kappa_same", kappa.at(True))
            section.add("kappa_other", kappa.at(False))
    elif model.kernel.levels is not None and len(model.entries.values) == 2:
        section.add("E_kk", model.entries[0, 0])
        section.add("E_kl", model.entries[0, 1])
    elif model.n_classes <= EXPLICIT:
        section.add("E", model.entries.matrix())
    if model.transform.kind == "logits":
        section.add("H_l", word("d_l") * word("d_l^T") / sp.Symbol("|d_l|^2"))
        section.note("d_l is the unit vector e_l without its mean: the logit direction of class l.")
    noise = model.noise_table
    if not noise.is_isotropic and model.n_features > EXPLICIT:
        section.note("The noise is a matrix, which is not written out here.")
    elif noise.is_shared and not noise.is_numeric:  # a plain number stays with the model
        section.add("sigma_k", noise.expression(0))
    elif not noise.is_numeric:
        for k in _shown_classes(derivation):
            section.add(f"sigma_{k + 1}", noise.expression(k))
        section.note("Every class has its own noise.")
    sizes = int(model.counts[0]) if model.is_balanced else model.counts.tolist()
    section.note(
        f"{model.n_classes} classes in {model.n_features} dimensions, samples per class: {sizes}."
    )
    return section


def _drift(derivation: Any) -> Section:
    section = Section("Drift: expectation over the drawn class and sample")
    model, shown, b = derivation.model, _shown_classes(derivation), word("b_k")
    if _of_pairs(derivation):
        b = word("b_i")
        factor = word("sum") * rule().drift(word("w_l"), 1)
        section.add("b_i", factor * _transformed(derivation, word("avgX")))
        section.note("Angle brackets are averages over samples of a class, the last index.")
        shown = shown if model.n_classes <= EXPLICIT else []
    elif derivation.tree is not None and len(derivation.tree.orbits) == 1 and model.n_classes > 1:
        table = derivation.coefficients().drift_table
        own = _transformed(derivation, word("Xbar_k"), "k")
        others = word("sumX" if model.transform.kind == "identity" else "sumHX")
        section.add("b_k", table[0, 0] * own + table[0, 1] * others)
        shown = []
    for k in shown:
        section.add(f"b_{k + 1}", derivation.drift[k])
    section.add("dX_i", b * word("dt") + word("sigma_k") * word("dW_i"))
    if not _of_pairs(derivation):
        section.add("dXbar_k/dt", b)
    return section


def _diffusion(derivation: Any) -> Section:
    section = Section("Diffusion: covariance of two samples i (class k) and j (class m)")
    own, other = ("C_ii", "C_ij") if _of_pairs(derivation) else ("C_kk", "C_km")
    K, diffusion = derivation.model.n_classes, derivation.diffusion
    noise = diffusion.noise * word("sigma_k") * word("sigma_k^T")
    section.add("Cov_ii", noise + LEARNING_RATE * word(own))
    between = diffusion.noise_between * word("sigma_k")
    section.add("Cov_ij", between + LEARNING_RATE * word(other))
    section.note("C is the sampling noise of SGD; it vanishes with h.")
    identity = derivation.model.transform.kind == "identity"
    if _of_pairs(derivation):
        average = _transformed(derivation, word("avgXX")) * (1 if identity else word("H_l^T"))
        second = word("sum") * rule().sampling(word("w_l"), 1, 1) * average
        section.add(other, second - word("b_i") * word("b_j^T"))
        return section
    section.note("S_l is the second moment of the features of class l.")
    if K > EXPLICIT:
        second = word("sumwEE") * word("S_l" if identity else "HSH")
        section.add(other, second - word("b_k") * word("b_m^T"))
    else:
        for m in range(min(K, 2)):
            section.add(f"C_1{m + 1}", diffusion.sampling(0, m))
    return section


def _modes(derivation: Any) -> Section:
    section = Section("Modes of the mean ODE")
    for i, mode in enumerate(derivation.modes, start=1):
        section.add(f"lambda_{i}", mode.rate)
        section.note(f"lambda_{i}: {mode.name}, multiplicity {mode.multiplicity}")
    if not derivation.is_closed:
        section.note(
            "What symmetry leaves coupled has no eigenvectors constant in time, so no closed form."
        )
    return section


def _solution(derivation: Any) -> Section:
    section, solution = Section("Solution of the mean ODE"), derivation.solution
    if solution is None:
        section.note("Not written out here; lesde.law(model, times) integrates it to 1e-12.")
        return section
    generic, note = solution.generic(), "X_k is the initial mean of class k"
    if generic is None:
        means = {str(k + 1): solution.mean(k) for k in _shown_classes(derivation)}
    else:
        means = {"k": generic}
        scores = (
            ", s_k its initial score, m_s the mean score, and D the sum of s_l d_l over classes"
        )
        note += scores if solution.is_logits else ", m the mean of all X_k"
    for label, mean in means.items():
        section.add(f"Xbar_{label}(t)", mean)
    section.note(f"{note}.")
    return section


def _rates(derivation: Any) -> Section:
    section, model = Section("Rates"), derivation.model
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
        section.note(
            "These are derivatives of logarithms in time; s_0 is the spread within a class at t_0."
        )
    if rows["c_crit"] is not None:
        levels = ", and for levels between classes of at most 0" * (
            model.transform.kind == "logits"
        )
        section.note(
            f"Where the two levels differ by c/t{levels}, the gap over the spread grows without bound if and only if "
            f"c exceeds c_crit."
        )
    for why, names in missing.items():
        section.note(f"No closed form for {', '.join(names)}: {why}.")
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
    return "late class means oscillate, differ between pairs of classes, or none of several functions of time wins"


def _small_noise(derivation: Any) -> Section:
    section = Section("Small noise: all samples at their class means")
    factor = word("sum") * rule().drift(word("w_l"), 1) * word("kappa_kl")
    section.add("dXbar_k/dt", factor * _transformed(derivation, word("Xbar_l")))
    if derivation.model.n_classes <= EXPLICIT:
        for k, equation in enumerate(derivation.mean_ode):
            section.add(f"dXbar_{k + 1}/dt", equation.rhs)
    section.note("With noise the class means do not obey an equation of their own.")
    return section


def _no_modes(derivation: Any) -> Section:
    section = Section("Modes, solution and rates")
    if derivation.class_model is None:
        section.note(derivation.why_open)
        return section
    section.add("E_kk", derivation.strength.at(True))
    section.add("E_kl", derivation.strength.at(False))
    section.note(
        "The model equals the one with this class kernel, whose derivation has all of these."
    )
    return section


# --------------------------------------------------------------------------------------------------
# Setting it in LaTeX and in text.

_NAMES = {
    "DeltaX_i": (r"\Delta X_i", "ΔX_i"),
    "E_kL": (r"E_{kL}(t)", "E_kL"),
    "X_J": (r"X_J", "X_J"),
    "sum": (r"\sum_{l}", "Σ(l)"),
    "sumX": (r"\sum_{l\neq k}\bar{X}^{l}", "Σ(l≠k) X̄ˡ"),
    "sumHX": (r"\sum_{l\neq k}H_l\bar{X}^{l}", "Σ(l≠k) Hˡ⋅X̄ˡ"),
    "sumwEE": (r"\sum_l w_l E_{kl}E_{ml}\,", "Σ(l) wˡ⋅Eᵏˡ⋅Eᵐˡ"),
    "HSH": (r"H_lS_lH_l^{\top}", "Hˡ⋅Sˡ⋅Hˡᵀ"),
    "dX_i": (r"\mathrm{d}X_i", "dX_i"),
    "dW_i": (r"\mathrm{d}W_i", "dW_i"),
    "dt": (r"\mathrm{d}t", "dt"),
    "Cov_ii": (r"\frac{\operatorname{Cov}(\Delta X_i,\Delta X_i)}{h}", "Cov(ΔX_i, ΔX_i)/h"),
    "Cov_ij": (r"\frac{\operatorname{Cov}(\Delta X_i,\Delta X_j)}{h}", "Cov(ΔX_i, ΔX_j)/h"),
    "rate_gap": (r"\frac{\mathrm{d}}{\mathrm{d}t}\log\|\bar{X}^{k}-\bar{X}^{l}\|", "rate_gap"),
    "rate_NC1": (r"\frac{\mathrm{d}}{\mathrm{d}t}\log\mathrm{NC1}", "rate_NC1"),
    "rate_NC2": (r"\frac{\mathrm{d}}{\mathrm{d}t}\log\mathrm{NC2}", "rate_NC2"),
    "c_crit": (r"c^{*}", "c_crit"),
    "|d_l|^2": (r"\|d_l\|^2", "‖dₗ‖²"),
    "kappa_iJ": (r"\kappa_{iJ}", "κ_iJ"),
    "kappa_kl": (r"\kappa(\bar{X}^{k},\bar{X}^{l})", "κ(X̄_k, X̄_l)"),
    "kappa_same": (r"\kappa|_{s=1}", "κ(s=1)"),
    "kappa_other": (r"\kappa|_{s=0}", "κ(s=0)"),
    "r2": (r"r^{2}", "r2"),
    "dist2": (r"\|X_i-X_J\|^{2}", "‖X_i − X_J‖²"),
    "inner": (r"\langle X_i,X_J\rangle", "⟨X_i, X_J⟩"),
    "cosine": (r"\frac{\langle X_i,X_J\rangle}{\|X_i\|\,\|X_J\|}", "⟨X_i, X_J⟩/(‖X_i‖‖X_J‖)"),
    "indicator": (r"\mathbf{1}_{k(i)=k(J)}", "1[class of i = class of J]"),
    "avgX": (r"\langle\kappa_{iJ}X_J\rangle_{l}", "⟨κ_iJ⋅X_J⟩ₗ"),
    "avgXX": (r"\langle\kappa_{iJ}\kappa_{jJ}X_JX_J^{\top}\rangle_{l}", "⟨κ_iJ⋅κ_jJ⋅X_J⋅X_Jᵀ⟩ₗ"),
}
"""Names in LaTeX and on a terminal."""
_PATTERNS = [
    (r"Xbar_(\w+)(\(t\))?", r"\\bar{X}^{\1}\2", r"Xbar_\1"),
    (r"X_(\w+)", r"\\bar{X}^{\1}_0", r"X_\1"),
    (r"sigma_(\w+)\^T", r"\\sigma_{\1}^{\\top}", r"σ\1ᵀ"),
    (r"(\w+)_(\w+)\^T", r"\1_{\2}^{\\top}", r"\1\2ᵀ"),
    (r"dXbar_(\w+)/dt", r"\\frac{\\mathrm{d}\\bar{X}^{\1}}{\\mathrm{d}t}", r"dX̄_\1/dt"),
    (r"kappaX_(\w+)_(\w+)", r"\\langle\\kappa X\\rangle_{\1,\2}", r"⟨κX⟩\1,\2"),
    (r"r2_(\d+)_(\d+)", r"r^{2}_{\1,\2}", r"r²\1,\2"),
    (r"(g|c)_(\d+)_(\d+)", r"\1_{\2,\3}", r"\1\2,\3"),
    (r"C_(\w+)", r"C_{\1}", r"C_\1"),
]
_LOWERED = str.maketrans("0123456789klmi", "₀₁₂₃₄₅₆₇₈₉ₖₗₘᵢ")


def _written(name: str, column: int) -> str:
    """A symbol's name in LaTeX (0) or on a terminal (1)."""
    if name in _NAMES:
        return _NAMES[name][column]
    for pattern, *templates in _PATTERNS:
        if match := re.fullmatch(pattern, name):
            text = match.expand(templates[column])
            lowered = text[:1] + text[1:].translate(_LOWERED)
            return text if column == 0 or "_" in text else lowered
    return sp.latex(sp.Symbol(name)) if column == 0 else name


def _set(expression: sp.Basic) -> str:
    names = {symbol: _written(symbol.name, 0) for symbol in expression.atoms(sp.Symbol)}
    return sp.latex(expression, symbol_names=names, mul_symbol=None, ln_notation=False)


def _broken(expression: sp.Basic) -> str:
    """The expression, its terms over several lines where one would be too wide."""
    whole = _set(expression)
    if len(whole) <= LINE or not isinstance(expression, sp.Add):
        return whole
    lines = [""]
    for term in map(_set, expression.as_ordered_terms()):
        sign = "" if term.startswith("-") or lines == [""] else "+ "
        if lines[-1] and len(lines[-1]) + len(term) > LINE:
            lines.append("")
        lines[-1] += f" {sign}{term}"
    return " \\\\\n  &\\quad ".join(line.strip() for line in lines)


def latex_report(derivation: Any, document: bool) -> str:
    """A derivation in LaTeX; see :meth:`lesde.derivation.Derivation.latex`."""
    lines: list[str] = []
    for section in _sections(derivation):
        lines.append(rf"\subsection*{{{section.title}}}")
        if section.equations:
            rows = [f"  {_set(left)} &= {_broken(right)}" for left, right in section.equations]
            lines += [r"\begin{align*}", " \\\\\n".join(rows), r"\end{align*}"]
        for note in section.notes:
            symbols = re.sub(r"\b[A-Za-z]+_\w+", lambda match: f"${_written(match[0], 0)}$", note)
            lines.append(symbols + r"\par")
    body = "\n".join(lines)
    if not document:
        return body
    return (
        "\\documentclass{article}\n\\usepackage{amsmath,amssymb}\n\\allowdisplaybreaks\n"
        f"\\begin{{document}}\n\\section*{{Locally elastic SDE}}\n{body}\n\\end{{document}}\n"
    )


def _plain(expression: sp.Basic, unicode: bool) -> sp.Basic:
    """Symbols under the names that a terminal shows well."""
    swaps = {}
    for symbol in expression.atoms(sp.Symbol):
        name = _written(symbol.name, 1)
        name = name if unicode else in_ascii(name)
        if name != symbol.name:  # a replacement by the same would multiply out what contains it
            swaps[symbol] = sp.Symbol(name, **symbol.assumptions0)
    return expression.xreplace(swaps)


def text_report(derivation: Any, unicode: bool) -> str:
    """A derivation as text; see :meth:`lesde.derivation.Derivation.text`."""
    blocks: list[str] = []
    for section in _sections(derivation):
        blocks.append(f"{section.title}\n{'─' * len(section.title)}")
        for left, right in section.equations:
            equation = sp.Eq(_plain(left, unicode), _plain(right, unicode), evaluate=False)
            text = sp.pretty(equation, use_unicode=unicode, wrap_line=False)
            blocks.append("\n".join("    " + line for line in text.splitlines()))
        blocks += ["  " + note for note in section.notes]
    text = "\n\n".join(blocks) + "\n"
    return text.replace("Xbar", "X̄") if unicode else in_ascii(text)
