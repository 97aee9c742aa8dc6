"""The derivation of a model whose strength depends on the features of both samples.

The microscopic rule is that of :mod:`lesde.derivation.microscopic` with κ(X_i, X_J) in place of E_kL. κ
varies with the drawn sample, so that the expectation over J in class l leaves averages of products,
⟨κ_iJ X_J⟩_l and ⟨κ_iJ κ_jJ X_J X_Jᵀ⟩_l, where a class kernel leaves means and second moments.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import sympy as sp

from lesde.checks import check_finite_array, check_real
from lesde.derivation import rates
from lesde.derivation.coefficients import Coefficients, FeatureCoefficients, derive_coefficients
from lesde.derivation.modes import Mode, Solution, Tree, list_modes, mode_tree, reduced_table
from lesde.derivation.report import feature_sections, latex_report, text_report
from lesde.derivation.rule import LEARNING_RATE, rule
from lesde.model.formula import FEATURE_VARIABLES, TIME, PairFormula, Unfinished, bounded
from lesde.model.kernels import FeatureKernel, no_linear_drift

if TYPE_CHECKING:
    from lesde.laws.transitions import Transition
    from lesde.model.lesde import LESDE

__all__ = ["Derivation", "Diffusion", "FeatureDerivation", "FeatureDiffusion"]


# --------------------------------------------------------------------------------------------------
# The Derivation object: everything that follows from a model's microscopic rule.


def matrix_symbol(name: str, k: int) -> sp.Symbol:
    """A vector or matrix of class k, as a symbol that does not commute."""
    return sp.Symbol(f"{name}_{k + 1}", commutative=False)


@dataclass(frozen=True)
class Diffusion:
    """Covariance per unit time of the increments, at learning rate h.

    Two samples i (class k) and j (class m) have the covariance δ_ij σ_kσ_kᵀ + h C_km.

    Attributes
    ----------
    derivation : Derivation
    noise : sympy.Expr
        Factor of σ_kσ_kᵀ for a sample with itself, from the microscopic rule.
    noise_between : sympy.Expr
        The same for two different samples.
    """

    derivation: Derivation
    noise: sp.Expr
    noise_between: sp.Expr

    def sampling(self, k: int, m: int) -> sp.Expr:
        """C_km = Σ_l w_l E_kl E_ml H_l S_l H_lᵀ − b_k b_mᵀ, S_l the second moment of class l."""
        model = self.derivation.model
        sampling = rule().sampling
        identity = model.transform.kind == "identity"
        total = sp.Integer(0)
        for l in range(model.n_classes):
            weight = sp.Rational(int(model.counts[l]), model.n_samples)
            factor = sampling(weight, model.entries[k, l], model.entries[m, l])
            S = matrix_symbol("S", l)
            H, H_T = matrix_symbol("H", l), sp.Symbol(f"H_{l + 1}^T", commutative=False)
            total += factor * (S if identity else H * S * H_T)
        b_m = sp.Symbol(f"b_{m + 1}^T", commutative=False)
        return total - matrix_symbol("b", k) * b_m

    def total(self, k: int, m: int, same_sample: bool = False) -> sp.Expr:
        """Covariance per unit time of a sample of class k with one of class m, noise and sampling."""
        own = self.noise if same_sample else self.noise_between
        sigma = matrix_symbol("sigma", k)
        sigma_T = sp.Symbol(f"sigma_{k + 1}^T", commutative=False)
        return own * sigma * sigma_T + LEARNING_RATE * self.sampling(k, m)

    def factor(self, k: int) -> sp.Expr | sp.Matrix:
        """σ_k(t) of a sample, as the model gives it: an expression that multiplies I, or a matrix."""
        return self.derivation.model.noise_table.expression(k)

    def class_mean(self, k: int) -> sp.Expr:
        """Covariance per unit time of class k's mean with itself: noise averaged over its samples."""
        n = int(self.derivation.model.counts[k])
        # (1/n²) Σ_ij: n pairs of a sample with itself, n(n−1) of different ones.
        averaged = (self.noise * n + self.noise_between * n * (n - 1)) / sp.Integer(n) ** 2
        sigma = matrix_symbol("sigma", k)
        sigma_T = sp.Symbol(f"sigma_{k + 1}^T", commutative=False)
        return averaged * sigma * sigma_T + LEARNING_RATE * self.sampling(k, k)


