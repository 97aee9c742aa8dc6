"""The linear system of the class means with its coefficients as tensors.

The same system as :mod:`lesde.linear_system`: dY = W(t) V Y dt + noise of intensity Q(t), Y the class
means in contrast coordinates. The space has K dimensions where the transform is the identity and the
noise is a class pattern times one constant feature covariance S, else K·p.
"""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import torch
from sympy.logic.boolalg import Boolean

from lesde.checks import shown
from lesde.derivation import derive
from lesde.derivation.coefficients import Coefficients
from lesde.model.formula import TIME, EntryTable, Formula
from lesde.model.noise import read_noise
from lesde.model.quadrature import Panels, resolve
from lesde.model.transforms import Transform, logit_directions

if TYPE_CHECKING:
    from lesde.model.lesde import LESDE

__all__ = [
    "DENSE_LIMIT",
    "BoundTable",
    "LinearSystem",
    "TensorNoise",
    "TensorSystem",
    "Values",
    "clean",
    "contrast_basis",
    "linear_system",
    "numbers_of",
    "read_parameters",
]


# --------------------------------------------------------------------------------------------------
# The linear system of the class means, in the smallest space that carries it.

DENSE_LIMIT = 2000
"""Largest K·p for which dense (Kp)×(Kp) matrices are formed (32 MB each)."""


# Entries of a rotated matrix this far below its largest are rounding of exact zeros.
ROUNDING = 16 * np.finfo(float).eps


def contrast_basis(n_classes: int) -> np.ndarray:
    """An orthogonal K×K matrix: the first column the grand mean 1/√K, the others Helmert contrasts."""
    K = n_classes
    basis = np.zeros((K, K))
    basis[:, 0] = 1 / np.sqrt(K)
    for j in range(1, K):
        basis[:j, j] = 1.0
        basis[j, j] = -j
        basis[:, j] /= np.sqrt(j * (j + 1))
    return basis


