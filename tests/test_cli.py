"""The command line: every command runs, and every mistake is one line."""

from __future__ import annotations

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lesde.cli.commands import app

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
    for command in (
        "derive",
        "simulate",
        "separation",
        "collapse",
        "fit",
        "plot",
        "demo",
        "rates",
        "reproduce",
    ):
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
    from lesde.files import read

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


def test_settings_of_the_integrator_select_it(tmp_path: Path) -> None:
    from lesde.files import read

    short = ["--until", "1", "--points", "3", "--replicates", "4"]
    settings = ["--dt", "0.25", "--method", "srk"]
    assert lesde("simulate", str(tmp_path / "a.zarr"), *MODEL, *short, *settings).exit_code == 0
    found = read(tmp_path / "a.zarr").attrs
    assert (found["engine"], found["dt"], found["method"]) == ("torchsde", 0.25, "srk")
    settings = ["--sde", "modified", "--learning-rate", "0.1"]
    assert lesde("simulate", str(tmp_path / "b.zarr"), *MODEL, *short, *settings).exit_code == 0
    assert read(tmp_path / "b.zarr").attrs["sde"] == "modified"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["derive", "--alpha", "2/(1+x)"], "unknown symbol 'x'"),
        (["derive", "--alpha", "2/(1+"], "syntax error"),
        (["derive", "--transform", "logit"], "Did you mean 'logits'?"),
        (["derive", "--classes", "0"], "--classes must be an integer of at least 1"),
        (["derive", "--per-class", "5,x"], "--per-class must be an integer"),
        (["simulate", "x.zarr", "--alpha", "400", "--beta", "0"], "stopped being finite at time"),
        (["simulate", "x.zarr"], "--alpha must be given"),
        (["simulate", "x.zarr", "--beta", "-1"], "--alpha must be given"),
        (
            ["simulate", "x.zarr", *MODEL, "--memory-limit", "1KB"],
            "more than the 1 kB of --memory-limit",
        ),
        (
            ["simulate", "x.zarr", *MODEL, "--dt", "0.1", "--engine", "sgd"],
            "--method, --dt and --sde are for --engine torchsde; got --engine sgd",
        ),
        (["simulate", "x.zarr", *MODEL, "--sde", "other"], "--sde must be one of"),
        (["simulate", "x.zarr", *MODEL, "--sde", "sampling"], "got no --learning-rate"),
        (["simulate", "x.zarr", *MODEL, "--learning-rate", "0"], "--learning-rate must be"),
        (["simulate", "x.zarr", *MODEL, "--engine", "sgd"], "got no --learning-rate"),
        (["simulate", "x.zarr", *MODEL, "--until", "-1"], "--until must be later than --start = 0"),
        (
            ["simulate", "x.zarr", "--alpha", "a", "--beta", "1", "--parameter", "a"],
            "Give numbers with --parameter NAME=NUMBER",
        ),
        (["derive", "--strength", "a*s*exp(-r2)"], "--parameter a=NUMBER"),
        (["derive", "--alpha", "a", "--parameter", "a=x"], "--parameter must be NAME=NUMBER"),
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


def test_parameters_of_formulas() -> None:
    given = lesde(
        "derive", "--alpha", "a/(1+t)", "--beta", "b", "--parameter", "a=2", "--parameter", "b=-1"
    )
    plain = lesde("derive", "--alpha", "2/(1+t)", "--beta", "-1")
    assert given.exit_code == 0, given.output
    assert given.output == plain.output
    open_name = lesde("derive", "--strength", "a*s*exp(-r2)", "--parameter", "a")
    assert open_name.exit_code == 0, open_name.output
    assert "a⋅s" in open_name.output


