"""The folder of a study: one seed, and nothing of anybody else's is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import xarray as xr
from typer.testing import CliRunner

import lesde.networks
from lesde.cli.commands import app
from lesde.studies import RateConfig
from lesde.studies.digits import network_cells
from lesde.studies.folder import StudyFolder
from lesde.studies.runner import Runner
from tests.studies.conftest import RATES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture(scope="module")
def settings(configs: Path) -> dict[str, tuple[str, ...]]:
    """Commands of small studies."""
    return {
        "rates": ("rates", "--config", str(configs / "rates.json")),
        "reproduce": ("reproduce", "fig1", "--config", str(configs / "reproduce.json")),
        "demo": ("demo",),
    }


@pytest.fixture
def finished(rates_run: Path, tmp_path: Path) -> Path:
    """A copy of the study of learning rates."""
    return Path(shutil.copytree(rates_run, tmp_path / "finished"))


@pytest.mark.parametrize(
    ("study", "name"),
    [
        ("rates", "report.md"),
        ("rates", "figures/networks.png"),
        ("rates", "data/comparison.csv"),
        ("rates", "data/comparison.zarr"),
        ("reproduce", "report.md"),
        ("reproduce", "data/fig1.csv"),
        ("reproduce", "data/fig1.zarr"),
        ("reproduce", "figures/fig1.pdf"),
        ("reproduce", "data/protocol.json"),
        ("demo", "figures/collapse.gif"),
        ("demo", "config.json"),
        ("rates", "data"),
        ("demo", "figures"),
    ],
)
def test_foreign_files_are_named_before_anything_is_trained(
    study: str,
    name: str,
    settings: dict[str, tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(lesde.networks, "record_ensemble", trained)
    monkeypatch.setattr(lesde.networks, "training_time", trained)
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if place.suffix == ".zarr":
        xr.Dataset({"x": ("i", [1.0])}).to_zarr(place, consolidated=False)
    else:
        place.write_text('{"mine": 1}')
    before = contents(tmp_path)
    code, said = run(*settings[study], "--out", tmp_path)
    assert code == 2, said
    assert said.startswith("error: --out")
    assert str(tmp_path) in said
    assert name.split("/")[0] in said
    assert contents(tmp_path) == before


def test_the_folder_of_another_study_is_refused(
    finished: Path, settings: dict[str, tuple[str, ...]]
) -> None:
    before = contents(finished)
    for study, reason in (("reproduce", "protocol.json is not"), ("demo", "other settings")):
        code, said = run(*settings[study], "--out", finished)
        assert (code, contents(finished)) == (2, before)
        assert reason in said
    assert run(*settings["rates"], "--out", finished)[0] == 0


def test_two_seeds_at_once(
    settings: dict[str, tuple[str, ...]], finished: Path, tmp_path: Path
) -> None:
    """The other is refused while the first trains, and after it was killed there; the first can go on."""
    script = textwrap.dedent(
        """
        import sys, time
        import lesde.networks
        def wait(*_, **__):
            print("training", flush=True)
            time.sleep(100)
        lesde.networks.record_ensemble = lesde.networks.training_time = wait
        from lesde.cli.commands import app
        app(sys.argv[1:])
        """
    )
    words = [*settings["rates"], "--out", str(tmp_path / "out")]
    first = subprocess.Popen(
        [sys.executable, "-c", script, *words, "--seed", "0"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "training\n"
    before = contents(tmp_path)
    code, said = run(*words, "--seed", "1")
    assert code == 2
    assert "seed = 0, not 1" in said
    assert contents(tmp_path) == before
    first.kill()
    first.wait()
    first.stdout.close()
    # The folder stays that of its seed.
    assert "seed = 0, not 1" in run(*words, "--seed", "1")[1]
    code, said = run(*words, "--seed", "0")
    assert code == 0, said
    found, whole = contents(tmp_path / "out"), contents(finished)
    for names in (found, whole):
        for name in [name for name in names if name.startswith(".lesde-study")]:
            del names[name]
    assert len(whole) > 20
    assert found == whole


def test_settings_are_checked_in_every_store_that_is_read(
    settings: dict[str, tuple[str, ...]], reproduce_run: tuple[Path, str], tmp_path: Path
) -> None:
    """A store of another seed among those of one: the mixture that two runs at once used to leave."""
    out = shutil.copytree(reproduce_run[0], tmp_path / "out")
    words = (*settings["reproduce"], "--out", out)
    file = out / "data" / "train_p0.0_0-1.zarr" / "zarr.json"
    root = json.loads(file.read_text())
    held = json.loads(root["attributes"]["lesde_study"])
    assert held["seed"] == 0
    for study, why in (
        (held | {"seed": 1}, "was made with other settings (seed = 1, not 0)"),
        (held | {"learning_rate": 0.5}, "was made with other settings (learning_rate = 0.5, not"),
    ):
        root["attributes"]["lesde_study"] = json.dumps(study)
        file.write_text(json.dumps(root))
        code, said = run(*words)
        assert code == 2
        assert f"train_p0.0_0-1.zarr {why}" in said


def test_learning_rates_that_differ_in_the_tenth_digit_have_their_own_stores(
    tmp_path: Path,
) -> None:
    rates = (0.04, 0.04000000001, 0.08)
    config = RateConfig(**RATES | {"learning_rates": rates})
    folder = StudyFolder(tmp_path, "rates", config).begun()
    Runner(folder, network_cells(config)).compute(["network"])
    found = {}
    for store in (tmp_path / "data").glob("network_logits_*.zarr"):
        with xr.open_zarr(store, consolidated=False) as dataset:
            found[store.stem] = dataset["learning_rate"].values.tolist()
    assert sorted(found.values()) == [[rate] for rate in rates]
    assert all(stem.endswith(f"_h{rate[0]!r}") for stem, rate in found.items())


def test_learning_rates_without_a_time_in_common_are_told_apart(tmp_path: Path) -> None:
    """In whole steps of each, 0.02 and 0.020000001 meet at 400,000.02 for the first time."""
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(RATES | {"learning_rates": [0.02, 0.020000001]}))
    code, said = run("rates", "--config", config, "--out", tmp_path / "out")
    assert code == 2
    assert "learning_rates must share iterations up to total = 4" in said
    assert "those of 0.02, 0.020000001 first meet at" in said


NURSERY = textwrap.dedent(
    """
    import os, signal, sys
    from typer.testing import CliRunner
    import lesde, lesde.plot, lesde.networks, lesde.studies.rates, lesde.studies.reproduce
    from lesde.cli.commands import app

    out, share, words = sys.argv[1], sys.argv[2:-1], sys.argv[-1].split("|")
    def child(folder, last):
        process = os.fork()
        if process:
            return os.waitpid(process, 0)[1]
        log, seen = os.open(folder + ".events", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 0
        def hook(event, arguments):
            nonlocal seen
            if event != "open" and not event.startswith(("os.", "shutil.", "tempfile.")):
                return
            if any(isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(folder + "/") for a in arguments):
                seen += 1
                os.write(log, b"x")
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        os._exit(CliRunner().invoke(app, [*words, "--out", folder]).exit_code)

    assert child(out + "/whole", 0) == 0
    events = os.path.getsize(out + "/whole.events")
    for part in share:  # killed again and again, at shares of what is left
        assert child(out + "/killed", max(1, int(float(part) * events))) == signal.SIGKILL, part
    assert child(out + "/killed", 0) == 0
    """
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are made in forked processes")
@pytest.mark.parametrize(
    ("study", "shares"),
    [
        ("rates", ["0.2", "0.4"]),
        ("reproduce", ["0.3", "0.3"]),
        ("rates", [f"0.{n:02d}" for n in range(1, 30)]),
        ("reproduce", [f"0.{n:02d}" for n in range(1, 30)]),
    ],
)
def test_a_study_that_was_killed_goes_on_to_the_same_numbers(
    study: str, shares: list[str], settings: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", NURSERY, str(tmp_path), *shares, "|".join(settings[study])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    for found in (whole, killed):
        for name in [n for n in found if ".lesde-" in n]:
            del found[name]
    assert len(whole) > 20
    assert killed == whole


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_an_interrupt_is_one_line_and_keeps_what_is_done(
    settings: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    script = (
        "import signal, sys, time\n"
        "import lesde.networks\n"
        "from lesde import cli\n"
        # Started in the background of a script, tests inherit that it is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*_, **__):\n"
        "    print('training', flush=True); time.sleep(100)\n"
        "lesde.networks.record_ensemble = wait\n"
        "sys.argv[0] = 'lesde'\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *settings["rates"], "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.strip().startswith("interrupted; what was done is in ")
    assert len(error.strip().splitlines()) == 1
    assert (tmp_path / "out" / "report.md").exists()
