"""``balsam pack --dry-run``: what packing would do now, and why."""

from __future__ import annotations

from typing import Any

import click

from balsam_celery.cli import describe
from balsam_celery.cli.output import echo_json, plural, say, table
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.durations import format_duration
from balsam_celery.errors import InvalidInput
from balsam_celery.plans import ENDLESS
from balsam_celery.schedulers import make_scheduler
from balsam_celery.service.decide import Decision, foresee


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print the decision; must be given.")
@json_option
def pack(dry_run: bool, as_json: bool) -> None:
    """Print which batch jobs would be asked for, cancelled and drained now, which idle nodes given
    back, and why.

    It is what the site's service decides by the same rows, limits and idle nodes; nothing is
    changed. The service does it by itself, every packing.interval.
    """
    site = session().site
    if not dry_run:
        raise InvalidInput(
            f"the service packs by itself, every {format_duration(site.settings.packing.interval)}:"
            " give --dry-run to see what it does"
        )
    scheduler = make_scheduler(
        site.settings.scheduler.kind, settings=site.settings, local_dir=site.local_dir
    )
    plain = describe_decision(foresee(session().store, scheduler, site.settings))
    if as_json:
        echo_json(plain)
        return
    _print(plain)


def describe_decision(decision: Decision) -> dict[str, Any]:
    """A decision as ``docs/cli-json.md`` has it."""
    plan = decision.plan
    rows = {row.id: row for row in decision.live}
    notes = [
        {
            "allocation": note.id,
            "state": str(rows[note.id].state),
            "queue": rows[note.id].queue,
            "nodes": rows[note.id].nodes,
            "wall_time": rows[note.id].wall_time,
            "action": _action(note.id, plan.cancel, plan.drain),
            "code": note.code,
            "reason": note.reason,
        }
        for note in plan.notes
    ]
    return {
        "requests": [
            {
                "queue": request.queue,
                "nodes": request.nodes,
                "wall_time": request.wall_time,
                "tasks": request.tasks,
                "code": request.code,
                "reason": request.reason,
            }
            for request in plan.requests
        ],
        "allocations": notes,
        "release": [
            {
                "allocation": release.id,
                "queue": rows[release.id].queue,
                "wall_time": rows[release.id].wall_time,
                "nodes": list(release.nodes),
            }
            for release in plan.release
        ],
        "waiting": [
            {
                "resources": describe.resources(waits.demand.resources),
                "wall_time": waits.demand.wall_time,
                "expected_time": waits.demand.expected_time,
                "priority": waits.demand.priority,
                "restartable": waits.demand.restartable,
                "tasks": waits.demand.count,
                "waited": waits.demand.waited,
                "code": waits.code,
                "reason": waits.reason,
            }
            for waits in plan.waiting
        ],
        "failing": [
            {"application": shape.application, "tasks": shape.count, "reason": reason}
            for shape, reason in decision.hopeless.items()
        ],
        "paused": [
            {"queue": queue, "until": describe.timestamp(pause.until), "reason": pause.reason}
            for queue, pause in decision.paused.items()
        ],
        "idle": [
            {
                "queue": window.queue,
                "nodes": window.nodes,
                "seconds": None if window.seconds >= ENDLESS else window.seconds,
            }
            for window in decision.windows
        ],
        "budget": None if decision.budget is None else round(decision.budget / 3600, 3),
    }


def _action(id: str, cancel: tuple[str, ...], drain: tuple[str, ...]) -> str:
    return "cancel" if id in cancel else "drain" if id in drain else "keep"


def _print(plain: dict[str, Any]) -> None:
    rows = [
        ("ask for", "-", one["queue"], one["nodes"], one["wall_time"], one["reason"])
        for one in plain["requests"]
    ]
    rows += [
        (
            one["action"], one["allocation"], one["queue"], one["nodes"], one["wall_time"],
            one["reason"],
        )
        for one in plain["allocations"]
    ]  # fmt: skip
    rows += [
        (
            "give back", one["allocation"], one["queue"], len(one["nodes"]), one["wall_time"],
            f"idle, and nothing that waits could use them: {', '.join(one['nodes'])}",
        )
        for one in plain["release"]
    ]  # fmt: skip
    table(
        ("ACTION", "ALLOCATION", "QUEUE", "NODES", "WALL TIME"),
        [
            (action, id, queue, str(nodes), format_duration(wall_time))
            for action, id, queue, nodes, wall_time, _ in rows
        ],
        notes=[row[-1] for row in rows],
    )
    if not rows:
        say("nothing is to be asked for, and no allocation exists")
    for one in plain["waiting"]:
        size = plural(one["resources"]["num_nodes"], "node")
        limit = format_duration(one["wall_time"])
        say(f"{plural(one['tasks'], 'task')} of {size} and {limit} must wait: {one['reason']}")
    for one in plain["failing"]:
        say(f"{plural(one['tasks'], 'task')} of {one['application']} will fail: {one['reason']}")
    for one in plain["paused"]:
        say(f"queue {one['queue']} is asked for nothing until {one['until']}: {one['reason']}")
    if plain["budget"] is not None:
        say(f"{plain['budget']:,.1f} node-hours of the budget are left")
