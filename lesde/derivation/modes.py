"""Closed-form solutions of the mean ODE, assembled from its modes."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.integrals.manualintegrate import manualintegrate
from sympy.integrals.rationaltools import ratint

from lesde.checks import check_finite_array, check_times
from lesde.derivation.coefficients import Coefficients
from lesde.model.formula import TIME, EntryTable, Formula, Unfinished, bounded

if TYPE_CHECKING:
    from lesde.model.lesde import LESDE

__all__ = [
    "DUMMY",
    "Mode",
    "Solution",
    "Tree",
    "abbreviate",
    "expand_terms",
    "growth_integral",
    "mode_tree",
    "numerical",
    "reduced_table",
    "time_integral",
    "time_terms",
]


# --------------------------------------------------------------------------------------------------
# Integrals over time in closed form where there is a quick one, left standing otherwise.

CAPITALS = {"alpha": "A", "beta": "B", "gamma": "Gamma"}


DUMMY = sp.Symbol("tau", real=True)
INNER = sp.Symbol("u", real=True)


EXPONENTIAL = sp.Symbol("u", positive=True)

MANY_TERMS = 1000
MANY_POWERS = 12  # of one exponential in another, in a rational function of both


def expand_terms(expression: sp.Expr) -> sp.Expr:
    """The expression multiplied out, or as it is where that would give more than 1000 terms."""
    if _count_terms(expression) > MANY_TERMS:
        return expression
    try:
        # exp(−(t−1)²) stays one exponential: as a product of several it overflows where it is small.
        return bounded(lambda: sp.expand(expression, power_exp=False))
    except Unfinished:
        return expression


def _count_terms(expression: sp.Basic) -> int:
    """An upper bound of the terms of a sum once it is multiplied out."""
    inner = [_count_terms(argument) for argument in expression.args]
    if expression.is_Add:
        return sum(inner)
    if expression.is_Mul:
        return min(math.prod(inner), 10**9)
    # A power 199/2 is multiplied out as well, to 99 and a root.
    if expression.is_Pow and expression.exp.is_Rational and inner[0] > 1:
        return min(inner[0] ** min(int(abs(expression.exp)), 30), 10**9)
    return 1 if not inner or max(inner) <= MANY_TERMS else 10**9


def time_terms(expression: sp.Expr) -> dict[sp.Expr, sp.Expr]:
    """The expression as a sum of functions of time, each with its constant factor."""
    terms: dict[sp.Expr, sp.Expr] = {}
    for term in sp.Add.make_args(expand_terms(expression)):
        # Factor first: 6/(13t + 13) and 10/(39t + 39) are multiples of the same function.
        constant, function = sp.factor_terms(term).as_independent(TIME, as_Add=False)
        terms[function] = terms.get(function, sp.Integer(0)) + constant
    return terms


@lru_cache(maxsize=512)
def time_integral(integrand: sp.Expr, start: sp.Expr) -> sp.Expr:
    """∫_start^t of an expression in time; an Integral stands where no closed form was found.

    Terms are integrated one by one, so a callable or an unevaluated α(t) keeps only its own
    integral. A closed form is differentiated back before it is used.
    """
    return sp.Add(*(c * _integrate_one(f, start) for f, c in time_terms(integrand).items()))


def _integrate_one(function: sp.Expr, start: sp.Expr) -> sp.Expr:
    standing = sp.Integral(function.subs(TIME, DUMMY), (DUMMY, start, TIME))
    if TIME not in function.free_symbols:
        return function * (TIME - start)
    if function.atoms(AppliedUndef) or function.has(sp.Integral):
        return standing
    if (
        _count_terms(function) > MANY_TERMS
    ):  # no closed form that a person prints, and a long search
        return standing
    try:
        value = bounded(_definite, function, start)
    except (*GIVEN_UP, Unfinished):
        return standing
    return standing if value is None or value.has(sp.nan, sp.zoo, sp.oo) else value


GIVEN_UP = (
    ArithmeticError,
    AttributeError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Ways of SymPy to give up an integral; it then stands as it is."""


