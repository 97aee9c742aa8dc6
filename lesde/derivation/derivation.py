"""Everything that follows from a model's microscopic rule, derived symbolically when first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import sympy as sp

from lesde.derivation import rates
from lesde.derivation.coefficients import (
    Coefficients,
    derive_coefficients,
    derive_feature_coefficients,
)
from lesde.derivation.modes import Mode, Tree, list_modes, mode_tree, reduced_table
from lesde.derivation.report import latex_report, text_report
from lesde.derivation.rule import LEARNING_RATE, matrix_symbol, rule
from lesde.derivation.solution import Solution
from lesde.model.formula import FEATURE_VARIABLES, INFINITE, TIME, PairFormula, Unfinished, bounded
from lesde.model.kernels import no_linear_drift
from lesde.model.lesde import LESDE


def _weight(model: LESDE, l: int) -> sp.Rational:
    """w_l."""
    return sp.Rational(int(model.counts[l]), model.n_samples)


def _transformed(model: LESDE, l: int, vector: sp.Expr) -> sp.Expr:
    """H_l times a vector."""
    return vector if model.transform.kind == "identity" else matrix_symbol(f"H_{l + 1}") * vector


@dataclass(frozen=True)
class Diffusion:
    """Covariance per unit time of the increments of samples i (class k) and j (class m).

    It is δ_ij σ_kσ_kᵀ + h C, at learning rate h. For a kernel of classes, with S_l the second moment of class l,

        C_km = Σ_l w_l E_kl E_ml H_l S_l H_lᵀ − b_k b_mᵀ.

    For a kernel of pairs it depends on the two samples and not only on their classes,

        C_ij = (1/N) Σ_J κ_iJ κ_jJ H_J X_J X_Jᵀ H_Jᵀ − b_i b_jᵀ.

    ``second(k, m, l)`` is the coefficient of what stands between H_l and H_lᵀ for the drawn class l, and that.
    """

    model: LESDE
    second: Callable[[int, int, int], tuple[sp.Expr, sp.Expr]]

    @property
    def noise(self) -> sp.Expr:
        """Factor of σ_kσ_kᵀ for a sample with itself, from the microscopic rule."""
        return rule().noise

    @property
    def noise_between(self) -> sp.Expr:
        """Factor of σ_kσ_kᵀ for two different samples."""
        return rule().noise_between

    def sampling(self, k: int, m: int) -> sp.Expr:
        """C of samples of classes k and m."""
        total = sp.Integer(0)
        for l in range(self.model.n_classes):
            factor, moment = self.second(k, m, l)
            if self.model.transform.kind != "identity":
                moment = _transformed(self.model, l, moment) * matrix_symbol(f"H_{l + 1}^T")
            total += factor * moment
        return total - matrix_symbol(f"b_{k + 1}") * matrix_symbol(f"b_{m + 1}^T")

    def total(self, k: int, m: int, same_sample: bool = False) -> sp.Expr:
        """Covariance per unit time of a sample of class k with one of class m, noise and sampling."""
        return self._sum(self.noise if same_sample else self.noise_between, k, m)

    def class_mean(self, k: int) -> sp.Expr:
        """Covariance per unit time of class k's mean with itself, for a kernel of classes."""
        n = sp.Integer(int(self.model.counts[k]))
        # (1/n²) Σ_ij: n pairs of a sample with itself, n(n−1) of different ones.
        return self._sum((self.noise + self.noise_between * (n - 1)) / n, k, k)

    def _sum(self, noise: sp.Expr, k: int, m: int) -> sp.Expr:
        sigma, sigma_T = matrix_symbol(f"sigma_{k + 1}"), matrix_symbol(f"sigma_{k + 1}^T")
        return noise * sigma * sigma_T + LEARNING_RATE * self.sampling(k, m)

    def factor(self, k: int) -> sp.Expr | sp.Matrix:
        """σ_k(t) of a sample, as the model gives it: an expression that multiplies I, or a matrix."""
        return self.model.noise_table.expression(k)


