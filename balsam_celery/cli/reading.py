"""``balsam ls`` and ``balsam show``."""

from __future__ import annotations

import shlex
from typing import Any

import click

from balsam_celery.amounts import format_bytes
from balsam_celery.cli import describe
from balsam_celery.cli.output import echo_json, local_time, plural, say, table, visible
from balsam_celery.cli.selection import Selection, filter_options, ids_argument, json_option
from balsam_celery.cli.session import session
from balsam_celery.durations import format_duration
from balsam_celery.states import State
from balsam_celery.store.queries import (
    attempts,
    children,
    count_tasks,
    events,
    get_task,
    parents,
    select_ids,
    select_tasks,
)
from balsam_celery.store.rows import TaskRow


@click.command()
@ids_argument
@filter_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="At most so many, the newest.",
)
@click.option("--all", "everything", is_flag=True, help="All that fit, without a limit.")
@click.option("--count", is_flag=True, help="Only how many there are in each state.")
@json_option
def ls(limit: int, everything: bool, count: bool, as_json: bool, **options: Any) -> None:
    """List tasks, oldest first: of those that fit the newest 100 (--limit, --all).

    \b
    States that wait:  CREATED, AWAITING_PARENTS, READY, STAGED_IN, PREPROCESSED,
                       RESTART_READY
    on a pilot:        DISPATCHED, RUNNING
    after a run:       RUN_DONE, RUN_ERROR, RUN_TIMEOUT, POSTPROCESSED
    at the end:        JOB_FINISHED, FAILED, USER_KILLED
    """
    selection = Selection.take(options)
    store = session().store
    with store.read() as conn:
        chosen = selection.filter(conn)
        counts = count_tasks(conn, chosen)
        total = sum(counts.values())
        size = 0 if count else (total if everything else min(limit, total))
        rows = select_tasks(conn, chosen, limit=size, newest_first=True) if size else []
        now = store.clock()
    rows.reverse()
    if count:
        _print_counts({str(state): n for state, n in counts.items()}, as_json)
        return
    if as_json:
        echo_json({"tasks": [describe.task(row) for row in rows], "total": total})
        return
    table(
        ("ID", "NAME", "WORKFLOW", "STATE", "TRY", "NODES", "CREATED", "REASON"),
        [
            (
                row.id[:13],
                row.name,
                row.workflow or "-",
                str(row.state),
                str(row.attempt),
                str(row.num_nodes),
                local_time(row.created),
                _reason(row, now),
            )
            for row in rows
        ],
        state_column=3,
    )
    if total > len(rows):
        say(f"the newest {len(rows):,} of {plural(total, 'task')}: --all shows all")


def _reason(row: TaskRow, now: float) -> str:
    """Why it is in its state, and, of a retry that waits, until when."""
    if row.state is State.RESTART_READY and row.not_before > now:
        return f"{row.reason}; tried again at {local_time(row.not_before)}"
    return row.reason


def _print_counts(counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        echo_json({"counts": counts, "total": sum(counts.values())})
        return
    table(("STATE", "TASKS"), [(state, f"{n:,}") for state, n in counts.items()], state_column=0)


@click.command()
@ids_argument
@filter_options
@json_option
def show(as_json: bool, **options: Any) -> None:
    """Everything known of a task: command, resources, attempts, events, parents, result.

    An ID may be cut to its first six characters or more where that fits one task. With --json one
    id gives an object; several ids, or a filter, give {"tasks": [...]}.
    """
    selection = Selection.take(options)
    selection.require()
    found = []
    with session().store.read() as conn:
        for id in select_ids(conn, selection.filter(conn)):
            found.append(
                describe.whole_task(
                    get_task(conn, id),
                    attempts(conn, id),
                    events(conn, id),
                    [parent.id for parent in parents(conn, id)],
                    [child.id for child in children(conn, id)],
                )
            )
    if as_json:
        single = len(selection.ids) == 1 and not selection.has_filter
        echo_json(found[0] if single else {"tasks": found})
        return
    if not found:
        say("no task fits")
    for number, plain in enumerate(found):
        if number:
            click.echo()
        _print_task(plain)


def _resources(resources: dict[str, Any]) -> str:
    plain = {key: value for key, value in resources.items() if value}
    if memory := plain.get("memory_per_node"):
        plain["memory_per_node"] = format_bytes(memory)
    plain |= plain.pop("resources_per_node", {})
    return ", ".join(f"{key} {value}" for key, value in plain.items())


def _print_task(plain: dict[str, Any]) -> None:
    lines = [
        ("id", plain["id"]),
        ("name", plain["name"]),
        ("workflow", plain["workflow"]),
        ("tags", ", ".join(plain["tags"])),
        ("program", plain["application"]),
        ("command", _quoted(plain["argv"] or plain["command"])),
        ("state", plain["state"] + (" (kill requested)" if plain["kill_requested"] else "")),
        ("reason", plain["reason"]),
        ("resources", _resources(plain["resources"])),
        ("wall time", format_duration(plain["wall_time"]) if plain["wall_time"] else ""),
        ("priority", str(plain["priority"]) if plain["priority"] else ""),
        ("retries", f"{plain['failures']} failed, {plain['max_retries']} retries allowed"),
        ("environment", _quoted([f"{k}={v}" for k, v in plain["environment"].items()])),
        ("parents", ", ".join(plain["parents"])),
        ("children", ", ".join(plain["children"])),
        ("directory", plain["work_dir"] or ""),
        ("created", plain["created"]),
        ("finished", plain["finished"] or ""),
    ]
    for label, value in lines:
        if value:
            click.echo(f"{click.style(label.ljust(12), bold=True)}{visible(value)}")
    for one in plain["attempts"]:
        _print_attempt(one)
    click.secho("events", bold=True)
    for one in plain["events"]:
        source = one["from"] or "(new)"
        line = f"  {one['time']}  {source} → {one['to']}  {one['who']}  {one['message']}"
        click.echo(visible(line).rstrip())


def _print_attempt(one: dict[str, Any]) -> None:
    nodes = ", ".join(
        f"{share['node']}[{','.join(map(str, share['cores']))}]" for share in one["nodes"]
    )
    how = one["outcome"] or "running"
    if one["exit_code"] is not None:
        how += f", exit code {one['exit_code']}"
    if one["signal"] is not None:
        how += f", signal {one['signal']}"
    click.secho(f"attempt {one['number']}", bold=True)
    for label, value in (
        ("outcome", how + (f" ({one['reason']})" if one["reason"] else "")),
        ("nodes", nodes),
        ("allocation", one["allocation"]),
        ("pilot", one["pilot"]),
        ("command", _quoted(one["argv"])),
        ("directory", one["work_dir"]),
        ("started", one["started"]),
        ("ended", one["ended"]),
        ("usage", _usage(one)),
    ):
        if value:
            click.echo(f"  {label.ljust(12)}{visible(value)}")


def _usage(one: dict[str, Any]) -> str:
    if one["user_time"] is None or one["system_time"] is None:
        return ""
    memory = (one["max_memory"] or 0) / 2**20
    return f"user {one['user_time']:.2f}s, system {one['system_time']:.2f}s, peak {memory:.1f} MiB"


def _quoted(argv: list[str]) -> str:
    """``argv`` as a shell would take it, for people to read and copy."""
    return shlex.join(argv)