def _definite(function: sp.Expr, start: sp.Expr) -> sp.Expr | None:
    found = _primitive(function)
    if found is None:
        return None
    first = found.subs(TIME, start)
    # exp(exp(1e222 - t)) has a primitive, whose value at 0 nobody can compute.
    return None if first.is_number and not np.isfinite(complex(first)) else found - first


def _primitive(function: sp.Expr) -> sp.Expr | None:
    """A function whose derivative is the given one at all times; None where none is found."""
    powers = {power: sp.diff(power.exp, TIME) for power in function.atoms(sp.exp)}
    slopes = [slope for slope in powers.values() if slope != 0]
    if slopes and all(TIME not in slope.free_symbols for slope in slopes):
        unit = sp.gcd_list(slopes) if all(slope.is_Rational for slope in slopes) else slopes[0]
        degrees = {power: slope / unit for power, slope in powers.items()}
        if all(d.is_number and d.is_real and float(d).is_integer() for d in degrees.values()):
            return _of_exponential(function, unit, {p: round(d) for p, d in degrees.items()})
    return _search(function)


def _of_exponential(
    function: sp.Expr, unit: sp.Expr, degrees: dict[sp.Expr, int]
) -> sp.Expr | None:
    """A primitive in u = exp(unit·t), where the function is rational in it and has t nowhere else.

    Constants are symbols meanwhile: SymPy takes exp(3.14159) for a power of exp(1/100000).
    """
    constants = {p: sp.exp(p.exp.subs(TIME, 0)) for p in degrees}
    symbols = {c: sp.Dummy(positive=True) for c in constants.values() if c != 1}
    swaps = {p: symbols.get(constants[p], 1) * EXPONENTIAL**d for p, d in degrees.items()}
    rational = function.xreplace(swaps) / EXPONENTIAL
    if TIME in rational.free_symbols or not rational.is_rational_function(EXPONENTIAL):
        return _search(function)
    if max(map(abs, degrees.values())) > MANY_POWERS:
        return None
    found = ratint(sp.cancel(rational), EXPONENTIAL)
    if found.has(sp.RootSum, sp.Integral):
        return None
    back = {EXPONENTIAL: sp.exp(unit * TIME), **{s: c for c, s in symbols.items()}}
    return found.subs(back) / unit


def _search(function: sp.Expr) -> sp.Expr | None:
    """A primitive that SymPy finds, differentiated back."""
    found = manualintegrate(function, TIME)
    # The tangent of half an angle in a primitive jumps where the integrand does not.
    if found.has(sp.Integral, sp.Piecewise, sp.nan, sp.zoo) or (
        found.has(sp.tan, sp.cot) and not function.has(sp.tan, sp.cot)
    ):
        return None
    return found if sp.simplify(sp.diff(found, TIME) - function) == 0 else None


@lru_cache(maxsize=512)
def growth_integral(factor: sp.Expr, rate: sp.Expr, start: sp.Expr) -> sp.Expr:
    """∫_start^t factor(τ) exp(∫_start^τ rate) dτ.

    Where the factor is a multiple of the rate this is that multiple of exp(∫ rate) − 1, even for
    unevaluated functions of time. Otherwise a closed form is sought only for a constant rate; with
    others it would not be one that a person prints.
    """
    if factor == 0:
        return sp.Integer(0)
    growth = sp.exp(time_integral(rate, start))
    if rate != 0:
        try:
            ratio = bounded(_constant_ratio, factor, rate)
        except Unfinished:
            ratio = None
        if ratio is not None:
            return ratio * (growth - 1)
    if TIME not in rate.free_symbols:
        return time_integral(factor * growth, start)
    inner = growth.xreplace({DUMMY: INNER})
    constant, function = factor.as_independent(TIME, as_Add=False)
    integrand = (function * inner).subs(TIME, DUMMY)
    return constant * sp.Integral(integrand, (DUMMY, start, TIME))


