"""The command line: every command runs, and every mistake is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lesde.cli import app

MODEL = ["--alpha", "4", "--beta", "-1", "--classes", "3", "--per-class", "8", "--noise", "0.3"]


def lesde(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "paths.zarr"
    result = lesde(
        "simulate", str(out), *MODEL, "--until", "2", "--points", "9", "--replicates", "8"
    )
    assert result.exit_code == 0, result.output
    return out


def test_help_names_every_command_and_an_example() -> None:
    result = lesde("--help")
    assert result.exit_code == 0
    for command in ("derive", "simulate", "separation", "collapse", "fit", "plot", "demo"):
        assert command in result.output
        page = lesde(command, "--help").output
        assert "Example" in page, command
    assert "Example" in result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import lesde.cli; "
        "heavy = {'torch', 'sympy', 'matplotlib', 'xarray', 'scipy', 'sklearn', 'numpy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_version() -> None:
    import lesde as package

    assert lesde("--version").output.strip() == package.__version__


def test_derive_prints_the_derivation() -> None:
    result = lesde(
        "derive", "--alpha", "2/(1+t)", "--beta", "-0.5", "--classes", "4", "--transform", "logits"
    )
    assert result.exit_code == 0
    for expected in ("Drift", "Modes of the mean ODE", "multiplicity 3", "c_crit = 2"):
        assert expected in result.output


def test_derive_without_values_keeps_symbols() -> None:
    assert "α(t)" in lesde("derive", "--classes", "3").output


def test_derive_latex_is_a_document() -> None:
    output = lesde("derive", "--alpha", "2", "--beta", "-1", "--latex").output
    assert output.startswith("\\documentclass")
    assert output.rstrip().endswith("\\end{document}")


def test_label_noise_reaches_the_derivation() -> None:
    clean = lesde("derive", "--alpha", "2", "--beta", "-1", "--classes", "3").output
    noisy = lesde(
        "derive", "--alpha", "2", "--beta", "-1", "--classes", "3", "--label-noise", "0.2"
    ).output
    assert "c_crit = 3/2" in clean
    # K / (2 (1 − p K/(K−1))) with K = 3, p = 1/5
    assert "c_crit = 15/7" in noisy


def test_separation_table(paths: Path) -> None:
    result = lesde("separation", str(paths))
    assert result.exit_code == 0, result.output
    assert "probability" in result.output


def test_collapse_table(paths: Path) -> None:
    result = lesde("collapse", str(paths))
    assert result.exit_code == 0, result.output
    assert "nc1" in result.output
    assert "rate" in result.output


def test_fit_table_and_store(paths: Path, tmp_path: Path) -> None:
    result = lesde("fit", str(paths), "--out", str(tmp_path / "fit.zarr"))
    assert result.exit_code == 0, result.output
    from lesde.study.store import read

    assert "alpha" in read(tmp_path / "fit.zarr")


@pytest.mark.parametrize("figure", ["fan", "simplex", "collapse", "probability", "elasticity"])
def test_plot(paths: Path, tmp_path: Path, figure: str) -> None:
    out = tmp_path / f"{figure}.png"
    result = lesde("plot", figure, str(paths), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_plot_animation(paths: Path, tmp_path: Path) -> None:
    out = tmp_path / "film.gif"
    assert lesde("plot", "animation", str(paths), "--out", str(out)).exit_code == 0
    assert out.read_bytes().startswith(b"GIF8")


def test_learning_rates_select_the_discrete_process(tmp_path: Path) -> None:
    out = tmp_path / "sgd.zarr"
    rates = ["--learning-rate", "0.05", "--learning-rate", "0.1"]
    result = lesde("simulate", str(out), *MODEL, *rates, "--until", "1", "--points", "6")
    assert result.exit_code == 0, result.output
    assert "engine sgd" in result.output
    assert "learning_rate 2" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["derive", "--alpha", "2/(1+x)"], "unknown symbol 'x'"),
        (["derive", "--alpha", "2/(1+"], "syntax error"),
        (["derive", "--transform", "logit"], "Did you mean 'logits'?"),
        (["derive", "--classes", "0"], "n_classes must be an integer of at least 1"),
        (["derive", "--per-class", "5,x"], "--per-class must be an integer"),
        (["simulate", "x.zarr", "--alpha", "400", "--beta", "0"], "stopped being finite at time"),
        (["simulate", "x.zarr"], "has no value for alpha"),
        (["separation", "nowhere.zarr"], "nowhere.zarr does not exist"),
        (["demo", "--config", "nowhere.json"], "--config must be a JSON file"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = lesde(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "x.zarr").exists()


def test_an_existing_store_is_kept(paths: Path) -> None:
    result = lesde("simulate", str(paths), *MODEL)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
