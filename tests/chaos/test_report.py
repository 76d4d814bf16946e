"""Figures add up over runs and files."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.report import Result, append, load, slow, table


def test_results_add_up(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert load(path) == []
    first = Result(1, "local", "sqlite", tasks=10, faults={"kill:beat": 2}, overlapping=1)
    first.recovery = {"kill:beat": [1.5, 0.5]}
    first.restarted = {"kill:beat": [0.7, 0.1]}
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
        "| kill:beat | 3 | 2 | 1.5 s | 1.5 s | 0.7 s |",
    ):
        assert line in shown.splitlines()


def test_what_took_too_long_is_told() -> None:
    result = Result(1, "local", "sqlite")
    result.recovery = {"kill:service": [30.0], "kill:pilot": [60.0, 60.1], "kill:redis": [99.0]}
    result.restarted = {"kill:service": [10.0, 10.1]}
    assert slow(result) == [
        "kill:service: full work only 10.1 s after the restart, not within 10 s",
        "kill:pilot: full work only 60.1 s after it, not within 60 s",
    ]
    assert result.passed, "a figure, and no finding unless asked for"
