"""Figures and tables of the page on the published experiments, from finished runs.

``lesde reproduce all --preset paper --out runs/paper`` and ``lesde rates --out runs/rates``, then ``python
docs/make_experiments.py runs/paper runs/rates``. Copies the figures to ``images`` and the tables and lists of the reports
to ``experiments``. Either folder will do alone.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    sections = re.findall(r"## Figure (\d):(.*?)(?=\n## |\Z)", report, re.S)
    if sections:
        put("protocol", [report.split("\n\n")[1]])
        for number, body in sections:
            picture(folder / "figures" / f"fig{number}.png", f"reproduce-fig{number}.png")
            put(f"fig{number}", tables(body.split("Warnings of the estimates:")[0]))
    else:
        picture(folder / "figures" / "the_other_rates.png", "rates.png")
        put("rates", [report.split("\n\n")[1], *tables(report)])


def tables(text: str) -> list[str]:
    """Tables and lists of a part of a report."""
    return [part for part in text.split("\n\n") if part.startswith(("| ", "- "))]


def put(name: str, parts: list[str]) -> None:
    """Write parts to files of their own, numbered where there are several."""
    folder = HERE / "experiments"
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts, start=1):
        which = name if name == "protocol" else f"{name}-{number}"
        (folder / f"{which}.md").write_text(part.strip() + "\n")
    print(f"{name}: {len(parts)} parts")


def picture(file: Path, name: str) -> None:
    """Copy a figure."""
    shutil.copy(file, HERE / "images" / name)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name in sys.argv[1:]:
        main(Path(name))
