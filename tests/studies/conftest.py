"""One small run of each study, which all tests of studies share; figures are drawn small and once."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from lesde.studies import DemoConfig, RateConfig, demo, rates, reproduce

DEMO = DemoConfig(
    train_per_class=20,
    probe_per_class=8,
    widths=(8,),
    learning_rates=(0.02, 0.04, 0.08),
    replicates=8,
    total_time=8.0,
    saved_times=12,
    model_start=0.5,
    fit_every=1,
    copies=2,
    predicted_times=3,
)
RATES: dict[str, Any] = {
    **{"train_per_class": 20, "probe_per_class": 8, "widths": [8], "learning_rates": [0.04, 0.08]},
    **{"replicates": 8, "total_time": 4.0, "saved_times": 8, "model_start": 0.5, "draws": 4},
}
# Images and steps are few, the learning rate is large: the networks learn something of the shapes.
TINY: dict[str, Any] = {
    **{"train_per_class": 20, "validation_per_class": 10, "learning_rate": 0.03, "trials": 3},
    **{"iterations": 500, "noise_levels": [0.0, 0.8], "batch": 2, "recordings": 5, "windows": 8},
}


@pytest.fixture(scope="session", autouse=True)
def small_figures() -> Iterator[None]:
    """PNG files are drawn with few dots, PDF files are not drawn, and animations have few frames."""
    whole, film = plt.Figure.savefig, demo.plot.animate

    def save(figure: plt.Figure, file: Any, **options: Any) -> None:
        if str(file).endswith(".pdf"):
            Path(file).write_bytes(b"not drawn")
        else:
            whole(
                figure, file, **(options | {"dpi": 20} if isinstance(file, str | Path) else options)
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt.Figure, "savefig", save)
        patch.setattr(
            demo.plot, "animate", lambda *a, **k: film(*a, **(k | {"frames": 2, "dpi": 20}))
        )
        yield


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings of the small studies, as files."""
    home = tmp_path_factory.mktemp("settings")
    (home / "rates.json").write_text(json.dumps(RATES))
    (home / "reproduce.json").write_text(json.dumps(TINY))
    return home


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    demo.run(DEMO, out)
    return out


@pytest.fixture(scope="session")
def rates_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rates") / "run"
    rates.run(RateConfig(**RATES), out)
    return out


@pytest.fixture(scope="session")
def reproduce_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with all figures, and what was printed."""
    out, printed = tmp_path_factory.mktemp("reproduce") / "run", io.StringIO()
    with redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three trials of few steps leave rates undetermined
        reproduce.run(reproduce.FIGURES, reproduce.load_protocol("quick", TINY), out)
    return out, printed.getvalue()
