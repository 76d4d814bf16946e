"""``balsam submit``: programs from the command line into the database."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, BinaryIO

import click
from kombu.utils.uuid import uuid
from sqlalchemy import Connection

from balsam_celery.celeryapp import app as celery_app
from balsam_celery.cli import describe
from balsam_celery.cli.arrays import Element, fill_all, parse_array, read_lines
from balsam_celery.cli.output import echo_json, plural, say
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.cli.taskoptions import given_options, task_options
from balsam_celery.cli.waiting import exit_status, interruptible, wait_for
from balsam_celery.cli.waking import wake
from balsam_celery.commands import check_literal
from balsam_celery.errors import InvalidInput
from balsam_celery.store.insert import NewTask, insert_tasks
from balsam_celery.store.queries import TaskFilter, get_task, select_tasks
from balsam_celery.tasks.options import TaskOptions, changed
from balsam_celery.tasks.program import program
from balsam_celery.tasks.rows import RowMaker, Upstream
from balsam_celery.tasks.submit import user

#: ``key=value`` of ``--app``; what looks otherwise is a value by position.
_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@click.command(
    # the program's own options are its own: nothing after its name is ours
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] PROGRAM [ARG]...")
@click.option("--name", metavar="NAME", help="The tasks' name.  [default: the program's]")
@task_options
@click.option(
    "--app", metavar="APP", help="A saved program; then key=value for each of its fields."
)
@click.option(
    "--after",
    multiple=True,
    metavar="ID[,ID]...",
    help="Start when these tasks have finished; may be repeated.",
)
@click.option(
    "--array", metavar="FROM-TO[:STEP]", help="A task for each index; {array} stands for it."
)
@click.option(
    "--each-line",
    type=click.File("rb"),
    metavar="FILE",
    help="A task for each line (- is standard input); {line} stands for it.",
)
@click.option("--wait", is_flag=True, help="Wait for the end, as `balsam wait` does.")
@json_option
def submit(
    command: tuple[str, ...],
    name: str | None,
    app: str | None,
    after: tuple[str, ...],
    array: str | None,
    each_line: BinaryIO | None,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a program with its arguments, exactly as given: no shell reads them.

    Options go before PROGRAM; braces, quotes, $ and spaces in an argument mean nothing. Only with
    --array and --each-line, {array} and {line} stand for the index and for the line, anywhere in
    an argument; the program also gets BALSAM_ARRAY_INDEX, or BALSAM_LINE. A line that no argument
    names becomes the last argument. Names get the index or the line's number behind a dot.

    A program starts in a work directory of its own: name it and its files by absolute paths. One
    without a path is looked for on the PATH that `balsam up` had, or the batch job has. Staging,
    hooks and handlers can be given in Python alone (docs/celery.md). Prints the tasks' ids.

    \b
    balsam submit -- relax.x water.xyz
    balsam submit -N 4 -r 8 -t 2h --workflow ice -- lmp -in 'in file.lammps'
    balsam submit --array 1-100 -- sweep.x --seed {array}
    balsam submit --app relax --after 0f3c1a2b input=water.xyz
    """
    elements = _elements(array, each_line)
    maker = _Maker(name, given_options(options), [i for ids in after for i in ids.split(",")])
    make = maker.of_command if app is None else maker.of_app(app)
    arguments = [_text(argument, number) for number, argument in enumerate(command)]
    rows = [make(arguments, element) for element in elements]
    store = session().store
    now, who = store.clock(), user()
    store.run(lambda conn: insert_tasks(conn, rows, now=now, who=who))
    wake(session().site)
    _tell([row.id for row in rows], as_json and not wait)
    if wait:
        chosen = TaskFilter(ids=tuple(row.id for row in rows))
        with interruptible():
            outcome = wait_for(store, chosen, None)
        if as_json:
            _tell([row.id for row in rows], True)
        raise click.exceptions.Exit(exit_status(outcome))


