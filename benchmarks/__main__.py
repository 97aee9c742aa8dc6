"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import typer

from benchmarks.report import HERE, write
from benchmarks.tables import TABLES

ROUNDS, QUICK_ROUNDS = 5, 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def measure_table(name: str, out: Path, quick: bool, rounds: int) -> bool:
    """Run one table in this process and write its JSON; whether no row failed."""
    from benchmarks.machine import machine
    from benchmarks.timing import SHORTEST, measure

    found = machine()
    module = import_module(f"benchmarks.tables.{name}")
    print(f"{name}: {module.TITLE}", flush=True)
    start = time.perf_counter()
    sections: list[dict[str, Any]] = []
    for section in module.sections(quick):
        print(f" {section.title}", flush=True)
        memory = getattr(module, "MEMORY", False)
        shortest = getattr(module, "SMALLEST", SHORTEST) / (10 if quick else 1)
        sections.append(measure(section, rounds, _say, shortest, memory))
    result = {
        "table": name,
        "quick": quick,
        "rounds": rounds,
        "machine": found,
        "sections": sections,
    }
    path = out / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    return all(row["status"] != "failed" for s in sections for row in s["rows"])


def _say(text: str) -> None:
    print(text, flush=True)


def _in_own_process(name: str, out: Path, quick: bool, rounds: int) -> bool:
    command = [sys.executable, "-m", "benchmarks", name, "--out", str(out), "--rounds", str(rounds)]
    command += ["--quick"] * quick + ["--no-readme"]
    return subprocess.run(command, cwd=HERE.parent, check=False).returncode == 0


@app.command(
    epilog="Example: `python -m benchmarks euler --quick` for a first look at one table in half a minute."
)
def run(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help=f"Of {', '.join(TABLES)}; all where none is named."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short workloads and 2 rounds, to see that all works.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help=f"Rounds of timing; {ROUNDS} by default.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for README.md, results/ and figures/: benchmarks/ by default, "
            "runs/benchmarks with --quick."
        ),
    ] = None,
    only_readme: Annotated[
        bool, typer.Option("--only-readme", help="Write the README from results that are there.")
    ] = False,
    readme: Annotated[bool, typer.Option(help="Write the README at the end.")] = True,
) -> None:
    """Compare lesde with its alternatives, one process per table.

    Each table's results are written as it ends, so that Ctrl-C loses the running one only.
    """
    chosen = list(tables or TABLES)
    unknown = [name for name in chosen if name not in TABLES]
    if unknown:
        typer.secho(
            f"error: no table {unknown[0]!r}; there are {', '.join(TABLES)}.", fg="red", err=True
        )
        raise typer.Exit(2)
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    folder = (out or (Path("runs/benchmarks") if quick else HERE)).resolve()
    good = True
    try:
        if not only_readme:
            for name in chosen:
                one = measure_table if len(chosen) == 1 else _in_own_process
                good = one(name, folder, quick, rounds) and good
    except KeyboardInterrupt:
        typer.secho("\ninterrupted; tables that had ended are kept.", fg="yellow", err=True)
        if readme:
            write(folder)
        raise typer.Exit(130) from None
    if readme:
        target = write(folder)
        print(f"wrote {_short(target)}")
    if not good:
        typer.secho("some rows failed; the tables say why.", fg="red", err=True)
        raise typer.Exit(1)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
