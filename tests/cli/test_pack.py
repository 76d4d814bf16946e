"""``balsam pack --dry-run``: the decision with its reasons, and nothing done."""

from __future__ import annotations

import pytest

from balsam_celery.store.allocations import (
    insert_allocation,
    list_allocations,
    list_pilots,
    update_pilot,
)
from balsam_celery.store.rows import PilotState
from tests.cli.conftest import Cli
from tests.cli.test_json import check
from tests.service.allocations.making import dispatched, running_pilot


def allocation(cli: Cli, id: str, nodes: int = 1, wall_time: int = 3600) -> None:
    with cli.store.write() as conn:
        insert_allocation(
            conn, id=id, queue="local", nodes=nodes, wall_time=wall_time, run_dir="/x",
            now=cli.store.clock(),
        )  # fmt: skip


def rewrite(cli: Cli, table: str, *lines: str) -> None:
    """Add keys to a table of the site's ``site.toml``, in place of those it has."""
    path = cli.site.directory / "site.toml"
    names = [line.split("=")[0].strip() for line in lines]
    text, inside = [], False
    for line in path.read_text().splitlines():
        if line.startswith("["):
            inside = line.startswith(f"[{table}]")
            text.append(line)
            text += lines if inside else ()
        elif not (inside and line.split("=")[0].strip() in names):
            text.append(line)
    path.write_text("\n".join(text) + "\n")


def test_what_would_be_asked_for(cli: Cli) -> None:
    cli("submit", "--array", "1-3", "--", "true")
    plain = cli.json("pack", "--dry-run")
    check("plan", plain)
    [request] = plain["requests"]
    check("request", request)
    assert request["tasks"] == 3
    assert (plain["allocations"], plain["waiting"], plain["budget"]) == ([], [], None)
    output = cli("pack", "--dry-run").stdout
    assert "ask for" in output
    assert "3 waiting tasks of 1 shape" in output
    with cli.store.read() as conn:
        assert list_allocations(conn) == []


def test_what_would_be_given_up(cli: Cli) -> None:
    allocation(cli, "needless")
    plain = cli.json("pack", "--dry-run")
    [told] = plain["allocations"]
    check("planned allocation", told)
    assert (told["allocation"], told["action"], told["code"]) == ("needless", "cancel", "unneeded")
    assert "no waiting task needs it" in cli("pack", "--dry-run").stdout
    with cli.store.read() as conn:
        assert list_allocations(conn)[0].cancel_requested is None


def test_idle_nodes_that_would_be_given_back(cli: Cli) -> None:
    id = running_pilot(cli.store, cli.site)
    dispatched(cli.store, "task01", "p1", running=True)
    idle = {"n1": cli.store.clock() - cli.site.settings.packing.release_after}
    with cli.store.write() as conn:
        update_pilot(conn, "p1", (PilotState.LIVE,), idle_nodes=idle)
    plain = cli.json("pack", "--dry-run")
    check("plan", plain)
    assert plain["release"] == [
        {"allocation": id, "queue": "local", "wall_time": 300, "nodes": ["n1"]}
    ]
    output = cli("pack", "--dry-run").stdout
    assert "give back" in output
    assert "nothing that waits could use them: n1" in output
    with cli.store.read() as conn:
        [pilot] = list_pilots(conn)
    assert pilot.giving_back is None


def test_what_must_wait_and_why(cli: Cli) -> None:
    rewrite(cli, "packing", "max_allocations = 1", "budget = 10")
    allocation(cli, "alloc1", wall_time=60)
    cli("submit", "--wall-time", "2h", "--", "true")
    plain = cli.json("pack", "--dry-run")
    check("plan", plain)
    [waits] = plain["waiting"]
    check("waiting tasks", waits)
    assert (waits["code"], waits["tasks"]) == ("max-allocations", 1)
    assert 0 < plain["budget"] <= 10
    said = cli("pack", "--dry-run").stderr
    assert "1 task of 1 node and 2h must wait: packing.max_allocations (1)" in said
    assert "node-hours of the budget are left" in said


def test_nothing_to_do(cli: Cli) -> None:
    assert "nothing is to be asked for" in cli("pack", "--dry-run").stderr
    check("plan", cli.json("pack", "--dry-run"))


def test_without_dry_run_it_says_who_packs(cli: Cli) -> None:
    assert "the service packs by itself, every 2s: give --dry-run" in cli.refused("pack")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("efficiency = 1.0", "packing.efficiency is 1.0: give 0 to 0.99"),
        ("efficiency = true", "packing.efficiency is True: give a value of type float"),
        ("budget = -1", "packing.budget is -1.0: give 0 or more"),
        ("budget = inf", "packing.budget is inf: give 0 or more"),
        ('max_wait = "soon"', "packing.max_wait is 'soon': give a time"),
        ("patience = 1", "unknown key 'patience' in [packing]"),
    ],
)
def test_settings_that_cannot_be_used(cli: Cli, line: str, words: str) -> None:
    rewrite(cli, "packing", line)
    assert words in cli.refused("pack", "--dry-run")


def test_a_queue_whose_jobs_the_machine_is_too_small_for(cli: Cli) -> None:
    rewrite(cli, "queues.local", "min_nodes = 99", "max_nodes = 99")
    for command in (("pack", "--dry-run"), ("ls",), ("submit", "--", "true")):
        assert "queues.local.min_nodes is 99: local.nodes is" in cli.refused(*command)
