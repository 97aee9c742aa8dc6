"""Figures and tables of the page on the published experiments, from a finished run.

``lesde reproduce all --preset quick --out runs/reproduce`` and then ``python docs/make_experiments.py
runs/reproduce``. Copies the figures to ``images`` and the tables of the report to ``experiments``.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    tables = HERE / "experiments"
    tables.mkdir(exist_ok=True)
    (tables / "protocol.md").write_text(report.split("\n\n")[1] + "\n")
    for figure in (1, 3, 4, 5):
        shutil.copy(
            folder / "figures" / f"fig{figure}.png", HERE / "images" / f"reproduce-fig{figure}.png"
        )
        section = re.search(rf"## Figure {figure}:.*?(?=\n## |\Z)", report, re.S)
        if section is None:
            sys.exit(f"{folder / 'report.md'} has no figure {figure}; run lesde reproduce all.")
        body = section[0].split("What the estimates warned of:")[0]
        parts = [part for part in body.split("\n\n") if part.startswith(("| ", "- "))]
        for number, part in enumerate(parts, start=1):
            (tables / f"fig{figure}-{number}.md").write_text(part.strip() + "\n")
        print(f"figure {figure}: {len(parts)} tables and lists")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
