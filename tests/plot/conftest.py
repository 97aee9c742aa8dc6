"""Datasets with known numbers, and what holds for every figure: no warning, no trace left."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("error"))


@pytest.fixture(autouse=True)
def no_trace():
    """Global settings are as they were after every figure, and figures can be closed."""
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")
    assert not plt.get_fignums()


def simplex_means(n_classes, n_features):
    """Regular simplex of edge √2 around 0, shape (class, feature)."""
    means = np.zeros((n_classes, n_features))
    frame = np.eye(n_classes) - 1 / n_classes
    if n_features >= n_classes:
        means[:, :n_classes] = frame
        return means
    u, s, _ = np.linalg.svd(frame)
    rank = min(n_classes - 1, n_features)
    means[:, :rank] = (u * s)[:, :rank]
    return means


def make_paths(
    n_classes=3, n_features=3, n=6, times=9, replicates=3, rates=None, growth=0.5, seed=0
):
    """Samples m_k e^{gt} + spread √t z: growing class means, spread within classes, samples shuffled."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 2.0, times)
    labels = rng.permutation(np.repeat(np.arange(n_classes), n))
    lead = (replicates,) if rates is None else (len(rates), replicates)
    z = rng.normal(size=(*lead, 1, len(labels), n_features))
    mean = simplex_means(n_classes, n_features)[labels] * np.exp(growth * t)[:, None, None]
    features = mean + 0.2 * np.sqrt(t)[:, None, None] * z
    dims = ("replicate", "time", "sample", "feature")
    coords = {
        "time": ("time", t, {"long_name": "time", "units": "learning rate × iterations"}),
        "label": ("sample", labels),
    }
    if rates is not None:
        dims = ("learning_rate", *dims)
        coords["learning_rate"] = ("learning_rate", np.asarray(rates))
        coords["iteration"] = (
            ("learning_rate", "time"),
            np.rint(t / np.asarray(rates)[:, None]).astype(int),
        )
    return xr.Dataset({"features": (dims, features)}, coords)


def class_mean(paths, k, **at):
    """Class means (time, feature) by another route than the package's."""
    frames = paths.features.isel(**at)
    return frames.isel(sample=np.flatnonzero(paths.label.values == k)).mean("sample").values


def legend_texts(ax):
    """Entries of the legend of an axes or of its figure."""
    legends = [ax.get_legend(), *ax.figure.legends]
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def line_named(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def band_edges(collection, x):
    """Lower and upper edge of a fill_between at the abscissas."""
    path = collection.get_paths()[0].vertices
    low = [path[np.isclose(path[:, 0], v), 1].min() for v in x]
    high = [path[np.isclose(path[:, 0], v), 1].max() for v in x]
    return np.array(low), np.array(high)


def tick_label_boxes(ax, which):
    """Extents of the tick labels, major and minor, that are drawn within the limits of an axis."""
    ax.figure.canvas.draw()
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = sorted(axis.get_view_interval())
    boxes = []
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if tick.label1.get_visible() and tick.label1.get_text() and low <= tick.get_loc() <= high:
            boxes.append(tick.label1.get_window_extent())
    return sorted(boxes, key=lambda box: box.x0 if which == "x" else box.y0)


def apart(boxes, which):
    """Whether boxes in increasing order do not touch."""
    if which == "x":
        return all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    return all(a.y1 < b.y0 for a, b in itertools.pairwise(boxes))


def drawn_inside(figure):
    """Whether every label, tick label, title and legend lies within the figure when drawn."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    frame = figure.bbox.padded(1.0)
    artists = [t for ax in figure.axes for t in (ax.xaxis.label, ax.yaxis.label, ax.title)]
    artists += [a for ax in figure.axes for a in (ax.get_legend(),) if a is not None]
    artists += list(figure.legends)
    for artist in artists:
        text = artist.get_text() if hasattr(artist, "get_text") else "legend"
        if not artist.get_visible() or not text:
            continue
        box = artist.get_window_extent(renderer)
        if not (frame.x0 <= box.x0 and box.x1 <= frame.x1):
            return False
        if not (frame.y0 <= box.y0 and box.y1 <= frame.y1):
            return False
    return True
