"""Drift, kicks and sampling noise of a feature kernel, by tiles of pairs of samples.

b_i = (1/N) Σ_j κ_ij H_j X_j is a matrix product with the N×N strengths, which are never held at once:
tile by tile, matrix products give r2, g or c, the compiled formula turns them into strengths in place,
and a product adds them to the result. A part of the formula that has only s and t is a class kernel and
costs sums over classes, O(N p).

r2 from inner products loses digits where samples lie far from the origin of the coordinates: for two
samples of one class the class mean is taken as origin, for two of different classes the mean of all. It
is clamped at 0, and exactly 0 for a sample with itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp
import torch

from lesde.model.formula import FEATURE_VARIABLES, TIME, Formula
from lesde.model.transforms import Transform, logit_directions

__all__ = [
    "CONDITIONS",
    "Block",
    "Interaction",
    "Layout",
    "Operand",
    "PairProgram",
    "PairRow",
    "Planes",
    "Tile",
    "Tiles",
    "condition",
    "least_bytes",
    "make_layout",
    "operation",
]


# --------------------------------------------------------------------------------------------------
# The torch operations of which a program of tiles is made; each writes into a given tile.


@dataclass(frozen=True)
class Operand:
    """What an operation reads.

    Attributes
    ----------
    kind : {"tile", "scalar", "number", "truth"}
        A register; a value that depends on time alone; a constant; the truth of a condition.
    value : int or float
        Which one, or the constant itself.
    """

    kind: str
    value: Any


Tensor = torch.Tensor


def _add(out: Tensor, a: Tensor, b: Tensor, factor: float) -> None:
    torch.add(a, b, alpha=factor, out=out)


def _into(out: Tensor, a: Tensor, number: float) -> None:
    torch.reciprocal(a, out=out)
    if number != 1:
        out.mul_(number)


def _where(out: Tensor, test: Any, a: Any, b: Any) -> None:
    if isinstance(test, Tensor):
        out.copy_(torch.where(test, a, b))
        return
    chosen = a if test else b
    if isinstance(chosen, Tensor):
        out.copy_(chosen)
    else:
        out.fill_(chosen)


def _heaviside(out: Tensor, a: Tensor, at_zero: float) -> None:
    torch.heaviside(a, a.new_full((), at_zero), out=out)


def _unary(function: Callable[..., Any]) -> Callable[..., None]:
    def run(out: Tensor, a: Tensor) -> None:
        function(a, out=out)

    return run


def _binary(function: Callable[..., Any]) -> Callable[..., None]:
    def run(out: Tensor, a: Any, b: Any) -> None:
        function(a, b, out=out)

    return run


def _extremum(both: Callable[..., Any], bound: str) -> Callable[..., None]:
    def run(out: Tensor, a: Any, b: Any) -> None:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            both(a, b, out=out)
        elif isinstance(a, Tensor):
            torch.clamp(a, **{bound: b}, out=out)
        else:
            torch.clamp(b, **{bound: a}, out=out)

    return run


_OPERATIONS: dict[str, Callable[..., None]] = {
    "add": _add,
    "shift": _binary(torch.add),
    "scale": _binary(torch.mul),
    "multiply": _binary(torch.mul),
    "divide": _binary(torch.div),
    "into": _into,
    "power": _binary(torch.pow),
    "where": _where,
    "fill": lambda out, value: out.fill_(value),
    "Max": _extremum(torch.maximum, "min"),
    "Min": _extremum(torch.minimum, "max"),
    "Heaviside": _heaviside,
    **{
        name: _unary(getattr(torch, name))
        for name in (
            "sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh",
            "asinh", "acosh", "atanh", "erf", "erfc", "sign", "floor",
        )
    },
    "Abs": _unary(torch.abs),
    "ceiling": _unary(torch.ceil),
}  # fmt: skip

CONDITIONS: dict[str, Callable[..., Any]] = {
    "StrictLessThan": lambda a, b: a < b,
    "LessThan": lambda a, b: a <= b,
    "StrictGreaterThan": lambda a, b: a > b,
    "GreaterThan": lambda a, b: a >= b,
    "Equality": lambda a, b: a == b,
    "Unequality": lambda a, b: a != b,
    "And": lambda *tests: _fold(torch.logical_and, tests),
    "Or": lambda *tests: _fold(torch.logical_or, tests),
    "Not": lambda test: ~test,
}


def _fold(join: Callable[..., Tensor], tests: tuple[Any, ...]) -> Any:
    tensors = [test for test in tests if isinstance(test, Tensor)]
    total = tensors[0]
    for tensor in tensors[1:]:
        total = join(total, tensor)
    for test in tests:
        if not isinstance(test, Tensor):
            total = join(total, total.new_full((), bool(test)))
    return total


def operation(name: str) -> Callable[..., None]:
    """The function ``f(out, *operands)`` of that name: one of this module's, or SymPy's."""
    if name not in _OPERATIONS:
        # Those of SymPy: the others are steps of a program, which nobody writes.
        known = sorted(key for key in _OPERATIONS if isinstance(getattr(sp, key, None), type))
        raise ValueError(
            f"strength has the function {name}, which cannot be evaluated; known are {', '.join(known)}."
        )
    return _OPERATIONS[name]


def condition(name: str) -> Callable[..., Any]:
    """The function that evaluates a condition."""
    return CONDITIONS[name]


# --------------------------------------------------------------------------------------------------
# A formula of two samples as a short list of torch operations on tiles, in place.

LARGEST_POWER = 64


@dataclass(frozen=True)
class Step:
    """One operation: its function, the register it writes, and its operands."""

    function: Callable[..., Any]
    out: Any
    operands: tuple[Any, ...]


class PairProgram:
    """f(r2, g, c, t) on tiles.

    Parameters
    ----------
    expression : sympy.Expr
        In the symbols of :data:`lesde.pair_formula.FEATURE_VARIABLES`, of which it must have at least
        one, and :data:`lesde.formula.TIME`.

    Attributes
    ----------
    inputs : tuple of str
        The variables it reads: input i has to be in register i before it runs.
    n_registers : int
        Tiles that it needs, those of the inputs included.
    distance_scale : float
        Register "r2" has to hold this times r2: a factor of the formula's argument that then costs
        nothing.
    """

    def __init__(self, expression: sp.Expr):
        expression, self.distance_scale = _fold_distance(expression)
        self.symbols = {s: s.name for s in expression.free_symbols if s.name in FEATURE_VARIABLES}
        self.inputs = tuple(sorted(self.symbols.values()))
        self.scalars: list[sp.Expr] = []
        self._steps: list[tuple[Callable[..., Any], Operand, tuple[Operand, ...]]] = []
        self._known: dict[Any, Operand] = {}
        self._names: dict[sp.Symbol, sp.Expr] = {}
        for symbol, name in self.symbols.items():
            self._known[symbol] = Operand("tile", self.inputs.index(name))
        self._count = len(self.inputs)
        replacements, (reduced,) = sp.cse([expression], symbols=sp.numbered_symbols("_x"))
        self._names = dict(replacements)
        result = self._emit(reduced)
        assert result.kind == "tile"
        self.steps, self.n_registers, self.result = self._allocate(result.value)
        self._scalars = sp.lambdify(TIME, self.scalars, modules=["numpy", "scipy"])
        self.is_constant = not self.scalars

    def scalar_values(self, time: float) -> list[float]:
        """The parts that depend on time alone, in float64."""
        if self.is_constant:
            return []
        with np.errstate(all="ignore"):
            return [float(np.real(v)) for v in self._scalars(np.float64(time))]

    def run(self, registers: Sequence[torch.Tensor], scalars: Sequence[float]) -> torch.Tensor:
        """Run on tiles of one shape; the register with the result is returned, others are lost."""
        values: dict[str, Sequence[Any]] = {"tile": registers, "scalar": scalars}
        truths: dict[int, Any] = {}
        for step in self.steps:
            arguments = [
                o.value
                if o.kind == "number"
                else truths[o.value]
                if o.kind == "truth"
                else values[o.kind][o.value]
                for o in step.operands
            ]
            if isinstance(step.out, Operand):
                truths[step.out.value] = step.function(*arguments)
            else:
                step.function(registers[step.out], *arguments)
        return registers[self.result]

    # Building -----------------------------------------------------------------------------------

    def _is_scalar(self, node: sp.Basic) -> bool:
        symbols: set[sp.Basic] = set(node.free_symbols)
        while symbols:
            symbol = symbols.pop()
            if symbol in self.symbols:
                return False
            if symbol in self._names:
                symbols |= self._names[symbol].free_symbols
        return True

    def _expanded(self, node: sp.Expr) -> sp.Expr:
        """With the names of common subexpressions replaced: for parts that are scalars."""
        while any(symbol in self._names for symbol in node.free_symbols):
            node = node.xreplace(self._names)
        return node

    def _scalar(self, node: sp.Expr) -> Operand:
        node = self._expanded(node)
        if not node.free_symbols:
            return Operand("number", float(node))
        if node not in self.scalars:
            self.scalars.append(node)
        return Operand("scalar", self.scalars.index(node))

    def _emit(self, node: sp.Expr) -> Operand:
        """The operand that holds a node's value, after the steps that compute it."""
        if node in self._known:
            return self._known[node]
        if node in self._names:
            operand = self._emit(self._names[node])
        elif self._is_scalar(node):
            operand = self._scalar(node)
        elif node.is_Add:
            operand = self._sum(node)
        elif node.is_Mul:
            operand = self._product(node)
        elif node.is_Pow:
            operand = self._power(*node.as_base_exp())
        elif isinstance(node, sp.Piecewise):
            operand = self._piecewise(node)
        elif isinstance(node, sp.Max | sp.Min):
            operand = self._emit(node.args[0])
            for argument in node.args[1:]:
                operand = self._step(type(node).__name__, operand, self._emit(argument))
        else:
            operand = self._step(type(node).__name__, *(self._emit(a) for a in node.args))
        self._known[node] = operand
        return operand

    def _step(self, name: str, *operands: Operand) -> Operand:
        function = operation(name)
        out = Operand("tile", self._count)
        self._count += 1
        self._steps.append((function, out, operands))
        return out

    def _sum(self, node: sp.Add) -> Operand:
        scalar = sp.Add(*(a for a in node.args if self._is_scalar(a)))
        rest = [a.as_coeff_Mul() for a in node.args if not self._is_scalar(a)]
        terms = [(float(factor), self._emit(term)) for factor, term in rest]
        terms.sort(key=lambda term: term[0] != 1)  # one with factor 1 first: it needs no product
        factor, total = terms[0]
        if factor != 1:
            total = self._step("scale", total, Operand("number", factor))
        for factor, term in terms[1:]:
            total = self._step("add", total, term, Operand("number", factor))
        return total if scalar == 0 else self._step("shift", total, self._scalar(scalar))

    def _product(self, node: sp.Mul) -> Operand:
        scalars = [a for a in node.args if self._is_scalar(a)]
        factors = [a for a in node.args if not self._is_scalar(a)]
        powers = [(a, *self._named(a).as_base_exp()) for a in factors]
        below = [(b, -e) for _, b, e in powers if e.is_Rational and e < 0]
        above = [a for a, _, e in powers if not (e.is_Rational and e < 0)]
        scalar = self._scalar(sp.Mul(*scalars)) if scalars else None
        total = None
        for factor in above:
            operand = self._emit(factor)
            total = operand if total is None else self._step("multiply", total, operand)
        denominator = None
        for base, exponent in below:
            operand = self._power(base, exponent)
            denominator = (
                operand if denominator is None else self._step("multiply", denominator, operand)
            )
        if total is None:
            assert denominator is not None
            return self._step("into", denominator, scalar or Operand("number", 1.0))
        if denominator is not None:
            total = self._step("divide", total, denominator)
        return total if scalar is None else self._step("scale", total, scalar)

    def _named(self, node: sp.Expr) -> sp.Expr:
        return self._names.get(node, node) if node not in self._known else node

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> Operand:
        key = sp.Pow(base, exponent, evaluate=False)
        if key not in self._known:
            self._known[key] = self._new_power(base, exponent)
        return self._known[key]

    def _new_power(self, base: sp.Expr, exponent: sp.Expr) -> Operand:
        if exponent.is_Rational and exponent < 0:
            return self._step("into", self._power(base, -exponent), Operand("number", 1.0))
        if exponent == 1:
            return self._emit(base)
        if exponent == sp.Rational(1, 2):
            return self._step("sqrt", self._emit(base))
        if exponent.is_Rational and exponent.q in (1, 2) and exponent.p <= LARGEST_POWER:
            whole, odd = divmod(exponent.p, 2)
            if exponent.q == 2:
                root = self._power(base, sp.Rational(1, 2))
                rest = self._power(base, sp.Integer(whole))
                return self._step("multiply", rest, root)
            half = self._power(base, sp.Integer(whole))
            square = self._step("multiply", half, half)
            return square if not odd else self._step("multiply", square, self._emit(base))
        return self._step("power", self._emit(base), self._emit(exponent))

    def _piecewise(self, node: sp.Piecewise) -> Operand:
        total = Operand("number", float("nan"))
        for value, test in reversed(node.args):
            other = self._emit(value)
            total = (
                other if test == True else self._step("where", self._condition(test), other, total)  # noqa: E712
            )
        if total.kind != "tile":
            total = self._step("fill", total)
        return total

    def _condition(self, node: sp.Basic) -> Operand:
        if self._is_scalar(node):
            return self._scalar(sp.Piecewise((sp.Integer(1), node), (sp.Integer(0), True)))
        if node in self._names:
            return self._condition(self._names[node])
        if node in self._known:
            return self._known[node]
        if isinstance(node, sp.core.relational.Relational):
            operands = [self._emit(node.lhs), self._emit(node.rhs)]
        elif type(node).__name__ in CONDITIONS:
            operands = [self._condition(a) for a in node.args]
        else:
            raise ValueError(f"strength has the condition {node}, which cannot be evaluated.")
        out = Operand("truth", self._count)
        self._count += 1
        self._steps.append((condition(type(node).__name__), out, tuple(operands)))
        self._known[node] = out
        return out

    def _allocate(self, result: int) -> tuple[list[Step], int, int]:
        """Put the values into as few registers as are alive at a time."""
        last = {result: len(self._steps)}
        for i, (_, _, operands) in enumerate(self._steps):
            for operand in operands:
                if operand.kind == "tile" and operand.value != result:
                    last[operand.value] = i
        place = {i: i for i in range(len(self.inputs))}
        count, free = len(place), [i for i in place if i not in last]
        steps = []
        for i, (function, out, operands) in enumerate(self._steps):
            moved = tuple(
                Operand("tile", place[o.value]) if o.kind == "tile" else o for o in operands
            )
            # All operations work in place, so the result may take the place of an operand.
            for value in {o.value for o in operands if o.kind == "tile"}:
                if last[value] == i:
                    free.append(place[value])
            if out.kind == "truth":
                steps.append(Step(function, out, moved))
                continue
            free.sort()
            if free:
                place[out.value] = free.pop(0)
            else:
                place[out.value] = count
                count += 1
            steps.append(Step(function, place[out.value], moved))
        return steps, count, place[result]


