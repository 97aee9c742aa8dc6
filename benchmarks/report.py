"""The README's tables, from the results of the tables."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import sentence
from benchmarks.tables import TABLES

__all__ = ["HERE", "load", "number", "ratios", "render", "table", "write"]

HERE = Path(__file__).parent


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by table name, of the tables that have been run."""
    found = {}
    for name in TABLES:
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    return found


def number(value: float) -> str:
    """Two or three digits: 0.71, 23.4, 1,230."""
    if value >= 100:
        digits = 3 - len(str(round(value)))
        return f"{round(value, digits):,.0f}"
    return f"{value:#.3g}".rstrip(".") if value >= 1 else f"{value:.2g}"


def rates(row: dict[str, Any]) -> np.ndarray:
    """Work a second in every round."""
    return row["work"] / np.asarray(row["seconds"])


def ratios(row: dict[str, Any], reference: dict[str, Any]) -> np.ndarray:
    """Rate over that of the reference in the same round."""
    return rates(row) / rates(reference)


def spread(values: np.ndarray) -> str:
    """Median, with the smallest and the largest."""
    return f"{number(np.median(values))} ({number(values.min())}–{number(values.max())})"


def table(section: dict[str, Any]) -> str:
    """One section as a Markdown table."""
    rows = {row["name"]: row for row in section["rows"]}
    milliseconds = section["unit"] == "ms"
    memory = any("peak_mb" in row for row in section["rows"])
    heads = ["", "ms a call" if milliseconds else section["unit"], *section["references"].values()]
    heads += ["peak, MB"] * memory + ["threads"]
    lines = [f"**{section['title']}**", "", _line(heads), _line(["---"] * len(heads))]
    for name, row in rows.items():
        if row["status"] != "ok":
            word = "not run" if row["status"] == "skipped" else "failed"
            lines.append(_line([name, f"{word}: {row['reason']}", *[""] * (len(heads) - 2)]))
            continue
        value = np.asarray(row["seconds"]) * 1e3 if milliseconds else rates(row)
        cells = [name, spread(value)]
        for other in section["references"]:
            known = rows.get(other, {}).get("status") == "ok"
            same = other == name
            cells.append("1" if same else spread(ratios(row, rows[other])) if known else "")
        if memory:
            peak = row.get("peak_mb")
            cells.append("" if peak is None else number(peak))
        lines.append(_line([*cells, str(row["threads"] or "its own")]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def part(name: str, result: dict[str, Any] | None) -> str:
    """The text of one table: what it shows, what was measured, what the rows are."""
    module = import_module(f"benchmarks.tables.{name}")
    lines = [f"## {module.TITLE}", "", module.ABOUT.strip(), ""]
    if result is None:
        return "\n".join([*lines, f"Not measured yet: `python -m benchmarks {name}`.", ""])
    sections = result["sections"]
    reasons = {row.get("reason") for s in sections for row in s["rows"] if row["status"] != "ok"}
    nothing = all(row["status"] != "ok" for s in sections for row in s["rows"])
    if nothing and len(reasons) == 1:
        return "\n".join([*lines, f"Not run: {reasons.pop()}.", ""])
    if name == "scaling":
        lines += ["![Time of a call against each size, on log axes](figures/scaling.png)", ""]
        missing = [row for s in sections for row in s["rows"] if row["status"] != "ok"]
        failed = sorted({f"{row['line']}: {row['reason']}" for row in missing})
        lines += [f"- not drawn, {text}" for text in failed] + [""] * bool(failed)
    else:
        for section in sections:
            lines += [table(section), ""]
    if module.NOTES:
        lines += [f"- *{row}*: {note}" for row, note in module.NOTES.items()] + [""]
    rounds = f"{result['rounds']} rounds."
    quick = " Shortened workloads (`--quick`)." if result["quick"] else ""
    lines += [f"{rounds}{quick} {sentence(result['machine'])}", ""]
    return "\n".join(lines)


def render(text: str, results: dict[str, dict[str, Any]]) -> str:
    """The README with what stands between the markers written anew.

    Raises
    ------
    ValueError
        Where the markers are missing.
    """
    body = "\n".join(part(name, results.get(name)) for name in TABLES)
    pattern = re.compile(r"(<!-- tables -->\n).*(<!-- end of tables -->)", flags=re.S)
    if not pattern.search(text):
        raise ValueError(
            "the README must hold the lines <!-- tables --> and <!-- end of tables -->."
        )
    return pattern.sub(lambda found: f"{found[1]}\n{body}\n{found[2]}", text)


def write(out: Path) -> Path:
    """Write ``out/README.md`` and the figure from ``out/results``."""
    results = load(out / "results")
    if "scaling" in results:
        from benchmarks.figure import draw

        draw(results["scaling"], out / "figures" / "scaling")
    text = (HERE / "README.md").read_text(encoding="utf-8")
    target = out / "README.md"
    target.write_text(render(text, results), encoding="utf-8")
    return target
