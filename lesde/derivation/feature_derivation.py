"""The derivation of a model whose strength depends on the features of both samples.

The microscopic rule is that of :mod:`lesde.derivation.microscopic` with κ(X_i, X_J) in place of E_kL. κ
varies with the drawn sample, so that the expectation over J in class l leaves averages of products,
⟨κ_iJ X_J⟩_l and ⟨κ_iJ κ_jJ X_J X_Jᵀ⟩_l, where a class kernel leaves means and second moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import sympy as sp

from lesde.checks import check_finite_array, check_real
from lesde.derivation.core import matrix_symbol
from lesde.derivation.feature_coefficients import FeatureCoefficients
from lesde.derivation.feature_report import feature_sections
from lesde.derivation.microscopic import LEARNING_RATE
from lesde.derivation.pair_rule import pair_rule
from lesde.derivation.report import latex_report, text_report
from lesde.feature_kernel import FeatureKernel, no_linear_drift
from lesde.pair_formula import FEATURE_VARIABLES, PairFormula

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["FeatureDerivation", "FeatureDiffusion"]

WHY_OPEN = (
    "The strength depends on the features, so the drift is not linear in them: there are no modes, no "
    "closed form and no rates that hold for all initial states."
)


def average_symbol(k: int, l: int) -> sp.Symbol:
    """⟨κ_iJ X_J⟩ over the samples J of class l, for a sample i of class k: a vector."""
    return sp.Symbol(f"kappaX_{k + 1}_{l + 1}", commutative=False)


def product_symbol(k: int, m: int, l: int) -> sp.Symbol:
    """⟨κ_iJ κ_jJ X_J X_Jᵀ⟩ over class l, for samples i of class k and j of class m: a matrix."""
    return sp.Symbol(f"kappakappaXX_{k + 1}_{m + 1}_{l + 1}", commutative=False)


def at_means(name: str, k: int, l: int) -> sp.Symbol:
    """r2, g or c of the means of classes k and l."""
    assumptions: dict[str, bool] = {"nonnegative": True} if name == "r2" else {"real": True}
    return sp.Symbol(f"{name}_{k + 1}_{l + 1}", **assumptions)


@dataclass(frozen=True)
class FeatureDiffusion:
    """Covariance per unit time of the increments of samples i (class k) and j (class m).

    It is δ_ij σ_kσ_kᵀ + h C_ij with C_ij = (1/N) Σ_J κ_iJ κ_jJ H_J X_J X_Jᵀ H_Jᵀ − b_i b_jᵀ, which depends
    on the two samples and not only on their classes.

    Attributes
    ----------
    derivation : FeatureDerivation
    noise, noise_between : sympy.Expr
        Factor of σ_kσ_kᵀ for a sample with itself, and for two different samples.
    """

    derivation: FeatureDerivation
    noise: sp.Expr
    noise_between: sp.Expr

    def sampling(self, k: int, m: int) -> sp.Expr:
        """C_ij of samples of classes k and m, in averages over every class l."""
        model = self.derivation.model
        total = sp.Integer(0)
        for l, weight in enumerate(self.derivation.class_weights):
            average = product_symbol(k, m, l)
            if model.transform.kind != "identity":
                H_T = sp.Symbol(f"H_{l + 1}^T", commutative=False)
                average = matrix_symbol("H", l) * average * H_T
            total += pair_rule().sampling(weight) * average
        return total - matrix_symbol("b", k) * sp.Symbol(f"b_{m + 1}^T", commutative=False)

    def total(self, k: int, m: int, same_sample: bool = False) -> sp.Expr:
        """Covariance per unit time of a sample of class k with one of class m, noise and sampling."""
        own = self.noise if same_sample else self.noise_between
        sigma = matrix_symbol("sigma", k)
        sigma_T = sp.Symbol(f"sigma_{k + 1}^T", commutative=False)
        return own * sigma * sigma_T + LEARNING_RATE * self.sampling(k, m)

    def factor(self, k: int) -> sp.Expr | sp.Matrix:
        """σ_k(t) of a sample, as the model gives it: an expression that multiplies I, or a matrix."""
        return self.derivation.model.noise_table.expression(k)


class FeatureDerivation:
    """Drift and diffusion of a model with a :class:`lesde.FeatureKernel`, derived symbolically.

    Made by :meth:`lesde.LESDE.derive`. It has the names of :class:`lesde.derivation.Derivation`; those
    that need a linear drift are empty or None, for the reason in :attr:`why_open`.

    Parameters
    ----------
    model : LESDE

    Notes
    -----
    Symbols: ``kappaX_k_l`` is ⟨κ_iJ X_J⟩, the average over the samples J of class l for a sample i of class
    k; ``kappakappaXX_k_m_l`` is ⟨κ_iJ κ_jJ X_J X_Jᵀ⟩ over class l for i of class k and j of class m;
    ``H_l``, ``sigma_k``, ``h`` and ``t`` are as in :class:`lesde.derivation.Derivation`.

    Examples
    --------
    >>> import lesde
    >>> kernel = lesde.FeatureKernel("s*2*exp(-r2/8)")
    >>> d = lesde.LESDE(kernel, n_classes=2, n_features=2).derive()
    >>> d.drift[0]
    kappaX_1_1/2 + kappaX_1_2/2
    >>> d.is_closed
    False
    """

    modes: tuple[()] = ()
    is_closed = False
    tree = None
    solution = None
    separation_rate = None
    nc1_rate = None
    nc2_rate = None
    critical_constant = None
    why_open = WHY_OPEN
    start = sp.Integer(0)

    def __init__(self, model: LESDE):
        assert isinstance(model.kernel, FeatureKernel)
        self.model = model
        self.strength: PairFormula = model.kernel.formula

    @cached_property
    def _coefficients(self) -> FeatureCoefficients:
        model = self.model
        return FeatureCoefficients(self.strength, model.transform, model.noise_table, model.counts)

    def coefficients(self) -> FeatureCoefficients:
        """The strength, transform and noise in the form that the engines run."""
        return self._coefficients

    @property
    def class_weights(self) -> list[sp.Expr]:
        """w_l of every class."""
        return [sp.Rational(int(n), self.model.n_samples) for n in self.model.counts]

    @cached_property
    def drift(self) -> tuple[sp.Expr, ...]:
        """b_i of a sample i of every class: Σ_l w_l H_l ⟨κ_iJ X_J⟩_l."""
        K = range(self.model.n_classes)
        return tuple(self._weighted([average_symbol(k, l) for l in K]) for k in K)

    def _weighted(self, vectors: list[sp.Expr]) -> sp.Expr:
        """The drift, with a vector of every class in place of the average."""
        identity = self.model.transform.kind == "identity"
        total = sp.Integer(0)
        for l, (weight, vector) in enumerate(zip(self.class_weights, vectors, strict=True)):
            transformed = vector if identity else matrix_symbol("H", l) * vector
            total += pair_rule().drift(weight) * transformed
        return total

    @cached_property
    def diffusion(self) -> FeatureDiffusion:
        """Covariance of the increments, without and with the sampling noise of SGD."""
        return FeatureDiffusion(self, pair_rule().noise, pair_rule().noise_between)

    @cached_property
    def mean_ode(self) -> tuple[sp.Eq, ...]:
        """The small-noise limit: dX̄^k/dt = Σ_l w_l κ(X̄^k, X̄^l) H_l X̄^l of every class.

        Exact for σ = 0 and samples that start at their class means; with noise the class means do not
        obey an equation of their own. ``r2_k_l``, ``g_k_l``, ``c_k_l`` are those of two class means.
        """
        equations = []
        K = range(self.model.n_classes)
        for k in K:
            vectors = [self.mean_strength(k, l) * matrix_symbol("Xbar", l) for l in K]
            right = self._weighted(vectors)
            left = sp.Symbol(f"dXbar_{k + 1}/dt", commutative=False)
            equations.append(sp.Eq(left, right, evaluate=False))
        return tuple(equations)

    def mean_strength(self, k: int, l: int) -> sp.Expr:
        """κ(X̄^k, X̄^l): in r2, g and c of the two means; r2 of a mean with itself is 0."""
        swaps = {s: at_means(name, *sorted((k, l))) for name, s in FEATURE_VARIABLES.items()}
        if k == l:
            swaps[FEATURE_VARIABLES["r2"]] = sp.Integer(0)
        return self.strength.at(k == l).subs(swaps)

    def mean_drift(self, means: Any, t: float) -> np.ndarray:
        """The right side of :attr:`mean_ode` in numbers.

        Parameters
        ----------
        means : array, shape (..., class, feature)
        t : float

        Returns
        -------
        ndarray, shape (..., class, feature), float64
        """
        K, p = self.model.n_classes, self.model.n_features
        means = np.asarray(means, dtype=np.float64)
        check_finite_array("means", means, [("...",) * (means.ndim - 2) + (K, p)])
        t = check_real("t", t)
        difference = means[..., :, None, :] - means[..., None, :, :]
        norm = np.linalg.norm(means, axis=-1, keepdims=True)
        unit = np.divide(means, norm, out=np.zeros_like(means), where=norm > 0)
        strength = self.strength(
            (difference**2).sum(-1),
            means @ np.swapaxes(means, -1, -2),
            np.clip(unit @ np.swapaxes(unit, -1, -2), -1.0, 1.0),
            np.eye(K),
            t,
        )
        return (strength * self.model.weights) @ self.model.transform(means)

    @property
    def class_model(self) -> LESDE | None:
        """The equal model with a class kernel, where the formula has only s and t; else None."""
        assert isinstance(self.model.kernel, FeatureKernel)
        kernel = self.model.kernel.class_kernel
        return None if kernel is None else self.model.replace(kernel=kernel)

    @property
    def class_matrix(self) -> NoReturn:
        """Not there: the drift is not linear in the class means."""
        raise no_linear_drift("class_matrix")

    def transitions(self, times: np.ndarray) -> NoReturn:
        """Not there: the drift is not linear."""
        raise no_linear_drift("the propagator of the law")

    def latex(self, document: bool = False) -> str:
        """The derivation in LaTeX.

        Parameters
        ----------
        document : bool, default False
            A complete article that compiles; otherwise the body, which needs ``amsmath``.
        """
        return latex_report(feature_sections(self), document)

    def text(self, *, unicode: bool = True) -> str:
        """The derivation as plain text with formulas set in Unicode, or in ASCII alone."""
        return text_report(feature_sections(self), unicode)

    def __repr__(self) -> str:
        return f"Derivation of {self.model!r}: strength {self.strength.expression}, no closed form"

    def _repr_latex_(self) -> str:
        return self.latex()
