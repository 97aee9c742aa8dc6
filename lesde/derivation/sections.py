"""What a derivation says, in order: headings, equations and sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sympy as sp

from lesde.derivation.integrals import abbreviate

if TYPE_CHECKING:
    from lesde.derivation.core import Derivation
    from lesde.derivation.feature_derivation import FeatureDerivation

__all__ = ["Section", "end_of_system", "noise_equations", "sections"]

EXPLICIT = 4  # classes written out one by one; beyond, a few stand for all


@dataclass
class Section:
    """A heading, sentences and equations (left side, right side)."""

    title: str
    equations: list[tuple[sp.Expr, sp.Expr]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _symbol(name: str) -> sp.Symbol:
    return sp.Symbol(name, commutative=False)


def sections(derivation: Derivation) -> list[Section]:
    """The parts of a derivation, in the order in which they follow from each other."""
    parts = [_rule(derivation), _drift(derivation), _diffusion(derivation), _modes(derivation)]
    parts += [_solution(derivation), _rates(derivation)]
    return parts


def _shown_classes(derivation: Derivation | FeatureDerivation) -> Iterable[int]:
    K = derivation.model.n_classes
    if derivation.tree is not None and K > EXPLICIT:
        return [orbit[0] for orbit in derivation.tree.orbits][:EXPLICIT]
    return range(min(K, EXPLICIT))


def _rule(derivation: Derivation) -> Section:
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


def end_of_system(derivation: Derivation | FeatureDerivation, section: Section) -> None:
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


def noise_equations(derivation: Derivation | FeatureDerivation, section: Section) -> None:
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


def _drift(derivation: Derivation) -> Section:
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


def _diffusion(derivation: Derivation) -> Section:
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


def _modes(derivation: Derivation) -> Section:
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


def _solution(derivation: Derivation) -> Section:
    section = Section("Solution of the mean ODE")
    solution = derivation.solution
    if solution is None:
        section.notes.append("Not written out here; model.law(times) integrates it to 1e-12.")
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


def _rates(derivation: Derivation) -> Section:
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


def _why_missing(derivation: Derivation, name: str) -> str:
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
