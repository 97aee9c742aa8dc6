"""The demonstration study on a small scale: what it writes, and that it survives interrupts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import lesde.networks
from lesde.files import read
from lesde.studies import DemoConfig, demo, load_config
from tests.plot.conftest import apart, tick_label_boxes
from tests.studies.conftest import DEMO as SMALL


def test_everything_is_written(demo_run: Path) -> None:
    names = {path.stem for path in (demo_run / "data").iterdir()}
    expected = {"fit_identity", "fit_logits", "simulated", "law", "comparison", "separation"}
    expected |= {"prediction", "convergence", "collapse_network", "collapse_l_model"}
    assert expected <= names
    pictures = {path.stem for path in (demo_run / "figures").glob("*.png")}
    assert {
        "fan",
        "simplex",
        "simplex3d",
        "elasticity_logits",
        "separation",
        "collapse",
    } <= pictures
    assert pictures == {path.stem for path in (demo_run / "figures").glob("*.pdf")}
    assert (demo_run / "figures" / "collapse.gif").exists()


def test_every_figure_of_the_report_exists(demo_run: Path) -> None:
    linked = re.findall(r"\]\((figures/[^)]+)\)", (demo_run / "report.md").read_text())
    assert len(linked) > 20
    for name in linked:
        assert (demo_run / name).exists(), name
        if name.endswith(".png"):
            assert (demo_run / name).stat().st_size > 1000, name


def test_the_report_prints_the_data(demo_run: Path) -> None:
    report = (demo_run / "report.md").read_text()
    comparison = read(demo_run / "data" / "comparison.zarr")
    numbers = report.split("## Numbers")[1]
    rows = [line for line in numbers.splitlines() if line.startswith("| L-model")]
    assert len(rows) == len(SMALL.learning_rates)
    for row, h in zip(rows, SMALL.learning_rates, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        error = float(comparison.mean_error.sel(model="L-model", learning_rate=h))
        assert float(cells[1]) == h
        assert float(cells[10]) == pytest.approx(error, rel=1e-3)


def test_the_report_begins_with_a_summary_and_has_the_columns(demo_run: Path) -> None:
    report = (demo_run / "report.md").read_text()
    headings = [line for line in report.splitlines() if line.startswith("#")]
    assert headings[1] == "## Summary"
    for source in ("network", "I-model", "L-model"):
        assert f"- **{source}**: P " in report
    header = next(
        line for line in report.splitlines() if line.startswith("| source | learning rate | P")
    )
    for column in ("NC1 rate", "NC2 rate", "R² common", "its s.e.", "P ≥ ½ from t"):
        assert f"| {column} |" in header


@pytest.mark.parametrize("figure", ["separation", "criteria", "collapse"])
def test_time_axes_of_the_figures_have_room_for_their_labels(demo_run: Path, figure: str) -> None:
    data = demo_run / "data"
    if figure == "separation":
        axes = demo.draw_separation(read(data / "separation.zarr"), read(data / "prediction.zarr"))
    elif figure == "criteria":
        axes = demo.draw_criteria(read(data / "separation.zarr"))
    else:
        names = ("network", "I-model", "L-model", "network, last hidden layer")
        axes = demo.draw_collapse({n: read(data / f"collapse_{demo.slug(n)}.zarr") for n in names})
    for ax in axes[-1]:
        assert ax.get_xscale() == "log"
        boxes = tick_label_boxes(ax, "x")
        assert len(boxes) >= 2
        assert apart(boxes, "x")
    plt.close("all")


def test_rates_of_all_sources_have_one_scale(demo_run: Path) -> None:
    axes = demo.draw_rates(read(demo_run / "data" / "convergence.zarr"))
    assert len({ax.get_ylim() for ax in axes.ravel()}) == 1
    plt.close("all")


def test_the_simulation_starts_at_the_networks_features(demo_run: Path) -> None:
    data = demo_run / "data"
    network = read(data / "network_logits_h0.04.zarr").isel(learning_rate=0)
    simulated = read(data / "simulated.zarr").sel(learning_rate=0.04, model="I-model")
    first = network.sel(time=simulated.time[0]).features.transpose("replicate", "sample", "feature")
    start = simulated.isel(time=0).features.transpose("replicate", "sample", "feature")
    # Both are float32; class means and deviations are added there, so that small numbers have the rounding of large ones.
    np.testing.assert_allclose(start.values[:: SMALL.copies], first.values, rtol=1e-6, atol=1e-7)


def test_prediction_agrees_with_the_simulated_model(demo_run: Path) -> None:
    """Null: simulated pairwise probabilities are the predicted ones, 5 standard errors."""
    data = demo_run / "data"
    prediction, counted = read(data / "prediction.zarr"), read(data / "separation.zarr")
    R = SMALL.copies * SMALL.replicates
    for model in ("I-model", "L-model"):
        P = prediction.pairwise.sel(model=model)
        seen = counted.pairwise.sel(source=model, criterion="projection").sel(time=P.time)
        seen = seen.transpose(*P.dims)
        off = ~np.isnan(P.values)
        error = np.sqrt(np.maximum(P.values * (1 - P.values), 1 / R) / R)
        assert (np.abs(seen.values - P.values)[off] <= 5 * error[off]).all()


def test_an_interrupt_leaves_what_is_done_and_a_second_run_continues(
    demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, trained, most = lesde.networks.record_ensemble, [], 2

    def watched(data, network, rates, *rest, **options):
        if len(trained) == most:
            raise KeyboardInterrupt
        trained.extend(rates)
        return whole(data, network, rates, *rest, **options)

    monkeypatch.setattr(lesde.networks, "record_ensemble", watched)
    with pytest.raises(KeyboardInterrupt):
        demo.run(SMALL, tmp_path)
    assert trained == [0.02, 0.04]
    assert np.isfinite(read(tmp_path / "data" / "network_logits_h0.04.zarr").features).all()
    assert not (tmp_path / "data" / "network_logits_h0.08.zarr").exists()
    assert "8 networks (64-8-4, ReLU)" in (tmp_path / "report.md").read_text()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    trained.clear()
    monkeypatch.setattr(lesde, "fit_elasticity", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(SMALL, tmp_path)
    assert trained == [0.08]
    once, resumed = (
        read(out / "data" / "network_logits_h0.08.zarr") for out in (demo_run, tmp_path)
    )
    np.testing.assert_array_equal(once.features, resumed.features)


def test_another_study_is_not_overwritten(demo_run: Path) -> None:
    with pytest.raises(ValueError, match="holds a study with other settings"):
        demo.run(SMALL.model_copy(update={"seed": 1}), demo_run)


def test_settings_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"replicates": 12}))
    assert load_config(DemoConfig, file, {"seed": 3, "copies": None}) == DemoConfig(
        replicates=12, seed=3
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicates": 0}, r"replicates: .*greater than or equal to 2, got 0"),
        ({"replicate": 8}, r"replicate: Extra inputs .*Known settings: .*replicates"),
        ({"classes": [0, 1, 2]}, r"classes: .*at least 4 items"),
        ({"classes": [0, 0, 1, 11]}, r"together: classes must be different from one another"),
        ({"classes": [0, 1, 2, 11]}, r"together: classes must be digits from 0 to 9"),
        ({"learning_rates": [0.1, -1]}, r"learning_rates.1: .*greater than 0, got -1"),
        ({"model_start": 99}, r"together: total_time must leave at least 8 iterations"),
        ([1], r"--config must be a JSON file with settings; .*"),
        ({"learning_rates": []}, r"learning_rates: .*at least 1 item"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, given: object, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(given))
    with pytest.raises(ValueError, match=message):
        load_config(DemoConfig, file)


def test_noise_estimate_of_a_known_system() -> None:
    """σ̂ from simulated paths is σ: within-class variance grows by σ²t whatever the kernel."""
    model = lesde.LESDE(lesde.TwoLevel("2/(1+t)", -1), 4, 4, 50, noise=0.3)
    paths = lesde.simulate(model, np.linspace(0, 4, 9), initial=np.eye(4), replicates=64)
    sigma, explained = demo.within_noise(paths)
    # 64·4·49·4 independent normals: the variance is known to √(2/50176), σ to half of that.
    assert sigma == pytest.approx(0.3, rel=5 * 0.5 * np.sqrt(2 / 50176) * 2)
    assert explained > 0.99
