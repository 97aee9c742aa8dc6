"""The figures of the README, the first page and the tutorial: ``python docs/make_images.py``."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import lesde

IMAGES = Path(__file__).parent / "images"


def phase_data() -> xr.Dataset:
    """Separation probability of the I-model with α − β = c/t, K = 2, over c and time."""
    means = [[1.0, 0.0], [-1.0, 0.0]]
    times = np.concatenate([[1.0], np.geomspace(2, 1e10, 60)])
    constants = np.round(np.arange(0.4, 1.81, 0.04), 2)
    runs = []
    for c in constants:
        kernel = lesde.TwoLevel(alpha="c/(2*t)", beta="-c/(2*t)", parameters={"c": c})
        model = lesde.LESDE(kernel, n_classes=2, n_features=2, n_per_class=50, noise=1.0)
        runs.append(lesde.predict_separation(model, times, initial=means).probability)
    data = xr.concat(runs, xr.IndexVariable("c", constants)).to_dataset()
    return data.isel(time=slice(1, None)).assign_attrs(n_classes=2)


def overview() -> plt.Figure:
    """Samples that separate, how often they do, and where in the phase diagram."""
    kernel = lesde.TwoLevel(alpha="2/(1+t)", beta=-0.5)
    model = lesde.LESDE(kernel, n_classes=2, n_features=2, n_per_class=40, noise=0.5)
    times, means = np.linspace(0, 6, 61), [[0.5, 0.2], [-0.1, 0.3]]
    paths = lesde.simulate(model, times, initial=means, replicates=256, seed=1)
    with lesde.plot.style():
        figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.7))
        lesde.plot.separation_fan(paths, pair=(0, 1), ax=axes[0])
        lesde.plot.probability(
            lesde.separation_probability(paths),
            lesde.predict_separation(model, times, initial=means),
            ax=axes[1],
        )
        lesde.plot.phase_diagram(phase_data(), ax=axes[2])
    return figure


def tutorial() -> plt.Axes:
    """The figure that the code of the tutorial draws."""
    text = (IMAGES.parent / "tutorial.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    names: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        exec(compile(code, "tutorial.md", "exec"), names)
    return names["ax"]


if __name__ == "__main__":
    lesde.plot.save(overview(), IMAGES / "overview.png", dpi=120)
    lesde.plot.save(tutorial(), IMAGES / "tutorial.png", dpi=130)