def _fold_distance(expression: sp.Expr) -> tuple[sp.Expr, float]:
    """The expression in q·r2, and the number q that saves most products, 1 if none does."""
    r2 = FEATURE_VARIABLES["r2"]
    candidates = {
        product.args[0] for product in expression.atoms(sp.Mul)
        if product.args[0].is_Number and r2 in product.args
    }  # fmt: skip
    best, scale = expression, sp.Integer(1)
    for q in sorted(candidates, key=sp.default_sort_key):
        scaled = sp.Symbol("r2", **{"nonnegative" if q > 0 else "nonpositive": True})
        changed = expression.xreplace({r2: scaled / q})
        if changed.count_ops() < best.count_ops() and np.isfinite(float(q)) and float(q) != 0:
            best, scale = changed, q
    return best, float(scale)


# --------------------------------------------------------------------------------------------------
# How the N×N pairs of samples are cut into tiles: a fixed grid, whatever the memory or the replicates.

SAMPLES = 8
FEATURES = 4
PLANE = 16
"""Blocks, features and planes are padded to multiples of these."""

SMALL = 48
"""Classes of fewer samples share blocks."""


def padded(size: int, unit: int) -> int:
    """The size rounded up to a multiple of a unit."""
    return -(-size // unit) * unit


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring samples of one class, or of several small ones.

    Attributes
    ----------
    index : int
        Its number.
    classes : range
        The classes in it.
    first, length : int
        Its samples.
    columns : slice
        Its place in the planes, padded.
    """

    index: int
    classes: range
    first: int
    length: int
    columns: slice

    @property
    def width(self) -> int:
        """Columns with the padding."""
        return self.columns.stop - self.columns.start

    @property
    def is_shared(self) -> bool:
        """Whether it holds several classes."""
        return len(self.classes) > 1


@dataclass(frozen=True, eq=False)
class Tile:
    """A pair of blocks; ``kind`` tells what s is in it: "same" 1, "different" 0, "mixed" both."""

    row: Block
    column: Block
    kind: str

    @property
    def size(self) -> int:
        """Entries with the padding."""
        return self.row.width * self.column.width


@dataclass(frozen=True, eq=False)
class Layout:
    """The blocks, and where every sample is in the planes.

    Attributes
    ----------
    blocks : tuple of Block
    sample : ndarray of int, shape (column,)
        The sample in every column of the planes; padding repeats a sample of its block, so that a
        formula which is finite for all pairs is finite there.
    label : ndarray of int, shape (column,)
        Its class.
    is_padding : ndarray of bool, shape (column,)
    """

    blocks: tuple[Block, ...]
    sample: np.ndarray
    label: np.ndarray
    is_padding: np.ndarray

    def tiles(self) -> list[Tile]:
        """All pairs of blocks, each once."""
        pairs = itertools.combinations_with_replacement(self.blocks, 2)
        return [Tile(a, b, _kind(a, b)) for a, b in pairs]


def _kind(a: Block, b: Block) -> str:
    if a is b and a.is_shared:
        return "mixed"
    return "same" if a.classes == b.classes else "different"


def make_layout(counts: np.ndarray, largest: int) -> Layout:
    """Cut classes of the given sizes into blocks of at most about ``largest`` samples."""
    pieces: list[tuple[range, int]] = []
    small: list[int] = []
    sizes = [int(n) for n in counts]

    def flush() -> None:
        if small:
            classes = range(small[0], small[-1] + 1)
            pieces.append((classes, sum(sizes[k] for k in small)))
            small.clear()

    for k, n in enumerate(sizes):
        if n < SMALL:
            if sum(sizes[l] for l in small) + n > 2 * SMALL:
                flush()
            small.append(k)
            continue
        flush()
        step = padded(-(-n // -(-n // largest)), SAMPLES)
        pieces += [(range(k, k + 1), min(step, n - done)) for done in range(0, n, step)]
    flush()

    labels = np.repeat(np.arange(len(sizes)), sizes)
    blocks, samples, padding = [], [], []
    first = start = 0
    for i, (classes, length) in enumerate(pieces):
        width = padded(length, SAMPLES)
        blocks.append(Block(i, classes, first, length, slice(start, start + width)))
        first, start = first + length, start + width
        if i == len(pieces) - 1:  # the plane's own padding, in no block
            width += padded(start, PLANE) - start
        place = np.arange(width)
        samples.append(blocks[-1].first + np.minimum(place, length - 1))
        padding.append(place >= length)
    sample, is_padding = np.concatenate(samples), np.concatenate(padding)
    return Layout(tuple(blocks), sample, labels[sample], is_padding)


# --------------------------------------------------------------------------------------------------
# The samples as planes (replicate, feature, column), and what the tiles multiply: O(N p) work.

FEW = 64
"""Sums over so many classes are one product with a matrix of ones and zeros."""


class Planes:
    """Working arrays of O(N p) a replicate, filled anew at every call.

    Attributes
    ----------
    features : tensor (replicate, feature, column)
        X, in the padding that of a sample of the same block.
    pushes : tensor (replicate, part·feature, column)
        H X and, or, H X ξ √N; 0 in the padding.
    scaled : dict of tensors like ``pushes``
        The same times the factor of the strength in time, over N, for tiles with s = 1 and s = 0.
    totals : list of tensors (replicate, part·feature, column of the block), one a block
        The result; apart, as in-place products need contiguous memory to be fast.
    left, right : dict of tensors (replicate, ..., column)
        By (variable, kind of tile): what multiplies to r2, g or c.
    own_cosine : tensor (replicate, column)
        c of a sample with itself: 1, or 0 where it is 0.
    """

    def __init__(self, coefficients: Any, layout: Layout, dtype: torch.dtype, device: torch.device):
        self.layout, self.dtype, self.device = layout, dtype, device
        self.counts = np.asarray(coefficients.counts)
        self.transform: Transform = coefficients.transform
        self.N, self.K = int(self.counts.sum()), len(self.counts)
        self.p = self.transform.n_features
        self.P = padded(self.p, FEATURES)
        self.M = len(layout.sample)
        self.sample = torch.as_tensor(layout.sample, device=device)
        self.label = torch.as_tensor(layout.label, device=device)
        self.is_padded = self.M > self.N
        self.mask = self._tensor(~layout.is_padding)
        self.sizes = self._tensor(self.counts)
        self.ones = self._tensor(np.ones((1, FEATURES, self.P)))
        self.distance_scales: dict[str, float] = {}
        self.stamp = object()
        self.replicates = self.parts = 0
        self._shared = {
            b: self._one_hot(b.columns, b.classes) for b in layout.blocks if b.is_shared
        }
        few = self.K <= FEW
        self._members = self._one_hot(slice(0, self.M), range(self.K)) if few else None
        if self._members is not None:
            self._members[:, :, self.K] = 1.0
        self._matrices = self._transform_matrices()

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(np.array(values, np.float64), dtype=self.dtype, device=self.device)

    def _one_hot(self, columns: slice, classes: range) -> torch.Tensor:
        """Which of the classes every column belongs to, (1, column, class)."""
        labels = self.layout.label[columns] - classes.start
        members = np.zeros((1, len(labels), padded(len(classes) + 1, SAMPLES)))
        members[0, np.arange(len(labels)), labels] = 1.0
        return self._tensor(members)

    def _transform_matrices(self) -> torch.Tensor | None:
        if self.transform.kind != "matrix":
            return None
        matrices = (
            self.transform.array()[:1] if self.transform.is_shared else self.transform.array()
        )
        full = np.zeros((len(matrices), self.P, self.P))
        full[:, : self.p, : self.p] = matrices
        return self._tensor(full)

    def bytes_per_replicate(self) -> int:
        """Of the arrays that the tiles now have, with drift and sampling noise."""
        once = {id(a): a for a in [*self.left.values(), *self.right.values(), self.features]}
        fixed = [*once.values(), self._masked, self._scratch]
        each = [self.pushes, *self.totals, *self.scaled.values()]
        cells = sum(a[0].numel() for a in fixed) + 2 * sum(a[0].numel() for a in each) // self.parts
        return cells * self.features.element_size()

    def resize(self, replicates: int, parts: int) -> None:
        """Make the arrays for so many replicates and results, unless they are there."""
        if (replicates, parts) == (self.replicates, self.parts):
            return
        self.replicates, self.parts, self.stamp = replicates, parts, object()
        self.features = self._empty(self.P)
        self._masked = self._empty(self.P)
        self._scratch = self._empty(self.P)
        self.pushes = self._empty(parts * self.P)
        self.totals = [self._empty(parts * self.P, b.width) for b in self.layout.blocks]
        self.own_cosine = self._empty(1)[:, 0]
        self.scaled: dict[str, torch.Tensor] = {}
        self.left: dict[tuple[str, str], torch.Tensor] = {}
        self.right: dict[tuple[str, str], torch.Tensor] = {}

    def _empty(self, rows: int, columns: int | None = None) -> torch.Tensor:
        # Zeros, as the padding of features is never written.
        shape = (self.replicates, rows, self.M if columns is None else columns)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def require(self, grams: Iterable[tuple[str, str]], kinds: Iterable[str]) -> None:
        """Make the arrays that tiles of some kinds and variables need."""
        for kind in kinds:
            self.scaled[kind] = torch.empty_like(self.pushes)
        for name, kind in grams:
            if name == "g":
                self.left[name, kind] = self.right[name, kind] = self.features
            elif name == "c":
                unit = self.left.get(("c", "same"), self.left.get(("c", "different")))
                unit = self._empty(self.P) if unit is None else unit
                self.left[name, kind] = self.right[name, kind] = unit
            else:
                left, right = self._empty(self.p + 2), self._empty(self.p + 2)
                left[:, self.p + 1] = 1.0
                right[:, self.p] = self.distance_scales[kind]
                self.left[name, kind], self.right[name, kind] = left, right

    def load(self, samples: torch.Tensor) -> None:
        """Take samples (replicate, sample, feature)."""
        rows = samples.index_select(1, self.sample) if self.is_padded else samples
        self.features[:, : self.p].copy_(rows.transpose(1, 2))
        torch.mul(self.features, self.mask, out=self._masked)

    def push(self, normals: torch.Tensor | None, with_drift: bool) -> None:
        """Fill ``pushes``: with H X, and last with H X ξ √N for normals (replicate, sample)."""
        first = self.pushes[:, : self.P]
        self._apply_transform(first)
        if normals is not None:
            rows = normals.index_select(1, self.sample) if self.is_padded else normals
            factor = rows.mul(math.sqrt(self.N)).unsqueeze(1)
            torch.mul(first, factor, out=self.pushes[:, self.P :] if with_drift else first)

    def _apply_transform(self, out: torch.Tensor) -> None:
        masked = self._masked
        if self.transform.kind == "identity":
            out.copy_(masked)
        elif self._matrices is None:
            directions = self._directions
            torch.mul(directions, masked, out=self._scratch)
            scores = self._column_sums(self._scratch).unsqueeze(1) / (1.0 - 1.0 / self.K)
            torch.mul(directions, scores, out=out)
        elif len(self._matrices) == 1:
            torch.bmm(self._matrices.expand(len(masked), -1, -1), masked, out=self._scratch)
            out.copy_(self._scratch)
        else:
            self._apply_class_matrices(out)

    def _apply_class_matrices(self, out: torch.Tensor) -> None:
        assert self._matrices is not None
        out.zero_()
        for block in self.layout.blocks:
            part = self._masked[:, :, block.columns]
            for i, k in enumerate(block.classes):
                own = part * self._shared[block][:, :, i].unsqueeze(1) if block.is_shared else part
                matrix = self._matrices[k].expand(len(part), -1, -1)
                out[:, :, block.columns].baddbmm_(matrix, own)

    @property
    def _directions(self) -> torch.Tensor:
        """d_l of the class of every column, (1, feature, column)."""
        if not hasattr(self, "_logit_planes"):
            full = np.zeros((1, self.P, self.M))
            full[0, : self.p] = logit_directions(self.K)[self.layout.label].T
            self._logit_planes = self._tensor(full)
        return self._logit_planes

    def start(self, same: float, different: float) -> None:
        """Set the totals to what a strength of s and t alone gives: (1/N) Σ_j κ_ij times the pushes."""
        if same == 0 and different == 0:
            for total in self.totals:
                total.zero_()
            return
        sums, whole = self.class_sums(self.pushes)
        drifts = sums.mul((same - different) / self.N).add_(whole.mul(different / self.N))
        for block, total in zip(self.layout.blocks, self.totals, strict=True):
            torch.index_select(drifts, 2, self.label[block.columns], out=total)

    def class_sums(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the columns of every class (replicate, row, class), and of all (…, 1).

        Of planes that are 0 in the padding.
        """
        if self._members is not None:
            members = self._members.expand(len(planes), -1, -1)
            sums = torch.bmm(planes, members)
            return sums[:, :, : self.K], sums[:, :, self.K : self.K + 1]
        result = planes.new_zeros(*planes.shape[:2], self.K)
        for block in self.layout.blocks:
            part, first = planes[:, :, block.columns], block.classes.start
            if block.is_shared:
                members = self._shared[block].expand(len(part), -1, -1)
                sums = torch.bmm(part, members)[:, :, : len(block.classes)]
                result[:, :, first : first + len(block.classes)] = sums
            else:
                result[:, :, first] += part.sum(-1)
        return result, result.sum(-1, keepdim=True)

    def _column_sums(self, planes: torch.Tensor) -> torch.Tensor:
        """Sums over features, (replicate, column), by a product whose rounding is always the same."""
        return torch.bmm(self.ones.expand(len(planes), -1, -1), planes)[:, 0]

    def prepare(self, factors: dict[str, float]) -> None:
        """Fill what the tiles multiply, given the factors in time of the kinds of tiles."""
        for kind, scaled in self.scaled.items():
            torch.mul(self.pushes, factors[kind] / self.N, out=scaled)
        kinds = [kind for name, kind in self.left if name == "r2"]
        if kinds:
            sums, whole = self.class_sums(self._masked)
            for kind in kinds:
                self._centre(kind, sums / self.sizes if kind == "same" else whole / self.N)
        units = {id(unit): unit for (name, _), unit in self.left.items() if name == "c"}
        for unit in units.values():
            self._normalise(unit)

    def _centre(self, kind: str, centres: torch.Tensor) -> None:
        """Factors of q·r2 = q(|x|² + |y|² − 2⟨x, y⟩), about the class means or the mean of all."""
        p, q = self.p, self.distance_scales[kind]
        left, right, scratch = self.left["r2", kind], self.right["r2", kind], self._scratch
        if kind == "same":
            centres = torch.index_select(centres, 2, self.label, out=scratch)
        torch.sub(self.features[:, :p], centres[:, :p], out=left[:, :p])
        scratch.zero_()
        torch.mul(left[:, :p], left[:, :p], out=scratch[:, :p])
        squares = self._column_sums(scratch)
        left[:, p].copy_(squares)
        torch.mul(left[:, :p], -2.0 * q, out=right[:, :p])
        torch.mul(squares, q, out=right[:, p + 1])

    def _normalise(self, unit: torch.Tensor) -> None:
        """Unit vectors, 0 for a sample at 0; scaled first, so that no square overflows."""
        largest = self.features.abs().amax(1)
        self.own_cosine.copy_(largest > 0)
        largest.masked_fill_(largest == 0, 1.0)
        torch.div(self.features, largest.unsqueeze(1), out=unit)
        torch.mul(unit, unit, out=self._scratch)
        norm = self._column_sums(self._scratch).sqrt_()
        unit.div_(norm.masked_fill(norm == 0, 1.0).unsqueeze(1))

    def results(self) -> list[torch.Tensor]:
        """The totals as (replicate, sample, feature), one tensor a part."""
        parts = []
        for i in range(self.parts):
            shape = (self.replicates, self.N, self.p)
            result = torch.empty(shape, dtype=self.dtype, device=self.device)
            for block, total in zip(self.layout.blocks, self.totals, strict=True):
                rows = total[:, i * self.P : i * self.P + self.p, : block.length]
                result[:, block.first : block.first + block.length].copy_(rows.transpose(1, 2))
            parts.append(result)
        return parts


# --------------------------------------------------------------------------------------------------
# The strengths of all samples with one drawn sample a replicate: O(N p).

UNIT = 64
"""Rows are padded to a multiple, so that rounding does not depend on the number of replicates."""

Strengths = tuple[PairProgram | None, float, list[float]]


class PairRow:
    """κ_iJ H_J X_J for one drawn sample J a replicate."""

    def __init__(self, coefficients: Any, dtype: torch.dtype, device: torch.device):
        counts = np.asarray(coefficients.counts)
        labels = np.repeat(np.arange(len(counts)), counts)
        self.label = torch.as_tensor(labels, device=device)
        self.transform = coefficients.transform
        self.table: torch.Tensor | None = None
        if self.transform.kind != "identity":
            logits = self.transform.kind == "logits"
            table = logit_directions(len(counts)) if logits else self.transform.array()
            self.table = torch.as_tensor(table.copy(), dtype=dtype, device=device)

    def push(self, drawn: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """H_J X_J for features (replicate, feature) of samples of the classes (replicate,)."""
        if self.table is None:
            return drawn
        own = self.table.index_select(0, classes)
        if self.transform.kind == "logits":
            scores = (own * drawn).sum(-1, keepdim=True) / (1.0 - 1.0 / len(self.table))
            return own * scores
        return (own * drawn.unsqueeze(1)).sum(-1)

    def kick(
        self, samples: torch.Tensor, drawn: torch.Tensor, parts: tuple[Strengths, Strengths]
    ) -> torch.Tensor:
        """(replicate, sample, feature), given the strengths of samples of one class and of others."""
        R, N, p = samples.shape
        chosen = samples.gather(1, drawn.view(R, 1, 1).expand(R, 1, p))
        classes = self.label[drawn]
        inputs = self._inputs(
            samples, chosen, drawn, {n for q, _, _ in parts if q for n in q.inputs}
        )
        same, different = (self._strength(inputs, part, R, N, samples) for part in parts)
        strength = torch.where(self.label == classes.unsqueeze(1), same, different)
        return strength.unsqueeze(-1) * self.push(chosen[:, 0], classes).unsqueeze(1)

    def _inputs(
        self, samples: torch.Tensor, chosen: torch.Tensor, drawn: torch.Tensor, names: set[str]
    ) -> dict[str, torch.Tensor]:
        inputs = {}
        if "r2" in names:
            inputs["r2"] = (samples - chosen).square_().sum(-1)
        if "g" in names:
            inputs["g"] = (samples * chosen).sum(-1)
        if "c" in names:
            units, own = _unit(samples), _unit(chosen)
            inputs["c"] = (units * own).sum(-1).clamp_(-1, 1)
            exact = (own != 0).any(-1).to(samples.dtype)
            inputs["c"].scatter_(1, drawn.unsqueeze(1), exact)
        return inputs

    def _strength(
        self,
        inputs: dict[str, torch.Tensor],
        part: Strengths,
        R: int,
        N: int,
        like: torch.Tensor,
    ) -> torch.Tensor:
        program, factor, scalars = part
        if program is None:
            return like.new_full((), factor)
        registers = like.new_zeros(program.n_registers, R, padded(N, UNIT)).unbind(0)
        for name, register in zip(program.inputs, registers, strict=False):
            register[:, :N] = inputs[name]
            if name == "r2" and program.distance_scale != 1:
                register.mul_(program.distance_scale)
        return program.run(registers, scalars)[:, :N] * factor


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Unit vectors, 0 where a row is 0; scaled first, so that no square overflows."""
    largest = rows.abs().amax(-1, keepdim=True)
    rows = rows / largest.masked_fill(largest == 0, 1.0)
    norm = rows.square().sum(-1, keepdim=True).sqrt_()
    return rows / norm.masked_fill(norm == 0, 1.0)


# --------------------------------------------------------------------------------------------------
# The work on tiles: products to r2, g and c, the formula in place, and products into the result.

Values = Mapping[str, tuple[float, list[float]]]


@dataclass(frozen=True)
class Gram:
    """One product of a tile: its factors, where it goes, and the diagonal to set exactly."""

    name: str
    left: torch.Tensor
    right: torch.Tensor
    out: torch.Tensor
    scale: float
    diagonal: torch.Tensor | None
    own: torch.Tensor

    def run(self) -> None:
        """Fill the register with r2 (times its scale), g or c."""
        torch.bmm(self.left, self.right, out=self.out)
        if self.name == "r2":
            if self.scale > 0:
                self.out.clamp_(min=0)
            else:
                self.out.clamp_(max=0)
            if self.diagonal is not None:
                self.diagonal.zero_()
        elif self.name == "c":
            self.out.clamp_(-1, 1)
            if self.diagonal is not None:
                self.diagonal.copy_(self.own)


@dataclass(frozen=True)
class Part:
    """The strength of one kind of pairs on a tile."""

    kind: str
    program: PairProgram
    grams: list[Gram]
    registers: list[torch.Tensor]

    def run(self, scalars: list[float]) -> torch.Tensor:
        """The tile of strengths, up to the factor in time."""
        for gram in self.grams:
            gram.run()
        return self.program.run(self.registers, scalars)


@dataclass(frozen=True)
class Task:
    """A tile for some replicates."""

    parts: list[Part]
    pushes: tuple[torch.Tensor, torch.Tensor]
    totals: tuple[torch.Tensor, torch.Tensor]
    is_diagonal: bool
    mask: torch.Tensor | None

    def run(self, values: Values, N: int) -> None:
        """Add what the tile's pairs do to each other."""
        strengths = {part.kind: part.run(values[part.kind][1]) for part in self.parts}
        if self.mask is None:
            (strength,) = strengths.values()
        else:
            strength = self._mixed(strengths, values, N)
        self.totals[1].baddbmm_(self.pushes[0], strength)
        if not self.is_diagonal:
            self.totals[0].baddbmm_(self.pushes[1], strength.transpose(1, 2))

    def _mixed(self, strengths: dict[str, torch.Tensor], values: Values, N: int) -> torch.Tensor:
        assert self.mask is not None
        for kind, strength in strengths.items():
            strength.mul_(values[kind][0] / N)
        # A kind without a program is done by class sums, and is 0 here.
        first = next(iter(strengths.values()))
        zero = first.new_zeros(())
        same, different = strengths.get("same", zero), strengths.get("different", zero)
        return first.copy_(torch.where(self.mask, same, different))


def _needed(layout: Layout, programs: Mapping[str, PairProgram]) -> list[tuple[Tile, list[str]]]:
    """The tiles on which a program has to run, and which programs."""
    kinds = {kind: [kind] for kind in ("same", "different")} | {"mixed": ["same", "different"]}
    wanted = [(tile, [k for k in kinds[tile.kind] if k in programs]) for tile in layout.tiles()]
    return [(tile, needed) for tile, needed in wanted if needed]


def _registers(programs: Mapping[str, PairProgram], kinds: list[str]) -> int:
    return sum(programs[kind].n_registers for kind in kinds)


def least_bytes(layout: Layout, programs: Mapping[str, PairProgram], dtype: torch.dtype) -> int:
    """Working memory of the tile that takes most, for one replicate."""
    cells = [_registers(programs, kinds) * tile.size for tile, kinds in _needed(layout, programs)]
    return max(cells, default=0) * dtype.itemsize


class Tiles:
    """All tiles of a layout for a number of replicates, bound to the arrays of its planes.

    Attributes
    ----------
    stamp : object
        That of the planes whose arrays it is bound to.
    is_empty : bool
        Whether no tile is needed: no formula depends on the features.
    """

    def __init__(
        self,
        layout: Layout,
        planes: Planes,
        programs: Mapping[str, PairProgram],
        tile_bytes: int,
    ):
        self.planes, self.stamp = planes, planes.stamp
        self.layout, self.programs = layout, programs
        tiles = _needed(layout, programs)
        self.is_empty = not tiles
        used = {kind for _, kinds in tiles for kind in kinds}
        planes.distance_scales = {k: programs[k].distance_scale for k in used}
        planes.require([(name, k) for k in sorted(used) for name in programs[k].inputs], used)
        most, itemsize = planes.replicates, planes.features.element_size()
        sizes = [_registers(programs, kinds) * tile.size for tile, kinds in tiles]
        batches = [min(most, tile_bytes // (size * itemsize)) for size in sizes]
        cells = max((size * batch for size, batch in zip(sizes, batches, strict=True)), default=0)
        self._arena = torch.zeros(cells, dtype=planes.dtype, device=planes.device)
        self._masks: dict[Tile, torch.Tensor] = {}
        self.tasks = [
            self._task(tile, kinds, slice(first, min(first + batch, most)))
            for (tile, kinds), batch in zip(tiles, batches, strict=True)
            for first in range(0, most, batch)
        ]

    def run(self, values: Values) -> None:
        """Add the interaction of all pairs to the planes' totals."""
        self.planes.prepare({kind: value[0] for kind, value in values.items()})
        for task in self.tasks:
            task.run(values, self.planes.N)

    def _task(self, tile: Tile, kinds: list[str], rows: slice) -> Task:
        planes = self.planes
        I, J = tile.row.columns, tile.column.columns
        shape = (rows.stop - rows.start, tile.row.width, tile.column.width)
        size = shape[0] * tile.size
        parts, position = [], 0
        for kind in kinds:
            program = self.programs[kind]
            registers = [
                self._arena[position + i * size : position + (i + 1) * size].view(shape)
                for i in range(program.n_registers)
            ]
            position += program.n_registers * size
            grams = [
                Gram(
                    name,
                    planes.left[name, kind][rows, :, I].transpose(1, 2),
                    planes.right[name, kind][rows, :, J],
                    register,
                    program.distance_scale,
                    register.diagonal(dim1=1, dim2=2) if tile.row is tile.column else None,
                    planes.own_cosine[rows, I],
                )
                for name, register in zip(program.inputs, registers, strict=False)
            ]
            parts.append(Part(kind, program, grams, registers))
        mixed = tile.kind == "mixed"
        pushes = planes.pushes if mixed else planes.scaled[kinds[0]]
        return Task(
            parts,
            (pushes[rows, :, I], pushes[rows, :, J]),
            (planes.totals[tile.row.index][rows], planes.totals[tile.column.index][rows]),
            tile.row is tile.column,
            self._mask(tile) if mixed else None,
        )

    def _mask(self, tile: Tile) -> torch.Tensor:
        if tile not in self._masks:
            labels = torch.as_tensor(self.layout.label[tile.row.columns], device=self.planes.device)
            self._masks[tile] = labels[:, None] == labels[None, :]
        return self._masks[tile]


# --------------------------------------------------------------------------------------------------

BLOCK = {"cpu": 256, "cuda": 2048}
TILE_BYTES = {"cpu": 2**21, "cuda": 2**28}


class Strength:
    """The formula for s = 1 or s = 0, as a factor of time and a program on tiles.

    Attributes
    ----------
    factor : Formula
        What depends on time alone: the strength is this times the program's result.
    program : PairProgram or None
        None where the features do not matter; then the factor is the strength.
    """

    def __init__(self, expression: sp.Expr):
        symbols = list(FEATURE_VARIABLES.values())
        factor, shape = expression.as_independent(*symbols, as_Add=False)
        self.factor = Formula(factor)
        self.program = PairProgram(shape) if shape.has(*symbols) else None
        if self.program is None:
            self.factor = Formula(expression)
        self._constant: tuple[float, list[float]] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether nothing in it depends on time."""
        program = self.program is None or self.program.is_constant
        return program and TIME not in self.factor.expression.free_symbols

    def values(self, time: float, name: str) -> tuple[float, list[float]]:
        """The factor, and the program's parts that depend on time alone."""
        if not self.is_constant:
            return self._values(time, name)
        if self._constant is None:
            self._constant = self._values(time, name)
        return self._constant

    def _values(self, time: float, name: str) -> tuple[float, list[float]]:
        factor = float(self.factor(np.array([time]), name)[0])
        scalars = [] if self.program is None else self.program.scalar_values(time)
        if not all(map(math.isfinite, scalars)):
            raise ValueError(
                f"{name} is not finite at t = {time:g}. Change the formula or the times."
            )
        return factor, scalars


class Interaction:
    """The interaction of all samples, for replicates side by side.

    It owns working arrays, so that one object must not be used by two threads at a time. Results do not
    depend on how replicates are grouped into calls, nor on ``tile_bytes``, bit for bit. Values are not
    checked to be finite: that is for the caller, at the times that it saves.

    Parameters
    ----------
    coefficients : FeatureCoefficients
    dtype : torch.dtype
        float32 or float64; of samples, results and arithmetic.
    device : torch.device
    tile_bytes : int, optional
        Working memory of the tiles, which decides how many replicates share one: by default 2 MiB on
        the CPU (about the size of its caches), 256 MiB elsewhere, or one tile where that takes more.

    Raises
    ------
    ValueError
        When a name in the formula has no value, or ``tile_bytes`` is less than one tile takes.
    """

    def __init__(
        self,
        coefficients: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tile_bytes: int | None = None,
    ):
        device = torch.device(device)
        self.dtype, self.device = dtype, device
        formula = coefficients.strength
        formula.check_resolved()
        self.name = "strength"
        self.same, self.different = Strength(formula.at(True)), Strength(formula.at(False))
        kind = "cpu" if device.type == "cpu" else "cuda"
        self.layout = make_layout(coefficients.counts, BLOCK[kind])
        least = least_bytes(self.layout, self._programs, dtype)
        if tile_bytes is not None and tile_bytes < least:
            raise ValueError(
                f"tile_bytes must be at least {least}, which the largest tile takes; got {tile_bytes}."
            )
        self.tile_bytes = max(least, TILE_BYTES[kind]) if tile_bytes is None else int(tile_bytes)
        self.planes = Planes(coefficients, self.layout, dtype, device)
        self.row = PairRow(coefficients, dtype, device)
        self._tiles: Tiles | None = None
        self._tile_list(1, 1)

    @property
    def is_constant(self) -> bool:
        """Whether the strength does not depend on time."""
        return self.same.is_constant and self.different.is_constant

    @property
    def bytes_per_replicate(self) -> int:
        """Working memory of one replicate besides the tiles, with drift and sampling noise."""
        return self.planes.bytes_per_replicate()

    @property
    def _programs(self) -> dict[str, PairProgram]:
        """By kind of tile, where the features matter."""
        parts = {"same": self.same.program, "different": self.different.program}
        return {kind: program for kind, program in parts.items() if program is not None}

    def drift(self, samples: torch.Tensor, time: float) -> torch.Tensor:
        """b_i = (1/N) Σ_j κ_ij H_j X_j.

        Parameters
        ----------
        samples : tensor (replicate, sample, feature)
            Sorted by class.
        time : float

        Returns
        -------
        tensor (replicate, sample, feature)
        """
        (result,) = self._sums(samples, time, None, with_drift=True)
        return result

    def sampling(
        self, samples: torch.Tensor, time: float, drift: torch.Tensor, normals: torch.Tensor
    ) -> torch.Tensor:
        """(1/√N) Σ_j (κ_ij H_j X_j − b_i) ξ_j: the factor of C applied to N normals a replicate.

        Its covariance over ξ is C_ij of the derivation, the covariance of one step's kicks.

        Parameters
        ----------
        samples, drift : tensor (replicate, sample, feature)
            The drift is that of these samples at this time.
        time : float
        normals : tensor (replicate, sample)
        """
        (total,) = self._sums(samples, time, normals, with_drift=False)
        return self._centred(total, drift, normals)

    def drift_and_sampling(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both at the cost of little more than one; equal to them up to rounding."""
        drift, total = self._sums(samples, time, normals, with_drift=True)
        return drift, self._centred(total, drift, normals)

    def kick(self, samples: torch.Tensor, drawn: torch.Tensor, time: float) -> torch.Tensor:
        """κ_iJ H_J X_J for the drawn sample J of every replicate.

        Parameters
        ----------
        samples : tensor (replicate, sample, feature)
        drawn : tensor of int (replicate,)
        time : float
        """
        same, different = (part.values(time, self.name) for part in (self.same, self.different))
        parts = (self.same.program, *same), (self.different.program, *different)
        return self.row.kick(samples, drawn, parts)

    def _centred(
        self, total: torch.Tensor, drift: torch.Tensor, normals: torch.Tensor
    ) -> torch.Tensor:
        shift = normals.sum(1).mul_(1 / math.sqrt(normals.shape[1]))
        return total.sub_(drift * shift[:, None, None])

    def _sums(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor | None, with_drift: bool
    ) -> Sequence[torch.Tensor]:
        """(1/N) Σ_j κ_ij H_j X_j and, with normals, (1/√N) Σ_j κ_ij H_j X_j ξ_j."""
        values = {
            "same": self.same.values(time, self.name),
            "different": self.different.values(time, self.name),
        }
        parts = int(with_drift) + int(normals is not None)
        tiles, planes = self._tile_list(len(samples), parts), self.planes
        planes.load(samples)
        planes.push(normals, with_drift)
        direct = tuple(
            values[kind][0] if part.program is None else 0.0
            for kind, part in (("same", self.same), ("different", self.different))
        )
        planes.start(*direct)
        if not tiles.is_empty:
            tiles.run(values)
        return planes.results()

    def _tile_list(self, replicates: int, parts: int) -> Tiles:
        self.planes.resize(replicates, parts)
        if self._tiles is None or self._tiles.stamp is not self.planes.stamp:
            self._tiles = Tiles(self.layout, self.planes, self._programs, self.tile_bytes)
        return self._tiles
