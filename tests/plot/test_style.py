"""The style stays where it is used, and files are what publishers take."""

from __future__ import annotations

import itertools
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lesde import plot
from lesde.plot.style import COLUMN, class_line, class_marker, colours_of_rates, palette
from tests.plot.conftest import make_paths

# Machado, Oliveira, Fernandes (2009), severity 1, in linear RGB: what a dichromat sees.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


def lab(colour, matrix=None):
    """CIE L*a*b* of a colour, as a dichromat sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if matrix is not None:
        linear = np.clip(np.asarray(matrix) @ linear, 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ linear
    )
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", [None, "protan", "deutan"])
def test_class_colours_differ_for_the_colour_blind(kind):
    colours = [lab(c, BLIND.get(kind)) for c in palette(8)]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2))
    assert nearest > 10  # a just noticeable difference is about 2.3


def test_classes_beyond_the_palette_differ_in_marker_and_line():
    looks = [(palette(32)[k], class_marker(k), class_line(k)) for k in range(24)]
    assert len(set(looks)) == 24
    assert palette(10)[8] == palette(10)[0]
    assert class_line(8) != class_line(0)


def test_learning_rates_go_from_dark_to_light_and_stay_dark_enough():
    lightness = [lab(c)[0] for c in colours_of_rates([0.1, 0.2, 0.4, 0.8])]
    assert (np.diff(lightness) > 5).all()
    assert lightness[-1] < 85


def test_style_is_a_context_and_nothing_leaks():
    before = dict(mpl.rcParams)
    with plot.style():
        assert mpl.rcParams["pdf.fonttype"] == 42
        assert mpl.rcParams["font.size"] == 8
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="replicate"):
        plot.separation_fan(make_paths(), replicate=99)
    assert dict(mpl.rcParams) == before
    assert not plt.get_fignums()  # a refused figure leaves none open


def test_figures_are_one_column_wide_and_legible_whatever_the_users_settings():
    with mpl.rc_context({"font.size": 30, "xtick.labelsize": 30, "axes.grid": True}):
        ax = plot.separation_fan(make_paths())
        ax.figure.canvas.draw()
        sizes = [t.get_fontsize() for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
        sizes += [ax.xaxis.label.get_fontsize(), ax.yaxis.label.get_fontsize()]
        assert set(sizes) <= {7.0, 8.0}
        assert ax.figure.get_size_inches()[0] == COLUMN
        assert not any(line.get_visible() for line in ax.get_xgridlines())


def test_save_writes_pdf_and_png_with_embedded_fonts(tmp_path):
    ax = plot.separation_fan(make_paths())
    files = plot.save(ax, tmp_path / "new" / "rate-0.1", dpi=100)
    assert [f.name for f in files] == ["rate-0.1.pdf", "rate-0.1.png"]
    text = files[0].read_bytes()
    assert text.startswith(b"%PDF")
    assert b"/CIDFontType2" in text or b"/TrueType" in text
    assert b"/Type3" not in text
    assert b"/CreationDate" not in text
    with Image.open(files[1]) as png:
        assert png.size == (340, 250)
    again = plot.save(plot.separation_fan(make_paths()), tmp_path / "again.pdf")
    assert again == [tmp_path / "again.pdf"]
    assert again[0].read_bytes() == text  # the same figure is the same file


def test_save_takes_figures_and_arrays_and_refuses_other_things(tmp_path):
    axes = plot.simplex(make_paths())
    for each in (axes, axes[0], axes[0].figure):
        assert plot.save(each, tmp_path / "a.svg")[0].stat().st_size > 1000
    assert plot.save(axes, tmp_path / "b", formats="png") == [tmp_path / "b.png"]
    with pytest.raises(TypeError, match="figure must be a matplotlib Figure, Axes or an array"):
        plot.save(3, tmp_path / "a")
    with pytest.raises(ValueError, match=r"formats must be of pdf, png, svg, eps; got 'gif'"):
        plot.save(axes, tmp_path / "a", formats="gif")


def test_importing_lesde_does_not_load_matplotlib():
    code = "import lesde, sys; lesde.LESDE; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
