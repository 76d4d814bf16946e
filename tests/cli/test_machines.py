"""``allocations``, ``pilot``, ``app``, ``init``, ``status``, and the root itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from balsam_celery.runtimes import Run, shape_of
from balsam_celery.states import State
from balsam_celery.store import runtimes
from balsam_celery.store.allocations import insert_allocation, insert_pilot, update_allocation
from balsam_celery.store.rows import AllocationState, PilotState
from tests.cli.conftest import Cli


@pytest.fixture
def machines(cli: Cli) -> None:
    """Three allocations: one running with a pilot, one queued, one ended."""
    with cli.store.write() as conn:
        for number, id in enumerate(("alloc-run", "alloc-queue", "alloc-end")):
            insert_allocation(
                conn, id=id, queue="local", nodes=2, wall_time=600, run_dir="/x", now=1.0 + number
            )
            states = (AllocationState.QUEUED, AllocationState.RUNNING, AllocationState.ENDED)
            source = AllocationState.REQUESTED
            for target in states[: {0: 2, 1: 1, 2: 3}[number]]:
                assert update_allocation(
                    conn, id, [source], state=target, native_id=f"local-{number}"
                )
                source = target
        insert_pilot(
            conn, id="pilot-1", allocation="alloc-run", host="h", pid=7,
            nodes=[{"name": "n0", "cores": [0, 1], "gpus": [], "memory": 0, "pinned": False}],
            end_time=600.0, now=5.0,
        )  # fmt: skip


def states(cli: Cli) -> dict[str, tuple[str, bool]]:
    """State, and whether its end was asked for, of each allocation."""
    rows = cli.json("allocations", "--all")["allocations"]
    return {row["id"]: (row["state"], row["cancel_requested"] is not None) for row in rows}


@pytest.mark.usefixtures("machines")
def test_lists(cli: Cli) -> None:
    assert [row["id"] for row in cli.json("allocations")["allocations"]] == [
        "alloc-run",
        "alloc-queue",
    ]
    assert cli.json("allocations", "list") == cli.json("allocations")
    assert cli.json("pilot")["pilots"][0]["nodes"][0]["cores"] == [0, 1]
    assert "alloc-queue" in cli("allocations").stdout
    assert "LIVE" in cli("pilot", "list").stdout
    assert "put the options after" in cli("pilot", "--json", "list", status=2).stderr


@pytest.mark.usefixtures("machines")
def test_a_reason_stands_whole_below_its_allocation(cli: Cli) -> None:
    reason = "held: " + "it is not known whether the scheduler took the job " * 5 + "\x1b[2J"
    with cli.store.write() as conn:
        assert update_allocation(conn, "alloc-queue", [AllocationState.QUEUED], reason=reason)
    lines = cli("allocations").stdout.splitlines()
    row = next(n for n, line in enumerate(lines) if line.startswith("alloc-queue"))
    assert lines[row].split()[:3] == ["alloc-queue", "local-1", "local"]
    assert lines[row + 1] == "    " + reason.replace("\x1b", "\\x1b")


@pytest.mark.usefixtures("machines")
def test_cancel(cli: Cli) -> None:
    assert cli.json("allocations", "cancel", "alloc-q", "local-2") == {
        "cancelled": ["alloc-queue"], "draining": [], "ended": ["alloc-end"],
    }  # fmt: skip
    assert states(cli)["alloc-queue"] == ("QUEUED", True)
    assert states(cli)["alloc-run"] == ("RUNNING", False)
    assert "nonesuch" in cli.refused("allocations", "cancel", "nonesuch")
    assert "give --all" in cli.refused("allocations", "cancel")


@pytest.mark.usefixtures("machines")
def test_cancel_after_draining(cli: Cli) -> None:
    assert cli.json("allocations", "cancel", "--all", "--drain") == {
        "cancelled": ["alloc-queue"], "draining": ["alloc-run"], "ended": [],
    }  # fmt: skip
    assert states(cli)["alloc-run"] == ("RUNNING", False)
    assert cli.json("pilot")["pilots"][0]["state"] == PilotState.DRAINING


@pytest.mark.usefixtures("machines")
def test_drain_a_pilot(cli: Cli) -> None:
    assert cli.json("pilot", "drain", "pilot-1") == {"draining": ["pilot-1"], "ended": []}
    assert "draining before" in cli("pilot", "drain", "pilot-1").stderr
    assert "pilot" in cli.refused("pilot", "drain", "nonesuch")


def test_saved_programs(cli: Cli) -> None:
    made = cli.json("app", "add", "relax", "-t", "10m", "--description", "d", "relax.x", "{input}")
    assert made["command"] == ["relax.x", "{input}"]
    assert made["defaults"] == {"wall_time": "10m"}
    assert cli.json("app", "ls")["applications"] == [made]
    assert "exists" in cli.refused("app", "add", "relax", "other.x")
    cli("app", "add", "--replace", "relax", "--", "other.x", "-v")
    assert cli.json("app", "ls")["applications"][0]["command"] == ["other.x", "-v"]
    assert "did you mean 'relax'" in cli.refused("app", "rm", "relac")
    assert cli.json("app", "rm", "relax") == {"removed": ["relax"]}
    assert cli.json("app", "ls") == {"applications": []}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("x", "p", "{0.real}"), "{0.real}"),
        (("x", "p", "{"), "brace"),
        (("x", "-N", "0", "p"), "num_nodes is 0"),
        (("x", "-t", "abc", "p"), "wall_time is 'abc'"),
        (("", "p"), "name"),
        (("a\nb", "p"), "name"),
    ],
)
def test_programs_that_are_refused(cli: Cli, args: tuple[str, ...], words: str) -> None:
    assert words in cli.refused("app", "add", *args)
    assert cli.json("app", "ls") == {"applications": []}


def test_init(cli: Cli, tmp_path: Path) -> None:
    made = cli.json("init", str(tmp_path / "new"), "--nodes", "3", "--cores-per-node", "2")
    assert made["site"]["name"] == "new"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert "is a site already" in cli.refused("init", str(tmp_path / "new"))
    assert "name" in cli.refused("init", str(tmp_path / "other"), "--name", "a b")


def test_status_of_a_site_that_is_down(cli: Cli) -> None:
    cli.task("aaaaaa-1")
    plain = cli.json("status", status=1)
    assert plain["up"] is False
    assert plain["tasks"] == {"PREPROCESSED": 1}
    assert {process["name"] for process in plain["processes"]} >= {"redis", "service", "beat"}
    assert "not up" in cli("status", status=1).stdout


def test_a_site_that_is_none(cli: Cli, tmp_path: Path) -> None:
    (cli.site.directory / "site.toml").rename(tmp_path / "site.toml")
    for command in ("ls", "status", "up", "down"):
        assert "no site" in cli.refused(command)
    assert "no site" in cli.refused("submit", "true")


def test_a_site_that_is_open_to_others(cli: Cli) -> None:
    cli.site.directory.chmod(0o755)
    assert "chmod 700" in cli.refused("ls")


def test_help_and_version(cli: Cli) -> None:
    text = cli("--help").stdout
    for word in ("Site:", "Tasks:", "Machines:", "submit", "allocations"):
        assert word in text
    assert cli("--version").stdout.startswith("balsam, version ")


def test_help_of_ls_names_every_state(cli: Cli) -> None:
    words = cli("ls", "--help").stdout.replace(",", " ").split()
    assert set(State) <= set(words)


def test_every_command_has_help(cli: Cli) -> None:
    for command in ("init", "up", "down", "status", "submit", "ls", "show", "log", "wait", "kill",
                    "retry", "rm", "app", "allocations", "pilot", "prune", "site"):  # fmt: skip
        text = cli(command, "--help").stdout
        assert text.startswith(f"Usage: balsam {command}")
        assert len(text.splitlines()) > 5


@pytest.mark.usefixtures("machines")
def test_what_came_to_nothing_is_shown_for_an_hour(cli: Cli) -> None:
    now = time.time()
    ends = {
        "alloc-old": (AllocationState.FAILED, now - 3700, None),
        "alloc-no": (AllocationState.FAILED, now - 60, None),
        "alloc-none": (AllocationState.ENDED, now - 30, None),
        "alloc-user": (AllocationState.ENDED, now - 30, now - 40),
        "alloc-used": (AllocationState.ENDED, now - 30, None),
    }
    with cli.store.write() as conn:
        for number, (id, (state, ended, cancelled)) in enumerate(ends.items()):
            insert_allocation(
                conn, id=id, queue="local", nodes=1, wall_time=60, run_dir="/x", now=now + number
            )
            update_allocation(
                conn, id, [AllocationState.REQUESTED], state=state, ended=ended,
                cancel_requested=cancelled, reason=f"why {id}",
            )  # fmt: skip
        insert_pilot(
            conn, id="pilot-2", allocation="alloc-used", host="h", pid=8, nodes=[],
            end_time=600.0, now=5.0,
        )  # fmt: skip
    shown = [row["id"] for row in cli.json("allocations")["allocations"]]
    assert shown == ["alloc-run", "alloc-queue", "alloc-no", "alloc-none"]
    assert "    why alloc-no\n" in cli("allocations").stdout
    plain = cli.json("status", status=1)
    assert [row["id"] for row in plain["allocations"]] == ["alloc-run", "alloc-queue"]
    assert [row["reason"] for row in plain["failed"]] == ["why alloc-no", "why alloc-none"]
    text = cli("status", status=1).stdout
    assert "within the last hour 2 allocations came to nothing:" in text
    assert text.rstrip().endswith(": why alloc-none")


def test_learned_runtimes(cli: Cli) -> None:
    assert cli.json("app", "runtimes") == {"runtimes": []}
    wide = shape_of(2, 4, 1, 0.5)
    runs = [*[Run("relax", wide, 60.0)] * 9, Run("relax", wide, 7200.0), Run("other", "s", 1.0)]
    cli.store.run(lambda conn: runtimes.add(conn, runs))
    [other, relax] = cli.json("app", "runtimes")["runtimes"]
    assert (other["application"], other["runs"]) == ("other", 1)
    assert (relax["application"], relax["shape"], relax["runs"]) == ("relax", wide, 10)
    assert relax["median"] == relax["ninety_percent"] == pytest.approx(60, rel=0.1)
    assert relax["mean"] == pytest.approx(774, rel=0.06)
    assert cli.json("app", "runtimes", "relax")["runtimes"] == [relax]
    shown = cli("app", "runtimes").stdout
    assert "nodes=2 ranks=4 threads=1 gpus=0.5" in shown
    words = cli.refused("app", "runtimes", "relac")
    assert words == "no run of 'relac' has ended well: did you mean 'relax'?"
