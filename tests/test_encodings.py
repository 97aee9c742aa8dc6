"""Output in encodings that lack Greek letters and signs: ASCII in their place, and no traceback."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import lesde
from lesde.cli import commands as cli

ENCODINGS = ("ascii", "cp1252", "latin-1", "cp437")
SMALL = ["--alpha", "2", "--beta", "-1", "--per-class", "5", "--until", "1", "--points", "8"]


def output(
    monkeypatch: pytest.MonkeyPatch, encoding: str, *words: str | Path
) -> tuple[int, bytes, bytes]:
    """Exit code, and the bytes that the command ``lesde`` writes to its streams."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    with monkeypatch.context() as patch:
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command sets
        patch.setattr(sys, "argv", ["lesde", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    out, error = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    return int(end.value.code or 0), out, error


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = lesde.LESDE(lesde.TwoLevel(2.0, -1.0), 3, 3, 5, noise=0.3)
    simulated = lesde.simulate(model, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8], np.eye(3), 8)
    from lesde.files import write

    return write(simulated, tmp_path_factory.mktemp("encodings") / "paths.zarr")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_in_every_encoding(
    encoding: str, paths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["derive", "simulate", "separation", "collapse", "fit", "plot", "demo", "rates"]
    names += ["reproduce"]
    commands = [("--help",), *((name, "--help") for name in names)]
    commands += [("derive", "--alpha", "2/(1+t)", "--transform", "logits"), ("derive", "--latex")]
    commands += [("derive", "--strength", "2*s*exp(-r2)"), ("simulate", "é-α.zarr", *SMALL)]
    commands += [(name, paths) for name in ("separation", "collapse", "fit")]
    commands += [("plot", "fan", paths, "--out", "α.png"), ("demo", "--show-config")]
    for words in commands:
        code, out, error = output(monkeypatch, encoding, *words)
        assert code == 0, (words, error)
        out.decode(encoding)
        if encoding == "ascii":
            assert (out + error).isascii()
        assert b"Traceback" not in error
    code, _, error = output(monkeypatch, encoding, "derive", "--alpha", "λ+")
    assert code == 2
    assert b"error: " in error
    assert encoding != "ascii" or b"lambda" in error


def test_text_in_ascii_says_what_the_other_says(monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = output(monkeypatch, "ascii", "derive", "--alpha", "2", "--beta", "-1")
    text = out.decode("ascii")
    for expected in ("lambda_1 = ", "sigma_k*zeta_i", "dXbar_k/dt = b_k", "Sigma(l!=k)", "c_crit"):
        assert expected in text
    assert "?" not in text
    model = lesde.LESDE(lesde.TwoLevel(2, -1), 3, 3, 100, noise=0.1)
    assert lesde.derive(model).text(unicode=False) == text
    assert "λ₁" in lesde.derive(model).text()


def test_utf8_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = output(monkeypatch, "utf-8", "derive")
    assert "λ₁" in out.decode("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_file_name_that_is_no_text(
    paths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = output(monkeypatch, "utf-8", "separation", paths, "--out", "x\udcff.csv")
    assert code == 0, error
    assert out.endswith(b"wrote x?.csv\n")
    assert [name for name in tmp_path.iterdir() if name.name == "x\udcff.csv"]
