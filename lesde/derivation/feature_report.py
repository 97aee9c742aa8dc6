"""What the derivation of a feature kernel says, in order: headings, equations and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sympy as sp

from lesde.derivation.pair_rule import pair_rule
from lesde.derivation.sections import EXPLICIT, Section, end_of_system
from lesde.pair_formula import VARIABLES

if TYPE_CHECKING:
    from lesde.derivation.feature_derivation import FeatureDerivation

__all__ = ["feature_sections"]


def _symbol(name: str) -> sp.Symbol:
    return sp.Symbol(name, commutative=False)


def feature_sections(derivation: FeatureDerivation) -> list[Section]:
    """The parts of a derivation, in the order in which they follow from each other."""
    return [
        _rule(derivation),
        _drift(derivation),
        _diffusion(derivation),
        _means(derivation),
        _closed(derivation),
    ]


def _transformed(derivation: FeatureDerivation, word: sp.Expr) -> sp.Expr:
    return word if derivation.model.transform.kind == "identity" else _symbol("H_l") * word


def _rule(derivation: FeatureDerivation) -> Section:
    model = derivation.model
    h, kappa, zeta = sp.Symbol("h"), _symbol("kappa_iJ"), _symbol("zeta_i")
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


def _drift(derivation: FeatureDerivation) -> Section:
    section = Section("Drift: expectation over the drawn class and sample")
    weight = pair_rule().drift(_symbol("w_l"))
    general = _symbol("sum") * weight * _transformed(derivation, _symbol("avgX"))
    section.equations.append((_symbol("b_i"), general))
    if derivation.model.n_classes <= EXPLICIT:
        for k, drift in enumerate(derivation.drift):
            section.equations.append((_symbol(f"b_{k + 1}"), drift))
        section.notes.append("The second index is the class that is averaged over.")
    section.equations.append(
        (_symbol("dX_i"), _symbol("b_i") * _symbol("dt") + _symbol("sigma_k") * _symbol("dW_i"))
    )
    section.notes.insert(0, "Angle brackets are averages over the samples of a class.")
    return section


def _diffusion(derivation: FeatureDerivation) -> Section:
    section = Section("Diffusion: covariance of two samples i (class k) and j (class m)")
    diffusion, h = derivation.diffusion, sp.Symbol("h")
    noise = diffusion.noise * _symbol("sigma_k") * _symbol("sigma_k^T")
    section.equations.append((_symbol("Cov_ii"), noise + h * _symbol("C_ii")))
    between = diffusion.noise_between * _symbol("sigma_k")
    section.equations.append((_symbol("Cov_ij"), between + h * _symbol("C_ij")))
    average = _transformed(derivation, _symbol("avgXX"))
    if derivation.model.transform.kind != "identity":
        average = average * _symbol("H_l^T")
    second = _symbol("sum") * pair_rule().sampling(_symbol("w_l")) * average
    section.equations.append((_symbol("C_ij"), second - _symbol("b_i") * _symbol("b_j^T")))
    section.notes.append("C is the sampling noise of SGD; it vanishes with h.")
    return section


def _means(derivation: FeatureDerivation) -> Section:
    section = Section("Small noise: all samples at their class means")
    mean = _transformed(derivation, _symbol("Xbar_l"))
    weight = pair_rule().drift(_symbol("w_l"))
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


def _closed(derivation: FeatureDerivation) -> Section:
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
