"""Modes of the mean ODE, found from the exchange symmetry of the class matrix."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from lesde.derivation.coefficients import Coefficients
from lesde.derivation.integrals import expand_terms, time_terms
from lesde.model.formula import TIME, EntryTable, Unfinished, bounded
from lesde.model.transforms import Transform

__all__ = ["Mode", "Tree", "list_modes", "mode_tree", "reduced_table", "tidy"]


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
    eigen: tuple[list[sp.Expr], sp.Matrix, sp.Matrix] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether all modes have closed forms."""
        return self.parent.is_closed if self.parent is not None else self.eigen is not None


def reduced_table(coefficients: Coefficients) -> EntryTable | None:
    """The class matrix of the coordinates that obey a closed system.

    Identity: the class means themselves, matrix w_l E_kl. Logits: s_l = ⟨d_l, X̄^l⟩/‖d_l‖², matrix
    w_l E_kl ⟨d_k, d_l⟩/‖d_k‖². One matrix H for all classes: the class means along an eigenvector of
    H, matrix w_l E_kl for eigenvalue 1. Matrices that differ between classes: None.
    """
    transform = coefficients.transform
    if transform.kind != "logits":
        return coefficients.drift_table if transform.is_shared else None
    K = sp.Integer(transform.n_classes)
    same = np.eye(transform.n_classes, dtype=int)

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


def feature_spectrum(transform: Transform) -> list[tuple[sp.Expr, int]]:
    """Eigenvalues of a shared transform with multiplicities: each repeats the modes of the class matrix."""
    if transform.kind == "identity":
        return [(sp.Integer(1), transform.n_features)]
    if transform.kind == "logits":
        return [(sp.Integer(1), 1)]
    values = np.linalg.eigvals(transform.array()[0])
    scale = max(float(np.abs(values).max()), 1e-300)
    spectrum: list[tuple[complex, int]] = []
    for value in sorted(values, key=lambda z: (-z.real, -z.imag)):
        # Repeated eigenvalues come out of the solver apart by the square root of rounding at worst.
        if spectrum and abs(value - spectrum[-1][0]) < 1e-7 * scale:
            spectrum[-1] = (spectrum[-1][0], spectrum[-1][1] + 1)
        else:
            spectrum.append((complex(value), 1))
    return [(_number(value, scale), count) for value, count in spectrum]


def list_modes(tree: Tree, transform: Transform) -> list[Mode]:
    """The modes of a model: contrasts first, the grand mean last."""
    modes = []
    for mode in _class_modes(tree, transform):
        for factor, copies in feature_spectrum(transform):
            name = mode.name
            if transform.kind == "matrix":
                name += f", along eigenvalue {factor} of H"
            modes.append(
                Mode(name, tidy(factor * mode.rate), copies * mode.multiplicity, mode.kind)
            )
    static = transform.n_classes * transform.n_features - sum(mode.multiplicity for mode in modes)
    if transform.kind == "logits" and static > 0 and tree.is_closed:
        modes.append(Mode("directions without drift", sp.Integer(0), static, "static"))
    return modes


def _class_modes(tree: Tree, transform: Transform) -> list[Mode]:
    """The modes of the class matrix alone."""
    scores = transform.kind == "logits"
    what = "logit scores s" if scores else "class means"
    modes: list[Mode] = []
    members = [[k] for k in range(transform.n_classes)]
    level: Tree | None = tree
    while level is not None:
        noun = "classes" if level is tree else "groups"
        for orbit, rate in zip(level.orbits, level.contrasts, strict=True):
            if rate is None:
                continue
            classes = sorted(k for node in orbit for k in members[node])
            everyone = len(classes) == transform.n_classes
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