def _constant_ratio(factor: sp.Expr, rate: sp.Expr) -> sp.Expr | None:
    """The constant of which the factor is that multiple of the rate; None where there is none."""
    above, below = time_terms(factor), time_terms(rate)
    if above.keys() != below.keys() or 0 in below.values():
        return None
    first, *others = [sp.simplify(above[function] / below[function]) for function in below]
    return first if all(sp.simplify(first - other) == 0 for other in others) else None


def numerical(
    expression: sp.Expr,
    variable: sp.Symbol,
    functions: Mapping[str, Callable[..., Any]],
    edges: np.ndarray,
) -> Callable[[float], complex]:
    """A function of one number from an expression whose integrals may be standing and nested.

    Integrals are done piece by piece between the edges, on which what stands in them is smooth.
    """
    from scipy.integrate import quad

    standing: dict[sp.Integral, sp.Symbol] = {}

    def mark(node: sp.Basic) -> sp.Basic:
        if isinstance(node, sp.Integral):
            return standing.setdefault(node, sp.Symbol(f"integral_{len(standing)}"))
        return node.func(*map(mark, node.args)) if node.args else node

    marked = mark(expression)
    arguments = [variable, *standing.values()]
    body = sp.lambdify(arguments, marked, modules=[dict(functions), "numpy", "scipy"])

    @cache
    def precise() -> Callable[..., Any]:
        return sp.lambdify(arguments, marked, modules=[dict(functions), "mpmath"])

    parts = []
    for node in standing:
        bound, lower, _ = node.limits[0]
        inner = numerical(node.function, bound, functions, edges)
        parts.append((inner, float(lower), node.has(sp.I)))

    def area(part: tuple[Callable[[float], complex], float, bool], x: float) -> complex:
        f, lower, is_complex = part
        ends = [lower, *edges[(edges > min(lower, x)) & (edges < x)], x]
        sides = (lambda u: f(u).real, lambda u: f(u).imag)[: 1 + is_complex]
        sizes = [
            math.fsum(
                quad(g, a, b, epsabs=0.0, epsrel=1e-12, limit=200)[0]
                for a, b in itertools.pairwise(ends)
            )
            for g in sides
        ]
        return complex(*sizes)

    def value(x: float) -> complex:
        areas = [area(part, x) for part in parts]
        areas = [a if a.imag else a.real for a in areas]
        try:
            with np.errstate(over="raise", divide="raise", invalid="raise", under="ignore"):
                return complex(body(np.float64(x), *areas))
        except (FloatingPointError, ZeroDivisionError, OverflowError):
            # such as t − log(1 + exp(1000t))/1000: mpmath's exponents have no end
            return complex(precise()(x, *areas))

    return value


def abbreviate(expression: sp.Expr) -> tuple[sp.Expr, dict[sp.Expr, sp.Expr]]:
    """Write A(t), B(t), Γ(t) for the integrals of unevaluated α, β, γ; also returns what they mean."""
    meaning: dict[sp.Expr, sp.Expr] = {}

    def short(node: sp.Integral) -> sp.Expr:
        name = CAPITALS.get(getattr(node.function.func, "__name__", ""))
        bound, lower, upper = node.limits[0]
        if name is None or node.function.args != (bound,):
            return node
        capital = sp.Function(name, real=True)
        rebound = node.function.subs(bound, DUMMY)
        meaning[capital(TIME)] = sp.Integral(rebound, (DUMMY, lower, TIME))
        return capital(upper)

    return expression.replace(lambda e: isinstance(e, sp.Integral), short), meaning


# --------------------------------------------------------------------------------------------------
# Modes of the mean ODE, found from the symmetry of the class matrix.


