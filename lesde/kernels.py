"""Elasticity kernels: how strongly an SGD step on a sample of one class moves each class.

``E_kl(t)`` is the strength with which a step on a sample of class l moves the features of class k.
A kernel knows nothing about features, noise or sizes; it hands out a table of formulas.

References
----------
He, Su, *The Local Elasticity of Neural Networks*, ICLR 2020; Zhang, Wang, Su, NeurIPS 2021
(arXiv 2110.05960): the two-level kernel with within-class α and between-class β.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import check_labels, check_real, shown
from lesde.entries import EntryTable
from lesde.formula import TIME, Formula, parse_formula, rational

__all__ = ["ClassMatrix", "Hierarchical", "Kernel", "LabelNoise", "TwoLevel"]

Parameters = Mapping[str, float | None] | None


def _value(name: str, value: Any, parameters: Parameters, symbol: str | None = None) -> Formula:
    """A formula; None leaves an unevaluated function of that name, to derive with."""
    if value is None:
        return Formula(sp.Function(symbol or name, real=True)(TIME))
    return parse_formula(name, value, parameters, symbol)


class Kernel(ABC):
    """A class-to-class elasticity kernel E_kl(t).

    A new kernel subclasses this and returns its table; everything else (derivation, laws, engines,
    fits) works from the table.
    """

    depends_on_features = False
    """Whether E depends on the features themselves, so that classes and time do not tell it."""
    free_names: tuple[str, ...] = ()
    """Names without a value that are not in the table."""

    @abstractmethod
    def entries(self, n_classes: int) -> EntryTable:
        """The K×K table E_kl(t): row k is moved by a step on a sample of class l (column)."""

    @property
    def levels(self) -> tuple[sp.Expr, sp.Expr] | None:
        """(α, β) before label noise, for kernels that have just two; else None."""
        return None

    def with_levels(self, alpha: sp.Expr, beta: sp.Expr) -> Kernel:
        """The same kernel with other α and β; only where :attr:`levels` is not None."""
        raise TypeError(f"{type(self).__name__} has no levels α and β to replace.")

    def with_parameters(self, values: Mapping[str, float]) -> Kernel:
        """The same kernel with numbers in place of free names; other names stay free.

        A name is free in a formula where ``parameters={"a": None}`` left it so, or where a SymPy
        expression has a symbol other than t.
        """
        raise TypeError(f"{type(self).__name__} takes its parameters where it is made.")

    def describe(self) -> dict[str, Any]:
        """Kind and formulas as plain text, for the attributes of a dataset."""
        return {"kind": type(self).__name__, **self._describe()}

    @abstractmethod
    def _describe(self) -> dict[str, Any]: ...

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value}" for key, value in self._describe().items())
        return f"{type(self).__name__}({inner})"


class TwoLevel(Kernel):
    """Within-class strength α(t), between-class strength β(t).

    Parameters
    ----------
    alpha, beta : number, str, sympy.Expr, callable or None
        E_kk = α and E_kl = β for k ≠ l. None leaves the function unevaluated: such a model can be
        derived, not simulated.
    parameters : mapping, optional
        Values of named parameters in the formulas; None leaves a name free, for
        :func:`lesde.calibrate` to find or :meth:`with_parameters` to set.

    Examples
    --------
    >>> TwoLevel(alpha="c/(1+t)", beta=-0.5, parameters={"c": 2})
    TwoLevel(alpha=2/(t + 1), beta=-1/2)
    """

    def __init__(self, alpha: Any = None, beta: Any = None, parameters: Parameters = None):
        self.alpha = _value("alpha", alpha, parameters)
        self.beta = _value("beta", beta, parameters)

    @property
    def levels(self) -> tuple[sp.Expr, sp.Expr]:
        return self.alpha.expression, self.beta.expression

    def with_levels(self, alpha: sp.Expr, beta: sp.Expr) -> TwoLevel:
        return TwoLevel(Formula(alpha), Formula(beta))

    def with_parameters(self, values: Mapping[str, float]) -> TwoLevel:
        return TwoLevel(self.alpha, self.beta, values)

    def entries(self, n_classes: int) -> EntryTable:
        index = 1 - np.eye(n_classes, dtype=int)
        return EntryTable.from_formulas({"alpha": self.alpha, "beta": self.beta}, index)

    def _describe(self) -> dict[str, Any]:
        return {"alpha": str(self.alpha.expression), "beta": str(self.beta.expression)}


class ClassMatrix(Kernel):
    """A full K×K matrix of strengths.

    Parameters
    ----------
    matrix : K×K nested sequence, array or SymPy matrix of values
        Entry (k, l): how a step on class l moves class k. Each entry is a number, a formula in t, a
        callable of t, or None for an unevaluated function.
    parameters : mapping, optional
        Values of named parameters in the formulas.

    Examples
    --------
    >>> ClassMatrix([[2, "-1/(1+t)"], [-0.5, 1]])
    ClassMatrix(matrix=[['2', '-1/(t + 1)'], ['-1/2', '1']])
    """

    def __init__(self, matrix: Any, parameters: Parameters = None):
        rows = matrix.tolist() if hasattr(matrix, "tolist") else matrix
        if not isinstance(rows, Sequence) or isinstance(rows, str) or len(rows) == 0:
            raise TypeError(f"matrix must be a K×K table of values; got {shown(matrix)}.")
        rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
        for row in rows:
            if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(rows):
                raise ValueError(
                    f"matrix must be square: it has {len(rows)} rows, one of them is {shown(row)}."
                )
        self.n_classes = len(rows)
        self.formulas = [
            _value(
                f"matrix[{k}][{l}]",
                v,
                parameters,
                f"E_{k + 1}{l + 1}" if self.n_classes < 10 else f"E_{k + 1}_{l + 1}",
            )
            for k, row in enumerate(rows)
            for l, v in enumerate(row)
        ]

    def with_parameters(self, values: Mapping[str, float]) -> ClassMatrix:
        K = self.n_classes
        return ClassMatrix([self.formulas[k * K : (k + 1) * K] for k in range(K)], values)

    def entries(self, n_classes: int) -> EntryTable:
        if n_classes != self.n_classes:
            raise ValueError(
                f"n_classes must be {self.n_classes}, the size of the kernel's matrix; got {n_classes}."
            )
        index = np.arange(n_classes**2).reshape(n_classes, n_classes)
        named = {
            f"matrix[{i // n_classes}][{i % n_classes}]": formula
            for i, formula in enumerate(self.formulas)
        }
        return EntryTable.from_formulas(named, index)

    def _describe(self) -> dict[str, Any]:
        text = [str(formula.expression) for formula in self.formulas]
        K = self.n_classes
        return {"matrix": [text[k * K : (k + 1) * K] for k in range(K)]}


class Hierarchical(Kernel):
    """Classes grouped into superclasses: three strengths.

    Parameters
    ----------
    groups : sequence of int, length K
        The superclass of every class, numbered from 0.
    alpha, beta, gamma : values
        Same class; other class of the same superclass; class of another superclass.
    parameters : mapping, optional
        Values of named parameters in the formulas.

    Examples
    --------
    >>> Hierarchical([0, 0, 1, 1], alpha=2, beta=1, gamma=-0.5)
    Hierarchical(groups=[0, 0, 1, 1], alpha=2, beta=1, gamma=-1/2)
    """

    def __init__(
        self,
        groups: Sequence[int],
        alpha: Any = None,
        beta: Any = None,
        gamma: Any = None,
        parameters: Parameters = None,
    ):
        self.groups = check_labels("groups", groups)
        self.alpha = _value("alpha", alpha, parameters)
        self.beta = _value("beta", beta, parameters)
        self.gamma = _value("gamma", gamma, parameters)

    def with_parameters(self, values: Mapping[str, float]) -> Hierarchical:
        return Hierarchical(self.groups.tolist(), self.alpha, self.beta, self.gamma, values)

    def entries(self, n_classes: int) -> EntryTable:
        if n_classes != len(self.groups):
            raise ValueError(
                f"n_classes must be {len(self.groups)}, the length of the kernel's groups; got "
                f"{n_classes}."
            )
        same_group = self.groups[:, None] == self.groups[None, :]
        index = np.where(np.eye(n_classes, dtype=bool), 0, np.where(same_group, 1, 2))
        formulas = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        return EntryTable.from_formulas(formulas, index)

    def _describe(self) -> dict[str, Any]:
        return {
            "groups": self.groups.tolist(),
            "alpha": str(self.alpha.expression),
            "beta": str(self.beta.expression),
            "gamma": str(self.gamma.expression),
        }


class LabelNoise(Kernel):
    """The kernel that training with wrong labels amounts to.

    A training label is wrong with probability p, uniformly over the other classes, so a step on a
    sample of class l acts as one on class m with probability Q_lm, Q = (1−p)I + p/(K−1)(11ᵀ−I), and
    E′ = E Qᵀ: the expected strength. The engine "sgd" uses it too and draws no labels, so the extra
    sampling noise of wrong labels, and a transform H of the wrong class, are not part of this kernel.
    For a two-level kernel α′−β′ = (α−β)(1 − pK/(K−1)): it vanishes at p = (K−1)/K.

    Parameters
    ----------
    kernel : Kernel
        The kernel of clean labels.
    p : float or sympy.Symbol
        Probability of a wrong label, in [0, 1]; a symbol leaves it free.
    """

    p: sp.Expr

    def __init__(self, kernel: Kernel, p: Any):
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be an elasticity kernel; got {shown(kernel)}.")
        self.kernel = kernel
        if isinstance(p, sp.Expr):
            if not p.free_symbols:
                check_real("p", float(p) if p.is_real else p, 0.0, 1.0)
            self.p = p
        else:
            self.p = rational(check_real("p", p, 0.0, 1.0))

    @property
    def levels(self) -> tuple[sp.Expr, sp.Expr] | None:
        return self.kernel.levels

    def with_levels(self, alpha: sp.Expr, beta: sp.Expr) -> LabelNoise:
        return LabelNoise(self.kernel.with_levels(alpha, beta), self.p)

    def with_parameters(self, values: Mapping[str, float]) -> LabelNoise:
        p = parse_formula("p", self.p, values).expression
        return LabelNoise(self.kernel.with_parameters(values), p)

    def entries(self, n_classes: int) -> EntryTable:
        clean = self.kernel.entries(n_classes)
        if n_classes == 1:
            return clean
        # (E Qᵀ)_kl = (1 − p − p/(K−1)) E_kl + p/(K−1) Σ_m E_km. The sum over m is the same for all rows
        # in which every value occurs equally often, so it is written once per kind of row.
        spread = self.p / (n_classes - 1)
        counts = np.stack([(clean.index == v).sum(1) for v in range(len(clean.values))], axis=1)
        kinds, row_kind = np.unique(counts, axis=0, return_inverse=True)

        keep = 1 - self.p - spread
        factors = {int(n): sp.simplify(spread * int(n)) for n in np.unique(kinds)}
        own = {n: sp.simplify(factor + keep) for n, factor in factors.items()}
        tallies = [{clean.values[v]: int(row[v]) for v in np.flatnonzero(row)} for row in kinds]
        sums = [sp.Add(*(factors[n] * v for v, n in tally.items())) for tally in tallies]

        def noisy(value: sp.Expr, kind: int) -> sp.Expr:
            if self.p.is_number:  # SymPy merges the numbers
                return sums[kind] + keep * value
            n = tallies[kind][value]
            return sums[kind] - factors[n] * value + own[n] * value

        return clean.combine(np.broadcast_to(row_kind.reshape(-1, 1), clean.index.shape), noisy)

    def _describe(self) -> dict[str, Any]:
        return {"kernel": repr(self.kernel), "p": str(self.p)}
