"""``balsam app``: programs kept in the database under a name."""

from __future__ import annotations

import difflib
import shlex
from typing import Any

import click

from balsam_celery.cli import describe
from balsam_celery.cli.output import echo_json, say, table
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.cli.taskoptions import given_options, task_options
from balsam_celery.commands import parse_template
from balsam_celery.durations import format_duration
from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.store import applications, runtimes
from balsam_celery.store.rows import ApplicationRow
from balsam_celery.tasks.options import TaskOptions, changed


@click.group()
def app() -> None:
    """Programs saved under a name, for `balsam submit --app` and `program(NAME)`."""


@app.command("add")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, metavar="PROGRAM [ARG]...")
@click.option("--description", default="", help="For people.")
@click.option("--replace", is_flag=True, help="Take the place of an earlier one of that name.")
@task_options
@json_option
def app_add(
    name: str,
    command: tuple[str, ...],
    description: str,
    replace: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Save a program and the options of its tasks.

    PROGRAM and its arguments are a template: {input} stands for the value input=..., {0} for the
    first plain value, {{ for a brace. Write -- before PROGRAM when an argument begins with a dash.
    """
    if not name.isprintable():
        raise InvalidInput(f"the name is {name!r}: give printable characters")
    parse_template(command)
    defaults = given_options(options)
    changed(TaskOptions(), defaults)
    store = session().store
    store.run(
        lambda conn: applications.add(
            conn,
            name=name,
            command=command,
            defaults=defaults,
            description=description,
            replace=replace,
            now=store.clock(),
        )
    )
    with store.read() as conn:
        row = applications.get(conn, name)
    if as_json:
        echo_json(_as_json(row))
    else:
        say(f"program {name!r} saved")


@app.command("ls")
@json_option
def app_ls(as_json: bool) -> None:
    """List saved programs."""
    with session().store.read() as conn:
        rows = applications.list_all(conn)
    if as_json:
        echo_json({"applications": [_as_json(row) for row in rows]})
        return
    table(
        ("NAME", "COMMAND", "OPTIONS", "DESCRIPTION"),
        [
            (
                row.name,
                shlex.join(row.command),
                " ".join(f"{key}={value}" for key, value in row.defaults.items()),
                row.description,
            )
            for row in rows
        ],
    )


@app.command("runtimes")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
def app_runtimes(names: tuple[str, ...], as_json: bool) -> None:
    """Show how long programs ran that ended well, also those that were never saved.

    Planning takes these times for tasks that name no expected time, once a program has ended so
    in ten runs.
    """
    with session().store.read() as conn:
        known = runtimes.learned(conn)
    if unknown := sorted(set(names) - set(known.applications)):
        near = difflib.get_close_matches(unknown[0], known.applications, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else "'balsam app runtimes' lists them"
        raise NotFound(f"no run of {unknown[0]!r} has ended well: {mend}")
    rows = [
        describe.runtime(application, shape, found)
        for (application, shape), found in sorted(known.shapes.items())
        if not names or application in names
    ]
    if as_json:
        echo_json({"runtimes": rows})
        return
    times = ("mean", "median", "ninety_percent")
    table(
        ("PROGRAM", "SHAPE", "RUNS", "MEAN", "MEDIAN", "90 %"),
        [
            (
                row["application"],
                row["shape"],
                str(row["runs"]),
                *(format_duration(row[time]) for time in times),
            )
            for row in rows
        ],
    )


@app.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
def app_rm(names: tuple[str, ...], as_json: bool) -> None:
    """Remove saved programs, all or none; tasks made of them stay."""

    def change(conn: Any) -> None:
        for name in names:
            applications.remove(conn, name)

    session().store.run(change)
    if as_json:
        echo_json({"removed": list(names)})
    else:
        say(f"removed: {', '.join(names)}")


def _as_json(row: ApplicationRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "command": row.command,
        "defaults": row.defaults,
        "description": row.description,
        "created": describe.timestamp(row.created),
    }