class Derivation:
    """Drift, diffusion, modes, closed forms and rates of one model, derived symbolically.

    Made by :meth:`lesde.LESDE.derive`. Everything is computed when first asked for, and from the
    structure of the kernel, so that large models cost little.

    Parameters
    ----------
    model : LESDE

    Notes
    -----
    Symbols: ``t`` time, ``h`` learning rate, ``Xbar_l`` mean of class l, ``H_l`` its transform,
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
        self._propagated: tuple[bytes, list[Transition]] | None = None

    @cached_property
    def _coefficients(self) -> Coefficients:
        return derive_coefficients(self.model)

    def coefficients(self) -> Coefficients:
        """The derived coefficients as numerical tables: what the engines run."""
        return self._coefficients

    def transitions(self, times: np.ndarray) -> list[Transition]:
        """Propagators between successive times; those of the latest times are kept."""
        from lesde.laws.transitions import transitions

        key = np.asarray(times, dtype=np.float64).tobytes()
        if self._propagated is None or self._propagated[0] != key:
            self._propagated = (key, transitions(self._coefficients, times))
        return self._propagated[1]

    @cached_property
    def drift(self) -> tuple[sp.Expr, ...]:
        """b_k of every class: Σ_l w_l E_kl(t) H_l X̄^l."""
        table = self._coefficients.drift_table
        identity = self.model.transform.kind == "identity"
        K = self.model.n_classes
        vectors = [matrix_symbol("Xbar", l) for l in range(K)]
        if not identity:
            vectors = [matrix_symbol("H", l) * vector for l, vector in enumerate(vectors)]
        return tuple(sp.Add(*(table[k, l] * vectors[l] for l in range(K))) for k in range(K))

    @cached_property
    def diffusion(self) -> Diffusion:
        """Covariance of the increments, without and with the sampling noise of SGD."""
        return Diffusion(self, rule().noise, rule().noise_between)

    @property
    def mean_ode(self) -> tuple[sp.Eq, ...]:
        """The LE-ODE dX̄^k/dt = b_k of every class: the drift is the same for all samples of a class."""
        return tuple(
            sp.Eq(sp.Symbol(f"dXbar_{k + 1}/dt", commutative=False), drift, evaluate=False)
            for k, drift in enumerate(self.drift)
        )

    @property
    def class_matrix(self) -> sp.Matrix:
        """The K×K matrix w_l E_kl(t) of the mean ODE dX̄^k/dt = Σ_l w_l E_kl H_l X̄^l."""
        return self._coefficients.drift_table.matrix()

    @cached_property
    def tree(self) -> Tree | None:
        """The symmetry reduction behind the modes; None where classes have different matrices H_l."""
        table = reduced_table(self.model, self._coefficients)
        return None if table is None else mode_tree(table)

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """Modes with rates and multiplicities.

        Those that symmetry gives are always there; what remains coupled is there only where its
        eigenvectors do not change in time (see :attr:`is_closed`).
        """
        return () if self.tree is None else tuple(list_modes(self.tree, self.model))

    @property
    def is_closed(self) -> bool:
        """Whether all modes have closed forms, and so, for the I- and L-model, the solution."""
        return self.tree is not None and self.tree.is_closed

    @property
    def _named_tree(self) -> Tree | None:
        """The tree of an I- or L-model; a matrix H has rates that differ between directions."""
        return None if self.model.transform.kind == "matrix" else self.tree

    @cached_property
    def start(self) -> sp.Expr:
        """The initial time of the closed forms: 0, or the symbol t_0 where an integral from 0 diverges."""
        infinite = (sp.zoo, sp.nan, sp.oo, -sp.oo)
        with contextlib.suppress(Unfinished):
            for value in self.model.entries.values:
                if bounded(lambda value=value: value.subs(TIME, 0).has(*infinite)):
                    return sp.Symbol("t_0", positive=True)
        return sp.Integer(0)

    @cached_property
    def solution(self) -> Solution | None:
        """The class means as explicit functions of time; None without a closed form, or with a matrix H."""
        if self._named_tree is None or not self.is_closed:
            return None
        return Solution(self.model, self._named_tree, self.start)

    @cached_property
    def separation_rate(self) -> sp.Expr | None:
        """d/dt log of the gap of two class means; see :func:`lesde.derivation.rates.separation_rate`."""
        return (
            None
            if self._named_tree is None
            else rates.separation_rate(self.model, self._named_tree)
        )

    @cached_property
    def nc1_rate(self) -> sp.Expr | None:
        """d/dt log NC1; see :func:`lesde.derivation.rates.nc1_rate`."""
        return None if self._named_tree is None else rates.nc1_rate(self.model, self._named_tree)

    @cached_property
    def nc2_rate(self) -> sp.Expr | None:
        """d/dt log of the NC2 error; see :func:`lesde.derivation.rates.nc2_rate`."""
        return None if self._named_tree is None else rates.nc2_rate(self.model, self._named_tree)

    @cached_property
    def critical_constant(self) -> sp.Expr | None:
        """c of α − β = c/t at which separation sets in: K/2 in the balanced I- and L-model."""
        return rates.critical_constant(self.model)

    def latex(self, document: bool = False) -> str:
        """The derivation in LaTeX.

        Parameters
        ----------
        document : bool, default False
            A complete article that compiles; otherwise the body, which needs ``amsmath``.
        """
        from lesde.derivation.report import latex_report, sections

        return latex_report(sections(self), document)

    def text(self, *, unicode: bool = True) -> str:
        """The derivation as plain text with formulas set in Unicode, or in ASCII alone."""
        from lesde.derivation.report import sections, text_report

        return text_report(sections(self), unicode)

    def __repr__(self) -> str:
        closed = "closed form" if self.is_closed else "no closed form"
        return f"Derivation of {self.model!r}: {len(self.modes)} modes, {closed}"

    def _repr_latex_(self) -> str:
        return self.latex()


# --------------------------------------------------------------------------------------------------

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
            total += rule().sampling(weight, 1, 1) * average
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
    >>> d = lesde.derive(lesde.LESDE(kernel, n_classes=2, n_features=2))
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
        kick = PairFormula(rule().kick(self.strength.expression))
        return FeatureCoefficients(kick, model.transform, model.noise_table, model.counts)

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
            total += rule().drift(weight, 1) * transformed
        return total

    @cached_property
    def diffusion(self) -> FeatureDiffusion:
        """Covariance of the increments, without and with the sampling noise of SGD."""
        return FeatureDiffusion(self, rule().noise, rule().noise_between)

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
        strength = self._coefficients.strength(
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
