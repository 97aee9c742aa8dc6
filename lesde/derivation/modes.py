"""Modes of the mean ODE, found from the exchange symmetry of the class matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from lesde.derivation.coefficients import Coefficients
from lesde.derivation.integrals import expand_terms, time_terms
from lesde.model.formula import TIME, EntryTable, Unfinished, bounded
from lesde.model.transforms import Transform

Eigen = tuple[list[sp.Expr], sp.Matrix, sp.Matrix]
"""Rates, and constant eigenvectors with their inverse."""


@dataclass(frozen=True)
class Mode:
    """One rate λ(t) of the mean ODE: the combinations of class means named in words grow as exp(∫λ).

    ``multiplicity`` is their dimension in the K·p-dimensional space of class means, and ``kind`` "mean" for the
    grand mean, "contrast" between exchangeable classes or groups, "coupled" for an eigenvector of what symmetry
    leaves coupled, and "static" for directions that the drift never moves.
    """

    name: str
    rate: sp.Expr
    multiplicity: int
    kind: str


@dataclass(frozen=True)
class Tree:
    """One level of the symmetry reduction of a class matrix.

    ``orbits`` are those of this level's nodes (classes at the root, then groups), ``contrasts`` the rate of
    the contrasts within each, None for an orbit of one. ``parent`` is the level of the orbits' means. The
    last level has no parent but ``eigen``, the modes of the matrix that couples the orbits' means, None where
    its eigenvectors depend on time.
    """

    orbits: list[list[int]]
    contrasts: list[sp.Expr | None]
    parent: Tree | None
    eigen: Eigen | None = None

    def levels(self) -> Iterator[Tree]:
        """This level and those above."""
        yield self
        if self.parent is not None:
            yield from self.parent.levels()

    @property
    def top(self) -> Eigen | None:
        """The modes of the last level."""
        return list(self.levels())[-1].eigen

    @property
    def is_closed(self) -> bool:
        """True where all modes have closed forms."""
        return self.top is not None


def reduced_table(coefficients: Coefficients) -> EntryTable | None:
    """The class matrix of the coordinates that obey a closed system.

    Identity: the class means themselves, matrix w_l E_kl. Logits: s_l = ⟨d_l, X̄^l⟩/‖d_l‖², matrix
    w_l E_kl ⟨d_k, d_l⟩/‖d_k‖², which is −1/(K−1) for k ≠ l. One matrix H for all classes: the class means along
    an eigenvector of H, matrix w_l E_kl for eigenvalue 1. Matrices that differ between classes: None.
    """
    transform, table = coefficients.transform, coefficients.drift_table
    if transform.kind != "logits":
        return table if transform.is_shared else None
    K = transform.n_classes
    between = sp.Rational(-1, K - 1)
    return table.combine(np.eye(K, dtype=int), lambda v, equal: v if equal else v * between)


def _orbits(index: np.ndarray) -> list[list[int]]:
    """Classes whose exchange leaves the matrix as it is."""
    groups: list[list[int]] = []
    for k in range(len(index)):
        for group in groups:
            a, swap = group[0], np.arange(len(index))
            swap[[a, k]] = k, a
            if (index[k, swap] == index[a]).all() and (index[swap, k] == index[:, a]).all():
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def mode_tree(table: EntryTable) -> Tree:
    """Reduce a class matrix by its exchange symmetry, level by level."""
    orbits = _orbits(table.index)
    contrasts = [
        tidy(table[o[0], o[0]] - table[o[0], o[1]]) if len(o) > 1 else None for o in orbits
    ]

    def coupling(row: list[int], column: list[int]) -> sp.Expr:
        values, counts = np.unique(table.index[row[0], column], return_counts=True)
        return tidy(
            sp.Add(*(int(n) * table.values[v] for v, n in zip(values, counts, strict=True)))
        )

    position: dict[sp.Expr, int] = {}
    index = [[position.setdefault(coupling(a, b), len(position)) for b in orbits] for a in orbits]
    quotient = EntryTable(tuple(position), np.array(index), table.functions)
    if len(orbits) > 1 and any(len(o) > 1 for o in _orbits(quotient.index)):
        return Tree(orbits, contrasts, mode_tree(quotient))
    return Tree(orbits, contrasts, None, _eigen(quotient.matrix()))


def tidy(expression: sp.Expr) -> sp.Expr:
    """A rate as a person writes it: common factors out of unevaluated functions, else a plain sum."""
    if expression.count_ops() > 200:
        return expression
    expanded = expand_terms(expression)
    if not expression.atoms(AppliedUndef) and TIME in expression.free_symbols:
        return sp.Add(*(sp.factor_terms(term) for term in sp.Add.make_args(expanded)))
    forms = [expression, expanded, sp.factor_terms(expanded)]
    # Numbers have no factors to see, and SymPy takes exp(700) for a power of degree 700.
    if not expanded.is_number and expanded.count_ops() < 40:
        with contextlib.suppress(Unfinished):
            forms.append(bounded(sp.factor, expanded))
    return min(forms, key=lambda form: form.count_ops())


def _eigen(matrix: sp.Matrix) -> Eigen | None:
    """Rates λ_m(t) and time-independent eigenvectors, or None where there are none.

    Exact for two rows with one function of time; else in floating point, where the matrices of all functions of
    time have common eigenvectors.
    """
    n = matrix.rows
    if n == 1:
        return [matrix[0, 0]], sp.eye(1), sp.eye(1)
    # M(t) = Σ f(t) M_f with constant matrices, by distinct functions of time f.
    basis: dict[sp.Expr, sp.Matrix] = {}
    for position, entry in enumerate(matrix):
        for function, constant in time_terms(entry).items():
            basis.setdefault(function, sp.zeros(n, n))[position] = constant
    if len(basis) == 1 and n == 2:
        ((function, constant),) = basis.items()
        try:
            vectors, diagonal = bounded(constant.diagonalize)
            return [function * diagonal[i, i] for i in range(n)], vectors, bounded(vectors.inv)
        except sp.matrices.exceptions.MatrixError:
            return None
        except Unfinished:
            pass  # then in floating point
    if any(part.free_symbols for part in basis.values()):
        return None
    parts = {f: np.array(part.tolist(), dtype=float) for f, part in basis.items()}
    # Eigenvectors common to all parts are those of a generic combination of them.
    _, columns = np.linalg.eig(sum(part * np.sqrt(2 + i) for i, part in enumerate(parts.values())))
    if np.linalg.cond(columns) > 1e8:
        return None
    inverse = np.linalg.inv(columns)
    rates: list[sp.Expr] = [sp.Integer(0)] * n
    for function, part in parts.items():
        rotated = inverse @ part @ columns
        scale = max(np.abs(rotated).max(), 1e-300)
        if np.abs(rotated - np.diag(np.diag(rotated))).max() > 1e-10 * scale:
            return None
        rates = [r + _number(rotated[i, i], scale) * function for i, r in enumerate(rates)]
    exact = [
        sp.Matrix(n, n, [_number(x, np.abs(m).max()) for x in m.ravel()])
        for m in (columns, inverse)
    ]
    return rates, exact[0], exact[1]


def _number(value: complex, scale: float) -> sp.Expr:
    """A float as a number to print: rounding noise removed, simple fractions recognised."""

    def real(x: float) -> sp.Expr:
        if abs(x) < 1e-13 * scale:
            return sp.Integer(0)
        guess = Fraction(float(x)).limit_denominator(1000)
        close = abs(float(guess) - x) <= 1e-13 * abs(x)
        return sp.Rational(guess.numerator, guess.denominator) if close else sp.Float(x, 17)

    return real(np.real(value)) + sp.I * real(np.imag(value))


def _spectrum(transform: Transform) -> list[tuple[sp.Expr, int]]:
    """Eigenvalues of a shared transform with multiplicities: each repeats the modes of the class matrix."""
    if transform.matrices is None:
        return [(sp.Integer(1), 1 if transform.kind == "logits" else transform.n_features)]
    values = np.linalg.eigvals(transform.matrices[0])
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
        for factor, copies in _spectrum(transform):
            along = f", along eigenvalue {factor} of H" if transform.kind == "matrix" else ""
            multiplicity = copies * mode.multiplicity
            modes.append(Mode(mode.name + along, tidy(factor * mode.rate), multiplicity, mode.kind))
    static = transform.n_classes * transform.n_features - sum(mode.multiplicity for mode in modes)
    if transform.kind == "logits" and static > 0 and tree.is_closed:
        modes.append(Mode("directions without drift", sp.Integer(0), static, "static"))
    return modes


def _class_modes(tree: Tree, transform: Transform) -> Iterator[Mode]:
    """The modes of the class matrix alone."""
    scores = transform.kind == "logits"
    what = "logit scores s" if scores else "class means"
    members = [[k] for k in range(transform.n_classes)]
    for level in tree.levels():
        noun = "classes" if level is tree else "groups"
        for orbit, rate in zip(level.orbits, level.contrasts, strict=True):
            if rate is not None:
                everyone = len(orbit) == len(members)
                where = (
                    f"all {noun}" if everyone else f"{noun} {_names([members[n] for n in orbit])}"
                )
                yield Mode(f"contrasts of {what} among {where}", rate, len(orbit) - 1, "contrast")
        members = [[k for node in orbit for k in members[node]] for orbit in level.orbits]
    rates = tree.top[0] if tree.top is not None else []
    for i, rate in enumerate(rates):
        if len(rates) == 1:
            yield Mode("equal scores s" if scores else "grand mean", tidy(rate), 1, "mean")
        else:
            yield Mode(f"coupled {what}, eigenvector {i + 1}", rate, 1, "coupled")


def _names(groups: list[list[int]]) -> str:
    text = ["+".join(str(k + 1) for k in group) for group in groups]
    return ", ".join(text if len(text) <= 6 else [*text[:3], "…", text[-1]])