def test_parameters_reach_the_simulation_and_its_noise(tmp_path: Path) -> None:
    from lesde.files import read

    short = ["--per-class", "4", "--points", "3", "--until", "1", "--replicates", "4"]
    formulas = ["--alpha", "a", "--beta", "-1", "--noise", "a*t", "--parameter", "a=0.5"]
    assert lesde("simulate", str(tmp_path / "a.zarr"), *formulas, *short).exit_code == 0
    numbers = ["--alpha", "0.5", "--beta", "-1", "--noise", "t/2"]
    assert lesde("simulate", str(tmp_path / "b.zarr"), *numbers, *short).exit_code == 0
    one, two = read(tmp_path / "a.zarr"), read(tmp_path / "b.zarr")
    assert bool((one.features == two.features).all())


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "logits.zarr"
    result = lesde(
        "simulate", str(out), *MODEL, "--transform", "logits", "--until", "3", "--points", "51",
        "--replicates", "32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out


def test_fit_takes_the_recorded_transform(logits: Path, tmp_path: Path) -> None:
    """Null: A(3) = 12 and B(3) = −3 within 5 standard errors; 32 replicates, seed 0."""
    from lesde.files import read

    result = lesde("fit", str(logits), "--out", str(tmp_path / "fit.zarr"))
    assert result.exit_code == 0, result.output
    assert "Fitted elasticity (logits)" in result.output
    fit = read(tmp_path / "fit.zarr").isel(time=-1)
    assert abs(float(fit.A) - 12) < 5 * float(fit.A_se)
    assert abs(float(fit.B) + 3) < 5 * float(fit.B_se)
    with pytest.warns(UserWarning, match="transform='logits' by their attributes"):
        wrong = lesde(
            "fit", str(logits), "--transform", "identity", "--out", str(tmp_path / "i.zarr")
        )
    assert wrong.exit_code == 0
    bad = read(tmp_path / "i.zarr").isel(time=-1)
    assert abs(float(bad.B) + 3) > 20 * float(bad.B_se)


def test_the_figure_of_elasticity_takes_the_recorded_transform(
    paths: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    out = str(tmp_path / "figure.png")
    assert lesde("plot", "elasticity", str(paths), "--out", out).exit_code == 0
    assert not [w for w in recwarn if "by their attributes" in str(w.message)]
    lesde("plot", "elasticity", str(paths), "--out", out, "--transform", "logits", "--overwrite")
    assert [w for w in recwarn if "by their attributes" in str(w.message)]


def test_fit_prints_rates_and_tail_indices_with_errors(paths: Path) -> None:
    output = lesde("fit", str(paths)).output
    for name in ("A_se", "alpha_se", "beta_se", "tail_index_lower", "tail_index_upper"):
        assert name in output
    assert "Tail index r from t = " in output
    assert "95% intervals" in output


def test_a_fit_is_no_csv_file(paths: Path, tmp_path: Path) -> None:
    result = lesde("fit", str(paths), "--out", str(tmp_path / "fit.csv"))
    assert result.exit_code == 2
    assert "--out must be a Zarr store" in result.output


def times_of(output: str) -> list[float]:
    """First column of the first table."""
    rows = output.split("─ \n", 1)[1].splitlines()
    return [float(row.split()[0]) for row in takewhile(str.strip, rows)]


def test_tables_are_thinned_evenly_or_whole(logits: Path) -> None:
    import numpy as np

    thinned = times_of(lesde("separation", str(logits)).output)
    assert thinned[0] == 0
    assert thinned[-1] == 3
    gaps = np.diff(thinned[:-1])
    assert len(thinned) <= 25
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-9)
    for command in ("separation", "collapse", "fit"):
        whole = times_of(lesde(command, str(logits), "--all").output)
        np.testing.assert_allclose(whole, np.linspace(0, 3, 51), atol=1e-3)


def test_tables_go_to_files(logits: Path, tmp_path: Path) -> None:
    import numpy as np
    import pandas as pd

    import lesde as package
    from lesde.files import read

    whole = read(logits)
    wanted = package.separation_probability(whole)
    assert lesde("separation", str(logits), "--out", str(tmp_path / "s.csv")).exit_code == 0
    table = pd.read_csv(tmp_path / "s.csv")
    assert list(table.columns) == ["time", "probability", "lower", "upper"]
    np.testing.assert_array_equal(table.lower, wanted.lower)
    np.testing.assert_array_equal(table.time, whole.time)
    assert lesde("separation", str(logits), "--out", str(tmp_path / "s.zarr")).exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "s.zarr").pairwise, wanted.pairwise)

    metrics = package.neural_collapse(whole)
    assert lesde("collapse", str(logits), "--out", str(tmp_path / "c.csv")).exit_code == 0
    medians = pd.read_csv(tmp_path / "c.csv")
    np.testing.assert_allclose(medians.nc1, metrics.nc1.median("replicate"), rtol=1e-12)
    assert lesde("collapse", str(logits), "--out", str(tmp_path / "c.zarr")).exit_code == 0
    assert read(tmp_path / "c.zarr").sizes["replicate"] == 32

    refused = lesde("collapse", str(logits), "--out", str(tmp_path / "c.txt"))
    assert refused.exit_code == 2
    assert "--out must end in .csv or .zarr" in refused.output


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    terminal: bool, paths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lesde.cli import commands as cli

    assert not CliRunner().invoke(app, ["--version"]).stderr
    if terminal:
        monkeypatch.setattr(cli, "_on_terminal", lambda: True)
    short = ["--until", "1", "--points", "5", "--replicates", "4"]
    made = lesde("simulate", str(tmp_path / "x.zarr"), *MODEL, *short)
    drawn = lesde("plot", "animation", str(tmp_path / "x.zarr"), "--out", str(tmp_path / "x.gif"))
    assert made.exit_code == drawn.exit_code == 0
    assert ("frame" in made.stderr) is terminal
    assert ("frame" in drawn.stderr) is terminal
