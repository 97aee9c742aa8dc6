"""What ``lesde plot`` does: a figure of paths, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import lesde
from lesde.writing import Target

__all__ = ["draw", "figure_target"]


def figure_target(figure: str, path: Path, overwrite: bool, paths: Path) -> Target:
    """Where the named figure of ``paths`` goes; refused before anything is computed."""
    wanted = (".gif",) if figure == "animation" else (".png", ".pdf", ".svg")
    if path.suffix not in wanted:
        raise ValueError(f"--out must end in {' or '.join(wanted)} for {figure}; got {path}.")
    place = Target(path, "--out", overwrite=overwrite, inputs=[paths])
    place.check()
    return place


def draw(
    figure: str,
    paths: xr.Dataset,
    out: Path,
    transform: str | None = None,
    progress: bool = False,
) -> None:
    """Draw the named figure of paths and save it.

    Parameters
    ----------
    figure : {"fan", "simplex", "simplex3d", "collapse", "probability", "elasticity", "animation"}
    paths : xarray.Dataset
        As :func:`lesde.simulate` returns.
    out : Path
        PNG, PDF or SVG; GIF for the animation.
    transform : str, optional
        Of the fit behind the figure "elasticity"; by default that of the recorded model.
    progress : bool, default False
        Whether to show how far an animation is.
    """
    import matplotlib.pyplot as plt

    from lesde import plot

    if figure == "animation":
        plot.animate(paths, out, progress=progress)
        return
    drawn: Any
    if figure == "fan":
        drawn = plot.separation_fan(paths)
    elif figure == "simplex":
        drawn = plot.simplex(paths)
    elif figure == "simplex3d":
        drawn = plot.simplex3d(paths)
    elif figure == "collapse":
        drawn = plot.collapse(lesde.neural_collapse(paths))
    elif figure == "probability":
        drawn = plot.probability(lesde.separation_probability(paths))
    else:
        drawn = plot.elasticity(lesde.fit_elasticity(paths, transform=transform))
    plot.save(drawn, out)
    plt.close(np.ravel(drawn)[0].figure)
