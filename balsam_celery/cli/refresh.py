"""``balsam site refresh``: what has changed at the scheduler since ``init``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from balsam_celery.cli.output import echo_json, plural, say, table
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.discovered import Action, Change, changes, recall, rewrite
from balsam_celery.discovery import discover
from balsam_celery.durations import format_duration


@click.group()
def site() -> None:
    """The site's own settings and the machine that it is on."""


@site.command()
@click.option("--write", is_flag=True, help="Write what has changed into site.toml.")
@json_option
def refresh(write: bool, as_json: bool) -> None:
    """Ask the scheduler again, and show what has changed since site.toml was written.

    Queues and their limits, nodes, launchers. A limit that you made narrower is no change. With
    --write, site.toml takes over new queues and limits, and loses queues that are gone; comments,
    your other keys, queues that are stopped, and values that you chose within the limits stay.
    """
    where = session().site
    machine = discover(where.settings.scheduler.kind, where.settings)
    found = changes(machine, recall(where.directory), where.settings)
    if write:
        rewrite(where, machine, found)
    if as_json:
        echo_json({"changes": [_as_json(change) for change in found], "written": write})
        return
    if not machine.tells_queues:
        say(f"the scheduler {machine.scheduler!r} tells no queues and limits")
    if not found:
        say("nothing has changed")
        return
    _print(found)
    changing = [change for change in found if change.action is not Action.KEEP]
    if write:
        say(f"{plural(len(changing), 'change')} written; in force after 'balsam down', 'balsam up'")
    elif changing:
        say(f"'balsam site refresh --write' writes {plural(len(changing), 'change')}")


def _print(found: Sequence[Change]) -> None:
    table(
        ("KEY", "SITE.TOML HAS", "NOW THERE IS", "THEN THERE WAS", "--WRITE"),
        [
            (
                change.key,
                _words(change, change.site),
                _words(change, change.now),
                _words(change, change.before),
                change.action,
            )
            for change in found
        ],
    )


def _words(change: Change, value: Any) -> str:
    if value is None:
        return "no limit" if change.name else "-"
    if isinstance(value, dict):
        return "a queue"
    return format_duration(value) if change.name.endswith("wall_time") else str(value)


def _as_json(change: Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "queue": change.queue,
        "site": change.site,
        "now": change.now,
        "before": change.before,
        "action": change.action,
    }
