"""The real system held against the simulator: the same decisions, and the same time in all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from balsam_celery.decisions import Line
from balsam_celery.limits import policy_of, queues_of
from balsam_celery.resources import Resources
from balsam_celery.service.journal import NAME
from balsam_celery.settings import LocalSettings
from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.runs import OURS, make
from balsam_celery.simulate.workload import Kind, Workload
from balsam_celery.wire import decode, from_plain, to_plain
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
    keys = {"decisions": "true", "enabled": "false"}  # without Flower
    # one allocation for all: another one's start, on a busy machine, is nothing that was planned
    keys |= {"min_nodes": "4", "min_wall_time": '"1h"', "max_wall_time": '"1h"'}
    live = open_live_site(tmp_path / "site", LOCAL, **keys)
    try:
        yield live
    finally:
        close_live_site(live)


@dataclass
class Times:
    """When tasks were given their cores, and when others could have these; seconds.

    From the passes of placement: the one that placed a task, and the first that does not find it
    any more. So a task is taken to hold its cores for all that is not planning: its program, its
    way to the worker, that of its outcome into SQL, and the wait for the next pass.
    """

    placed: dict[str, float]
    freed: dict[str, float]

    @property
    def makespan(self) -> float:
        """From the first placement until all is free."""
        return max(self.freed.values()) - min(self.placed.values())

    def held(self, id: str) -> float:
        """For how long the task had its cores."""
        return self.freed[id] - self.placed[id]


def times_of(decisions: Iterable[Line]) -> Times:
    """The times of what was placed; each task once."""
    times = Times({}, {})
    holding: set[str] = set()
    for one in decisions:
        if one.placement is None:
            continue
        found = {h.id for pilot in one.placement.pilots for h in pilot.holdings}
        times.freed |= dict.fromkeys(holding - found, one.placement.now)
        placements = one.placement.placements
        # what waits behind another task on its cores would hold them twice
        assert not any(share.queued for placed in placements for share in placed.shares)
        placed = {placed.id for placed in placements}
        assert not placed & times.placed.keys()
        times.placed |= dict.fromkeys(placed, one.placement.now)
        holding = found | placed
    return times


def decided(live: LiveSite) -> list[Line]:
    """The decisions that were written down."""
    text = (live.site.log_dir / NAME).read_text(encoding="utf-8")
    # the last line may be about to be written
    return [decode(Line, line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def simulated(live: LiveSite, times: Times, cores: int = LOCAL.cores_per_node) -> float:
    """The makespan, were it planned freely on nodes of so many cores."""
    settings = replace(live.site.settings, local=replace(LOCAL, cores_per_node=cores))
    queues = queues_of(settings)
    rows = [row for row in live.tasks() if row.id in times.placed]
    shapes: list[tuple[str, Resources, int]] = []
    workload = Workload([])
    # of equal ones those with the smaller ids go first, here and there
    for row in sorted(rows, key=lambda row: (row.created, row.id)):
        shape = (row.application, row.resources, row.wall_time)
        if shape not in shapes:
            shapes.append(shape)
        workload.add(shapes.index(shape), times.held(row.id), 0.0)
    workload.kinds = [Kind(*shape) for shape in shapes]
    machine = Machine(
        LOCAL.nodes,
        queues[0].node,
        queues,
        policy_of(settings),
        startup=1.0,
        overhead=0.0,
        tick=0.001,
        packing_interval=settings.packing.interval,
        idle_timeout=settings.pilot.idle_timeout,
        ageing=float(settings.placement.ageing),
    )
    record = Simulation(workload, machine, make(OURS), seed=1).run()
    return max(record.finished) - min(record.first_start)


def test_the_real_system_does_what_the_simulator_does(recorded: LiveSite) -> None:
    ids: list[str] = recorded.python(SCRIPT)

    def is_told() -> bool:
        done = {row.id for row in recorded.tasks(states=["JOB_FINISHED"])}
        return done >= set(ids) and times_of(decided(recorded)).freed.keys() >= set(ids)

    wait_until(is_told, 200, "all tasks done, and their cores seen free by placement")

    decisions = decided(recorded)
    times = times_of(decisions)
    assert times.placed.keys() == set(ids)
    asked = [r for one in decisions if one.packing for r in one.packing.requests]
    assert asked
    assert [number for number, one in enumerate(decisions) if not one.is_repeated] == []
    # the check itself can fail: with a core less somewhere, something else is decided
    plain: Any = to_plain(next(one for one in decisions if one.placement))
    for pilot in plain["placement"]["pilots"]:
        for node in pilot["nodes"]:
            node["cores"] = node["cores"][1:]
    assert not from_plain(Line, plain).is_repeated

    free = simulated(recorded, times)
    assert free == pytest.approx(times.makespan, rel=0.1)
    # and so can this one
    assert simulated(recorded, times, cores=3) != pytest.approx(times.makespan, rel=0.1)
