"""Which tasks a command is about: ids, filters, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import click
from sqlalchemy import Connection

from balsam_celery.cli.known import check_name, check_tag, check_workflow, parse_states
from balsam_celery.cli.output import say
from balsam_celery.cli.times import parse_moment
from balsam_celery.errors import InvalidInput
from balsam_celery.states import State
from balsam_celery.store.queries import TaskFilter, get_task

F = TypeVar("F", bound=Callable[..., Any])

#: Names of the parameters that :func:`filter_options` adds.
_OPTIONS = ("name", "workflow", "tag", "state", "since", "until")


@dataclass(frozen=True, slots=True)
class Selection:
    """Tasks as asked for on the command line.

    Attributes:
        ids: ids or beginnings of ids.
        name, workflow, tag, state, since, until: the options, as given.
    """

    ids: tuple[str, ...] = ()
    name: str | None = None
    workflow: str | None = None
    tag: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None

    @classmethod
    def take(cls, options: dict[str, Any]) -> Selection:
        """The selection in a command's parameters, taken out of ``options``."""
        return cls(ids=options.pop("ids", ()), **{key: options.pop(key) for key in _OPTIONS})

    @property
    def has_filter(self) -> bool:
        """A filter was given, so that nobody named each task."""
        return any(getattr(self, key) for key in _OPTIONS)

    def require(self) -> None:
        """Raise InvalidInput when neither an id nor a filter was given."""
        if not self.ids and not self.has_filter:
            raise InvalidInput(
                "no tasks named: give ids, or a filter such as --workflow, --tag, --name, --state"
            )

    def filter(self, conn: Connection, states: tuple[State, ...] = ()) -> TaskFilter:
        """The filter for ``store.queries``.

        Args:
            conn: where ids, names and tags are looked up.
            states: used when no state was asked for and no id was given.

        Raises:
            InvalidInput: a state or time that is none, a prefix that fits several tasks.
            NotFound: an id, tag, workflow or name that no task has.
        """
        asked = parse_states(self.state)
        now = datetime.now().astimezone()
        for tag in self.tag:
            check_tag(conn, tag)
        if self.workflow is not None:
            check_workflow(conn, self.workflow)
        if self.name is not None:
            check_name(conn, self.name)
        whole = [get_task(conn, id).id for id in self.ids]
        return TaskFilter(
            ids=tuple(dict.fromkeys(whole)) if self.ids else None,
            name=self.name,
            workflow=self.workflow,
            tags=self.tag,
            states=asked or (() if self.ids else states),
            created_after=parse_moment(self.since, "--since", now) if self.since else None,
            created_before=parse_moment(self.until, "--until", now) if self.until else None,
        )


def filter_options(command: F) -> F:
    """Add the options that choose tasks."""
    for option in reversed(
        (
            click.option(
                "--name", metavar="GLOB", help="Of this name; * and ? stand for any text."
            ),
            click.option("--workflow", metavar="NAME", help="Of this workflow."),
            click.option(
                "--tag", multiple=True, metavar="TAG", help="With this tag; may be repeated."
            ),
            click.option(
                "--state",
                multiple=True,
                metavar="STATE",
                help="In this state (`balsam ls --help` lists them); may be repeated, or hold"
                " several with commas between.",
            ),
            click.option(
                "--since",
                metavar="TIME",
                help="Created since: a date, a time, 'yesterday', or how long ago (90m, 2d).",
            ),
            click.option("--until", metavar="TIME", help="Created before that time."),
        )
    ):
        command = option(command)
    return command


def ids_argument(command: F) -> F:
    """Add the ids of tasks."""
    return click.argument("ids", nargs=-1, metavar="[ID]...")(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON; docs/cli-json.md tells its form."
    )(command)


def yes_option(command: F) -> F:
    """Add ``--yes``."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def confirm(question: str) -> None:
    """Ask on stderr, so that stdout holds results alone.

    Raises:
        InvalidInput: nobody was there to answer.
        click.exceptions.Exit: the answer was no.
    """
    try:
        answer = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        raise InvalidInput("no answer, so nothing was changed: add --yes") from None
    if not answer:
        say("nothing was changed")
        raise click.exceptions.Exit(1)