class Derivation:
    """Drift, diffusion, modes, closed forms and rates of one model, derived symbolically.

    Made by :func:`lesde.derive`. Everything is computed when first asked for, and from the structure of the
    kernel, so that large models cost little. Symbols: ``t`` time, ``h`` learning rate, ``Xbar_l`` mean of class l, ``H_l`` its transform,
    ``S_l`` its second moment, ``sigma_k`` its noise; vectors and matrices do not commute.

    Examples
    --------
    >>> import lesde
    >>> d = lesde.derive(lesde.LESDE(lesde.TwoLevel(), n_classes=3, n_features=2))
    >>> d.separation_rate
    (alpha(t) - beta(t))/3
    >>> d.critical_constant
    3/2
    """

    def __init__(self, model: LESDE):
        self.model = model

    @cached_property
    def _coefficients(self) -> Any:
        return derive_coefficients(self.model)

    def coefficients(self) -> Any:
        """The derived coefficients in the form that the law and the engines use.

        :class:`~lesde.derivation.coefficients.Coefficients`, or for a feature kernel
        :class:`~lesde.derivation.coefficients.FeatureCoefficients`.
        """
        return self._coefficients

    @cached_property
    def drift(self) -> tuple[sp.Expr, ...]:
        """b_k of every class: Σ_l w_l E_kl(t) H_l X̄^l."""
        table, K = self._coefficients.drift_table, range(self.model.n_classes)
        vectors = [_transformed(self.model, l, matrix_symbol(f"Xbar_{l + 1}")) for l in K]
        return tuple(sp.Add(*(table[k, l] * vectors[l] for l in K)) for k in K)

    @property
    def diffusion(self) -> Diffusion:
        """Covariance of the increments, without and with the sampling noise of SGD."""
        return Diffusion(self.model, self._second)

    def _second(self, k: int, m: int, l: int) -> tuple[sp.Expr, sp.Expr]:
        E = self.model.entries
        factor = rule().sampling(_weight(self.model, l), E[k, l], E[m, l])
        return factor, matrix_symbol(f"S_{l + 1}")

    @property
    def mean_ode(self) -> tuple[sp.Eq, ...]:
        """The LE-ODE dX̄^k/dt = b_k of every class: the drift is the same for all samples of a class."""
        return self._mean_ode(self.drift)

    def _mean_ode(self, drifts: Iterable[sp.Expr]) -> tuple[sp.Eq, ...]:
        sides = ((matrix_symbol(f"dXbar_{k + 1}/dt"), b) for k, b in enumerate(drifts))
        return tuple(sp.Eq(left, right, evaluate=False) for left, right in sides)

    @property
    def class_matrix(self) -> sp.Matrix:
        """The K×K matrix w_l E_kl(t) of the mean ODE dX̄^k/dt = Σ_l w_l E_kl H_l X̄^l."""
        return self._coefficients.drift_table.matrix()

    @cached_property
    def tree(self) -> Tree | None:
        """The symmetry reduction behind the modes; None where classes have different matrices H_l."""
        table = reduced_table(self._coefficients)
        return None if table is None else mode_tree(table)

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """Modes with rates and multiplicities: all where :attr:`is_closed`, else those of symmetry."""
        return () if self.tree is None else tuple(list_modes(self.tree, self.model.transform))

    @property
    def is_closed(self) -> bool:
        """True where all modes have closed forms, and so, for the I- and L-model, the solution."""
        return self.tree is not None and self.tree.is_closed

    @cached_property
    def start(self) -> sp.Expr:
        """The initial time of the closed forms: 0, or the symbol t_0 where an integral from 0 diverges."""
        with contextlib.suppress(Unfinished):
            at_zero = [bounded(value.subs, TIME, 0) for value in self.model.entries.values]
            if any(value.has(*INFINITE) for value in at_zero):
                return sp.Symbol("t_0", positive=True)
        return sp.Integer(0)

    @cached_property
    def solution(self) -> Solution | None:
        """The class means as explicit functions of time; None without a closed form, or with a matrix H."""
        if self.tree is None or not self.is_closed or self.model.transform.kind == "matrix":
            return None
        return Solution(self._coefficients, self.tree, self.start)

    @cached_property
    def separation_rate(self) -> sp.Expr | None:
        """d/dt log of the gap of two class means; see :func:`lesde.derivation.rates.separation_rate`."""
        return self._rate(rates.separation_rate)

    @cached_property
    def nc1_rate(self) -> sp.Expr | None:
        """d/dt log NC1; see :func:`lesde.derivation.rates.nc1_rate`."""
        return self._rate(rates.nc1_rate)

    @cached_property
    def nc2_rate(self) -> sp.Expr | None:
        """d/dt log of the NC2 error; see :func:`lesde.derivation.rates.nc2_rate`."""
        return self._rate(rates.nc2_rate)

    def _rate(self, rate: Callable[[Coefficients, Tree], sp.Expr | None]) -> sp.Expr | None:
        """A rate of an I- or L-model; a matrix H has rates that differ between directions."""
        if self.tree is None or self.model.transform.kind == "matrix":
            return None
        return rate(self._coefficients, self.tree)

    @cached_property
    def critical_constant(self) -> sp.Expr | None:
        """c of α − β = c/t at which separation sets in: K/2 in the balanced I- and L-model."""
        return rates.critical_constant(self.model)

    def latex(self, document: bool = False) -> str:
        """The derivation in LaTeX: the body, which needs ``amsmath``, or as a ``document`` that compiles."""
        return latex_report(self, document)

    def text(self, *, unicode: bool = True) -> str:
        """The derivation as plain text with formulas set in Unicode, or in ASCII alone."""
        return text_report(self, unicode)

    def _repr_latex_(self) -> str:
        return self.latex()

    def __repr__(self) -> str:
        closed = "closed form" if self.is_closed else "no closed form"
        return f"Derivation of {self.model!r}: {len(self.modes)} modes, {closed}"


