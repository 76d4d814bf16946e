"""``balsam explain`` on a live site, through the situations that a user meets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from balsam_celery.service.explain import explain_task
from balsam_celery.service.explained import plain_task
from tests.acceptance.live import LiveSite
from tests.waiting import wait_until

SLEEP = ("--", "sleep", "600")
WORKFLOW = ("--workflow", "explained")


@pytest.fixture
def site(live: LiveSite) -> Iterator[LiveSite]:
    """The live site; what the test submitted is killed at the end."""
    yield live
    live.balsam("kill", *WORKFLOW, "--yes")
    wait_until(
        lambda: all(row.finished is not None for row in live.tasks(workflow="explained")),
        90,
        "all ended",
    )


def explain(live: LiveSite, id: str, *codes: str) -> dict[str, Any]:
    """The explanation, once it is one of ``codes``."""
    told: dict[str, Any] = {}

    def is_told() -> bool:
        told.clear()
        told.update(plain_task(*explain_task(live.store, live.site, id)))
        return told["code"] in codes

    wait_until(is_told, 90, f"{id} explained by one of {codes}")
    return told


def test_a_few_situations(site: LiveSite) -> None:
    live = site
    (failed,) = live.submit(*WORKFLOW, "--", "/bin/sh", "-c", "echo no grid >&2; exit 3")
    found = explain(live, failed, "exit-code")
    assert "It failed: exit code 3." in found["text"]
    assert "no grid" in found["text"]
    assert "without retries" in found["text"]
    assert live.balsam("explain", failed).splitlines()[1] == f"  {found['text']}"

    # more whole nodes are wanted, and first, than there are: whatever runs, is one of these
    whole = ("--array", "1-20", "--node-packing-count", "1", "--priority", "5")
    live.submit(*WORKFLOW, "--tag", "whole", *whole, *SLEEP)
    row = wait_until(
        lambda: next(iter(live.tasks(tags=("whole",), states=("RUNNING",))), None), 90, "one runs"
    )
    found = explain(live, row.id, "running")
    assert found["pilot"] == row.pilot
    allocation = found["allocation"]
    assert found["nodes"] == [share["node"] for share in row.shares or ()]
    assert found["latest_end"] is not None

    # others have to wait: in a pilot, for an allocation, or for one to be asked for
    first, second = (live.submit(*WORKFLOW, "--num-nodes", "4", *SLEEP)[0] for _ in range(2))
    found = explain(live, second, "behind", "queued")
    assert found["ahead"]["higher_priority"] >= 12
    assert found["ahead"]["same_shape"] == 1
    assert f"{found['ahead']['higher_priority']} tasks of higher priority" in found["text"]
    packed = live.json("explain", "allocations")
    known = {one["id"]: one for one in packed["allocations"]}
    assert known[allocation]["code"] == "running"
    assert found["allocation"] in known
    assert packed["note"] == ""
    [need] = [one for one in packed["backlog"] if one["num_nodes"] == 4]
    assert need["tasks"] == 2
    told = live.python(
        "import json\n"
        "from balsam_celery import program, tasks\n"
        "one = program('waits', ['true'], workflow='explained')\n"
        "two = program('first', ['sleep', '600'], workflow='explained', num_nodes=4)\n"
        "last = (two.s() | one.si()).apply_async()\n"
        "print(json.dumps([tasks.explain(last.id), last.parent.id]))\n"
    )
    assert told[0]["code"] == "parents"
    assert [parent["id"] for parent in told[0]["parents"]] == [told[1]]
    assert "first" in told[0]["text"]

    # the settings change under a task that waits; the service would see it at its next start
    path = live.site.directory / "site.toml"
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(before.replace("max_nodes = 4", "max_nodes = 2"), encoding="utf-8")
        found = live.json("explain", first)
    finally:
        path.write_text(before, encoding="utf-8")
    assert found["code"] == "impossible"
    assert "num_nodes is 4: no queue gives more than 2" in found["text"]

    live.balsam("kill", first)
    found = explain(live, first, "killed")
    assert "killed" in found["text"]
