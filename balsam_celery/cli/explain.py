"""``balsam explain``: why a task, or packing, is where it is."""

from __future__ import annotations

from typing import Any

import click

from balsam_celery.cli.output import echo_json, say, visible
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.durations import format_duration
from balsam_celery.service.explain import explain_task
from balsam_celery.service.explain_allocations import explain_allocations
from balsam_celery.service.explained import plain_allocations, plain_task


@click.command()
@click.argument("what", metavar="TASK|allocations")
@json_option
def explain(what: str, as_json: bool) -> None:
    """Say why a task is where it is: what it waits for, when it starts, why it failed.

    TASK is its id, which may be cut to its first six characters or more where that fits one task.
    `balsam explain allocations` does it for packing: what each batch job is for and waits for, and
    what the backlog still needs and why that is not asked for.
    """
    site, store = session().site, session().store
    if what == "allocations":
        plain = plain_allocations(explain_allocations(store, site))
        print_plain = _print_allocations
    else:
        plain = plain_task(*explain_task(store, site, what))
        print_plain = _print_task
    if as_json:
        echo_json(plain)
    else:
        print_plain(plain)


def _print_task(plain: dict[str, Any]) -> None:
    click.secho(visible(f"{plain['id']}  {plain['name']}  {plain['state']}"), bold=True)
    click.echo(f"  {visible(plain['text'])}")


def _print_allocations(plain: dict[str, Any]) -> None:
    if plain["note"]:
        say(plain["note"])
    for one in plain["allocations"]:
        size = f"{one['nodes']} × {format_duration(one['wall_time'])} in {one['queue']}"
        click.secho(visible(f"{one['id']}  {size}  {one['state']}"), bold=True)
        click.echo(f"  {visible(one['text'])}")
    if plain["backlog"]:
        click.secho("backlog", bold=True)
        for one in plain["backlog"]:
            click.echo(f"  {visible(one['text'])}")
    if not plain["allocations"] and not plain["backlog"]:
        say("no task waits for slots, and no allocation is queued or running")
