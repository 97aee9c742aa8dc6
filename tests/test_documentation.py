"""The documentation runs: every block of code in it, the outputs it shows, and every example."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/index.md", "docs/tutorial.md", "docs/process.md", "docs/numerics.md"]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")

# Simulated numbers may change in the last printed digits between versions of the libraries that draw
# normals: 0.05 is over 1.5 standard errors of every frequency shown (256 replicates).
TOLERANCE = 0.05


def blocks(page: str) -> list[tuple[str, str | None]]:
    """Python blocks of a page, each with the output shown right after it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?"
    return [(code, shown or None) for code, shown in re.findall(pattern, text, flags=re.DOTALL)]


def assert_same_output(seen: str, shown: str) -> None:
    assert NUMBER.sub("#", seen) == NUMBER.sub("#", shown)
    for a, b in zip(NUMBER.findall(seen), NUMBER.findall(shown), strict=True):
        exact = "." not in b
        assert a == b if exact else abs(float(a) - float(b)) <= TOLERANCE, f"{a} is shown as {b}"


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_page_runs_and_prints_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    found = blocks(page)
    assert found
    names: dict[str, object] = {}
    for code, shown in found:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page, "exec"), names)
        if shown is not None:
            assert_same_output(out.getvalue(), shown)
        else:
            assert not out.getvalue(), "a block that prints must show its output"


