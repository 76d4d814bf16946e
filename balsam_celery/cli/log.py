"""``balsam log``: the output of a task's program."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from balsam_celery.cli.output import echo_json, say
from balsam_celery.cli.outputfile import Unreadable, chunks, last_lines_of, start_of_last_lines
from balsam_celery.cli.selection import Selection, filter_options, ids_argument, json_option
from balsam_celery.cli.session import session
from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import FINAL
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import attempts, get_task, select_ids
from balsam_celery.store.rows import AttemptRow, TaskRow

#: Seconds between looks at a file that is followed.
INTERVAL = 0.3


@click.command()
@ids_argument
@filter_options
@click.option("-e", "--stderr", "stderr", is_flag=True, help="Standard error, not standard output.")
@click.option("--attempt", type=int, metavar="N", help="Of this attempt; default: the latest.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt has ended.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines."
)
@json_option
def log(
    stderr: bool,
    attempt: int | None,
    follow: bool,
    lines: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print what a task's program wrote, byte for byte.

    It is read from the work directory; where that cannot be read, the end of it comes from the
    database, and a line on stderr says so.
    """
    selection = Selection.take(options)
    selection.require()
    store = session().store
    with store.read() as conn:
        ids = select_ids(conn, selection.filter(conn))
    stream = "stderr" if stderr else "stdout"
    if follow and (as_json or len(ids) != 1):
        raise InvalidInput(
            f"--follow with {'--json' if as_json else f'{len(ids)} tasks'}: "
            "it follows one task, as plain output"
        )
    if as_json:
        echo_json({"logs": [_as_json(store, id, attempt, stream, lines) for id in ids]})
        return
    sink = sys.stdout.buffer
    for id in ids:
        if len(ids) > 1:
            say(f"{stream} of {id}")
        if follow:
            _follow(store, id, attempt, stream, lines, sink)
        else:
            chosen = _choose(store, id, attempt)
            if chosen is None:
                say(f"task {id} has not run yet")
            else:
                _copy(chosen, stream, lines, sink)
    if not ids:
        say("no task fits")


def _choose(store: Store, id: str, number: int | None) -> AttemptRow | None:
    """The attempt asked for; ``None`` when the latest is, and there is none.

    Raises:
        NotFound: there is no attempt of that number.
    """
    with store.read() as conn:
        found = attempts(conn, id)
    if number is None:
        return found[-1] if found else None
    for row in found:
        if row.number == number:
            return row
    known = ", ".join(str(row.number) for row in found) or "none yet"
    raise NotFound(f"task {id} has no attempt {number} (there are: {known})")


def _copy(row: AttemptRow, stream: str, lines: int | None, sink: BinaryIO) -> None:
    try:
        path = _file(row, stream)
        for chunk in chunks(path, start_of_last_lines(path, lines)):
            sink.write(chunk)
    except Unreadable as error:
        say(f"{error}; this is the end of it, from the database")
        sink.write(last_lines_of(_tail(row, stream), lines).encode())
    sink.flush()


def _as_json(
    store: Store, id: str, number: int | None, stream: str, lines: int | None
) -> dict[str, Any]:
    row = _choose(store, id, number)
    source, text = "none", ""
    if row is not None:
        try:
            path = _file(row, stream)
            content = b"".join(chunks(path, start_of_last_lines(path, lines)))
            source, text = "file", content.decode(errors="replace")
        except Unreadable:
            source, text = "database", last_lines_of(_tail(row, stream), lines)
    return {
        "id": id,
        "attempt": row.number if row else None,
        "stream": stream,
        "source": source,
        "text": text,
    }


def _file(row: AttemptRow, stream: str) -> Path:
    if row.work_dir is None:
        raise Unreadable(f"attempt {row.number} has no work directory yet")
    return Path(row.work_dir) / stream


def _tail(row: AttemptRow, stream: str) -> str:
    return (row.stderr_tail if stream == "stderr" else row.stdout_tail) or ""


def _follow(
    store: Store, id: str, number: int | None, stream: str, lines: int | None, sink: BinaryIO
) -> None:
    """Copy as it grows, until the attempt's end is recorded."""
    pause = threading.Event()
    row = _wait_for_attempt(store, id, number, pause.wait)
    if row is None:
        return
    offset: int | None = None
    while True:
        # asked before reading: what was written before the end was recorded is read below
        ended = row.ended is not None
        try:
            path = _file(row, stream)
            if offset is None:
                offset = start_of_last_lines(path, lines)
            for chunk in chunks(path, offset):
                offset += len(chunk)
                sink.write(chunk)
        except Unreadable as error:
            if ended and not offset:
                say(f"{error}; this is the end of it, from the database")
                sink.write(last_lines_of(_tail(row, stream), lines).encode())
        sink.flush()
        if ended:
            return
        pause.wait(INTERVAL)
        found = _choose(store, id, row.number)
        assert found is not None
        row = found


def _wait_for_attempt(
    store: Store, id: str, number: int | None, pause: Callable[[float], object]
) -> AttemptRow | None:
    said = False
    while True:
        with store.read() as conn:
            task: TaskRow = get_task(conn, id)
        row = _choose(store, id, number) if number is None or task.attempt >= number else None
        if row is not None:
            return row
        if task.state in FINAL:
            if number is not None:
                _choose(store, id, number)  # raises, naming the attempts that there are
            say(f"task {id} ended {task.state} without having run: {task.reason}")
            return None
        if not said:
            say(f"task {id} is {task.state}: waiting for it to start")
            said = True
        pause(INTERVAL)
