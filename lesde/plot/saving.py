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

    Examples
    --------
    >>> lesde.plot.save(ax, "figures/separation")  # doctest: +SKIP
    [PosixPath('figures/separation.pdf'), PosixPath('figures/separation.png')]
    """
    every = np.ravel(np.asarray(figure, dtype=object))
    first = every[0] if len(every) else None
    found = first.get_figure(root=True) if isinstance(first, Axes) else figure
    if not isinstance(found, Figure):
        raise TypeError(
            f"figure must be a matplotlib Figure, Axes or an array of Axes; got {shown(figure)}."
        )
    check_real("dpi", dpi, 0.0, open_minimum=True)
    target = check_path("path", path)
    wanted = check_names("formats", formats)
    if not wanted or not set(wanted) <= set(FORMATS):
        raise ValueError(f"formats must be of {', '.join(FORMATS)}; got {shown(formats)}.")
    # A dot in a name such as "rate-0.1" is not an ending.
    files = [target.with_name(f"{target.name}.{f}") for f in wanted]
    if target.suffix[1:].lower() in FORMATS:
        files = [target]
    places = [Target(file, overwrite=True) for file in files]
    for place in places:
        place.check()
    for file, place in zip(files, places, strict=True):
        # Without a date the same figure gives the same file.
        date = {".pdf": "CreationDate", ".svg": "Date"}.get(file.suffix.lower())
        place.put(partial(found.savefig, dpi=dpi, metadata={date: None} if date else None))
    return files