def _clean(matrix: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """The matrix with what is only rounding set to zero, so that what is decoupled stays so."""
    size = np.abs(matrix).max(axes, initial=0.0, keepdims=True)
    return np.where(np.abs(matrix) < ROUNDING * size, 0.0, matrix)  # NaN stays


@dataclass(frozen=True)
class LinearSystem:
    """dY = W(t) V Y dt + noise, in the smallest space that carries the class means.

    Y are the class means in the coordinates of :func:`contrast_basis`: grand mean and contrasts. Where
    the two do not mix, as in balanced models, each keeps its own digits; in class coordinates the
    contrasts would drown in the rounding of a grand mean that grows faster.

    Attributes
    ----------
    coefficients : Coefficients
        Gives the class matrix w_l E_kl(t).
    basis : ndarray (K, K)
        The contrast basis.
    left : ndarray (class, feature, rank), or None
        U_l of H_l = U_l V_lᵀ; None where the transform is the identity and the space has K dimensions.
    right : ndarray (class·rank, n)
        V; the identity where the space has K dimensions.
    sources : list of (ndarray (n, n) or None, ndarray (p, p) or None)
        Noise intensities Q and their feature factors, as the parts of a propagator's transition.
        Q is None where the noise depends on time: see :meth:`intensity`.
    """

    coefficients: Coefficients
    basis: np.ndarray
    left: np.ndarray | None
    right: np.ndarray
    sources: list[tuple[np.ndarray | None, np.ndarray | None]]

    @property
    def kernel_is_constant(self) -> bool:
        """Whether the kernel does not depend on time."""
        return self.coefficients.drift_table.is_constant

    @property
    def noise_is_constant(self) -> bool:
        """Whether the noise does not depend on time."""
        return self.coefficients.noise.is_constant

    def kernel_panels(self, times: np.ndarray) -> Panels:
        """Panels between successive times on which the kernel is resolved."""
        return self.coefficients.kernel_panels(times)

    def noise_panels(self, windows: np.ndarray, kept: np.ndarray) -> Panels:
        """Panels on which the noise is resolved, as of :func:`lesde.quadrature.resolve`."""
        return self.coefficients.noise.panels(windows, kept)

    def matrices(self, times: np.ndarray) -> np.ndarray:
        """The class matrix w_l E_kl, shape (time, class, class)."""
        return self.coefficients.weights(times)

    def size(self) -> np.ndarray:
        """Spectral norms of the H_l."""
        return self.coefficients.transform.norms()

    def loss(self, class_matrix: np.ndarray) -> float:
        """The largest rate at which a combination of class means shrinks; 0 where none does."""
        M = self.outer(class_matrix[None])[0] @ self.right
        return max(0.0, -float(np.linalg.eigvalsh((M + M.T) / 2)[0]))

    def outer(self, class_matrix: np.ndarray) -> np.ndarray:
        """W for class matrices (time, class, class), shape (time, n, class·rank)."""
        B = self.basis
        if self.left is None:
            return _clean(B.T @ class_matrix @ B)
        blocks = np.einsum("ka,tkl,lir,lb->taibr", B, class_matrix, self.left, B, optimize=True)
        blocks = _clean(blocks, (1, 2, 3, 4))
        return blocks.reshape(len(class_matrix), self.right.shape[1], self.right.shape[0])

    def intensity(self, square: np.ndarray) -> np.ndarray:
        """Q of the class means, from σ² or σσᵀ as :meth:`lesde.noise.Noise.square` gives it.

        (time, K, K) where the transform is the identity and the noise isotropic, else (time, K·p, K·p).
        """
        counts = self.coefficients.counts
        B, K, p = self.basis, len(counts), self.coefficients.n_features
        if square.ndim == 2:
            Q = _clean((B.T * (square / counts)[:, None, :]) @ B)
            if self.left is None:
                return Q
            blocks = Q[:, :, None, :, None] * np.eye(p)[:, None, :]
            return blocks.reshape(-1, K * p, K * p)
        noise = np.broadcast_to(square, (len(square), K, p, p)) / counts[:, None, None]
        Q = B.T @ (B.T[:, :, None] * noise.reshape(-1, 1, K, p * p))
        Q = Q.reshape(-1, K, K, p, p).swapaxes(2, 3)
        return _clean(Q.reshape(-1, K * p, K * p))


def linear_system(coefficients: Coefficients) -> LinearSystem:
    """Choose the representation of the class means' system."""
    counts = coefficients.counts
    K, p = len(counts), coefficients.n_features
    noise = coefficients.noise
    B = contrast_basis(K)
    sources: list[tuple[np.ndarray | None, np.ndarray | None]]
    if coefficients.transform.kind == "identity" and not noise.is_constant:
        if not noise.is_isotropic and K * p > DENSE_LIMIT:
            raise ValueError(
                f"noise with a matrix that changes in time needs dense matrices of size "
                f"n_classes·n_features = {K * p}, more than {DENSE_LIMIT}, for the exact law; use "
                f"engine='torchsde', or noise that is constant or one number a class at each time."
            )
        sources = [(None, np.eye(p) if noise.is_isotropic else None)]
        return LinearSystem(coefficients, B, None, np.eye(K), sources)
    if coefficients.transform.kind == "identity":
        sources = [(_clean(B.T @ Q @ B), factor) for Q, factor in _class_sources(coefficients)]
        return LinearSystem(coefficients, B, None, np.eye(K), sources)
    if K * p > DENSE_LIMIT:
        raise ValueError(
            f"the exact law of this model needs dense matrices of size n_classes·n_features = {K * p}, "
            f"more than {DENSE_LIMIT}; use engine='torchsde', or transform='identity', which needs "
            f"matrices of size n_classes only."
        )
    left, readout = _factors(coefficients.transform)
    right = np.einsum("lb,lri,la->brai", B, readout, B, optimize=True)
    size = left.shape[-1] * K
    sources = [(None, None)]
    if noise.is_constant:
        covariance = coefficients.noise_covariance / counts[:, None, None]
        Q = np.einsum("ka,kij,kb->aibj", B, covariance, B, optimize=True)
        sources = [(_clean(Q.reshape(K * p, K * p)), None)]
    return LinearSystem(coefficients, B, left, _clean(right.reshape(size, K * p)), sources)


def _factors(transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """U (class, feature, rank) and V (class, rank, feature) with H_l = U_l V_l."""
    if transform.kind == "logits":
        # By hand: the signs of an SVD would hide that the classes are alike.
        d = logit_directions(transform.n_classes)
        return d[:, :, None], (d / (d**2).sum(1, keepdims=True))[:, None, :]
    H = transform.array()
    p = H.shape[-1]
    if transform.is_shared:
        u, singular, vt = np.linalg.svd(H[:1])
        u, singular, vt = (np.repeat(part, len(H), axis=0) for part in (u, singular, vt))
    else:
        u, singular, vt = np.linalg.svd(H)
    rank = max(1, int((singular > singular.max(initial=0) * p * np.finfo(float).eps).sum(1).max()))
    return u[:, :, :rank] * singular[:, None, :rank], vt[:, :rank]


def _class_sources(coefficients: Coefficients) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Noise of the class means as few products of a class and a feature covariance as possible."""
    counts, factors, scale = (
        coefficients.counts,
        coefficients.noise_factor,
        coefficients.noise_scale(),
    )
    if scale is not None:
        return [(np.diag(scale**2 / counts), np.eye(factors.shape[-1]))]
    if (factors == factors[:1]).all():
        return [(np.diag(1.0 / counts), factors[0])]
    units = np.eye(len(counts))
    return [(np.diag(units[k] / counts[k]), factors[k]) for k in range(len(counts))]


# --------------------------------------------------------------------------------------------------
# Values of a model's free names, as tensors.


def read_parameters(model: LESDE, parameters: Any) -> dict[str, torch.Tensor]:
    """Check the argument ``parameters`` against the free names of a model.

    Parameters
    ----------
    model : LESDE
    parameters : mapping of str to number or 0-d tensor, or None
        One value for every name in ``model.free_parameters``.

    Returns
    -------
    dict of str to 0-d tensor, float64 on the CPU
        Still part of the graph of the tensors given.

    Raises
    ------
    TypeError, ValueError
        For names that have no value or are not in the model, and values that are no finite numbers.
    """
    given = {} if parameters is None else parameters
    if not isinstance(given, Mapping):
        raise TypeError(
            f"parameters must be a mapping of names to numbers or 0-d tensors, such as {{'a': 2.0}}; "
            f"got {shown(parameters)}."
        )
    free = model.free_parameters
    unknown = [name for name in given if name not in free]
    if unknown:
        raise ValueError(
            f"parameters has {', '.join(map(str, unknown))}, which the model does not; its free names "
            f"are {', '.join(free) or 'none'}. A name is left free by a formula of a kernel with "
            f"parameters={{'a': None}}."
        )
    missing = [name for name in free if name not in given]
    if missing:
        raise ValueError(
            f"the model has the free names {', '.join(free)}, and no value for {', '.join(missing)}; "
            f"give parameters={{{missing[0]!r}: ...}}."
        )
    return {name: _scalar(name, given[name]) for name in free}


def _scalar(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.dim() != 0 or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"parameters[{name!r}] must be a number or a real 0-d tensor; got a tensor of shape "
                f"{tuple(value.shape)} and {value.dtype}."
            )
        tensor = value.to("cpu", torch.float64)
    elif isinstance(value, numbers.Real | np.floating) and not isinstance(value, bool):
        tensor = torch.tensor(float(value), dtype=torch.float64)
    else:
        raise TypeError(
            f"parameters[{name!r}] must be a number or a real 0-d tensor; got {shown(value)}."
        )
    if not bool(torch.isfinite(tensor)):
        raise ValueError(f"parameters[{name!r}] must be finite; got {float(tensor.detach())}.")
    return tensor


def numbers_of(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The values without their graph."""
    return {name: float(value.detach()) for name, value in values.items()}


# --------------------------------------------------------------------------------------------------
# SymPy formulas as torch functions of time and of named parameters, with gradients.

Values = Mapping[str, torch.Tensor]
"""Named parameters as 0-d float64 tensors."""

SMOOTH: dict[Any, Callable[..., torch.Tensor]] = {
    sp.exp: torch.exp,
    sp.log: torch.log,
    sp.sin: torch.sin,
    sp.cos: torch.cos,
    sp.tan: torch.tan,
    sp.asin: torch.asin,
    sp.acos: torch.acos,
    sp.atan: torch.atan,
    sp.sinh: torch.sinh,
    sp.cosh: torch.cosh,
    sp.tanh: torch.tanh,
    sp.erf: torch.erf,
    sp.Abs: torch.abs,
}
FOLDED: dict[Any, Callable[..., torch.Tensor]] = {
    sp.Add: operator.add,
    sp.Mul: operator.mul,
    sp.Min: torch.minimum,
    sp.Max: torch.maximum,
}
RELATIONS: dict[Any, Callable[..., Any]] = {
    sp.StrictLessThan: np.less,
    sp.LessThan: np.less_equal,
    sp.StrictGreaterThan: np.greater,
    sp.GreaterThan: np.greater_equal,
    sp.Equality: np.equal,
    sp.Unequality: np.not_equal,
}


def _names(expression: sp.Basic) -> set[str]:
    return {str(s) for s in expression.free_symbols - {TIME}}


def _exponent(term: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """c and x of a term c·exp(x)."""
    parts = sp.Mul.make_args(term)
    powers = [part for part in parts if part.func is sp.exp]
    rest = [part for part in parts if part.func is not sp.exp]
    return sp.Mul(*rest), sp.Add(*(part.args[0] for part in powers))


def _apply(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """A function of tensors whose gradient is 0 where it or an argument is infinite.

    There torch would multiply the gradient 0 of 1/(1 + exp(1000)) by the slope ∞ of exp, which is NaN.
    What is infinite on the way to a finite value does not move it.
    """
    with torch.no_grad():
        value = function(*arguments)
        infinite = functools.reduce(operator.or_, map(torch.isinf, (value, *arguments)))
    if not bool(infinite.any()):
        return function(*arguments)
    safe = [torch.where(infinite, torch.ones_like(argument), argument) for argument in arguments]
    return torch.where(infinite, value, function(*safe))


class Evaluation:
    """Values of expressions at some times.

    Parameters
    ----------
    times : ndarray, shape (time,)
    values : mapping of str to 0-d tensor
    functions : mapping of str to callable
        Behind unevaluated functions of t.
    name : str
        What is evaluated, for error messages.

    Attributes
    ----------
    infinite : list of ValueError
        What was not finite on the way, among the parts without names.
    """

    def __init__(
        self,
        times: np.ndarray,
        values: Values,
        functions: Mapping[str, Callable[..., Any]],
        name: str,
    ):
        self.times, self.values, self.functions, self.name = times, values, functions, name
        self._known: dict[sp.Basic, torch.Tensor] = {}
        self.infinite: list[ValueError] = []

    def __call__(self, expression: sp.Expr) -> torch.Tensor:
        """The values, shape (time,) or ()."""
        found = self._known.get(expression)
        if found is None:
            found = self._known[expression] = self._evaluate(expression)
        return found

    def _evaluate(self, expression: sp.Expr) -> torch.Tensor:
        if expression.is_Symbol and expression != TIME:
            return self.values[expression.name]
        if not _names(expression):
            if expression.is_Rational or expression.is_Float:
                return torch.tensor(float(expression), dtype=torch.float64)
            try:
                return torch.from_numpy(Formula(expression, self.functions)(self.times, self.name))
            except ValueError as error:  # what is infinite here may stand in a denominator
                if not isinstance(expression, sp.Pow) and expression.func not in (SMOOTH | FOLDED):
                    raise
                self.infinite.append(error)
        kind = expression.func
        if kind is sp.Pow:
            return self._power(*expression.args)
        if kind is sp.Piecewise:
            return self._cases(expression)
        if kind is sp.Heaviside:
            self._refuse_moving_jump(expression)
            at_zero = self(expression.args[1])
            return torch.heaviside(self._spread(expression.args[0]), at_zero.detach())
        arguments = [self(argument) for argument in expression.args]
        if kind in (sp.Min, sp.Max):
            return functools.reduce(FOLDED[kind], arguments)
        if kind in FOLDED:
            return functools.reduce(functools.partial(_apply, FOLDED[kind]), arguments)
        if kind in SMOOTH and len(arguments) == 1:
            return _apply(SMOOTH[kind], arguments[0])
        raise ValueError(
            f"{self.name} contains {expression}, a function that has no gradient here; with free names "
            f"use arithmetic, {', '.join(sorted(f.__name__ for f in SMOOTH))}, Min, Max and conditions."
        )

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> torch.Tensor:
        if exponent.could_extract_minus_sign() and base.has(sp.exp, sp.cosh, sp.sinh):
            found = self._inverse(base, exponent)
            if found is not None:
                return found
        if exponent.is_Integer:
            return _apply(lambda x: x ** int(exponent), self(base))
        if exponent == sp.Rational(1, 2):
            return _apply(torch.sqrt, self(base))
        return _apply(torch.pow, self(base), self(exponent))

    def _inverse(self, base: sp.Expr, exponent: sp.Expr) -> torch.Tensor | None:
        """A negative power of a sum of exponentials, with the largest taken out of the sum.

        exp(x) in a denominator may be finite and its square not, which a second derivative needs. None
        where the base is no such sum.
        """
        terms = sp.Add.make_args(sp.expand(base.rewrite(sp.exp), power_base=False))
        pairs = [_exponent(term) for term in terms]
        if len(pairs) < 2 or all(x == 0 for _, x in pairs):
            return None
        powers = torch.stack([self(x).expand(len(self.times)) for _, x in pairs])
        if not bool(torch.isfinite(powers).all()):
            return None
        largest = powers.detach().amax(0).clamp(min=0)
        scaled = sum(
            self(factor) * torch.exp(x - largest)
            for (factor, _), x in zip(pairs, powers, strict=True)
        )
        return torch.pow(scaled, self(exponent)) * torch.exp(self(exponent) * largest)

    def _spread(self, expression: sp.Expr) -> torch.Tensor:
        return self(expression).detach().expand(len(self.times))

    def _cases(self, expression: sp.Piecewise) -> torch.Tensor:
        """Every case at its own times only: elsewhere it may have no finite value, nor gradient."""
        result = torch.full((len(self.times),), torch.nan, dtype=torch.float64)
        left = np.ones(len(self.times), dtype=bool)
        for case, condition in expression.args:
            self._refuse_moving_jump(condition)
            chosen = left & self._holds(condition)
            left &= ~chosen
            if chosen.any():
                part = Evaluation(self.times[chosen], self.values, self.functions, self.name)
                index = torch.from_numpy(np.flatnonzero(chosen))
                result = result.index_put((index,), part(case).expand(len(index)))
        return result

    def _holds(self, condition: Boolean) -> np.ndarray:
        if condition in (sp.true, sp.false):
            return np.full(len(self.times), condition == sp.true)
        if isinstance(condition, sp.And | sp.Or):
            join = np.logical_and if isinstance(condition, sp.And) else np.logical_or
            return functools.reduce(join, [self._holds(part) for part in condition.args])
        if isinstance(condition, sp.Not):
            return ~self._holds(condition.args[0])
        left, right = (self._spread(side).numpy() for side in condition.args)
        return RELATIONS[condition.func](left, right)

    def _refuse_moving_jump(self, where: sp.Basic) -> None:
        """A gradient through the place of a jump is a delta function, which no evaluation sees."""
        moving = sorted(name for name in _names(where) if self.values[name].requires_grad)
        if moving:
            raise ValueError(
                f"{self.name} switches where {where}, which depends on {', '.join(moving)}: gradients "
                f"with respect to the place of a switch are not available. Give {', '.join(moving)} as "
                f"a plain number, or write a smooth switch such as tanh."
            )


class BoundTable:
    """A table of formulas with values for its free names.

    Parameters
    ----------
    table : EntryTable
        Its index may have any shape.
    values : mapping of str to 0-d tensor
    name : str
        What the table is, where its entries have no names of their own.
    """

    def __init__(self, table: EntryTable, values: Values, name: str):
        self.table, self.values, self.name = table, values, name
        self.is_constant = table.is_constant

    def __call__(self, times: np.ndarray) -> torch.Tensor:
        """Values at the times, shape (time, \\*index.shape), float64, checked finite."""
        return self.distinct(times)[:, torch.from_numpy(self.table.index)]

    def distinct(self, times: np.ndarray) -> torch.Tensor:
        """The distinct values at the times, shape (time, value), float64, checked finite."""
        table, columns = self.table, []
        for position, expression in enumerate(table.values):
            name = table.names[position] if table.names else self.name
            if _names(expression):
                column = Evaluation(times, self.values, table.functions, name)(expression)
            else:
                column = torch.from_numpy(Formula(expression, table.functions)(times, name))
            columns.append(column.expand(len(times)))
        values = torch.stack(columns, -1)
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            i, position = torch.nonzero(~finite)[0].tolist()
            expression = table.values[position]
            name = table.names[position] if table.names else self.name
            alone = Evaluation(times[i : i + 1], self.values, table.functions, name)
            alone(expression)
            if alone.infinite:  # a part without free names is at fault
                raise alone.infinite[0]
            used = {n: float(self.values[n].detach()) for n in sorted(_names(expression))}
            raise ValueError(
                f"{name} = {expression} is not a "
                f"finite real number at t = {times[i]:g} for "
                f"{', '.join(f'{n} = {v:g}' for n, v in used.items())}. Change the values, the "
                f"formula or the times."
            )
        return values


# --------------------------------------------------------------------------------------------------


def clean(matrix: torch.Tensor) -> torch.Tensor:
    """What is only rounding set to zero, with its gradient kept.

    Entries are compared with the largest of the same item along the first dimension: a strength that
    happens to be zero at these values must still be able to move.
    """
    with torch.no_grad():
        size = matrix.abs().flatten(1).amax(1).view(-1, *(1,) * (matrix.dim() - 1))
        rounding = torch.where(matrix.abs() > ROUNDING * size, torch.zeros_like(matrix), matrix)
    return matrix - rounding


class TensorNoise:
    """σ_k(t)² of a model's noise, with gradients to its free names.

    Parameters
    ----------
    model : LESDE
    values : mapping of str to 0-d tensor
    """

    def __init__(self, model: LESDE, values: Values):
        self.noise = model.noise_table
        self.n_classes, self.n_features = model.n_classes, model.n_features
        self.table: BoundTable | None = None
        if not self.noise.is_numeric:
            given = self.noise.given
            places = ["".join(f"[{i}]" for i in index) for index in np.ndindex(given.shape)]
            names = {
                f"noise{place}": formula
                for place, formula in zip(places, given.ravel(), strict=True)
            }
            index = np.arange(given.size).reshape(given.shape or (1,))
            self.table = BoundTable(EntryTable.from_formulas(names, index), values, "noise")

    @property
    def is_constant(self) -> bool:
        """Whether no factor is a function of time."""
        return self.noise.is_constant

    @property
    def is_isotropic(self) -> bool:
        """Whether every factor is a multiple of the identity matrix."""
        return self.noise.is_isotropic

    def square(self, times: np.ndarray) -> torch.Tensor:
        """σ² (time, 1 or class) where isotropic, else σσᵀ (time, 1 or class, feature, feature)."""
        if self.table is None:
            return torch.from_numpy(np.array(self.noise.square(times)))
        factors = self.table(times)
        if self.noise.given.ndim < 2:
            if bool((factors < 0).any()):
                i, k = (int(j) for j in torch.nonzero(factors < 0)[0])
                raise ValueError(
                    f"noise must not be negative at any time; got {float(factors[i, k].detach()):g} "
                    f"for class {k} at t = {times[i]:g}. Noise is the diffusion σ, whose square is a "
                    f"variance per unit time."
                )
            return factors**2
        if self.noise.given.ndim == 2:
            factors = factors.unsqueeze(1)
        if self.is_isotropic:
            return factors[..., 0, 0] ** 2
        return factors @ factors.mT

    def covariance(self, times: np.ndarray) -> torch.Tensor:
        """σ_k σ_kᵀ at the times, shape (time, class, feature, feature)."""
        square, p = self.square(times), self.n_features
        if self.is_isotropic:
            square = square[:, :, None, None] * torch.eye(p, dtype=torch.float64)
        return square.expand(len(times), self.n_classes, p, p)


class TensorSystem:
    """W(t), V and Q(t) in contrast coordinates.

    Attributes
    ----------
    basis : tensor (K, K)
        The contrast basis.
    right : tensor (r, n)
        V; the identity where n = K.
    feature : tensor (p, p), or None
        S, where the space has n = K dimensions and stands for every feature.
    noise : TensorNoise
    is_constant : bool
        Whether neither kernel nor noise depend on time.
    """

    def __init__(self, model: LESDE, values: Values):
        coefficients = derive(model).coefficients()
        K, p = model.n_classes, model.n_features
        self.noise = TensorNoise(model, values)
        self._drift = BoundTable(coefficients.drift_table, values, "kernel")
        self._entries = BoundTable(coefficients.entries, values, "kernel")
        self._model, self._values = model, values
        self.is_constant = self._drift.is_constant and self.noise.is_constant
        self.counts = torch.tensor(model.counts.tolist(), dtype=torch.float64)
        basis = contrast_basis(K)
        self.basis = torch.from_numpy(basis)
        self.feature: torch.Tensor | None = None
        identity = model.transform.kind == "identity"
        shared = self.noise.is_constant and self.noise.noise.is_shared
        if identity and self.noise.is_isotropic:
            self.feature = torch.eye(p, dtype=torch.float64)
        elif identity and shared:
            self.feature = self.noise.square(np.zeros(1))[0, 0]
        if self.feature is not None:
            self._left, self.right = None, torch.eye(K, dtype=torch.float64)
            return
        if K * p > DENSE_LIMIT:
            raise ValueError(
                f"the law of this model needs dense matrices of size n_classes·n_features = {K * p}, "
                f"more than {DENSE_LIMIT}; use engine='torchsde', or transform='identity' with noise "
                f"of one shape in all classes."
            )
        # The factors of H do not depend on the noise, which may have free names: any other will do.
        plain = linear_system(replace(coefficients, noise=read_noise(1.0, K, p)))
        left = np.broadcast_to(np.eye(p), (K, p, p)) if plain.left is None else plain.left
        self._left = torch.from_numpy(np.array(left))
        right = np.eye(K * p) if plain.left is None else plain.right
        self.right = torch.from_numpy(np.array(right))

    @property
    def n_features(self) -> int:
        """p."""
        return self.noise.n_features

    def weights(self, times: np.ndarray) -> torch.Tensor:
        """The drift's class matrix w_l E_kl, shape (time, class, class)."""
        return self._checked(times, self._drift)

    def _checked(
        self, times: np.ndarray, table: Callable[[np.ndarray], torch.Tensor]
    ) -> torch.Tensor:
        try:
            return table(times)
        except ValueError:
            self._entries(times)  # raises in terms of what the user wrote, where that is at fault
            raise

    @property
    def kernel_is_constant(self) -> bool:
        """Whether the kernel does not depend on time."""
        return self._drift.is_constant

    @property
    def noise_is_constant(self) -> bool:
        """Whether the noise does not depend on time."""
        return self.noise.is_constant

    @torch.no_grad()
    def kernel_panels(self, times: np.ndarray) -> Panels:
        """Panels between successive times on which the kernel is resolved at the current values."""
        places = self._drift.table.places(
            float(times[0]), float(times[-1]), numbers_of(self._values)
        )
        coefficients = derive(self._model).coefficients()
        return resolve(
            lambda at: self._checked(at, self._drift.distinct)[:, None].numpy(),
            times, *places, lambda _, i: coefficients.entry(i),
        )  # fmt: skip

    @torch.no_grad()
    def noise_panels(self, windows: np.ndarray, kept: np.ndarray) -> Panels:
        """Panels on which the noise is resolved, as of :func:`lesde.quadrature.resolve`."""

        def square(times: np.ndarray) -> np.ndarray:
            values = self.noise.square(times)
            return values.reshape(*values.shape[:2], -1).numpy()

        return self.noise.noise.panels(windows, kept, numbers_of(self._values), square)

    @torch.no_grad()
    def matrices(self, times: np.ndarray) -> np.ndarray:
        """The class matrix, shape (time, class, class), without a graph."""
        return self.weights(times).numpy()

    def size(self) -> np.ndarray:
        """Spectral norms of the H_l."""
        return self._model.transform.norms()

    def loss(self, class_matrix: np.ndarray) -> float:
        """The largest rate at which a combination of class means shrinks; 0 where none does."""
        M = self.outer(torch.from_numpy(class_matrix)[None, None])[0, 0] @ self.right
        return max(0.0, -float(torch.linalg.eigvalsh((M + M.mT) / 2)[0]))

    def explain(self, times: np.ndarray) -> None:
        """Raise what the law without gradients raises at these values, if it does."""
        fixed = self._model.substitute(**numbers_of(self._values))
        derive(fixed).transitions(times)

    def outer(self, class_matrix: torch.Tensor) -> torch.Tensor:
        """W for class matrices (panel, node, class, class), shape (panel, node, n, r)."""
        B = self.basis
        if self._left is None:
            return clean(B.T @ class_matrix @ B)
        blocks = torch.einsum("ka,stkl,lir,lb->staibr", B, class_matrix, self._left, B)
        shape = (*class_matrix.shape[:2], self.right.shape[1], self.right.shape[0])
        return clean(blocks).reshape(shape)

    def intensity(self, square: torch.Tensor) -> torch.Tensor:
        """Q of :meth:`TensorNoise.square` at (panel, node, …), shape (panel, node, n, n)."""
        B, K, p = self.basis, len(self.counts), self.n_features
        if self.feature is not None:
            if not self.noise.is_isotropic:  # the noise's size is in S
                square = square.new_ones(square.shape[:3])
            return clean(torch.einsum("ka,stk,kb->stab", B, square / self.counts, B))
        if self.noise.is_isotropic:
            square = square[..., None, None] * torch.eye(p, dtype=torch.float64)
        scaled = square / self.counts[:, None, None]
        Q = torch.einsum("ka,stkij,kb->staibj", B, scaled.expand(*scaled.shape[:2], K, p, p), B)
        return clean(Q).reshape(*square.shape[:2], K * p, K * p)
