"""The real system held against the simulator: the same decisions, and the same time in all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from balsam_celery.decisions import Line
from balsam_celery.limits import policy_of, queues_of
from balsam_celery.resources import Resources
from balsam_celery.service.journal import NAME
from balsam_celery.settings import LocalSettings
from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.runs import OURS, make
from balsam_celery.simulate.workload import Kind, Workload
from balsam_celery.states import State
from balsam_celery.store import schema
from balsam_celery.wire import decode
from tests.acceptance.live import LiveSite, close_live_site, open_live_site
from tests.waiting import wait_until

LOCAL = LocalSettings(nodes=4, cores_per_node=4)
SCRIPT = """
import json
from balsam_celery import program, submit_many
sleeps = {
    "one": program("one", ["/bin/sleep", "{0}"], wall_time="1m"),
    "half": program("half", ["/bin/sleep", "{0}"], wall_time="1m", ranks_per_node=2,
                    launcher="none"),
    "wide": program("wide", ["/bin/sleep", "{0}"], wall_time="2m", num_nodes=3, launcher="none"),
}
signatures = []
for n in range(240):
    kind = "wide" if n % 40 == 7 else "half" if n % 6 == 3 else "one"
    signatures.append(sleeps[kind].s(str(1 + n * 37 % 20 / 10)))
print(json.dumps([r.id for r in submit_many(signatures)]))
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[LiveSite]:
    """A site of four virtual nodes that writes its decisions down."""
    keys = {"decisions": "true", "max_wall_time": '"1h"', "enabled": "false"}  # without Flower
    live = open_live_site(tmp_path / "site", LOCAL, **keys)
    try:
        yield live
    finally:
        close_live_site(live)


def runs_of(live: LiveSite, ids: list[str]) -> dict[str, tuple[float, float, list[str]]]:
    """Start, end and node names of each task's only attempt."""
    with live.store.read() as conn:
        attempt = schema.attempt.c
        rows = conn.execute(select(schema.attempt).where(attempt.task.in_(ids))).all()
    assert len(rows) == len(ids)
    return {row.task: (row.started, row.ended, [n["node"] for n in row.nodes]) for row in rows}


def overhead_of(live: LiveSite, ids: list[str]) -> float:
    """Mean seconds for which a task holds its cores without running on them.

    From its placement to its start, and from its end until that is recorded.
    """
    attempt, event = schema.attempt.c, schema.event.c
    with live.store.read() as conn:
        recorded = dict(
            conn.execute(
                select(event.task, event.time).where(
                    event.task.in_(ids), event.to_state == State.RUN_DONE
                )
            ).all()
        )
        rows = conn.execute(select(schema.attempt).where(attempt.task.in_(ids))).all()
    return statistics.mean(
        row.started - row.dispatched + recorded[row.task] - row.ended for row in rows
    )


def simulated(live: LiveSite, ids: list[str], overhead: float) -> float:
    """Seconds from the first start to the last end, were it planned freely."""
    settings = live.site.settings
    queues, runs = queues_of(settings), runs_of(live, ids)
    rows = {row.id: row for row in live.tasks() if row.id in runs}
    shapes: list[tuple[str, Resources, int]] = []
    workload = Workload([])
    kinds: list[Kind] = []
    for id in ids:
        row = rows[id]
        shape = (row.application, row.resources, row.wall_time)
        if shape not in shapes:
            shapes.append(shape)
            kinds.append(Kind(*shape))
        started, ended, _ = runs[id]
        workload.add(shapes.index(shape), ended - started, 0.0)
    workload.kinds = kinds
    machine = Machine(
        LOCAL.nodes,
        queues[0].node,
        queues,
        policy_of(settings),
        startup=1.0,
        overhead=overhead,
        tick=0.02,
        packing_interval=settings.packing.interval,
        idle_timeout=settings.pilot.idle_timeout,
    )
    simulation = Simulation(workload, machine, make(OURS), seed=1)
    record = simulation.run()
    return max(record.finished) - min(record.first_start)


def test_the_real_system_does_what_the_simulator_does(recorded: LiveSite) -> None:
    ids: list[str] = recorded.python(SCRIPT)

    def done() -> int:
        return sum(1 for row in recorded.tasks(states=["JOB_FINISHED"]) if row.id in set(ids))

    wait_until(lambda: done() == len(ids), 200, "all tasks done")

    lines = (recorded.site.log_dir / NAME).read_text(encoding="utf-8").splitlines()
    decisions = [decode(Line, line) for line in lines]
    placed = [p.id for one in decisions if one.placement for p in one.placement.placements]
    assert sorted(placed) == sorted(ids)
    asked = [r for one in decisions if one.packing for r in one.packing.requests]
    assert asked
    assert [number for number, one in enumerate(decisions) if not one.is_repeated] == []
    # the check itself can fail: with a core less somewhere, something else is decided
    [whole] = [one.placement for one in decisions if one.placement][:1]
    plain = json.loads(lines[next(n for n, one in enumerate(decisions) if one.placement)])
    assert whole is not None
    for pilot in plain["placement"]["pilots"]:
        for node in pilot["nodes"]:
            node["cores"] = node["cores"][1:]
    assert not decode(Line, json.dumps(plain)).is_repeated

    runs = runs_of(recorded, ids)
    real = max(end for _, end, _ in runs.values()) - min(start for start, _, _ in runs.values())
    free = simulated(recorded, ids, overhead_of(recorded, ids))
    assert free == pytest.approx(real, rel=0.1), (free, real)