@dataclass(frozen=True)
class Mode:
    """One rate of the mean ODE, with the combinations of class means that grow at it.

    Attributes
    ----------
    name : str
        In words.
    rate : sympy.Expr
        λ(t): amplitudes in this mode grow as exp(∫λ).
    multiplicity : int
        Its dimension in the K·p-dimensional space of class means.
    kind : {"mean", "contrast", "coupled", "static"}
        Grand mean; contrast between exchangeable classes or groups; eigenvector of what symmetry
        leaves coupled; directions that the drift never moves.
    """

    name: str
    rate: sp.Expr
    multiplicity: int
    kind: str


@dataclass(frozen=True)
class Tree:
    """The symmetry reduction of a class matrix.

    Attributes
    ----------
    orbits : list of list of int
        The orbits of this level's nodes (classes at the root, then groups).
    contrasts : list of sympy.Expr or None
        Rate of the contrasts within each orbit; None for an orbit of one.
    parent : Tree or None
        The level of the orbits' means; None at the last.
    residual : sympy.Matrix or None
        At the last level: the matrix that couples the orbits' means.
    eigen : tuple (rates, vectors, inverse) or None
        Its eigen-decomposition, where the eigenvectors do not depend on time.
    """

    orbits: list[list[int]]
    contrasts: list[sp.Expr | None]
    parent: Tree | None
    residual: sp.Matrix | None = None
    eigen: tuple[list[sp.Expr], sp.Matrix, sp.Matrix] | None = field(default=None)

    @property
    def is_closed(self) -> bool:
        """Whether all modes have closed forms."""
        return self.parent.is_closed if self.parent is not None else self.eigen is not None


def reduced_table(model: LESDE, coefficients: Coefficients) -> EntryTable | None:
    """The class matrix of the coordinates that obey a closed system.

    Identity: the class means themselves, matrix w_l E_kl. Logits: s_l = ⟨d_l, X̄^l⟩/‖d_l‖², matrix
    w_l E_kl ⟨d_k, d_l⟩/‖d_k‖². One matrix H for all classes: the class means along an eigenvector of
    H, matrix w_l E_kl for eigenvalue 1. Matrices that differ between classes: None.
    """
    if model.transform.kind != "logits":
        return coefficients.drift_table if model.transform.is_shared else None
    K = sp.Integer(model.n_classes)
    same = np.eye(model.n_classes, dtype=int)

    def inner(equal: int) -> sp.Expr:
        # ⟨e_k − 1/K, e_l − 1/K⟩, multiplied out
        return sp.Integer(equal) - 2 / K + K / K**2

    return coefficients.drift_table.combine(same, lambda v, equal: v * inner(equal) / inner(1))


def _orbits(index: np.ndarray) -> list[list[int]]:
    """Classes whose exchange leaves the matrix as it is."""
    groups: list[list[int]] = []
    for k in range(len(index)):
        for group in groups:
            a = group[0]
            others = np.ones(len(index), dtype=bool)
            others[[a, k]] = False
            if (
                index[a, a] == index[k, k]
                and index[a, k] == index[k, a]
                and (index[a, others] == index[k, others]).all()
                and (index[others, a] == index[others, k]).all()
            ):
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def mode_tree(table: EntryTable) -> Tree:
    """Reduce a class matrix by its exchange symmetry, level by level."""
    orbits = _orbits(table.index)
    contrasts: list[sp.Expr | None] = [
        tidy(table[o[0], o[0]] - table[o[0], o[1]]) if len(o) > 1 else None for o in orbits
    ]

    def coupling(row: list[int], column: list[int]) -> sp.Expr:
        values, counts = np.unique(table.index[row[0], column], return_counts=True)
        return tidy(
            sp.Add(*(int(n) * table.values[v] for v, n in zip(values, counts, strict=True)))
        )

    expressions = [coupling(a, b) for a in orbits for b in orbits]
    position: dict[sp.Expr, int] = {}
    index = np.array([position.setdefault(e, len(position)) for e in expressions])
    quotient = EntryTable(tuple(position), index.reshape(len(orbits), len(orbits)), table.functions)
    if len(orbits) > 1 and any(len(o) > 1 for o in _orbits(quotient.index)):
        return Tree(orbits, contrasts, mode_tree(quotient))
    matrix = quotient.matrix()
    return Tree(orbits, contrasts, None, matrix, eigen(matrix))


