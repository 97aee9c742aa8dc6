"""The work on tiles: products to r2, g and c, the formula in place, and products into the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lesde.pair_program import PairProgram
from lesde.simulation.pair_layout import Layout, Tile
from lesde.simulation.pair_planes import Planes

__all__ = ["Tiles", "least_bytes"]

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
