"""Figures add up over runs and files."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.report import Result, append, load, table


def test_results_add_up(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert load(path) == []
    first = Result(1, "local", "sqlite", tasks=10, faults={"kill:beat": 2}, overlapping=1)
    first.recovery = {"kill:beat": [1.5, 0.5]}
    first.findings = {"lost": 0}
    second = Result(2, "slurm", "postgres", tasks=5, faults={"kill:beat": 1}, slowest=9.0)
    second.findings = {"lost": 1}
    for result in (first, second):
        append(path, result)
    assert load(path) == [first, second]
    assert (first.passed, second.passed) == (True, False)
    shown = table(load(path))
    for line in (
        "| tasks | 15 |",
        "| faults injected | 3 |",
        "| of them overlapping another | 1 (33%) |",
        "| lost | 1 |",
        "| kill:beat | 3 | 2 | 1.5 s | 1.5 s |",
    ):
        assert line in shown.splitlines()
