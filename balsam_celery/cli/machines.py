"""``balsam allocations`` and ``balsam pilot``: the machines that tasks run on."""

from __future__ import annotations

from collections.abc import Iterator

import click
from sqlalchemy import Connection

from balsam_celery.cli import describe
from balsam_celery.cli.output import echo_json, local_time, plural, say, table
from balsam_celery.cli.preview import preview
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.cli.waking import wake
from balsam_celery.durations import format_duration, parse_pause
from balsam_celery.errors import InvalidInput
from balsam_celery.store.allocations import (
    LIVE_ALLOCATIONS,
    LIVE_PILOTS,
    SHOWN_FOR,
    came_to_nothing,
    get_allocation,
    get_pilot,
    list_allocations,
    list_pilots,
    update_allocation,
    update_pilot,
)
from balsam_celery.store.rows import AllocationRow, PilotRow, PilotState

_WITHIN = click.option(
    "--within", metavar="TIME", help="Of a drain: end what still runs after so long; 0: at once."
)
_ALL = click.option("--all", "everything", is_flag=True, help="Those that have ended too.")


@click.group(invoke_without_command=True)
@_ALL
@json_option
@click.pass_context
def allocations(ctx: click.Context, everything: bool, as_json: bool) -> None:
    """List batch jobs: those asked for, queued or running, and the last hour's failures.

    Without a command, `list`.
    """
    if ctx.invoked_subcommand is None:
        _list_allocations(everything, as_json)
    elif everything or as_json:
        raise click.UsageError(f"put the options after {ctx.invoked_subcommand!r}", ctx)


allocations.add_command(preview)


@allocations.command("list")
@_ALL
@json_option
def allocations_list(everything: bool, as_json: bool) -> None:
    """List batch jobs."""
    _list_allocations(everything, as_json)


def _list_allocations(everything: bool, as_json: bool) -> None:
    store = session().store
    with store.read() as conn:
        if everything:
            rows = list_allocations(conn)
        else:
            failed = came_to_nothing(conn, store.clock() - SHOWN_FOR)
            rows = [*list_allocations(conn, LIVE_ALLOCATIONS), *failed]
    if as_json:
        echo_json({"allocations": [describe.allocation(row) for row in rows]})
        return
    table(
        ("ID", "JOB", "QUEUE", "NODES", "WALL TIME", "STATE", "CREATED", "STARTED", "ENDED"),
        [
            (
                row.id,
                row.native_id or "-",
                row.queue,
                f"{row.nodes - row.nodes_back} of {row.nodes}"
                if row.nodes_back
                else str(row.nodes),
                format_duration(row.wall_time),
                _state(row),
                local_time(row.created),
                local_time(row.started),
                local_time(row.ended),
            )
            for row in rows
        ],
        notes=[row.reason for row in rows],
    )


def _state(row: AllocationRow) -> str:
    ending = row.cancel_requested is not None and row.state in LIVE_ALLOCATIONS
    return f"{row.state} (cancelling)" if ending else str(row.state)


@allocations.command("cancel")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that have not ended.")
@click.option("--drain", is_flag=True, help="Let what runs there end first; start nothing more.")
@_WITHIN
@json_option
def allocations_cancel(
    ids: tuple[str, ...], everything: bool, drain: bool, within: str | None, as_json: bool
) -> None:
    """Cancel batch jobs, by id, start of an id, or the scheduler's own.

    Their tasks run again elsewhere, which does not count as a retry. With --drain a job whose pilot
    runs takes no more tasks and ends when it is idle; one without a pilot is cancelled.
    """
    if bool(ids) == everything:
        raise InvalidInput("name the allocations by their ids, or give --all")
    if within is not None and not drain:
        raise InvalidInput(f"--within is {within!r}: give it with --drain")
    store = session().store
    now = store.clock()
    stop_at = _stop_at(within, now)

    def change(conn: Connection) -> tuple[list[str], list[str], list[str]]:
        chosen = (
            [row.id for row in list_allocations(conn, LIVE_ALLOCATIONS)]
            if everything
            else list(dict.fromkeys(get_allocation(conn, id).id for id in ids))
        )
        cancelled, draining, over = [], [], []
        for id in chosen:
            pilots = list_pilots(conn, LIVE_PILOTS, allocation=id)
            if drain and pilots:
                for pilot in pilots:
                    _drain(conn, pilot.id, stop_at)
                draining.append(id)
            elif update_allocation(
                conn, id, LIVE_ALLOCATIONS, cancel_requested=now, reason="cancelled by the user"
            ):
                cancelled.append(id)
            else:
                over.append(id)
        return cancelled, draining, over

    cancelled, draining, over = store.run(change)
    wake(session().site)
    if as_json:
        echo_json({"cancelled": cancelled, "draining": draining, "ended": over})
        return
    for word, some in (("cancelled", cancelled), ("draining", draining), ("ended before", over)):
        if some:
            say(f"{plural(len(some), 'allocation')} {word}: {', '.join(some)}")
    if not cancelled + draining + over:
        say("no allocation is queued or running")


