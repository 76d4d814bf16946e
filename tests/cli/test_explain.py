"""``balsam explain``: what it prints for people, and what it refuses."""

from __future__ import annotations

import pytest

from balsam_celery.states import State
from balsam_celery.store import lease
from balsam_celery.store.allocations import insert_allocation
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("zzzzzz",), "there is no task 'zzzzzz': 'balsam ls' lists the tasks"),
        (("abc",), "give an id, or at least 6 of its start"),
        (("abcdef",), "task id 'abcdef' fits several, such as abcdef-1 and abcdef-2"),
    ],
)
def test_what_names_no_task_is_refused_in_one_line(
    cli: Cli, args: tuple[str, ...], words: str
) -> None:
    cli.task("abcdef-1")
    cli.task("abcdef-2")
    assert words in cli.refused("explain", *args)


def test_without_an_argument_it_says_what_it_wants(cli: Cli) -> None:
    assert "TASK|allocations" in cli("explain", status=2).stderr


def test_a_failure_for_people(cli: Cli) -> None:
    cli.task("abcdef-1", State.FAILED, name="grid\x1b[31m")
    cli.attempt("abcdef-1", ended=5.0, outcome="exit", exit_code=3, stderr_tail="no\x1b[31m grid\n")
    head, text = cli("explain", "abcdef-1").stdout.splitlines()
    assert head == r"abcdef-1  grid\x1b[31m  FAILED"
    assert text.startswith("  It failed: ")
    assert "no\\x1b[31m grid" in text
    assert "\x1b" not in text


def test_a_site_that_is_down_is_told_first(cli: Cli) -> None:
    cli.task("abcdef-1")
    found = cli.json("explain", "abcdef-1")
    assert found["code"] == "service-down"
    assert found["text"].startswith("The service is not up")
    assert "is asked for when the service plans next" in found["text"]
    assert lease.acquire(cli.store, "service", "test", 60) is not None
    assert cli.json("explain", "abcdef-1")["code"] == "redis-down"


def test_allocations_for_people(cli: Cli) -> None:
    result = cli("explain", "allocations")
    assert result.stdout == ""
    assert "no task waits for slots" in result.stderr
    assert "The service is not up" in result.stderr
    cli.task("abcdef-1", num_nodes=4)
    cli.task("abcdef-2", num_nodes=99)
    with cli.store.write() as conn:
        insert_allocation(
            conn, id="alloc", queue="local", nodes=1, wall_time=60, run_dir="/x",
            now=cli.store.clock(),
        )  # fmt: skip
    lines = cli("explain", "allocations").stdout.splitlines()
    assert lines[0] == "alloc  1 × 1m in local  REQUESTED"
    assert "It is given up when the service plans next" in lines[1]
    assert lines[2] == "backlog"
    assert "1 waiting task of 4 nodes, 1m at the most" in lines[3]
    assert "num_nodes is 99" in lines[4]


def test_help(cli: Cli) -> None:
    assert "why it failed" in " ".join(cli("explain", "--help").stdout.split())
    assert "Why a task, or packing, is where it is." in cli("--help").stdout
