"""Scenario files and what is drawn from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from balsam_celery.errors import InvalidInput
from balsam_celery.simulate.generate import generate
from balsam_celery.simulate.scenario import load

WORKLOADS = sorted(
    (Path(__file__).resolve().parents[2] / "benchmarks" / "workloads").glob("*.toml")
)
SMALL = """
[seeds]
tuning = [1]
held_out = [2]
[machine]
nodes = 4
[node]
cores = 4
[[queues]]
name = "q"
min_nodes = 1
max_nodes = 4
min_wall_time = "5m"
max_wall_time = "2h"
max_queued = 2
max_running = 2
[policy]
max_allocations = 4
startup_margin = 60
drain_margin = 30
kill_grace = 5
[[tasks]]
application = "a"
count = 20
wall_time = "10m"
runtime = { median = 60, sigma = 0.5 }
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_committed_workloads_hold_seeds_out(path: Path) -> None:
    scenario = load(path)
    assert scenario.seeds.held_out
    assert not set(scenario.seeds.tuning) & set(scenario.seeds.held_out)
    widest = max(group.resources.num_nodes for group in scenario.groups)
    assert widest <= max(queue.max_nodes for queue in scenario.machine.queues)


def test_equal_seeds_draw_equal_workloads() -> None:
    scenario = load(next(path for path in WORKLOADS if path.stem == "spawning"))
    first, again, other = (generate(scenario, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(task > parent for parent, below in first.children.items() for task in below)


def test_users_are_wrong_by_as_much_as_said() -> None:
    scenario = load(next(path for path in WORKLOADS if path.stem == "restartable"))
    work = generate(scenario, 1)
    factors = [
        (work.kinds[kind].expected_time or 0.0) / runtime
        for kind, runtime in zip(work.kind, work.runtime, strict=True)
    ]
    # what they say is rounded, too
    assert 0.4 < min(factors) < 0.6
    assert 1.7 < max(factors) < 2.5


def test_bursts_and_arrivals_over_time(small: Path) -> None:
    text = SMALL + 'arrival = { kind = "bursts", span = 1000, bursts = 4 }\n'
    small.write_text(text, encoding="utf-8")
    work = generate(load(small), 1)
    times = sorted(set(work.submitted))
    assert len(times) == 4
    assert all(work.submitted.count(time) == 5 for time in times)
    small.write_text(SMALL + 'arrival = { kind = "over", at = 50, span = 100 }\n')
    work = generate(load(small), 1)
    assert all(50 <= time <= 150 for time in work.submitted)
    assert len(set(work.submitted)) > 10


def test_a_group_may_wait_for_another(small: Path) -> None:
    more = '[[tasks]]\napplication = "b"\ncount = 3\nwall_time = 60\nafter = "a"\n'
    small.write_text(SMALL + more + "runtime = { median = 5 }\n", encoding="utf-8")
    work = generate(load(small), 1)
    assert [work.parents[task] for task in (20, 21, 22)] == [1, 1, 1]
    assert work.children == {0: [20], 1: [21], 2: [22]}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[seeds]", "[seed]", "'seed' is unknown: the tables are"),
        ("[node]\ncores = 4", "", r"\[node\] is missing: add it"),
        ("cores = 4", "core = 4", "node.core is unknown: give cores"),
        ('"2h"', '"soon"', r"queues\[0\].max_wall_time is 'soon': give a time"),
        ("max_queued = 2\n", "", r"queues\[0\]: .*'max_queued'"),
        ("count = 20", "number = 20", r"tasks\[0\].number is unknown: the keys are after, "),
        ("count = 20", 'count = 20\nexpected = "x"', r"expected is 'x': give one of none, given"),
        ("count = 20", 'count = 20\nafter = "b"', "after is 'b': name one of a"),
        ("count = 20", "count = 20\nresources = { num_nodes = 0 }", "num_nodes is 0: give a whole"),
        ("count = 20", "count =", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(small: Path, old: str, new: str, words: str) -> None:
    small.write_text(SMALL.replace(old, new), encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        load(small)
