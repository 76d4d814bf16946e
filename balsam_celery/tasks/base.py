"""The base of users' ordinary Celery tasks, and what our workers on the login node need.

Importing this module loads no SQLAlchemy: Celery imports it for every process of the site.
"""

from __future__ import annotations

import importlib
from typing import Any

from celery import Task, signals
from celery.exceptions import Ignore, ImproperlyConfigured

from balsam_celery.errors import InvalidInput
from balsam_celery.tasks import hook

#: Message header of a step: the number of its attempt.
ATTEMPT_HEADER = "balsam_attempt"
#: Attribute of a request whose task was replaced, so that another one will answer for it.
REPLACED = "balsam_replaced"
#: Attribute of a step's request: the ``copies.Copy`` that it has begun.
COPY = "balsam_copy"

hook.install()


def attempt_of(request: Any) -> int | None:
    """The attempt that a request runs, ``None`` unless it is a step of a canvas in SQL."""
    number = getattr(request, ATTEMPT_HEADER, None)
    if number is None:
        number = (getattr(request, "headers", None) or {}).get(ATTEMPT_HEADER)
    return number if isinstance(number, int) else None


def end_copy(request: Any) -> None:
    """End here the request of a step whose message has begun before.

    Raises:
        Ignore: it has.
    """
    if attempt_of(request) is not None and getattr(request, COPY, None) is None:
        raise Ignore("another copy of this message has begun")


class BalsamTask(Task):  # type: ignore[type-arg]
    """An ordinary Celery task; linked or chained to a program it becomes rows in SQL."""

    abstract = True
    Request = "balsam_celery.tasks.steps:StepRequest"

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """As Celery's; a call with a program among its callbacks goes to SQL."""
        callbacks = {"link": link, "link_error": link_error, "chain": options.get("chain")}
        if hook.options_contain_program(callbacks):
            options |= {k: v for k, v in (*callbacks.items(), ("shadow", shadow)) if v}
            if task_id:
                options["task_id"] = task_id
            return hook.apply_canvas(self.s(), args, kwargs, options)
        return super().apply_async(
            args, kwargs, task_id, producer, link, link_error, shadow, **options
        )

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """As Celery's; a step whose message has begun before ends here.

        Raises:
            Ignore: it has.
        """
        end_copy(self.request)
        super().before_start(task_id, args, kwargs)

    def replace(self, sig: Any) -> Any:
        """As Celery's, for ordinary tasks.

        Raises:
            InvalidInput: ``sig`` contains a program: its row would need the id of this task's.
        """
        if hook.contains_program(sig):
            raise InvalidInput(
                f"task {self.name} cannot be replaced by a program:"
                " chain the program after it, or call its delay() from it"
            )
        attempt = attempt_of(self.request)
        if attempt is not None:
            if sig.get("subtask_type") is not None:
                raise ImproperlyConfigured(
                    f"task {self.name}, a step of a canvas with programs, can be replaced only"
                    " by a single task: return its arguments and put the canvas behind it"
                )
            # the replacement answers for the step
            headers = dict(sig.options.get("headers") or {})
            sig.set(headers={**headers, ATTEMPT_HEADER: attempt})
            setattr(self.request, REPLACED, True)
        return super().replace(sig)


@signals.worker_init.connect
def _extend_worker(sender: Any = None, **_: Any) -> None:
    """Give a worker on the login node its control commands and step handlers.

    Here and not at import: they belong to workers of our application alone, and clients have no
    use for Celery's worker code.
    """
    app = getattr(sender, "app", None)
    if app is not None and issubclass(app.Task, BalsamTask):
        importlib.import_module("balsam_celery.tasks.revoke").install()
        importlib.import_module("balsam_celery.tasks.steps").install(app)
