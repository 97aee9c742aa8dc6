"""Elasticity kernels: the strength with which an SGD step on a sample of one class moves each class.

A new kernel subclasses :class:`Kernel` and returns its table of strengths; derivation, laws, engines and fits work
from the table. Only :class:`FeatureKernel`, which depends on the features themselves, has none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import check_integer, check_labels, check_real, shown
from lesde.model.formula import (
    TIME,
    EntryTable,
    Formula,
    PairFormula,
    Parameters,
    parse_formula,
    parse_pair_formula,
    rational,
)


def _value(name: str, value: Any, parameters: Parameters, symbol: str | None = None) -> Formula:
    """A formula; None leaves an unevaluated function of that name, to derive with."""
    if value is None:
        return Formula(sp.Function(symbol or name, real=True)(TIME))
    return parse_formula(name, value, parameters, symbol)


class Kernel(ABC):
    """A class-to-class elasticity kernel E_kl(t); subclasses give its table."""

    depends_on_features = False
    """True if E depends on the features themselves, so that classes and time do not determine it."""
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
        """The same kernel with numbers in place of free names; other names stay free."""
        raise TypeError(f"{type(self).__name__} takes its parameters where it is made.")

    def describe(self) -> dict[str, Any]:
        """Kind and formulas as plain text, for the attributes of a dataset."""
        return {"kind": type(self).__name__, **self._describe()}

    @abstractmethod
    def _describe(self) -> dict[str, Any]: ...

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value}" for key, value in self._describe().items())
        return f"{type(self).__name__}({inner})"


class _NamedFormulas(Kernel):
    """A kernel of named formulas, with a rule for the place of each."""

    formulas: dict[str, Formula]

    def _read(self, parameters: Parameters, **given: Any) -> None:
        self.formulas = {name: _value(name, v, parameters) for name, v in given.items()}

    @abstractmethod
    def _index(self, n_classes: int) -> np.ndarray:
        """The K×K numbers of the formulas, in their order."""

    def entries(self, n_classes: int) -> EntryTable:
        index = self._index(n_classes)
        if len(index) != n_classes:
            raise ValueError(
                f"n_classes must be {len(index)}, the size of the kernel; got {n_classes}."
            )
        return EntryTable.from_formulas(self.formulas, index)

    def with_parameters(self, values: Mapping[str, float]) -> Kernel:
        other = copy(self)
        other.formulas = {name: parse_formula(name, f, values) for name, f in self.formulas.items()}
        return other

    def _describe(self) -> dict[str, Any]:
        return {name: str(formula) for name, formula in self.formulas.items()}


class TwoLevel(_NamedFormulas):
    """Within-class strength α(t), between-class strength β(t).

    Parameters
    ----------
    alpha, beta : number, str, sympy.Expr, callable or None
        E_kk = α and E_kl = β for k ≠ l. None leaves the function unevaluated: such a model can be
        derived, not simulated.
    parameters : mapping, optional
        Values of named parameters in the formulas; None leaves a name free, for
        :func:`lesde.calibrate` to find or :meth:`~lesde.model.kernels.Kernel.with_parameters` to set.

    Examples
    --------
    >>> TwoLevel(alpha="c/(1+t)", beta=-0.5, parameters={"c": 2})
    TwoLevel(alpha=2/(t + 1), beta=-1/2)
    """

    def __init__(self, alpha: Any = None, beta: Any = None, parameters: Parameters = None):
        self._read(parameters, alpha=alpha, beta=beta)

    @property
    def levels(self) -> tuple[sp.Expr, sp.Expr]:
        return self.formulas["alpha"].expression, self.formulas["beta"].expression

    def with_levels(self, alpha: sp.Expr, beta: sp.Expr) -> TwoLevel:
        return TwoLevel(Formula(alpha), Formula(beta))

    def _index(self, n_classes: int) -> np.ndarray:
        return 1 - np.eye(n_classes, dtype=int)


class ClassMatrix(_NamedFormulas):
    """A full K×K matrix of strengths.

    Parameters
    ----------
    matrix : K×K nested sequence, array or SymPy matrix of values
        Entry (k, l), of the kinds that :class:`TwoLevel` takes: the strength with which a step on class l moves class k.
    parameters : mapping, optional
        As for :class:`TwoLevel`.

    Examples
    --------
    >>> ClassMatrix([[2, "-1/(1+t)"], [-0.5, 1]])
    ClassMatrix(matrix=[['2', '-1/(t + 1)'], ['-1/2', '1']])
    """

    def __init__(self, matrix: Any, parameters: Parameters = None):
        try:
            table = np.array(matrix, dtype=object)
        except ValueError:  # rows of unequal length
            table = np.empty(0)
        if table.ndim != 2 or len(table) != table.shape[1]:
            raise TypeError(f"matrix must be a K×K table of values; got {shown(matrix)}.")
        self.n_classes = len(table)
        between = "" if self.n_classes < 10 else "_"
        self.formulas = {}
        for (k, l), value in np.ndenumerate(table):
            name, symbol = f"matrix[{k}][{l}]", f"E_{k + 1}{between}{l + 1}"
            self.formulas[name] = _value(name, value, parameters, symbol)

    def _index(self, n_classes: int) -> np.ndarray:
        return np.arange(self.n_classes**2).reshape(self.n_classes, self.n_classes)

    def _describe(self) -> dict[str, Any]:
        text = np.array([str(formula) for formula in self.formulas.values()], object)
        return {"matrix": text.reshape(self.n_classes, self.n_classes).tolist()}


class Hierarchical(_NamedFormulas):
    """Classes grouped into superclasses: three strengths.

    Parameters
    ----------
    groups : sequence of int, length K
        The superclass of every class, numbered from 0.
    alpha, beta, gamma : values
        Same class; other class of the same superclass; class of another superclass.
    parameters : mapping, optional
        As for :class:`TwoLevel`.

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
        self._read(parameters, alpha=alpha, beta=beta, gamma=gamma)

    def _index(self, n_classes: int) -> np.ndarray:
        other_group = self.groups[:, None] != self.groups[None, :]
        return 1 + other_group - np.eye(len(self.groups), dtype=int)

    def _describe(self) -> dict[str, Any]:
        return {"groups": self.groups.tolist(), **super()._describe()}


