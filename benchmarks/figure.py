"""The figure of the table ``scaling``: time against each size, on log axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["draw"]

XLABELS = {
    "K": "classes K",
    "n": "samples per class n",
    "p": "features p",
    "steps": "steps or iterations",
    "replicates": "replicates",
}


def draw(result: dict[str, Any], target: Path) -> list[Path]:
    """Write the figure as PDF and PNG; nothing where no row could be measured."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    from benchmarks.tables.scaling import LINES
    from lesde.plot.saving import save
    from lesde.plot.style import class_marker, palette, style

    measured = {line: False for line in LINES}
    with style():
        figure, axes = plt.subplots(2, 3, figsize=(6.8, 4.0), sharey=True)
        panels = axes.ravel()
        for panel, section in zip(panels, result["sections"], strict=False):
            for i, (line, colour) in enumerate(zip(LINES, palette(len(LINES)), strict=True)):
                rows = [r for r in section["rows"] if r["line"] == line and r["status"] == "ok"]
                if not rows:
                    continue
                measured[line] = True
                x = [row["x"] for row in rows]
                y = np.array([np.array(row["seconds"]) * 1e3 for row in rows])
                middle = np.median(y, axis=1)
                spread = np.abs(np.stack([y.min(1), y.max(1)]) - middle)
                marker = class_marker(i)
                panel.errorbar(x, middle, spread, color=colour, marker=marker, lw=1, label=line)
            panel.set(xscale="log", yscale="log", xlabel=XLABELS[section["title"]])
            panel.xaxis.set_minor_formatter(NullFormatter())
            sizes = sorted({row["x"] for row in section["rows"]})
            if sizes[-1] / sizes[0] < 1000:  # too few powers of ten for ticks
                panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
                panel.xaxis.set_minor_locator(NullLocator())
        for panel in axes[:, 0]:
            panel.set_ylabel("time of a call (ms)")
        # The sixth place holds the legend, once for all panels.
        panels[-1].axis("off")
        handles: dict[str, Any] = {}
        for panel in panels[:-1]:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        names = {"feature": "feature kernel,\n5 steps", "exact": "exact, samples"}
        names["statistics"] = "exact, statistics"
        order = [line for line in LINES if line in handles]
        panels[-1].legend(
            [handles[line] for line in order],
            [names.get(line, line) for line in order],
            loc="center left",
            fontsize=8,
        )
        files = save(figure, target, dpi=150) if any(measured.values()) else []
        plt.close(figure)
    return files
