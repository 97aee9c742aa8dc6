"""Writing figures to files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesde.checks import check_names, check_path, check_real, shown
from lesde.files import Target
from lesde.plot.style import style

__all__ = ["save"]


FORMATS = ("pdf", "png", "svg", "eps")


@style()
def save(
    figure: Any,
    path: str | Path,
    formats: str | Sequence[str] = ("pdf", "png"),
    dpi: float = 300,
) -> list[Path]:
    """Write a figure as vector and bitmap files, at the size it was made.

    Parameters
    ----------
    figure : matplotlib Figure, Axes or array of Axes
        The result of a figure function.
    path : str or path
        File name. Folders are made, and an existing file is replaced as a whole. With the ending of a known format only
        that one is written, without it one file per entry of ``formats``.
    formats : str or sequence of str, default ("pdf", "png")
        Of "pdf", "png", "svg", "eps". Text in PDF and EPS is embedded as TrueType (type 42).
    dpi : float, default 300
        Dots per inch of bitmaps, and of heat maps inside vector files.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    TypeError, ValueError
        For something that is no figure, an unknown format, or a path where no file can be.

    Examples
    --------
    >>> lesde.plot.save(ax, "figures/separation")  # doctest: +SKIP
    [PosixPath('figures/separation.pdf'), PosixPath('figures/separation.png')]
    """
    found = figure_of(figure)
    check_real("dpi", dpi, 0.0, open_minimum=True)
    target = check_path("path", path)
    wanted = check_names("formats", formats)
    unknown = [f for f in wanted if f not in FORMATS]
    if unknown or not wanted:
        raise ValueError(f"formats must be of {', '.join(FORMATS)}; got {shown(formats)}.")
    ending = target.suffix[1:].lower()
    if ending in FORMATS:
        files = [target]
    else:
        # A dot in a name such as "rate-0.1" is not an ending.
        files = [target.with_name(f"{target.name}.{f}") for f in wanted]
    places = [Target(file, overwrite=True) for file in files]
    for place in places:
        place.check()
    for file, place in zip(files, places, strict=True):
        # Without a date the same figure gives the same file.
        metadata = {"CreationDate": None} if file.suffix.lower() == ".pdf" else None
        if file.suffix.lower() == ".svg":
            metadata = {"Date": None}
        place.put(partial(found.savefig, dpi=dpi, metadata=metadata))
    return files


def figure_of(value: Any) -> Figure:
    """The figure that axes belong to."""
    if isinstance(value, Figure):
        return value
    flat = np.asarray(
        value if isinstance(value, list | tuple | np.ndarray) else [value], dtype=object
    )
    flat = flat.ravel()
    if len(flat) and isinstance(flat[0], Axes):
        figure = flat[0].get_figure(root=True)
        if isinstance(figure, Figure):
            return figure
    raise TypeError(
        f"figure must be a matplotlib Figure, Axes or an array of Axes; got {shown(value)}."
    )
