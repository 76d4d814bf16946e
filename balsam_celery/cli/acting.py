"""``balsam kill``, ``retry``, ``rm`` and ``prune``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from balsam_celery.cli.bar import Bar
from balsam_celery.cli.output import echo_json, local_time, plural, say
from balsam_celery.cli.selection import (
    Selection,
    confirm,
    filter_options,
    ids_argument,
    json_option,
    yes_option,
)
from balsam_celery.cli.session import session
from balsam_celery.cli.waking import wake
from balsam_celery.cli.workdirs import delete_work_directory
from balsam_celery.durations import parse_duration
from balsam_celery.service.requests import Answer, request_kill
from balsam_celery.service.requests import retry as request_retry
from balsam_celery.states import FINAL, State
from balsam_celery.store.prune import Removed, prune_allocations, remove
from balsam_celery.store.prune import prune as prune_rows
from balsam_celery.store.queries import select_ids
from balsam_celery.tasks.submit import user

_ALIVE = tuple(state for state in State if state not in FINAL)
_UNSUCCESSFUL = (State.FAILED, State.USER_KILLED)
#: Tasks of one transaction, so that others get their turn at the database.
_BATCH = 500
_FILES = click.option(
    "--files", is_flag=True, help="Their work directories under the site's run directory too."
)


def _choose(
    options: dict[str, Any], states: tuple[State, ...], verb: str, yes: bool
) -> tuple[list[str], bool]:
    """Whole ids of the tasks asked for, and whether a filter chose them (then confirmed)."""
    selection = Selection.take(options)
    selection.require()
    with session().store.read() as conn:
        ids = select_ids(conn, selection.filter(conn, states))
    if ids and selection.has_filter and not yes:
        confirm(f"{verb} {plural(len(ids), 'task')}?")
    if not ids:
        say("no task fits")
    return ids, selection.has_filter


@click.command()
@ids_argument
@filter_options
@click.option(
    "--reason", default="killed by the user", show_default=True, help="Kept with the task."
)
@click.option("--no-descendants", is_flag=True, help="Leave the tasks that wait for them alone.")
@yes_option
@json_option
def kill(reason: str, no_descendants: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Kill tasks, and all tasks that wait for them.

    A task whose program runs is USER_KILLED once every process of it is gone. A filter without
    --state means tasks that have not ended.
    """
    ids, by_filter = _choose(options, _ALIVE, "Kill", yes)
    _ask_service(
        ids,
        by_filter,
        lambda some: request_kill(
            session().store, some, reason, who=user(), descendants=not no_descendants
        ),
        "killed",
        as_json,
    )


@click.command()
@ids_argument
@filter_options
@yes_option
@json_option
def retry(yes: bool, as_json: bool, **options: Any) -> None:
    """Run tasks again that are FAILED or USER_KILLED, with their retries fresh.

    Tasks that failed, or were killed, because of them wait for them again. A filter without --state
    means tasks that are FAILED or USER_KILLED.
    """
    ids, by_filter = _choose(options, _UNSUCCESSFUL, "Retry", yes)
    _ask_service(
        ids,
        by_filter,
        lambda some: request_retry(session().store, some, who=user()),
        "set to run again",
        as_json,
    )


def _ask_service(
    ids: Sequence[str],
    by_filter: bool,
    request: Callable[[Sequence[str]], Answer],
    word: str,
    as_json: bool,
) -> None:
    """Make the request in batches and tell what became of it.

    Exit status 1 when tasks were refused that the user named. Those that a filter chose have only
    gone on since.
    """
    done: list[str] = []
    requested: list[str] = []
    refused: dict[str, str] = {}
    with Bar() as bar:
        for start in range(0, len(ids), _BATCH):
            bar.show(start, len(ids), f"{plural(len(done), 'task')} {word}")
            answer = request(ids[start : start + _BATCH])
            done += answer.done
            requested += answer.requested
            refused |= answer.refused
    # a task may have been reached both by name and as a descendant of an earlier batch
    refused = {id: why for id, why in refused.items() if id not in set(done) | set(requested)}
    if ids:
        wake(session().site)
    if as_json:
        echo_json({"done": done, "requested": requested, "refused": refused})
    else:
        if done:
            say(f"{plural(len(done), 'task')} {word}")
        if requested:
            say(f"{plural(len(requested), 'running task')} being ended")
        if refused and by_filter:
            say(f"{plural(len(refused), 'task')} went on meanwhile, and no longer fit")
        for id, why in () if by_filter else refused.items():
            say(f"{id}: {why}")
    if refused and not by_filter:
        raise click.exceptions.Exit(1)


@click.command()
@ids_argument
@filter_options
@_FILES
@yes_option
@json_option
def rm(files: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Remove tasks that have ended, with their attempts and events.

    All or none: one that has not ended, that such a one waits for, or that has an error callback
    which is not called yet, refuses all. A filter without --state means tasks that have ended.
    """
    ids, _ = _choose(options, tuple(FINAL), "Remove", yes)
    removed = session().store.run(lambda conn: remove(conn, ids))
    _tell_removed(removed, files, as_json)


@click.command()
@click.option(
    "--older-than",
    required=True,
    metavar="TIME",
    help="Ended longer ago than this, such as 30d or 12h.",
)
@_FILES
@yes_option
@json_option
def prune(older_than: str, files: bool, yes: bool, as_json: bool) -> None:
    """Remove tasks and allocations that ended long ago.

    A task stays as long as one that is connected with it, as parent or child, also through others,
    has not ended so long ago. A common --workflow connects nothing. An allocation stays for an
    hour, and as long as a task that ran in it; what it was charged still counts.
    """
    store = session().store
    before = store.clock() - parse_duration(older_than, "--older-than")
    if not yes:
        confirm(f"Remove all tasks and allocations that ended before {local_time(before)}?")
    removed: list[Removed] = []
    with Bar() as bar:
        while some := store.run(lambda conn: prune_rows(conn, before, limit=_BATCH)):
            removed += some
            bar.show(len(removed), None, "removed")
    # after the tasks: one that nothing names any more goes with them
    allocations = 0
    while number := store.run(
        lambda conn: prune_allocations(conn, before, now=store.clock(), limit=_BATCH)
    ):
        allocations += number
    _tell_removed(removed, files, as_json, allocations)


def _tell_removed(
    removed: Sequence[Removed], files: bool, as_json: bool, allocations: int | None = None
) -> None:
    directories = 0
    if files:
        run_dir = session().site.run_dir
        directories = sum(delete_work_directory(run_dir, row) for row in removed)
    if as_json:
        told = {"removed": [row.id for row in removed], "directories": directories}
        echo_json(told if allocations is None else {**told, "allocations": allocations})
        return
    parts = [plural(len(removed), "task")]
    if files:
        parts.append(f"{directories:,} of their directories")
    if allocations is not None:
        parts.append(plural(allocations, "allocation"))
    say(f"removed: {', '.join(parts)}")
