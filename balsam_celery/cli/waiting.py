"""``balsam wait``: until tasks have ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from balsam_celery.cli.bar import Bar
from balsam_celery.cli.group import INTERRUPTED
from balsam_celery.cli.output import echo_json, plural, say
from balsam_celery.cli.selection import Selection, filter_options, ids_argument, json_option
from balsam_celery.cli.session import session
from balsam_celery.durations import format_duration, parse_duration
from balsam_celery.states import FINAL, State
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import TaskFilter, count_tasks, select_ids

Counts = Mapping[State, int]

#: Exit status when the time was over, as timeout(1) has it.
TIMED_OUT = 124
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


@click.command()
@ids_argument
@filter_options
@click.option("--timeout", metavar="TIME", help="Give up after that time; the tasks go on.")
@json_option
def wait(timeout: str | None, as_json: bool, **options: Any) -> None:
    """Wait until tasks have ended.

    The tasks are those that fit when the command starts. Exit status: 0 when all have finished, 1
    when some did not, 124 when the time was over. Ctrl-C stops the waiting, not the tasks.
    """
    selection = Selection.take(options)
    selection.require()
    seconds = parse_duration(timeout, "--timeout") if timeout is not None else None
    with interruptible():
        store = session().store
        with store.read() as conn:
            ids = select_ids(conn, selection.filter(conn))
        counts = wait_for(store, TaskFilter(ids=tuple(ids)), seconds)
    status = exit_status(counts)
    if as_json:
        plain = {str(state): number for state, number in counts.items()}
        echo_json({"counts": plain, "total": sum(plain.values()), "timed_out": status == TIMED_OUT})
    raise click.exceptions.Exit(status)


def exit_status(counts: Counts) -> int:
    """0: all finished; 1: some did not; 124: some have not ended."""
    if any(state not in FINAL for state in counts):
        return TIMED_OUT
    return 0 if set(counts) <= {State.JOB_FINISHED} else 1


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside ends the command and says that the tasks go on.

    Raises:
        click.exceptions.Exit: with the status of an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        say("no longer waiting; the tasks go on ('balsam kill' ends them)")
        raise click.exceptions.Exit(INTERRUPTED) from None


def wait_for(store: Store, chosen: TaskFilter, timeout: float | None) -> Counts:
    """Wait until the tasks have ended or ``timeout`` seconds are over; the last counts by state.

    A bar on stderr shows how far they are where that is a terminal; a line sums up.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = threading.Event()
    length = _FIRST_PAUSE
    counts: Counts = {}
    with Bar() as bar:
        while True:
            before = counts
            with store.read() as conn:
                counts = count_tasks(conn, chosen)
            _show(bar, counts)
            if all(state in FINAL for state in counts):
                break
            left = _LONGEST_PAUSE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            length = _FIRST_PAUSE if counts != before else min(length * 1.5, _LONGEST_PAUSE)
            pause.wait(min(length, left))
    _sum_up(counts, timeout)
    return counts


def _sum_up(counts: Counts, timeout: float | None) -> None:
    total = sum(counts.values())
    ended = sum(number for state, number in counts.items() if state in FINAL)
    parts = [f"{number:,} {state}" for state, number in sorted(counts.items())]
    text = f"{plural(total, 'task')}" + (f": {', '.join(parts)}" if parts else "")
    if ended < total and timeout is not None:
        text += f"; not ended within {format_duration(timeout)}, they go on"
    say(text)


def _show(bar: Bar, counts: Counts) -> None:
    ended = sum(number for state, number in counts.items() if state in FINAL)
    failed = ended - counts.get(State.JOB_FINISHED, 0)
    running = counts.get(State.RUNNING, 0)
    text = f"{running:,} running" + (f", {failed:,} not successful" if failed else "")
    bar.show(ended, sum(counts.values()), text)