def tidy(expression: sp.Expr) -> sp.Expr:
    """A rate as a person writes it: common factors out of unevaluated functions, else a plain sum."""
    if expression.count_ops() > 200:
        return expression
    expanded = expand_terms(expression)
    if expression.atoms(AppliedUndef) or TIME not in expression.free_symbols:
        forms = [expression, expanded, sp.factor_terms(expanded)]
        # Numbers have no factors to see, and SymPy takes exp(700) for a power of degree 700.
        if not expanded.is_number and expanded.count_ops() < 40:
            with contextlib.suppress(Unfinished):
                forms.append(bounded(sp.factor, expanded))
        return min(forms, key=lambda form: form.count_ops())
    return sp.Add(*(sp.factor_terms(term) for term in sp.Add.make_args(expanded)))


def time_basis(matrix: sp.Matrix) -> dict[sp.Expr, sp.Matrix]:
    """Write M(t) = Σ f(t) M_f with constant matrices, by distinct functions of time f."""
    basis: dict[sp.Expr, sp.Matrix] = {}
    for position, entry in enumerate(matrix):
        for function, constant in time_terms(entry).items():
            basis.setdefault(function, sp.zeros(*matrix.shape))[position] = constant
    return basis


def eigen(matrix: sp.Matrix) -> tuple[list[sp.Expr], sp.Matrix, sp.Matrix] | None:
    """Rates λ_m(t) and time-independent eigenvectors, or None where there are none.

    Exact for one or two rows with one function of time; otherwise in floating point, and only where
    the constant matrices of the time functions have common eigenvectors.
    """
    n = matrix.rows
    if n == 1:
        return [matrix[0, 0]], sp.eye(1), sp.eye(1)
    basis = time_basis(matrix)
    if len(basis) == 1 and n == 2:
        ((function, constant),) = basis.items()
        try:
            return bounded(_exact_eigen, function, constant)
        except sp.matrices.exceptions.MatrixError:
            return None
        except Unfinished:
            pass  # then in floating point
    if any(part.free_symbols for part in basis.values()):
        return None
    parts = {f: np.array(part.tolist(), dtype=float) for f, part in basis.items()}
    # Eigenvectors common to all parts are those of a generic combination of them.
    generic = sum(part * np.sqrt(2 + i) for i, part in enumerate(parts.values()))
    _, columns = np.linalg.eig(generic)
    if np.linalg.cond(columns) > 1e8:
        return None
    inverse = np.linalg.inv(columns)
    rates: list[sp.Expr] = [sp.Integer(0)] * n
    for function, part in parts.items():
        rotated = inverse @ part @ columns
        scale = max(np.abs(rotated).max(), 1e-300)
        if np.abs(rotated - np.diag(np.diag(rotated))).max() > 1e-10 * scale:
            return None
        rates = [
            rate + _number(value, scale) * function
            for rate, value in zip(rates, np.diag(rotated), strict=True)
        ]
    as_matrix = lambda m: sp.Matrix(n, n, [_number(x, np.abs(m).max()) for x in m.ravel()])  # noqa: E731
    return rates, as_matrix(columns), as_matrix(inverse)


def _exact_eigen(
    function: sp.Expr, constant: sp.Matrix
) -> tuple[list[sp.Expr], sp.Matrix, sp.Matrix]:
    vectors, diagonal = constant.diagonalize()
    rates = [function * diagonal[i, i] for i in range(constant.rows)]
    return rates, vectors, vectors.inv()