class LabelNoise(Kernel):
    """The effective kernel of training with wrong labels.

    A training label is wrong with probability p, uniformly over the other classes, so a step on a
    sample of class l acts as one on class m with probability Q_lm, Q = (1−p)I + p/(K−1)(11ᵀ−I), and
    E′ = E Qᵀ: the expected strength. No labels are drawn, so the extra sampling noise of wrong labels,
    and a transform H of the wrong class, are not part of this kernel.
    For a two-level kernel α′−β′ = (α−β)(1 − pK/(K−1)): it vanishes at p = (K−1)/K.

    Parameters
    ----------
    kernel : Kernel
        The kernel of clean labels.
    p : float or sympy.Symbol
        Probability of a wrong label, in [0, 1]; a symbol leaves it free.

    Examples
    --------
    >>> import lesde
    >>> noisy = lesde.LabelNoise(lesde.TwoLevel(alpha=2, beta=-1), 0.25)
    >>> lesde.derive(lesde.LESDE(noisy, n_classes=2, n_features=2)).separation_rate  # 3/2 where all are right
    3/4
    """

    p: sp.Expr

    def __init__(self, kernel: Kernel, p: Any):
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be an elasticity kernel; got {shown(kernel)}.")
        self.kernel = kernel
        self.p = p if isinstance(p, sp.Expr) else rational(check_real("p", p, 0.0, 1.0))
        if not self.p.free_symbols:
            check_real("p", float(self.p), 0.0, 1.0)

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

        def noisy(value: sp.Expr, kind: int) -> sp.Expr:
            present = [(clean.values[v], int(kinds[kind, v])) for v in np.flatnonzero(kinds[kind])]
            own = 1 - self.p - spread
            return sp.Add(*((n * spread + (own if v == value else 0)) * v for v, n in present))

        return clean.combine(np.broadcast_to(row_kind.reshape(-1, 1), clean.index.shape), noisy)

    def _describe(self) -> dict[str, Any]:
        return {"kernel": repr(self.kernel), "p": str(self.p)}