class FeatureDerivation(Derivation):
    """Drift and diffusion of a model with a :class:`lesde.FeatureKernel`, derived symbolically.

    Made by :func:`lesde.derive`. It has the names of :class:`Derivation`; those that need a linear drift
    are empty or None, for the reason in ``why_open``.

    The microscopic rule is that of a class kernel with κ(X_i, X_J) in place of E_kL. As κ varies with the
    drawn sample, its expectation leaves averages of products where a class kernel leaves means and second
    moments: ``kappaX_k_l`` is ⟨κ_iJ X_J⟩, the average over the samples J of class l for a sample i of class
    k; ``kappakappaXX_k_m_l`` is ⟨κ_iJ κ_jJ X_J X_Jᵀ⟩ over class l for i of class k and j of class m.

    Examples
    --------
    >>> import lesde
    >>> kernel = lesde.FeatureKernel("s*2*exp(-r2/8)")
    >>> d = lesde.derive(lesde.LESDE(kernel, n_classes=2, n_features=2))
    >>> d.drift[0]
    kappaX_1_1/2 + kappaX_1_2/2
    >>> d.is_closed
    False
    """

    modes: Any = ()
    is_closed: Any = False
    tree = solution = separation_rate = nc1_rate = nc2_rate = critical_constant = None
    start: Any = sp.Integer(0)
    why_open = (
        "The strength depends on the features, so the drift is not linear in them: there are no modes, no "
        "closed form and no rates that hold for all initial states."
    )

    def __init__(self, model: LESDE):
        super().__init__(model)
        self.strength: PairFormula = model.kernel.formula  # type: ignore[attr-defined]

    @cached_property
    def _coefficients(self) -> Any:
        return derive_feature_coefficients(self.model)

    @cached_property
    def drift(self) -> tuple[sp.Expr, ...]:
        """b_i of a sample i of every class: Σ_l w_l H_l ⟨κ_iJ X_J⟩_l."""
        K = range(self.model.n_classes)
        return tuple(self._summed([matrix_symbol(f"kappaX_{k + 1}_{l + 1}") for l in K]) for k in K)

    def _summed(self, vectors: list[sp.Expr]) -> sp.Expr:
        """The drift, with a vector of every class in place of the average."""
        terms = (
            (_weight(self.model, l), _transformed(self.model, l, v)) for l, v in enumerate(vectors)
        )
        return sp.Add(*(rule().drift(weight, 1) * vector for weight, vector in terms))

    def _second(self, k: int, m: int, l: int) -> tuple[sp.Expr, sp.Expr]:
        average = matrix_symbol(f"kappakappaXX_{k + 1}_{m + 1}_{l + 1}")
        return rule().sampling(_weight(self.model, l), 1, 1), average

    @cached_property
    def mean_ode(self) -> tuple[sp.Eq, ...]:
        """The small-noise limit: dX̄^k/dt = Σ_l w_l κ(X̄^k, X̄^l) H_l X̄^l of every class.

        Exact for σ = 0 and samples that start at their class means; with noise the class means do not
        obey an equation of their own. ``r2_k_l``, ``g_k_l``, ``c_k_l`` are those of two class means.
        """
        K = range(self.model.n_classes)
        means = [matrix_symbol(f"Xbar_{l + 1}") for l in K]
        strengths = ([self.mean_strength(k, l) * means[l] for l in K] for k in K)
        return self._mean_ode(map(self._summed, strengths))

    def mean_strength(self, k: int, l: int) -> sp.Expr:
        """κ(X̄^k, X̄^l): in r2, g and c of the two means; r2 of a mean with itself is 0."""
        first, second = sorted((k, l))
        swaps: dict[sp.Symbol, sp.Expr] = {
            symbol: sp.Symbol(f"{name}_{first + 1}_{second + 1}", **symbol.assumptions0)
            for name, symbol in FEATURE_VARIABLES.items()
        }
        if k == l:
            swaps[FEATURE_VARIABLES["r2"]] = sp.Integer(0)
        return self.strength.at(k == l).subs(swaps)

    @property
    def class_model(self) -> LESDE | None:
        """The equal model with a class kernel, where the formula has only s and t; else None."""
        kernel = self.model.kernel.class_kernel  # type: ignore[attr-defined]
        return None if kernel is None else self.model.replace(kernel=kernel)

    @property
    def class_matrix(self) -> NoReturn:
        """Not available: the drift is not linear in the class means."""
        raise no_linear_drift("class_matrix")

    def __repr__(self) -> str:
        return f"Derivation of {self.model!r}: strength {self.strength.expression}, no closed form"