def _stop_at(within: str | None, now: float) -> float | None:
    return None if within is None else now + parse_pause(within, "--within")


def _drain(conn: Connection, pilot: str, stop_at: float | None) -> bool:
    reason = "drained by the user"
    live = update_pilot(
        conn, pilot, [PilotState.LIVE], state=PilotState.DRAINING, reason=reason, stop_at=stop_at
    )
    if live or stop_at is None:
        return live
    # one that drains already may be given a time, or another one
    return update_pilot(conn, pilot, [PilotState.DRAINING], stop_at=stop_at)


@click.group(invoke_without_command=True)
@_ALL
@json_option
@click.pass_context
def pilot(ctx: click.Context, everything: bool, as_json: bool) -> None:
    """List pilots: what runs inside the batch jobs and starts tasks there.

    Without a command, `list`.
    """
    if ctx.invoked_subcommand is None:
        _list_pilots(everything, as_json)
    elif everything or as_json:
        raise click.UsageError(f"put the options after {ctx.invoked_subcommand!r}", ctx)


@pilot.command("list")
@_ALL
@json_option
def pilot_list(everything: bool, as_json: bool) -> None:
    """List pilots."""
    _list_pilots(everything, as_json)


def _list_pilots(everything: bool, as_json: bool) -> None:
    with session().store.read() as conn:
        rows = list_pilots(conn, None if everything else LIVE_PILOTS)
    if as_json:
        echo_json({"pilots": [describe.pilot(row) for row in rows]})
        return
    table(
        ("ID", "ALLOCATION", "STATE", "HOST", "NODES", "CORES", "HEARTBEAT", "UNTIL"),
        [
            (
                row.id,
                row.allocation,
                str(row.state),
                row.host,
                str(len(row.nodes)),
                str(sum(len(node["cores"]) for node in row.nodes)),
                local_time(row.heartbeat),
                local_time(row.end_time),
            )
            for row in rows
        ],
        state_column=2,
        notes=["; ".join(_notes(row)) for row in rows],
    )


def _notes(row: PilotRow) -> Iterator[str]:
    """Why it ends, and why nodes of it are not used."""
    if row.reason:
        yield row.reason
    for node in row.nodes:
        if node.get("lost"):
            yield f"node {node['name']} is not used: {node.get('lost_reason') or 'it was lost'}"


@pilot.command("drain")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_WITHIN
@json_option
def pilot_drain(ids: tuple[str, ...], within: str | None, as_json: bool) -> None:
    """Start nothing more on pilots; each ends when what runs there has ended.

    With --within what still runs then is told to end (--checkpoint-grace of `balsam submit`), and
    runs again elsewhere, which does not count as a retry.
    """
    store = session().store
    stop_at = _stop_at(within, store.clock())

    def change(conn: Connection) -> dict[str, bool]:
        chosen = dict.fromkeys(get_pilot(conn, id).id for id in ids)
        return {id: _drain(conn, id, stop_at) for id in chosen}

    changed = store.run(change)
    wake(session().site)
    draining = [id for id, done in changed.items() if done]
    over = [id for id, done in changed.items() if not done]
    if as_json:
        echo_json({"draining": draining, "ended": over})
        return
    if draining:
        say(f"{plural(len(draining), 'pilot')} draining: {', '.join(draining)}")
    if over:
        say(f"{plural(len(over), 'pilot')} ended or draining before: {', '.join(over)}")
