"""Closed-form solutions of the mean ODE, assembled from its modes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import check_finite_array, check_times
from lesde.derivation.coefficients import Coefficients
from lesde.derivation.integrals import antiderivative, growth_integral, time_integral
from lesde.derivation.modes import Tree, tidy
from lesde.model.compiled import compiled
from lesde.model.formula import TIME, Formula
from lesde.model.transforms import logit_directions


@dataclass(frozen=True)
class Solution:
    """The class means as explicit functions of time.

    Expressions use the symbols ``X_k`` (initial class mean, a vector), and for the L-model ``d_k``
    (logit directions) and ``s_k`` (initial scores ⟨d_k, X_k⟩/‖d_k‖²); they are linear in them. The tree is
    closed, and ``start`` the initial time.
    """

    coefficients: Coefficients
    tree: Tree
    start: sp.Expr

    @property
    def is_logits(self) -> bool:
        """True for the L-model's solution."""
        return self.coefficients.transform.kind == "logits"

    def growth(self, rate: sp.Expr) -> sp.Expr:
        """exp(∫ rate) from the start to t."""
        return sp.exp(time_integral(rate, self.start))

    def reduced(self, k: int, start: Any) -> list[tuple[sp.Expr, Any]]:
        """Pairs (rate, amplitude) of coordinate k: a class mean, or a score s_k of the L-model.

        ``start`` gives the coordinates of all classes at the start: symbols, numbers or vectors.
        """
        assert self.tree.top is not None
        terms: list[tuple[sp.Expr, Any]] = []
        node, amplitudes = k, list(start)
        for level in self.tree.levels():
            position = next(i for i, orbit in enumerate(level.orbits) if node in orbit)
            means = [sum(amplitudes[n] for n in o) / len(o) for o in level.orbits]
            rate = level.contrasts[position]
            if rate is not None:
                terms.append((rate, amplitudes[node] - means[position]))
            node, amplitudes = position, means
        rates, vectors, inverse = self.tree.top
        for i, rate in enumerate(rates):
            weight = sum(inverse[i, j] * a for j, a in enumerate(amplitudes))
            terms.append((rate, vectors[node, i] * weight))
        return terms

    def mean(self, k: int) -> sp.Expr:
        """X̄^k(t) of class k (from 0)."""
        K = len(self.coefficients.counts)
        symbols = ([sp.Symbol(f"{name}_{l + 1}", real=True) for l in range(K)] for name in "Xsd")

        def integral(factor: sp.Expr | None, rate: sp.Expr) -> sp.Expr:
            if factor is None:
                return self.growth(rate)
            return growth_integral(factor, rate, self.start)

        return sp.Add(
            *(a * vector * integral(*how) for a, vector, *how in self._terms(k, *symbols))
        )

    def _terms(self, k: int, means: Any, scores: Any, directions: Any) -> list[tuple[Any, ...]]:
        """X̄^k as an amplitude, a vector, a factor and a rate each: they multiply ∫ factor·exp(∫ rate), or with
        None for the factor exp(∫ rate).

        Initial means and scores and logit directions of all classes are symbols or numbers.
        """
        if not self.is_logits:
            return [(1, vector, None, rate) for rate, vector in self.reduced(k, means)]
        # X_k + Σ_l d_l ∫ w_l E_kl s_l, using Σ_l d_l = 0 to drop what all classes share.
        table = self.coefficients.drift_table
        row = table.index[k]
        common = table.values[np.bincount(np.delete(row, k), minlength=1).argmax()]
        parts = [self.reduced(l, scores) for l in range(len(row))]
        shared = set(parts[0]).intersection(*parts[1:])
        terms: list[tuple[Any, ...]] = [(1, means[k], None, sp.Integer(0))]
        for l, part in enumerate(parts):
            for rate, amplitude in part:
                factor = table.values[row[l]] - (common if (rate, amplitude) in shared else 0)
                terms.append((amplitude, directions[l], factor, rate))
        return terms

    def generic(self) -> sp.Expr | None:
        """X̄^k(t) for a class k like any other, where all classes are exchangeable; else None.

        In terms of ``X_k``, the mean of all initial class means ``m``; for the L-model also ``s_k``,
        the mean ``m_s`` of all scores, and ``D`` = Σ_l s_l d_l.
        """
        if len(self.tree.orbits) != 1 or self.tree.contrasts[0] is None:
            return None
        assert self.tree.top is not None
        contrast, common = self.tree.contrasts[0], self.tree.top[0][0]
        X_k, m, s_k, m_s, d_k, D = sp.symbols("X_k m s_k m_s d_k D", real=True)
        if not self.is_logits:
            return m * self.growth(common) + (X_k - m) * self.growth(contrast)
        table = self.coefficients.drift_table
        own, other = table[0, 0], table[0, 1]
        # Σ_l d_l = 0: equal scores act through the difference of the factors, and only along d_k.
        shared = growth_integral(tidy(own - other), common, self.start)
        apart = growth_integral(tidy(own - other), contrast, self.start)
        rest = growth_integral(other, contrast, self.start)
        return X_k + m_s * d_k * shared + (s_k - m_s) * d_k * apart + D * rest

    def evaluate(self, times: Any, initial: Any) -> np.ndarray:
        """Class means (time, class, feature) from the modes, with integrals by quadrature.

        ``times`` increase, and ``initial``, of shape (class, feature), are the class means at the first of them.
        """
        K, p = len(self.coefficients.counts), self.coefficients.n_features
        times = check_times("times", times, 1)
        means = check_finite_array("initial", initial, [(K, p)])
        table = self.coefficients.drift_table
        if names := {n for v in table.values for n in Formula(v, table.functions).unresolved()}:
            raise ValueError(
                f"the closed form has no value for {', '.join(sorted(names))}; give the kernel numbers or formulas."
            )
        d = logit_directions(K) if self.is_logits else np.zeros((K, p))
        scores = (means * d).sum(1) / (d**2).sum(1) if self.is_logits else np.zeros(K)
        places = table.places(times[0], times[-1])

        @cache
        @np.errstate(all="ignore")
        def integral(factor: sp.Expr | None, rate: sp.Expr) -> np.ndarray:
            grown = antiderivative(compiled(rate, TIME, functions=table.functions), times, places)
            if factor is None:
                return np.exp(grown(times))
            strength = compiled(factor, TIME, functions=table.functions)
            return antiderivative(lambda at: strength(at) * np.exp(grown(at)), times, places)(times)

        result = np.zeros((len(times), K, p))
        for k in range(K):
            for amplitude, vector, *how in self._terms(k, means, scores, d):
                size = complex(amplitude) * integral(*how)
                result[:, k] += (size[:, None] * np.asarray(vector, complex)).real
        if not np.isfinite(result).all():
            raise ValueError(
                "the kernel, or what grows by it, is not finite and real at all times."
            )
        return result
