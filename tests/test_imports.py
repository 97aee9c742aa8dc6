"""How the code is arranged: imports run downward from room to room, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import lesde

ROOT = Path(lesde.__file__).parent
# A room may use those before it. The face of the package, lesde/__init__.py, stands above them all.
ROOMS = (
    "errors", "checks", "text", "files", "clocks", "paths", "model", "derivation", "laws", "processes",
    "simulation", "analysis", "networks", "plot", "studies", "cli",
)  # fmt: skip
FACE = "lesde"


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in ROOT.rglob("*.py")}
TREES = {module: ast.parse(file.read_text()) for module, file in FILES.items()}


def imported(module: str) -> set[str]:
    """The package's own modules that a module imports, in functions and for annotations too."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            source = str(node.module)
            found |= {
                inner if (inner := f"{source}.{alias.name}") in FILES else source
                for alias in node.names
            }
    return found & FILES.keys() - {module}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else FACE


def test_every_file_is_in_a_room():
    assert {room_of(module) for module in FILES} == {FACE, *ROOMS}


def test_imports_run_downward():
    # Studies and the command line are written as a user would write them, by `import lesde`.
    rank = {room: i for i, room in enumerate(ROOMS)} | {FACE: ROOMS.index("studies")}
    upward = [
        f"{module} imports {other}"
        for module in sorted(FILES.keys() - {FACE})
        for other in sorted(imported(module))
        if rank[room_of(other)] > rank[room_of(module)]
    ]
    assert not upward, "\n".join(upward)


def test_no_circles():
    """Raises CycleError, which names the circle."""
    # A room's face collects the names of its files; a lazy one may be imported by those that it serves.
    graph = {module: imported(module) - {FACE} for module in FILES if module != FACE}
    assert list(TopologicalSorter(graph).static_order())


def test_few_names_are_imported_for_annotations_only():
    """A noun that needs its verbs for annotations is a circle in disguise."""
    blocks = [
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    assert len(blocks) <= 3, blocks
