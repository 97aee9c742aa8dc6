"""The GIF: as many frames as asked for, of the data at their times."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from lesde import plot
from tests.plot.conftest import class_mean, make_paths


def scaled_means(paths, time, **at):
    """Distances between class means, over the root mean square distance from their centre."""
    n_classes = int(paths.label.max()) + 1
    means = np.stack([class_mean(paths, k, **at)[time] for k in range(n_classes)])
    size = np.sqrt(((means - means.mean(axis=0)) ** 2).sum(-1).mean())
    return np.linalg.norm(means[0] - means[1]) / size


def test_file_has_the_frames_asked_for_and_each_is_different(tmp_path):
    file = tmp_path / "new" / "collapse.gif"
    plot.animate(make_paths(times=12), file, frames=4, fps=10, dpi=60)
    with Image.open(file) as gif:
        assert gif.n_frames == 4
        assert gif.info["duration"] == 100
        assert gif.size == (204, 216)
        pictures = []
        for i in range(4):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB")).copy())
    assert all((a != b).any() for a, b in itertools.pairwise(pictures))


def true_gap(paths, time, **at):
    return class_mean(paths, 0, **at)[time] - class_mean(paths, 1, **at)[time]


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 2), (3, 4), (10, 10)])
def test_frames_follow_the_data_in_units_of_the_simplex(n_classes, n_features, tmp_path):
    paths = make_paths(n_classes, n_features)
    film = plot.animate(paths, tmp_path / "a.gif", replicate=1, frames=3, dpi=30)
    assert film._save_count == 3
    (ax,) = film._fig.axes
    for drawn_frame, frame in ((2, 8), (1, 4)):
        film._func(drawn_frame)
        assert ax.texts[0].get_text() == f"$t$ = {paths.time.values[frame]:g}"
        points = np.array([line.get_xydata()[0] for line in ax.get_lines()])
        drawn = np.linalg.norm(points[0] - points[1])
        true = scaled_means(paths, frame, replicate=1)
        if n_classes <= 3 and frame == 8:
            assert drawn == pytest.approx(true)
        assert drawn <= true + 1e-9
        if n_features == 2:  # nothing is projected away: samples keep their distances to the means
            samples = paths.features.isel(replicate=1, time=frame, sample=paths.label.values == 1)
            away = samples.values - class_mean(paths, 1, replicate=1)[frame]
            size = np.linalg.norm(away, axis=1) * (drawn / true)
            size /= np.linalg.norm(true_gap(paths, frame, replicate=1)) / true
            shown = np.asarray(ax.collections[1].get_offsets()) - points[1]
            np.testing.assert_allclose(
                np.sort(np.linalg.norm(shown, axis=1)), np.sort(size), rtol=1e-9, atol=1e-12
            )
    limit = ax.get_xlim()[1]
    film._func(2)
    assert all(np.abs(c.get_offsets()).max() <= limit for c in ax.collections[:n_classes])
    assert all((ax.get_xlabel(), ax.get_ylabel()))


def test_times_without_extent_are_left_out(tmp_path):
    paths = make_paths(times=4)
    paths["features"] = paths.features * (paths.time > 0)
    file = tmp_path / "a.gif"
    plot.animate(paths, file, dpi=30)
    with Image.open(file) as gif:
        assert gif.n_frames == 3


def test_progress_is_shown_when_asked_for(tmp_path, capsys):
    plot.animate(make_paths(times=3), tmp_path / "a.gif", dpi=30)
    assert capsys.readouterr().err == ""
    plot.animate(make_paths(times=3), tmp_path / "a.gif", dpi=30, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"file must end in \.gif; got 'a\.mp4'"):
        plot.animate(make_paths(), "a.mp4")
    with pytest.raises(ValueError, match="frames must be an integer of at least 2"):
        plot.animate(make_paths(), tmp_path / "a.gif", frames=1)
    with pytest.raises(ValueError, match="fps must be a finite number"):
        plot.animate(make_paths(), tmp_path / "a.gif", fps=0.0)
    with pytest.raises(ValueError, match="at least 2 times with class means that differ; got 1"):
        plot.animate(make_paths().isel(time=[3]), tmp_path / "a.gif")
