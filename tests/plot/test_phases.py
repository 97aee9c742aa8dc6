"""Phase diagrams: values in their cells, the half-probability contour and the critical line."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from scipy.special import expit

from lesde import plot
from tests.plot.conftest import drawn_inside, legend_texts, line_named

C = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
TIMES = np.geomspace(1, 1000, 10)


def make_phase(times=TIMES, dim="c", **attrs):
    """P = ½ exactly on c = 1.2 + 1/t."""
    p = expit(5 * (C[:, None] - 1.2 - 1 / np.maximum(times, 1e-9)))
    return xr.Dataset(
        {"probability": ((dim, "time"), p)},
        {dim: C, "time": ("time", times, {"long_name": "time", "units": "h × m"})},
        attrs,
    )


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, QuadMesh))


def contour_of(ax):
    return [c for c in ax.collections if isinstance(c, QuadContourSet)]


def test_cells_hold_the_probabilities_of_their_coordinates():
    data = make_phase()
    shuffled = data.isel(c=[3, 1, 0, 5, 2, 4]).transpose("time", "c")
    for each in (data, shuffled):
        ax = plot.phase_diagram(each)
        mesh = mesh_of(ax)
        np.testing.assert_allclose(mesh.get_array(), data.probability.T)
        edges = mesh.get_coordinates()
        assert (edges[0, :-1, 0] < C).all()
        assert (edges[0, 1:, 0] > C).all()
        np.testing.assert_allclose(edges[0, 1:-1, 0], (C[1:] + C[:-1]) / 2)
        np.testing.assert_allclose(edges[1:-1, 0, 1], np.sqrt(TIMES[1:] * TIMES[:-1]))
        assert mesh.get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("c", "time (h × m)")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert drawn_inside(ax.figure)


def test_contour_is_where_the_probability_is_one_half():
    ax = plot.phase_diagram(make_phase())
    (contour,) = contour_of(ax)
    points = np.concatenate([path.vertices for path in contour.get_paths()])
    # The contour interpolates P linearly in c between grid values.
    assert len(points) > 5
    for c, t in points[np.isin(points[:, 1], TIMES)]:
        i = np.searchsorted(C, c) - 1
        ends = expit(5 * (C[[i, i + 1]] - 1.2 - 1 / t))
        assert np.interp(c, C[[i, i + 1]], ends) == pytest.approx(0.5)
    assert "P = ½" in legend_texts(ax)


def test_no_contour_without_a_crossing():
    data = make_phase()
    data["probability"] = 0.1 + 0 * data.probability
    ax = plot.phase_diagram(data)
    assert not contour_of(ax)
    assert "P = ½" not in legend_texts(ax)


@pytest.mark.parametrize(
    ("data", "given", "expected"),
    [
        (make_phase(n_classes=3), None, 1.5),
        (make_phase(n_classes=3), 3.25, 3.25),
        (make_phase(dim="c_over_K"), None, 0.5),
        (make_phase(), None, None),
        (make_phase(dim="r", n_classes=3), None, None),
    ],
)
def test_critical_line_stands_where_it_should(data, given, expected):
    ax = plot.phase_diagram(data, critical=given)
    lines = [line for line in ax.get_lines() if line.get_label() == "critical"]
    assert [line.get_xdata()[0] for line in lines] == ([] if expected is None else [expected])
    assert ("critical" in legend_texts(ax)) == (expected is not None)


@pytest.mark.parametrize("dim", ["c", "time"])
def test_transition_is_drawn_over_either_dimension(dim):
    data = make_phase()
    data["transition"] = 1.2 + 1 / data.time if dim == "time" else 1 / (data.c - 0.3)
    ax = plot.phase_diagram(data)
    line = line_named(ax, "P = ½, theory")
    along, across = (line.get_ydata(), line.get_xdata())
    if dim == "c":
        along, across = across, along
    np.testing.assert_allclose(along, data[dim])
    np.testing.assert_allclose(across, data.transition)
    assert ax.get_xlim()[1] < 5


def test_times_from_zero_keep_a_logarithmic_axis_by_leaving_zero_out():
    ax = plot.phase_diagram(make_phase(np.concatenate([[0.0], TIMES])))
    assert ax.get_yscale() == "log"
    assert mesh_of(ax).get_array().shape == (10, 6)
    assert ax.get_ylim()[0] > 0
    even = plot.phase_diagram(make_phase(np.linspace(0, 10, 8)))
    assert even.get_yscale() == "linear"
    assert mesh_of(even).get_array().shape == (8, 6)


def test_heat_map_is_rasterised_and_lines_are_not():
    ax = plot.phase_diagram(make_phase(n_classes=3))
    assert mesh_of(ax).get_rasterized()
    assert not line_named(ax, "critical").get_rasterized()


def test_refusals():
    data = make_phase()
    with pytest.raises(ValueError, match=r"dataset must hold .*probability.*xarray\.concat"):
        plot.phase_diagram(data.rename(probability="p"))
    with pytest.raises(ValueError, match=r"two dimensions, y='time' and one other"):
        plot.phase_diagram(data.expand_dims(learning_rate=2))
    with pytest.raises(ValueError, match="two dimensions, y='iteration'"):
        plot.phase_diagram(data, y="iteration")
    with pytest.raises(ValueError, match="at least 2 different numbers along 'c'"):
        plot.phase_diagram(data.isel(c=[0]))
    with pytest.raises(ValueError, match=r"different numbers along 'c'"):
        plot.phase_diagram(data.drop_vars("c"))
    with pytest.raises(ValueError, match="different numbers along 'c'"):
        plot.phase_diagram(data.isel(c=[0, 0, 1]))
    with pytest.raises(ValueError, match="critical must be a finite number"):
        plot.phase_diagram(data, critical=np.inf)