def test_tutorial_writes_the_figure_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict[str, object] = {}
    for code, _ in blocks("docs/tutorial.md"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "docs/tutorial.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"separation.pdf", "separation.png"}


def test_readme_and_first_page_show_the_same_ten_lines() -> None:
    (readme, _), (index, _) = blocks("README.md")[0], blocks("docs/index.md")[0]
    assert readme == index
    assert len([line for line in readme.splitlines() if line.strip()]) == 10


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    assert len(targets) >= 5
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_commands_of_the_readme_are_those_of_the_command_line() -> None:
    import typer

    from lesde.cli.commands import app

    wanted = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for page in ("README.md", "docs/api/study.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert set(re.findall(r"^\| `lesde (\w+)` \|", text, flags=re.MULTILINE)) == wanted, page


def test_api_pages_name_only_what_exists() -> None:
    """Autodoc warns too, but building the pages takes long; this takes no time."""
    import importlib

    missing = []
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        module = "lesde"
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = match[1]
            elif match := re.match(r"\.\. auto(\w+):: (\S+)", line):
                kind, name = match[1], match[2]
                full = name if name.startswith("lesde.") else f"{module}.{name}"
                home, _, attribute = full.rpartition(".")
                try:
                    if kind == "module":
                        importlib.import_module(full)
                    else:
                        getattr(importlib.import_module(home), attribute)
                except (ImportError, AttributeError):
                    missing.append(f"{page.name}: {full}")
    assert missing == []


def test_every_public_name_is_documented() -> None:
    import lesde
    import lesde.networks
    import lesde.plot

    text = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")
    )
    names = [
        n
        for n in lesde.__all__
        if n not in ("__version__", "analysis", "networks", "plot", "studies")
    ]
    names += [*lesde.plot.__all__, *lesde.networks.__all__]
    documented = set(re.findall(r"\.\. auto\w+:: (?:[\w.]+\.)?(\w+)", text))
    assert set(names) - documented == set()


def test_examples_are_in_the_gallery_order() -> None:
    tree = ast.parse((ROOT / "docs" / "gallery_order.py").read_text(encoding="utf-8"))
    order = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert sorted(order) == EXAMPLES
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_a_page_of_the_gallery(name: str) -> None:
    """A docstring with a heading, cells of prose, and a figure."""
    source = (ROOT / "examples" / name).read_text(encoding="utf-8")
    title, underline = (ast.get_docstring(ast.parse(source)) or "").splitlines()[:2]
    assert set(underline) == {"="}
    assert len(underline) >= len(title)
    assert source.count("\n# %%\n") >= 4
    assert "lesde.plot." in source
    assert "savefig" not in source


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_and_leaves_no_files(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert result.stdout.strip()
    assert list(tmp_path.iterdir()) == []


def test_limit_above_the_phase_transition() -> None:
    """The limit of P in docs/mathematics.md, against paths of the exact law at a late time.

    Null: the share of paths separated along the initial gap is the formula's, and of those separated
    along their own gap, 1. 4096 paths, standard error 0.0043 at P = 0.92; tolerance 5 of them. At
    t = 1e8 the gap is 1,600 spreads per unit of its start, which is the limit to 1e-3.
    """
    from scipy.stats import norm

    import lesde

    K, n, gap, c = 2, 5, 1.0, 1.8
    kernel = lesde.TwoLevel(alpha="c/(2*t)", beta="-c/(2*t)", parameters={"c": c})
    model = lesde.LESDE(kernel, K, 2, n, noise=1.0)
    means = np.array([[gap / 2, 0.0], [-gap / 2, 0.0]])
    paths = lesde.simulate(
        model, [1.0, 1e8], initial=means, replicates=4096, dtype="float64", seed=11
    )
    expected = norm.cdf(gap * np.sqrt(n * (2 * c / K - 1) / 2))
    along = lesde.separation_probability(paths, direction="initial").probability[-1]
    own = lesde.separation_probability(paths, direction="own").probability[-1]
    assert abs(float(along) - expected) < 5 * np.sqrt(expected * (1 - expected) / 4096)
    assert float(own) > 0.995


@pytest.mark.parametrize("c", [0.2, 0.5, 0.8])
def test_limit_below_the_phase_transition(c: float) -> None:
    """The limit of P for c < K/2 in docs/mathematics.md, against the exact law at t = 1e40.

    There the gap has shrunk to at most 1e-4 spreads, so the two agree to about that.
    """
    import lesde
    from lesde.analysis import separation_function

    K, n = 2, 3
    kernel = lesde.TwoLevel(alpha="c/(2*t)", beta="-c/(2*t)", parameters={"c": c})
    model = lesde.LESDE(kernel, K, 1, n, noise=1.0)
    exact = lesde.predict_separation(model, [1.0, 1e40], initial=[[0.5], [-0.5]]).probability[-1]
    ratio = 2 * c / K
    limit = separation_function(0.0, n, n, extra_variance=2 / n * ratio / (1 - ratio)).probability
    assert float(limit) == pytest.approx(float(exact), rel=1e-3)
    assert 0.05 < float(limit) < 0.5


@pytest.mark.slow
def test_floor_of_nc2_under_sgd() -> None:
    """The floor of the NC2 error in docs/mathematics.md, against the discrete process.

    Null: its root mean square is √h (α−β) √(2(1−2/K)(K−1)/(K|β|)), to first order in h. 128 paths at
    h = 0.002 from the frame, mean square over t in [14, 20], where the transient e^(−2κt) is below
    0.1 %; standard error from the scatter between paths (about 3 %). Tolerance 5 of them.
    """
    import lesde

    K, alpha, beta, h = 5, 1.0, -1.0, 0.002
    model = lesde.LESDE(lesde.TwoLevel(alpha, beta), K, K, 20, transform="logits", noise=0.01)
    frame = np.eye(K) - 1 / K
    paths = lesde.simulate(
        model, np.linspace(0, 20, 21), initial=frame, replicates=128, learning_rate=h, seed=5
    )
    squares = lesde.neural_collapse(paths, "nc2_etf").nc2_etf.sel(time=slice(14, None)) ** 2
    each = squares.mean("time").values
    expected = h * (alpha - beta) ** 2 * 2 * (1 - 2 / K) * (K - 1) / (K * abs(beta))
    error = each.std(ddof=1) / np.sqrt(len(each))
    assert error < 0.1 * expected
    assert abs(each.mean() - expected) < 5 * error


def test_files_and_names_of_the_page_on_the_code_exist() -> None:
    """Every file it names is there, and a name given beside a file stands in it."""
    page = (ROOT / "docs" / "how_it_is_built.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:lesde|tests)/[\w/.]*)`", page))
    assert len(named) > 25
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    rows = re.findall(r"^\|.*`(lesde/[\w/]+\.py)`, `(\w+)`(?: and `(\w+)`)?", page, re.M)
    rows += [(f, n, "") for n, f in re.findall(r"`(\w+)` in `(lesde/[\w/]+\.py)`", page)]
    assert len(rows) >= 8
    for file, *names in rows:
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"^(?:def|class) {name}\b", text, re.M), (file, name)