def _number(value: complex, scale: float) -> sp.Expr:
    """A float as a number to print: rounding noise removed, simple fractions recognised."""

    def real(x: float) -> sp.Expr:
        if abs(x) < 1e-13 * scale:
            return sp.Integer(0)
        guess = Fraction(float(x)).limit_denominator(1000)
        close = abs(float(guess) - x) <= 1e-13 * abs(x)
        return sp.Rational(guess.numerator, guess.denominator) if close else sp.Float(x, 17)

    value = complex(value)
    return real(value.real) + sp.I * real(value.imag)


def feature_spectrum(model: LESDE) -> list[tuple[sp.Expr, int]]:
    """Eigenvalues of the transform with multiplicities: each repeats the modes of the class matrix."""
    if model.transform.kind == "identity":
        return [(sp.Integer(1), model.n_features)]
    if model.transform.kind == "logits":
        return [(sp.Integer(1), 1)]
    values = np.linalg.eigvals(model.transform.array()[0])
    scale = max(float(np.abs(values).max()), 1e-300)
    spectrum: list[tuple[complex, int]] = []
    for value in sorted(values, key=lambda z: (-z.real, -z.imag)):
        # Repeated eigenvalues come out of the solver apart by the square root of rounding at worst.
        if spectrum and abs(value - spectrum[-1][0]) < 1e-7 * scale:
            spectrum[-1] = (spectrum[-1][0], spectrum[-1][1] + 1)
        else:
            spectrum.append((complex(value), 1))
    return [(_number(value, scale), count) for value, count in spectrum]


def list_modes(tree: Tree, model: LESDE) -> list[Mode]:
    """The modes of a model, largest multiplicity of structure first, grand mean last."""
    modes = []
    for mode in _class_modes(tree, model):
        for factor, copies in feature_spectrum(model):
            name = mode.name
            if model.transform.kind == "matrix":
                name += f", along eigenvalue {factor} of H"
            modes.append(
                Mode(name, tidy(factor * mode.rate), copies * mode.multiplicity, mode.kind)
            )
    static = model.n_classes * model.n_features - sum(mode.multiplicity for mode in modes)
    if model.transform.kind == "logits" and static > 0 and tree.is_closed:
        modes.append(Mode("directions without drift", sp.Integer(0), static, "static"))
    return modes


def _class_modes(tree: Tree, model: LESDE) -> list[Mode]:
    """The modes of the class matrix alone."""
    scores = model.transform.kind == "logits"
    what = "logit scores s" if scores else "class means"
    modes: list[Mode] = []
    members = [[k] for k in range(model.n_classes)]
    level: Tree | None = tree
    while level is not None:
        noun = "classes" if level is tree else "groups"
        for orbit, rate in zip(level.orbits, level.contrasts, strict=True):
            if rate is None:
                continue
            classes = sorted(k for node in orbit for k in members[node])
            everyone = len(classes) == model.n_classes
            where = "all " + noun if everyone else f"{noun} {_names([members[n] for n in orbit])}"
            name = f"contrasts of {what} among {where}"
            modes.append(Mode(name, rate, len(orbit) - 1, "contrast"))
        members = [[k for node in orbit for k in members[node]] for orbit in level.orbits]
        if level.parent is None and level.eigen is not None:
            rates = level.eigen[0]
            if len(rates) == 1:
                name = "equal scores s" if scores else "grand mean"
                modes.append(Mode(name, tidy(rates[0]), 1, "mean"))
            else:
                modes += [
                    Mode(f"coupled {what}, eigenvector {i + 1}", rate, 1, "coupled")
                    for i, rate in enumerate(rates)
                ]
        level = level.parent
    return modes


def _names(groups: list[list[int]]) -> str:
    text = ["+".join(str(k + 1) for k in group) for group in groups]
    return ", ".join(text if len(text) <= 6 else [*text[:3], "…", text[-1]])