def _elements(array: str | None, each_line: BinaryIO | None) -> Sequence[Element | None]:
    if array is not None and each_line is not None:
        raise InvalidInput("--array and --each-line together: give one of them")
    if array is not None:
        return parse_array(array)
    return (
        [None]
        if each_line is None
        else read_lines(each_line, getattr(each_line, "name", "standard input"))
    )


def _text(argument: str, number: int) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"argument {number} is {argument!r}: not UTF-8; rename it") from None
    return argument


class _Maker:
    """Makes the rows; what is the same for all elements is checked and looked up once."""

    def __init__(self, name: str | None, given: dict[str, Any], after: Sequence[str]) -> None:
        here = session()
        # kept apart, so that it adds to a saved program's environment
        self.environment = dict(given.pop("environment", {}))
        changed(TaskOptions(), {"environment": self.environment})
        self.options = given if name is None else {**given, "name": name}
        with here.store.read() as conn:
            parents = _whole_ids(conn, after)
        self.upstream = Upstream(parents=parents)
        self.rows = RowMaker(celery_app, here.site.settings, here.store, here.store.clock())
        self._template: NewTask | None = None

    def of_command(self, arguments: Sequence[str], element: Element | None) -> NewTask:
        """The row of a literal command."""
        argv = list(arguments) if element is None else fill_all(arguments, element)
        if self._template is None:
            check_literal(argv)
            label = PurePath(argv[0]).name[:200] or argv[0][:200]
            self._template = self.rows.program(
                program(label, argv, literal=True), uuid(), (), {}, self.options, self.upstream, ()
            )
        check_literal(argv)
        row = dataclasses.replace(
            self._template,
            id=uuid(),
            command=argv,
            argv=None if self.upstream.parents else argv,
        )
        return self._finish(row, element)

    def of_app(self, label: str) -> Callable[[Sequence[str], Element | None], NewTask]:
        """A function that makes the row of a saved program from its values."""
        declared = program(label)

        def make(arguments: Sequence[str], element: Element | None) -> NewTask:
            values = list(arguments) if element is None else fill_all(arguments, element)
            args, kwargs = _split(values)
            row = self.rows.program(declared, uuid(), args, kwargs, self.options, self.upstream, ())
            return self._finish(row, element)

        return make

    def _finish(self, row: NewTask, element: Element | None) -> NewTask:
        environment = {**row.environment, **self.environment}
        name = row.name
        if element is not None:
            environment |= element.environment
            name = f"{name[: 199 - len(element.suffix)]}.{element.suffix}"
        return dataclasses.replace(row, name=name, environment=environment)


def _whole_ids(conn: Connection, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(get_task(conn, id.strip()).id for id in ids if id.strip()))


def _split(values: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Values by position and by key.

    Raises:
        InvalidInput: an option behind the values, or a key given twice.
    """
    known = {name for one in submit.params for name in one.opts if name.startswith("--")}
    args: list[str] = []
    kwargs: dict[str, str] = {}
    for value in values:
        if value.partition("=")[0] in known:
            raise InvalidInput(f"{value} stands behind the values: give options before them")
        if match := _KEYWORD.fullmatch(value):
            key, text = match.groups()
            if key in kwargs:
                raise InvalidInput(f"{key} is given twice: as {kwargs[key]!r} and as {text!r}")
            kwargs[key] = text
        else:
            args.append(value)
    return args, kwargs


def _tell(ids: Sequence[str], as_json: bool) -> None:
    if as_json:
        with session().store.read() as conn:
            rows = {
                row.id: row
                for row in select_tasks(conn, TaskFilter(ids=tuple(ids)), limit=len(ids))
            }
        echo_json({"tasks": [describe.task(rows[id]) for id in ids if id in rows]})
        return
    for id in ids:
        click.echo(id)
    say(f"{plural(len(ids), 'task')} submitted")
