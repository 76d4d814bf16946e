"""What ``--json`` prints is what ``docs/cli-json.md`` says, key by key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from balsam_celery.runtimes import Run
from balsam_celery.states import State
from balsam_celery.store import runtimes
from balsam_celery.store.allocations import insert_allocation, insert_pilot
from tests.cli.conftest import Cli
from tests.service.test_why import TABLE as TASKS
from tests.service.test_why_allocations import TABLE as ALLOCATIONS

DOC = Path(__file__).resolve().parents[2] / "docs" / "cli-json.md"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "time": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def read_tables() -> dict[str, dict[str, str]]:
    """Heading → key → type, of the document."""
    tables: dict[str, dict[str, str]] = {}
    heading = ""
    for line in DOC.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif row := re.match(r"\| `(\w+)` \| ([a-z ]+) \|", line):
            tables.setdefault(heading, {})[row[1]] = row[2]
    tables["whole task"] = tables["task"] | tables["whole task"]
    return tables


TABLES = read_tables()


def check(kind: str, value: Any) -> None:
    """``value`` has the keys and types of the table ``kind``."""
    assert value.keys() == TABLES[kind].keys()
    for key, words in TABLES[kind].items():
        if words == "any":
            continue
        allowed = words.split(" or ")
        found = value[key]
        assert any(
            isinstance(found, TYPES[word]) and (isinstance(found, bool) == (word == "boolean"))
            for word in allowed
        ), (kind, key, found)
        if "time" in allowed and found is not None:
            assert TIME.fullmatch(found), (kind, key, found)


@pytest.fixture
def full(cli: Cli) -> Cli:
    """A site with something of each kind."""
    cli.task("aaaaaa-1", State.JOB_FINISHED, tags=["t"])
    cli.attempt("aaaaaa-1", ended=3.0, exit_code=0, user_time=1.0, max_memory=5)
    cli.task("bbbbbb-2", State.RUNNING)
    cli.attempt("bbbbbb-2")
    cli.task("cccccc-3", parents=["bbbbbb-2"])
    with cli.store.write() as conn:
        insert_allocation(
            conn, id="alloc", queue="local", nodes=1, wall_time=60, run_dir="/x", now=1.0
        )
        insert_pilot(
            conn, id="pilot", allocation="alloc", host="h", pid=1, nodes=[], end_time=9.0, now=2.0
        )
    return cli


def test_tasks(full: Cli) -> None:
    listed = full.json("ls")
    assert listed.keys() == {"tasks", "total"}
    for task in [*listed["tasks"], *_submit(full)]:
        check("task", task)
    for task in full.json("show", "aaaaaa", "bbbbbb", "cccccc")["tasks"]:
        check("whole task", task)
        for attempt in task["attempts"]:
            check("attempt", attempt)
        for event in task["events"]:
            check("event", event)
    for log in full.json("log", "aaaaaa", "cccccc")["logs"]:
        check("log", log)


def _submit(cli: Cli) -> list[Any]:
    # the option goes first: what follows the program's name is the program's
    result = cli("submit", "--json", "--array", "1-2", "--", "true")
    tasks: list[Any] = json.loads(result.stdout)["tasks"]
    assert [task["name"] for task in tasks] == ["true.1", "true.2"]
    return tasks


def test_explanations(full: Cli) -> None:
    full.task("dddddd-4", State.FAILED)
    full.attempt("dddddd-4", ended=3.0, outcome="exit", exit_code=1)
    full.task("eeeeee-5", num_nodes=99)
    for id in ("aaaaaa", "bbbbbb", "cccccc", "dddddd", "eeeeee"):
        check("explanation", full.json("explain", id))
    assert full.json("explain", "cccccc")["parents"][0].keys() == {"id", "name", "state"}
    assert full.json("explain", "eeeeee")["ahead"].keys() == {
        "total", "higher_priority", "wider", "larger", "older", "same_shape",
    }  # fmt: skip
    full.task("ffffff-6")
    found = full.json("explain", "allocations")
    check("packing", found)
    assert len(found["allocations"]) == 1
    for row in found["allocations"]:
        check("explained allocation", row)
    assert {row["code"] for row in found["backlog"]} >= {"impossible"}
    for row in found["backlog"]:
        check("need", row)


def test_codes_are_those_of_the_document() -> None:
    text = DOC.read_text(encoding="utf-8")
    for heading, told in (
        ("codes of explanations", {code for _, code, _ in TASKS.values()}),
        ("codes of explained allocations", {code for _, code, _ in ALLOCATIONS.values()}),
    ):
        section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (`[a-z`, -]+) \|", section, flags=re.MULTILINE)
        documented = {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)}
        assert told == documented - {"code"}


def test_the_rest(full: Cli) -> None:
    for row in full.json("allocations")["allocations"]:
        check("allocation", row)
    for row in full.json("pilot")["pilots"]:
        check("pilot", row)
    check("application", full.json("app", "add", "x", "prog"))
    full.store.run(lambda conn: runtimes.add(conn, [Run("x", "nodes=1", 3.0)]))
    [runtime] = full.json("app", "runtimes")["runtimes"]
    check("runtime", runtime)
    status = full.json("status", status=1)
    check("status", status)
    check("site", status["site"])
    for process in status["processes"]:
        check("process", process)
    assert len(status["allocations"]) == len(status["pilots"]) == 1