# --------------------------------------------------------------------------------------------------


def initial_mean(k: int) -> sp.Symbol:
    """The symbol of class k's initial mean, a vector."""
    return sp.Symbol(f"X_{k + 1}", real=True)


def initial_score(k: int) -> sp.Symbol:
    """The symbol of s_k at the start, a number."""
    return sp.Symbol(f"s_{k + 1}", real=True)


def direction(k: int) -> sp.Symbol:
    """The symbol of the logit direction d_k, a vector."""
    return sp.Symbol(f"d_{k + 1}", real=True)


@dataclass(frozen=True)
class Solution:
    """The class means as explicit functions of time.

    Expressions use the symbols ``X_k`` (initial class mean, a vector), and for the L-model ``d_k``
    (logit directions) and ``s_k`` (initial scores ⟨d_k, X_k⟩/‖d_k‖²); they are linear in them.

    Attributes
    ----------
    model : LESDE
    tree : Tree
        The modes; closed.
    start : sympy.Expr
        The initial time.
    """

    model: LESDE
    tree: Tree
    start: sp.Expr

    @property
    def is_logits(self) -> bool:
        """Whether this is the L-model's solution."""
        return self.model.transform.kind == "logits"

    def growth(self, rate: sp.Expr) -> sp.Expr:
        """exp(∫ rate) from the start to t."""
        return sp.exp(time_integral(rate, self.start))

    def reduced(self, k: int, start: Any) -> list[tuple[sp.Expr, Any]]:
        """Pairs (rate, amplitude) of coordinate k: a class mean, or a score s_k of the L-model.

        ``start`` gives the coordinates of all classes at the start: symbols, numbers or vectors.
        """
        terms: list[tuple[sp.Expr, Any]] = []
        amplitudes = list(start)
        node, level = k, self.tree
        while True:
            position = next(i for i, orbit in enumerate(level.orbits) if node in orbit)
            means = [sum(amplitudes[n] for n in o) / len(o) for o in level.orbits]
            rate = level.contrasts[position]
            if rate is not None:
                terms.append((rate, amplitudes[node] - means[position]))
            node, amplitudes = position, means
            if level.parent is None:
                break
            level = level.parent
        assert level.eigen is not None
        rates, vectors, inverse = level.eigen
        for i, rate in enumerate(rates):
            weight = sum(inverse[i, j] * a for j, a in enumerate(amplitudes))
            terms.append((rate, vectors[node, i] * weight))
        return terms

    def mean(self, k: int) -> sp.Expr:
        """X̄^k(t) of class k (from 0)."""
        K = range(self.model.n_classes)
        symbols = ([make(l) for l in K] for make in (initial_mean, initial_score, direction))
        return sp.Add(*(a * vector * factor for a, vector, factor in self._terms(k, *symbols)))

    def _terms(
        self, k: int, means: Any, scores: Any, directions: Any
    ) -> list[tuple[Any, Any, sp.Expr]]:
        """X̄^k as triples: an amplitude, a vector and their factor, a function of time.

        The arguments are the initial means and scores and the logit directions of all classes, as
        symbols or as numbers.
        """
        if not self.is_logits:
            return [(1, vector, self.growth(rate)) for rate, vector in self.reduced(k, means)]
        # X_k + Σ_l d_l ∫ w_l E_kl s_l, using Σ_l d_l = 0 to drop what all classes share.
        from lesde.derivation import derive

        table = derive(self.model).coefficients().drift_table
        row = table.index[k]
        common = table.values[np.bincount(np.delete(row, k), minlength=1).argmax()]
        parts = [self.reduced(l, scores) for l in range(self.model.n_classes)]
        shared = set(parts[0]).intersection(*parts[1:])
        terms: list[tuple[Any, Any, sp.Expr]] = [(1, means[k], sp.Integer(1))]
        for l, part in enumerate(parts):
            for rate, amplitude in part:
                factor = table.values[row[l]] - (common if (rate, amplitude) in shared else 0)
                integral = growth_integral(factor, rate, self.start)
                terms.append((amplitude, directions[l], integral))
        return terms

    def generic(self) -> sp.Expr | None:
        """X̄^k(t) for a class k like any other, where all classes are exchangeable; else None.

        In terms of ``X_k``, the mean of all initial class means ``m``; for the L-model also ``s_k``,
        the mean ``m_s`` of all scores, and ``D`` = Σ_l s_l d_l.
        """
        if len(self.tree.orbits) != 1 or self.tree.contrasts[0] is None:
            return None
        assert self.tree.eigen is not None
        contrast, common = self.tree.contrasts[0], self.tree.eigen[0][0]
        X_k, m, s_k, m_s, d_k, D = sp.symbols("X_k m s_k m_s d_k D", real=True)
        if not self.is_logits:
            return m * self.growth(common) + (X_k - m) * self.growth(contrast)
        from lesde.derivation import derive

        table = derive(self.model).coefficients().drift_table
        own, other = table[0, 0], table[0, 1]
        # Σ_l d_l = 0: equal scores act through the difference of the factors, and only along d_k.
        shared = growth_integral(tidy(own - other), common, self.start)
        apart = growth_integral(tidy(own - other), contrast, self.start)
        rest = growth_integral(other, contrast, self.start)
        return X_k + m_s * d_k * shared + (s_k - m_s) * d_k * apart + D * rest

    def evaluate(self, times: Any, initial: Any) -> np.ndarray:
        """Numbers from the closed form; integrals left standing are done by quadrature.

        Parameters
        ----------
        times : array, shape (time,)
            Increasing; the first is the initial time.
        initial : array, shape (class, feature)
            Class means at ``times[0]``.

        Returns
        -------
        ndarray, shape (time, class, feature), float64
        """
        from lesde.model.transforms import logit_directions

        model = self.model
        K, p = model.n_classes, model.n_features
        times = check_times("times", times, 1)
        means = check_finite_array("initial", initial, [(K, p)])
        solution = Solution(model, self.tree, sp.Float(times[0], 17))
        d = logit_directions(K) if self.is_logits else np.zeros((K, p))
        scores = (means * d).sum(1) / (d**2).sum(1) if self.is_logits else np.zeros(K)
        functions = dict(model.entries.functions)
        edges = np.empty(0)
        from lesde.derivation import derive

        coefficients = derive(model).coefficients()
        table = coefficients.drift_table
        known = not any(Formula(value, functions).unresolved() for value in table.values)
        if len(times) > 1 and known and not table.is_constant:
            edges = coefficients.kernel_panels(times).starts
        values: dict[sp.Expr, np.ndarray] = {}
        result = np.zeros((len(times), K, p))
        for k in range(K):
            for amplitude, vector, factor in solution._terms(k, means, scores, d):
                if factor not in values:
                    values[factor] = _numbers(factor, times, functions, edges)
                size = complex(amplitude) * values[factor]
                result[:, k] += (size[:, None] * np.asarray(vector, complex)).real
        return result


def _numbers(
    expression: sp.Expr, times: np.ndarray, functions: dict[str, Any], edges: np.ndarray
) -> np.ndarray:
    """Values of a scalar closed form; integrals left standing by adaptive quadrature."""
    names = {f.func.__name__ for f in expression.atoms(AppliedUndef)} - set(functions)
    free = {str(s) for s in expression.free_symbols - {TIME}}
    if names or free:
        raise ValueError(
            f"the closed form has no value for {', '.join(sorted(names | free))}; give the kernel "
            f"numbers or formulas."
        )
    value = numerical(expression, TIME, functions, edges)
    return np.array([value(float(t)) for t in times])
