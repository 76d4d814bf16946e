"""After the faults: wait until the site has come to rest, and look at all that it left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis
from sqlalchemy import func, select

from balsam_celery.errors import StoreError
from balsam_celery.states import FINAL
from balsam_celery.store import schema
from balsam_celery.store.allocations import LIVE_PILOTS
from tests.chaos import audit, leftovers, workload
from tests.chaos.ledger import Line
from tests.chaos.plan import Injected
from tests.chaos.report import Result
from tests.chaos.results import wrong_results
from tests.chaos.world import World
from tests.waiting import wait_until

#: Seconds for the last tasks; what is not final then is lost.
PATIENCE = 240.0
_TOLD = 20


def wait_for_the_end(world: World, count: int) -> int:
    """Wait until all tasks are final, or for long enough; how many allocations held them up."""
    task = schema.task.c
    query = select(func.count()).where(
        task.workflow == workload.WORKFLOW, task.state.in_([str(state) for state in FINAL])
    )
    _within(PATIENCE, lambda: _scalar(world, query) == count)
    stale = 0
    if world.cluster is not None and _scalar(world, query) != count:
        stale = _cancel_stale(world)
        _within(PATIENCE, lambda: _scalar(world, query) == count)
    _within(60.0, lambda: _scalar(world, select(func.count()).select_from(schema.effect)) == 0)
    return stale


def _cancel_stale(world: World) -> int:
    """Cancel, as a user would, jobs that Slurm calls running though their pilots are gone.

    A controller that is killed within a tenth of a second of a job's end has not saved that end,
    and learns of it when the node registers anew: after some twenty pings.
    """
    pilot = schema.pilot.c
    with world.live.store.read() as conn:
        stale = conn.scalars(
            select(pilot.allocation).where(
                pilot.state.in_([str(state) for state in LIVE_PILOTS]),
                pilot.heartbeat < world.live.store.clock() - PATIENCE / 2,
            )
        ).all()
    for allocation in stale:
        world.live.balsam("allocations", "cancel", allocation)
    return len(stale)


def _scalar(world: World, query: object) -> int:
    try:
        with world.live.store.read() as conn:
            return int(conn.scalar(query) or 0)  # type: ignore[call-overload]
    except StoreError:
        return -1


def _within(seconds: float, condition: object) -> None:
    try:
        wait_until(condition, seconds)  # type: ignore[arg-type]
    except AssertionError:
        return  # the audit tells what is missing


def fill_in(
    world: World,
    result: Result,
    count: int,
    lines: Sequence[Line],
    injected: Sequence[Injected],
) -> None:
    """Make the audit; the allocations are ended on the way, and then the site."""
    with world.live.store.read() as conn:
        tasks = schema.task.c
        rows = conn.execute(select(schema.task).where(tasks.workflow == workload.WORKFLOW))
        rows = [dict(row) for row in rows.mappings()]
        attempts = [dict(row) for row in conn.execute(select(schema.attempt)).mappings()]
        by_id = select(schema.event).order_by(schema.event.c.id)
        events = [dict(row) for row in conn.execute(by_id).mappings()]
        owed = conn.scalar(select(func.count()).select_from(schema.effect))
    site = world.live.site.settings.site.id
    asked = workload.tasks(result.seed, count)
    found = audit.audit(site, asked, lines, rows, attempts, events, injected)
    if owed:
        found.owed.append(f"{owed} effects are not performed")
    kept = _results(world, [row["id"] for row in rows])
    found.owed += wrong_results(rows, kept, injected)
    world.live.balsam("allocations", "cancel", "--all")
    _within(60.0, lambda: not _alive(world))
    _within(60.0, lambda: not _keys(world))
    found.keys += _keys(world)
    hunted = leftovers.Hunted.of(world.directory, rows, _local_jobs(world))
    # first beside the site, whose own end would take away what its processes have left
    _within(60.0, lambda: not hunted.alive(world.services()))
    orphans = hunted.alive(world.services())
    world.down()
    _within(60.0, lambda: not hunted.alive())
    found.orphans += sorted({*orphans, *hunted.alive()})
    result.tasks, result.attempts = len(rows), len(attempts)
    result.done_again = audit.done_again(lines)
    result.findings = found.counts()
    result.told = found.told()[:_TOLD]


def _results(world: World, ids: Sequence[str]) -> dict[str, Any]:
    """What Redis has as results, by id."""
    prefix = world.live.site.settings.key_prefix
    with world.redis() as client:
        kept = client.mget([f"{prefix}celery-task-meta-{id}" for id in ids])
    return {
        id: None if value is None else json.loads(value)
        for id, value in zip(ids, kept, strict=True)
    }


def _alive(world: World) -> list[str]:
    pilot = schema.pilot.c
    with world.live.store.read() as conn:
        return list(conn.scalars(select(pilot.id).where(pilot.state != "ENDED")))


def _keys(world: World) -> list[str]:
    """What Redis keeps of pilots and allocations that have ended."""
    pilot, allocation = schema.pilot.c, schema.allocation.c
    with world.live.store.read() as conn:
        pilots = list(conn.scalars(select(pilot.id).where(pilot.state == "ENDED")))
        ended = select(allocation.id).where(allocation.state.in_(("ENDED", "FAILED")))
        allocations = list(conn.scalars(ended))
    try:
        with world.redis() as client:
            prefix = world.live.site.settings.key_prefix
            return leftovers.keys(client, prefix, pilots, allocations)
    except redis.RedisError as error:
        return [f"Redis does not answer: {error}"]


def _local_jobs(world: World) -> list[str]:
    """Names of the local scheduler's jobs, as their processes are branded."""
    native, site = schema.allocation.c.native_id, world.live.site.settings.site.id
    with world.live.store.read() as conn:
        ids = conn.scalars(select(native).where(native.like("local-%")))
        return [f"{site}.{id.removeprefix('local-')}" for id in ids]