class _FunctionKernel(Kernel):
    """A kernel from a function (k, l, t); made by the decorator :func:`kernel`."""

    def __init__(self, function: Callable[[int, int, Any], Any], parameters: Parameters = None):
        self.function = function
        self.parameters = parameters
        self.__doc__ = function.__doc__

    def _entry(self, k: int, l: int) -> Formula:
        name, symbol = f"kernel({k}, {l}, t)", f"E_{k + 1}_{l + 1}"
        try:
            return parse_formula(name, self.function(k, l, TIME), self.parameters, symbol)
        except (TypeError, AttributeError):
            # The function uses NumPy on t, so it has no formula: keep it as a callable.
            return parse_formula(name, lambda t, k=k, l=l: self.function(k, l, t), None, symbol)

    def entries(self, n_classes: int) -> EntryTable:
        K = check_integer("n_classes", n_classes)
        formulas = {f"kernel({k}, {l}, t)": self._entry(k, l) for k in range(K) for l in range(K)}
        return EntryTable.from_formulas(formulas, np.arange(K * K).reshape(K, K))

    def with_parameters(self, values: Mapping[str, float]) -> Kernel:
        return _FunctionKernel(self.function, {**(self.parameters or {}), **values})

    def _describe(self) -> dict[str, Any]:
        return {"function": getattr(self.function, "__name__", repr(self.function))}


def kernel(function: Callable[[int, int, Any], Any]) -> Kernel:
    """Make a kernel of a function ``(k, l, t)``, as a decorator.

    Parameters
    ----------
    function : callable
        Called with class numbers k (moved) and l (drawn), from 0, and the time as a SymPy symbol. It
        returns a number, a formula or an expression in t; where it uses NumPy functions on t, it is kept as a
        numerical function.

    Examples
    --------
    >>> @kernel
    ... def chain(k, l, t):
    ...     return 2 / (1 + t) if k == l else -1 / (1 + abs(k - l))
    >>> chain.entries(3)[0, 2]
    -1/3
    """
    if not callable(function):
        raise TypeError(f"kernel decorates a function (k, l, t); got {shown(function)}.")
    return _FunctionKernel(function)


class FeatureKernel(Kernel):
    """Strength κ(X_i, X_J) with which a step on sample J moves sample i, from their features.

    The drift of such a model is not linear in the features, so it has no exact law: it is simulated
    with the engines "torchsde" and "sgd". A step costs O(N² p), in bounded memory, and O(N p²) where the
    formula is of degree one in g and c.

    Parameters
    ----------
    strength : number, str or sympy.Expr
        A formula in

        - ``r2``, the squared distance ‖X_i − X_J‖²,
        - ``g``, the inner product ⟨X_i, X_J⟩,
        - ``c``, the cosine g/(‖X_i‖‖X_J‖), 0 where a norm is 0,
        - ``s``, 1 where both samples are of one class and 0 where not,
        - ``t``, the time.
    parameters : mapping, optional
        Values of named parameters in the formula; None leaves a name free.

    Notes
    -----
    Every drawn sample also moves itself, with r2 = 0 and s = 1, so the formula must be finite there.

    Examples
    --------
    >>> FeatureKernel("s*a*exp(-r2/8) - (1-s)*exp(-r2/2)/(1+t)", parameters={"a": 2})
    FeatureKernel(strength=2*s*exp(-r2/8) - (1 - s)*exp(-r2/2)/(t + 1))
    """

    depends_on_features = True

    def __init__(self, strength: Any, parameters: Parameters = None):
        self.formula: PairFormula = parse_pair_formula("strength", strength, parameters)
        self.free_names = tuple(self.formula.unresolved())

    @property
    def class_kernel(self) -> TwoLevel | None:
        """The class kernel that it equals where the formula has only s and t, else None."""
        if self.formula.uses:
            return None
        return TwoLevel(Formula(self.formula.at(True)), Formula(self.formula.at(False)))

    def with_parameters(self, values: Mapping[str, float]) -> FeatureKernel:
        return FeatureKernel(self.formula.expression, values)

    def entries(self, n_classes: int) -> EntryTable:
        if self.class_kernel is None:
            raise TypeError(
                f"FeatureKernel has no table of strengths between classes: strength = "
                f"{self.formula.expression} depends on the features ({', '.join(sorted(self.formula.uses))})."
            )
        return self.class_kernel.entries(n_classes)

    def _describe(self) -> dict[str, Any]:
        return {"strength": str(self.formula.expression)}


def no_linear_drift(what: str) -> ValueError:
    """The error where a drift that is linear in the features is needed."""
    return ValueError(
        f"{what} needs a kernel of classes and time; this model's FeatureKernel depends on the features, "
        f"so its drift is not linear. Simulate it with lesde.simulate(model, ..., engine='torchsde') or "
        f"engine='sgd'."
    )
