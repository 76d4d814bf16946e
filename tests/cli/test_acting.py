"""``kill``, ``retry``, ``rm``, ``prune``: on ids, on filters, and after asking."""

from __future__ import annotations

import pytest

from balsam_celery.states import State
from balsam_celery.store import allocations, schema
from balsam_celery.store.rows import AllocationState
from tests.cli.conftest import Cli


@pytest.fixture
def tasks(cli: Cli) -> list[str]:
    """Three tasks of one workflow: one waits, one runs, one has finished."""
    return [
        cli.task("aaaaaa-1", workflow="w"),
        cli.task("bbbbbb-2", State.RUNNING, workflow="w"),
        cli.task("cccccc-3", State.JOB_FINISHED, workflow="w"),
    ]


def test_kill_by_id(cli: Cli, tasks: list[str]) -> None:
    assert cli.json("kill", "aaaaaa", "bbbbbb") == {
        "done": ["aaaaaa-1"], "requested": ["bbbbbb-2"], "refused": {},
    }  # fmt: skip
    assert cli.state("aaaaaa-1") == State.USER_KILLED
    assert cli.state("bbbbbb-2") == State.RUNNING
    shown = cli.json("show", "bbbbbb-2")
    assert shown["kill_requested"] is not None
    assert shown["kill_reason"] == "killed by the user"


def test_kill_says_why_not(cli: Cli, tasks: list[str]) -> None:
    result = cli("kill", "cccccc", "aaaaaa", status=1)
    assert "cccccc-3: it is JOB_FINISHED already" in result.stderr
    assert "1 task killed" in result.stderr
    assert cli.json("kill", "cccccc", status=1)["refused"].keys() == {"cccccc-3"}


def test_kill_takes_descendants_unless_told_not_to(cli: Cli, tasks: list[str]) -> None:
    cli.task("child-1", parents=["aaaaaa-1"], on_parent_failure="ignore")
    cli("kill", "aaaaaa", "--no-descendants")
    assert cli.state("child-1") == State.PREPROCESSED
    cli.task("child-2", parents=["bbbbbb-2"])
    assert cli.json("kill", "bbbbbb", "--reason", "too hot")["done"] == ["child-2"]


def test_a_filter_is_confirmed(cli: Cli, tasks: list[str]) -> None:
    answers = cli("kill", "--workflow", "w", stdin="n\n", status=1)
    assert "Kill 2 tasks?" in answers.stderr
    assert cli.state("aaaaaa-1") == State.PREPROCESSED
    result = cli("kill", "--workflow", "w", stdin="", status=2)
    assert "add --yes" in result.stderr
    assert cli.state("aaaaaa-1") == State.PREPROCESSED
    cli("kill", "--workflow", "w", "--state", "PREPROCESSED", stdin="y\n")
    assert cli.state("aaaaaa-1") == State.USER_KILLED
    assert cli.json("kill", "--workflow", "w", "--yes")["requested"] == ["bbbbbb-2"]


def test_nothing_fits(cli: Cli, tasks: list[str]) -> None:
    assert "no task fits" in cli("kill", "--workflow", "w", "--state", "FAILED").stderr


def test_retry(cli: Cli, tasks: list[str]) -> None:
    cli.task("dddddd-4", State.FAILED, workflow="w")
    cli.attempt("dddddd-4", outcome="exit", exit_code=1, ended=3.0)
    cli("kill", "aaaaaa")
    answer = cli.json("retry", "--workflow", "w", "-y")
    assert sorted(answer["done"]) == ["aaaaaa-1", "dddddd-4"]
    assert cli.state("dddddd-4") == State.RESTART_READY
    assert "only FAILED and USER_KILLED" in cli("retry", "bbbbbb", status=1).stderr


def test_rm(cli: Cli, tasks: list[str]) -> None:
    assert "kill it first" in cli.refused("rm", "aaaaaa", "cccccc")
    assert cli.json("rm", "cccccc") == {"removed": ["cccccc-3"], "directories": 0}
    assert cli.json("ls")["total"] == 2


def test_rm_deletes_only_below_the_run_directory(cli: Cli) -> None:
    site = cli.site
    inside = site.run_dir / "work" / "default" / "relax.eeeeee-5"
    outside = site.directory / "precious"
    for directory in (inside / "1", inside / "2", outside):
        directory.mkdir(parents=True)
        (directory / "stdout").write_text("x")
    (inside / "2" / "link").symlink_to(outside)
    places = {"eeeeee-5": str(inside / "2"), "ffffff-6": str(outside)}
    for id, place in places.items():
        cli.task(id, State.JOB_FINISHED)
        with cli.store.write() as conn:
            statement = schema.task.update().where(schema.task.c.id == id)
            conn.execute(statement.values(work_dir=place))
    result = cli("rm", "--files", "eeeeee", "ffffff")
    assert "is outside" in result.stderr
    assert not inside.exists()
    assert inside.parent.exists()
    assert (outside / "stdout").exists()


def test_prune(cli: Cli) -> None:
    # a common name is no connection
    cli.task("old-one", State.JOB_FINISHED, workflow="w")
    cli.task("new-one", State.JOB_FINISHED, workflow="w")
    cli.task("old-but-waiting", workflow="w")
    with cli.store.write() as conn:
        old = schema.task.c.id.like("old%")
        conn.execute(schema.task.update().where(old).values(created=1.0, finished=2.0))
        allocations.insert_allocation(
            conn, id="a1", queue="local", nodes=1, wall_time=60, run_dir="/run", now=1.0
        )
        over = {"state": AllocationState.FAILED, "ended": 2.0}
        conn.execute(schema.allocation.update().values(over))
    assert "add --yes" in cli("prune", "--older-than", "1d", stdin="", status=2).stderr
    pruned = cli.json("prune", "--older-than", "1d", "--yes")
    assert pruned == {"removed": ["old-one"], "directories": 0, "allocations": 1}
    said = cli("prune", "--older-than", "1d", "--yes").stderr
    assert "removed: 0 tasks, 0 allocations" in said
    assert cli.json("ls")["total"] == 2
    assert "--older-than is 'x'" in cli.refused("prune", "--older-than", "x", "--yes")
    cli("prune", status=2)
