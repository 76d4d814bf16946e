"""``program()``: a user's own program as a Celery task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Unpack

from celery import Celery, Task

from balsam_celery.celeryapp import app as site_app
from balsam_celery.commands import check_literal, field_names
from balsam_celery.errors import InvalidInput
from balsam_celery.tasks import hook
from balsam_celery.tasks.options import ProgramOptions, TaskOptions, changed

hook.install()


class Program(Task):  # type: ignore[type-arg]
    """A command template with options, made by :func:`program`.

    ``delay``, ``apply_async``, ``s``, ``si`` and ``set`` are Celery's; each call is a row in SQL
    when it returns, and no Celery worker ever runs it as a Celery task.

    Attributes:
        label: the program's name, kept in the row as ``application``.
        command: argv template; ``None``: the command that the site keeps under that name.
        literal: ``command`` holds no placeholders.
        fields: names that the template asks for.
        defaults: options of its tasks unless a call says otherwise.
    """

    abstract = True
    label: str
    command: tuple[str, ...] | None
    literal: bool
    fields: frozenset[str]
    defaults: TaskOptions
    given: dict[str, Any]

    def apply_async(  # type: ignore[override]  # the options are ours, not those of messages
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        """Insert a task; returns its ``AsyncResult``.

        Args:
            args: values for ``{0}``, ``{1}``, ….
            kwargs: values for ``{name}``.
            task_id: the id of the task, made up unless given.
            options: those of :class:`~balsam_celery.tasks.options.ProgramOptions`, ``name``, and
                Celery's ``countdown``, ``eta``, ``link`` and ``link_error``.

        Raises:
            InvalidInput: an unknown option or field, or a value that cannot be used.
            SiteError: no site here.
            StoreError: the database did not answer.
        """
        if task_id is not None:
            options["task_id"] = task_id
        return hook.apply_canvas(self.s(), args, kwargs, options)

    def run(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A program is not run by calling it.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(f"program {self.label!r} runs on a pilot: call its delay(…)")

    def apply(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A program is never run in this process.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(f"program {self.label!r} cannot run in this process: call its delay(…)")

    def map(self, it: Any) -> NoReturn:
        """Celery's map runs inside one worker.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(f"program {self.label!r} has no map: use group(p.s(x) for x in …)")

    starmap = map

    def chunks(self, it: Any, n: int) -> NoReturn:
        """Celery's chunks run inside one worker.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(f"program {self.label!r} has no chunks: use group(p.s(x) for x in …)")

    def retry(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Retries are an option of a program.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(f"program {self.label!r} retries by itself: give it max_retries")


def program(
    name: str,
    command: Sequence[str] | None = None,
    *,
    literal: bool = False,
    app: Celery[Any] | None = None,
    **options: Unpack[ProgramOptions],
) -> Program:
    """Declare a program.

    Args:
        name: its name, for people, statistics and ``balsam ls``; a later declaration of the same
            name takes its place for signatures that name it.
        command: argv template, such as ``["relax.x", "{input}"]`` (see
            :mod:`balsam_celery.commands`); ``None``: what ``balsam app add`` keeps under ``name``,
            with its defaults.
        literal: take ``command`` as it stands; braces mean nothing.
        app: Celery application; the site's unless given.
        options: resources, limits and policies of its tasks.

    Raises:
        InvalidInput: an unknown option, or a value that cannot be used.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise InvalidInput(f"the program's name is {name!r}: give 1 to 200 characters")
    fields: frozenset[str] = frozenset()
    if command is not None:
        check_literal(command)
        fields = frozenset() if literal else field_names(command)
    cls: Any = type(
        "Program",
        (Program,),
        {
            "__module__": __name__,
            "name": hook.PREFIX + name,
            "label": name,
            "command": None if command is None else tuple(command),
            "literal": literal,
            "fields": fields,
            "defaults": changed(TaskOptions(), options),
            # as given, for a command that the site keeps: these go before its defaults
            "given": dict(options),
            "ignore_result": False,
        },
    )
    task: Program = cls()
    owner = site_app if app is None else app
    # not register_task(): it warns when a notebook's cell declares the program again
    owner.tasks[task.name] = task
    cls.bind(owner)
    return task
