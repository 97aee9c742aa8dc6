"""The benchmarks' own promises: peers compute what they should, tables say what was measured."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import report
from benchmarks.__main__ import app, measure_table
from benchmarks.machine import machine
from benchmarks.peers import plain_training
from benchmarks.tables import (
    TABLES,
    cuda,
    euler,
    exact,
    feature,
    metrics,
    recording,
    scaling,
    sgd,
    training,
)
from benchmarks.timing import Row, Section, Skip, measure
from benchmarks.workloads import Workload, WrongResult, check_discrete, check_law, check_means
from lesde.networks import digits, mlp

TINY = Workload(3, 20, 3, 32, 20, 5e-3)
EULER = euler.rows(TINY, {"srk": 2, "tree": 4, "shipped": 1})
SGD = sgd.rows(TINY)
FEATURE = feature.rows(2, 40)
NETWORKS = plain_training.Training(
    digits(classes=3, n_train_per_class=10, n_probe_per_class=2),
    lambda: mlp(64, (8,), 3),
    3,
    30,
    0.05,
)


def run(row: Row) -> None:
    """Build, call and check a row; the packages it needs may be absent."""
    for word, package in (("diffrax", "diffrax"), ("numba", "numba")):
        if word in row.name:
            pytest.importorskip(
                package, reason=f"{package} is not installed: pip install '.[bench]'"
            )
    result = row.build()()
    if row.check is not None:
        row.check(result)


@pytest.mark.parametrize("row", EULER, ids=lambda row: row.name)
def test_integrators_follow_the_law(row: Row) -> None:
    run(row)


@pytest.mark.parametrize("row", SGD, ids=lambda row: row.name)
def test_discrete_processes_follow_their_expectation(row: Row) -> None:
    run(row)


@pytest.mark.parametrize("row", FEATURE, ids=lambda row: row.name)
def test_drifts_of_a_feature_kernel_agree(row: Row) -> None:
    run(row)


@pytest.mark.parametrize("row", metrics.rows(metrics.frames(4, 15, 6, 3)), ids=lambda row: row.name)
def test_metrics_agree_with_the_loop(row: Row) -> None:
    run(row)


@pytest.mark.parametrize("row", training.rows(NETWORKS), ids=lambda row: row.name)
def test_networks_trained_in_all_ways_agree(row: Row) -> None:
    run(row)


def test_networks_trained_on_other_samples_are_refused() -> None:
    row = training.rows(NETWORKS)[0]
    assert row.check is not None
    with pytest.raises(AssertionError, match="logits off by"):
        row.check(plain_training.one_after_another(replace(NETWORKS, seed=1)))


@pytest.mark.parametrize("check", [check_law, check_discrete])
def test_a_wrong_result_is_refused(check: Callable[[Any, Workload], Any]) -> None:
    right = np.asarray(next(row for row in EULER if row.name == "torch loop").build()())
    check(right, TINY)
    centre = right.mean(2, keepdims=True)
    with pytest.raises(WrongResult, match="means"):
        check(right + 0.05, TINY)
    with pytest.raises(WrongResult, match="spread"):
        check(centre + 1.2 * (right - centre), TINY)
    with pytest.raises(WrongResult, match="expected 5760 numbers"):
        check(right[:, :2], TINY)


def test_replicates_that_share_their_noise_are_refused() -> None:
    # All replicates equal: the mean over them is no better than one, or their variance is 0.
    one = np.asarray(next(row for row in EULER if row.name == "torch loop").build()())[:1]
    means = np.repeat(one, TINY.replicates, axis=0).mean(2)
    with pytest.raises(WrongResult):
        check_means(means, TINY)


def test_every_table_has_sections_and_says_what_its_rows_are() -> None:
    for module in (euler, exact, sgd, feature, metrics, recording, training, scaling, cuda):
        for quick in (True, False):
            for section in module.sections(quick):
                names = [row.name for row in section.rows]
                assert len(set(names)) == len(names) > 0
                assert set(section.references) <= set(names)
                assert not module.NOTES or set(names) <= set(module.NOTES)


def test_rows_that_fail_or_cannot_run_are_kept_with_the_reason() -> None:
    def refuse() -> Any:
        raise Skip("no such card")

    def broken() -> Any:
        raise ValueError("first line\nsecond line")

    def wrong(result: Any) -> Any:
        raise WrongResult("off in means")

    def internal() -> Any:
        raise ModuleNotFoundError("No module named 'lesde.none'", name="lesde.none")

    def absent() -> Any:
        raise ModuleNotFoundError("No module named 'diffrax'", name="diffrax")

    rows = [
        Row("good", lambda: lambda: None, 2.0),
        Row("skipped", refuse),
        Row("broken", broken),
        Row("wrong", lambda: lambda: None, check=wrong),
        Row("internal", internal),
        Row("absent", absent),
    ]
    section = Section("title", rows, references={"good": "of good", "broken": "of broken"})
    found = measure(section, rounds=3, say=lambda text: None, shortest=0.0)
    assert [row["status"] for row in found["rows"]] == (
        ["ok", "skipped", "failed", "failed", "failed", "skipped"]
    )
    assert len(found["rows"][0]["seconds"]) == 3
    text = report.table(found)
    for reason in (
        "not run: no such card",
        "failed: ValueError: first line |",
        "failed: WrongResult: off in means",
        "failed: ModuleNotFoundError",
        "not run: diffrax is not installed",
    ):
        assert reason in text


def test_a_ratio_is_the_median_of_ratios_within_rounds() -> None:
    def row(name: str, work: float, seconds: list[float]) -> dict[str, Any]:
        return {"name": name, "work": work, "status": "ok", "threads": 2, "seconds": seconds}

    # Twice the work in the same time, on a machine that slows down tenfold: always a ratio of 2.
    rows = [row("slow", 1.0, [1.0, 4.0, 10.0]), row("fast", 2.0, [1.0, 4.0, 10.0])]
    found = {"title": "t", "unit": "million/s", "references": {"slow": "× slow"}, "rows": rows}
    assert "| fast | 0.5 (0.2–2.00) | 2.00 (2.00–2.00) | 2 |" in report.table(found)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.713, "0.71"), (2.0, "2.00"), (23.44, "23.4"), (100.0, "100"), (1234.5, "1,230")],
)
def test_numbers_have_two_or_three_digits(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_readme_says_what_the_results_say() -> None:
    text = (report.HERE / "README.md").read_text(encoding="utf-8")
    assert report.render(text, report.load(report.HERE / "results")) == text


def test_results_are_of_full_runs_and_name_neither_host_nor_folder() -> None:
    for name in TABLES:
        path = report.HERE / "results" / f"{name}.json"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            assert not json.loads(text)["quick"]
            assert "/home/" not in text
    described = json.dumps(machine())
    assert f'"{socket.gethostname()}"' not in described
    assert str(Path.cwd()) not in described


def test_a_table_without_a_card_is_written_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_table("cuda", tmp_path, quick=True, rounds=2)
    text = report.write(tmp_path).read_text(encoding="utf-8")
    assert "Not run: torch sees no CUDA device here." in text
    assert "Not measured yet: `python -m benchmarks euler`." in text


def test_the_command_line_names_its_tables() -> None:
    result = CliRunner().invoke(app, ["eulre"])
    assert result.exit_code == 2
    assert "no table 'eulre'; there are euler, exact" in result.output
    page = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    assert "python -m benchmarks euler --quick" in page
