"""What commands write: nothing of the user's is removed, and a kill at any moment leaves the old or the new."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

import lesde.plot
from lesde.cli.commands import app
from lesde.files import read, write

SMALL = [
    *("--alpha", "2", "--beta", "-1", "--classes", "3", "--per-class", "5", "--noise", "0.3"),
    *("--until", "1", "--points", "8", "--replicates", "8"),
]


def run(*words: str | Path) -> tuple[int, str]:
    """Exit code, and what was said, in one line; a traceback fails."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def refused(*words: str | Path) -> str:
    code, said = run(*words)
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("error:") == 1
    return said


def contents(folder: Path) -> dict[str, str]:
    """Every name below a folder, with a digest of every file."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else ""
        for p in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "paths.zarr"
    assert run("simulate", out, *SMALL)[0] == 0
    return out


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user, with a thesis, files, and stores that no command wrote."""
    subprocess.run(["cp", "-r", str(made), str(tmp_path / "paths.zarr")], check=True)
    (tmp_path / "mine" / "thesis").mkdir(parents=True)
    (tmp_path / "mine" / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "bare").mkdir()
    (tmp_path / "notes").write_text("notes")
    (tmp_path / "d.csv").mkdir()
    (tmp_path / "f.png").mkdir()
    # A store of the user's, made of what was read from one of a command's, attributes and all.
    with xr.open_zarr(made, consolidated=False) as paths:
        changed = paths.load().assign(features=paths.features + 1.0)
    for name in changed.variables:
        changed[name].encoding.clear()
    changed.to_zarr(tmp_path / "mine.zarr", consolidated=False)
    subprocess.run(["cp", "-r", str(made), str(tmp_path / "grown.zarr")], check=True)
    (tmp_path / "grown.zarr" / "thesis").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = [
    ("simulate", "{}", *SMALL),
    ("fit", "paths.zarr", "--out", "{}"),
    ("collapse", "paths.zarr", "--out", "{}"),
    ("separation", "paths.zarr", "--out", "{}"),
    ("plot", "fan", "paths.zarr", "--out", "{}"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_what_a_user_has_is_refused_and_stays(words: tuple[str, ...], home: Path) -> None:
    before = contents(home)
    names = ["mine", "bare", "notes", "mine.zarr", "grown.zarr", "d.csv", "f.png", "paths.zarr"]
    names += [
        ".",
        "..",
        str(home),
        "notes/x.zarr",
        "notes/x.csv",
        "paths.zarr/x.zarr",
        "paths.zarr/x.csv",
    ]
    for name in names:
        for flag in ((), ("--overwrite",)):
            if words[0] == "simulate" and name == "paths.zarr" and flag:
                continue  # a store that simulate wrote
            refused(*(word.format(name) for word in words), *flag)
    assert contents(home) == before


def test_the_input_is_refused_by_any_name(home: Path) -> None:
    (home / "link.zarr").symlink_to("paths.zarr")
    before = contents(home)
    for name in ("paths.zarr", "./paths.zarr", str(home / "paths.zarr"), "link.zarr"):
        assert "is the input" in refused("collapse", "paths.zarr", "--out", name, "--overwrite")
        assert "is inside" in refused(
            "fit", "paths.zarr", "--out", f"{name}/fit.zarr", "--overwrite"
        )
    assert "is the input" in refused("fit", "link.zarr", "--out", "paths.zarr", "--overwrite")
    assert contents(home) == before


@pytest.mark.parametrize(
    ("words", "name"), [(COMMANDS[2], "c.csv"), (COMMANDS[3], "s.zarr"), (COMMANDS[4], "f.pdf")]
)
def test_overwrite_is_needed_and_replaces(words: tuple[str, ...], name: str, home: Path) -> None:
    command = [word.format(name) for word in words]
    assert run(*command)[0] == 0
    assert "--overwrite" in refused(*command)
    if (home / name).is_file():
        (home / name).write_text("old")
    code, said = run(*command, "--overwrite")
    assert code == 0, said
    assert not (home / name).is_file() or (home / name).read_bytes()[:3] != b"old"
    assert [p.name for p in home.iterdir() if p.name.startswith(".")] == []


def test_a_link_stays_and_what_it_names_is_replaced(home: Path) -> None:
    (home / "store").mkdir()
    (home / "store" / "s.csv").write_text("old")
    (home / "s.csv").symlink_to("store/s.csv")
    assert run("separation", "paths.zarr", "--out", "s.csv", "--overwrite")[0] == 0
    assert (home / "s.csv").is_symlink()
    assert (home / "store" / "s.csv").read_text().startswith("time,")


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_impossible_names_are_refused_before_computing(
    words: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lesde as package

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    for name in ("simulate", "fit_elasticity", "neural_collapse", "separation_probability"):
        monkeypatch.setattr(package, name, computed)
    ending = {"simulate": "zarr", "fit": "zarr", "plot": "png"}.get(words[0], "csv")
    before = contents(home)
    names = {f"notes/x.{ending}": "is no folder", f"notes/a/b.{ending}": "is no folder"}
    # One byte more than file systems take; in the second, characters of two bytes.
    names |= {"n" * (256 - len(ending) - 1) + f".{ending}": "too long"}
    names |= {
        "é" * 126 + f".{ending}": "too long",
        "n" * 256 + f"/x.{ending}": "too long",
    }
    if sys.platform == "linux":
        names[f"/sys/x.{ending}"] = "cannot be written"
        names[f"/proc/new/x.{ending}"] = "cannot be written"
    for name, why in names.items():
        said = refused(*(word.format(name) for word in words))
        assert any(part in said for part in why.split("|")), said
    assert contents(home) == before


def test_names_of_255_bytes_are_written(home: Path) -> None:
    name = "n" * 250 + ".zarr"
    assert run("simulate", name, *SMALL)[0] == 0
    assert run("simulate", name, *SMALL, "--overwrite")[0] == 0
    assert run("separation", name, "--out", "n" * 251 + ".csv")[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "{}.zarr", *SMALL),
        ("simulate", "paths.zarr", *SMALL, "--overwrite"),
        ("fit", "paths.zarr", "--out", "{}.zarr"),
        ("collapse", "paths.zarr", "--out", "{}.csv"),
        ("separation", "paths.zarr", "--out", "{}.zarr"),
        ("plot", "fan", "paths.zarr", "--out", "{}.png"),
        ("plot", "animation", "paths.zarr", "--out", "{}.gif"),
    ],
)
def test_a_disk_that_is_full_leaves_nothing(words: tuple[str, ...], home: Path) -> None:
    """Files of more than 200 bytes cannot be written: as on a full disk, writing fails in the middle."""
    import resource
    import signal

    before = contents(home)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        code, said = run(*(word.format("x") for word in words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    assert "File too large" in said
    assert said.count("error:") == 1
    assert contents(home) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_disk_that_is_full_in_the_middle_of_an_array_is_said(tmp_path: Path) -> None:
    limited = (
        "import resource, runpy, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "runpy.run_module('lesde.cli', run_name='__main__')\n"
    )
    words = ["simulate", "big.zarr", "--alpha", "2", "--beta", "-1", "--per-class", "300"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *words, "--replicates", "20", "--points", "50"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("error: File too large: big.zarr.\n")
    assert (done.returncode, (tmp_path / "big.zarr").exists()) == (2, False)


def test_figures_of_python_are_whole_or_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = plt.figure()
    lesde.plot.save(figure, tmp_path / "a.pdf")
    before = contents(tmp_path)

    def broken(self: object, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(plt.Figure, "savefig", broken)
        with pytest.raises(OSError, match=r"No space left on device: '.*a\.pdf'"):
            lesde.plot.save(figure, tmp_path / "a.pdf")
    assert contents(tmp_path) == before
    (tmp_path / "c.png").mkdir()
    with pytest.raises(ValueError, match=r"c\.png is no ordinary file"):
        lesde.plot.save(figure, tmp_path / "c.png")
    lesde.plot.save(figure, tmp_path / "a.pdf")
    plt.close(figure)


NURSERY = textwrap.dedent(
    """
    import json, os, shutil, signal, sys
    from pathlib import Path
    from typer.testing import CliRunner
    import lesde, lesde.files
    from lesde.cli.commands import app

    lesde.simulate(lesde.LESDE(lesde.TwoLevel(1.0, 0.0), 2, 2, 2), [0, 1.0], [[0.0, 1.0], [1.0, 0.0]], 1)

    home, old, wanted, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    target = home / "paths.zarr"

    def child(last):
        # Killed at its event number `last` on the disk; 0 for never. What happened is noted.
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(old, target)
        process = os.fork()
        if process:
            return os.waitpid(process, 0)[1]
        log = os.open(home / "events", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        seen = 0
        def hook(event, arguments):
            nonlocal seen
            if event != "open" and not event.startswith(("os.", "shutil.", "tempfile.")):
                return
            names = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
            if not any(name.startswith(str(home)) for name in names) or str(home / "events") in names:
                return
            seen += 1
            os.write(log, (json.dumps([event, *names]) + "\\n").encode())
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        os._exit(CliRunner().invoke(app, words).exit_code)

    assert child(0) == 0
    shutil.copytree(target, home.parent / "new")
    events = [json.loads(line) for line in (home / "events").read_text().splitlines()]
    if wanted == "all":
        chosen = range(1, len(events) + 1)
    else:  # before the store's name changes, and once what is left is removed
        chosen = [i for i, e in enumerate(events, 1) if e[0] == "os.rename" and str(target) in e[1:]]
        chosen += [i for i, e in enumerate(events, 1) if e[0] == "shutil.rmtree"][-1:]
        chosen = [len(events) // 2, *chosen, len(events)]
    for number in chosen:
        assert child(number) == signal.SIGKILL, number
        for path in (target, *home.glob(".lesde-*")):
            if path.exists():
                shutil.copytree(path, home.parent / f"killed-{number}" / path.name)
        (home.parent / f"killed-{number}").mkdir(exist_ok=True)
        for path in home.glob(".lesde-*"):
            shutil.rmtree(path)
    print(len(chosen))
    """
)


def killed(tmp_path: Path, made: Path, wanted: str) -> list[Path]:
    """What is there after ``simulate --overwrite`` was killed at one moment after the other, a folder each."""
    (tmp_path / "home").mkdir()
    target = tmp_path / "home" / "paths.zarr"
    words = ["simulate", str(target), *SMALL, "--seed", "1", "--overwrite"]
    command = [sys.executable, "-c", NURSERY, str(tmp_path / "home"), str(made), wanted]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = sorted(tmp_path.glob("killed-*"))
    assert len(found) == int(done.stdout)
    return found


def features(path: Path) -> bytes:
    dataset = read(path)
    return np.asarray(dataset.features).tobytes() + str(dataset.attrs["seed"]).encode()


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param("some", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")),
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    wanted: str, tmp_path: Path, made: Path
) -> None:
    """The next command finds one of them, also where the old one was set aside, and the next write cleans up."""
    cases = killed(tmp_path, made, wanted)
    kinds = {features(made): "old", features(tmp_path / "new"): "new"}
    assert len(kinds) == 2
    assert not all((case / "paths.zarr").exists() for case in cases)
    found = set()
    for case in cases:
        assert run("separation", case / "paths.zarr")[0] == 0
        found.add(kinds[features(case / "paths.zarr")])
        write(read(made), case / "paths.zarr")
        assert [path.name for path in case.iterdir()] == ["paths.zarr"]
    assert found == {"old", "new"}


@pytest.mark.parametrize("where", ["readme", "help"])
def test_commands_of_the_readme_and_of_help_run_in_order(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder; studies aside, which train for minutes."""
    if where == "readme":
        readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
        lines = re.findall(r"^lesde .*", readme, flags=re.MULTILINE)
    else:
        group = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        lines = [re.findall("`(.*)`", command.epilog)[0] for command in group.values()]
    monkeypatch.chdir(tmp_path)
    chosen = [shlex.split(line)[1:] for line in lines]
    chosen = [words for words in chosen if words[0] not in ("demo", "rates", "reproduce")]
    assert len(chosen) >= 6
    for words in chosen:
        code, said = run(*words)
        assert code == 0, (words, said)


@pytest.mark.parametrize("words", [("derive",), ("--help",), ("fit", "{}", "--all")])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(
    words: tuple[str, ...], made: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lesde.cli", *(word.format(made) for word in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lesde.cli", "derive"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert done.stderr == "error: No space left on device.\n"
