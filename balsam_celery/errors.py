"""Errors of balsam_celery.

    BalsamError                 everything this package raises on purpose
    ├── InvalidInput            a value the user gave; names the value and the mend
    │   ├── SettingsError       in site.toml
    │   └── NotFound            no such task, application, allocation, tag
    ├── SiteError               the site: missing, not ours, not running, on another host
    │   └── SchemaError         the database's schema is newer than the package, or damaged
    ├── StoreError              the database did not answer in the bounded retries
    ├── SchedulerError          the scheduler refused a request for good
    │   └── SchedulerUnavailable   it did not answer: "not known", never "ended"
    └── TaskFailed              raised by ``AsyncResult.get()``; carries the task's outcome
        ├── TaskTimeout         its ``wall_time`` was over
        └── TaskKilled          a user killed it

Each message is one line that names the offending value and what would mend it; the command line
prints it and exits with :attr:`BalsamError.exit_status`.
"""

from __future__ import annotations

from typing import Any


class BalsamError(Exception):
    """Base of every error raised on purpose."""

    exit_status = 1


class InvalidInput(BalsamError):
    """A value given by the user cannot be used."""

    exit_status = 2


class SettingsError(InvalidInput):
    """``site.toml`` holds something that cannot be used."""


class NotFound(InvalidInput):
    """Nothing of that id, name, tag or state exists."""


class SiteError(BalsamError):
    """The site is missing, belongs to someone else, or does not run here."""

    exit_status = 2


class SchemaError(SiteError):
    """The database's schema is not one this package can use."""


class StoreError(BalsamError):
    """The database did not answer within the bounded retries."""


class SchedulerError(BalsamError):
    """The scheduler refused a request for good."""


class SchedulerUnavailable(SchedulerError):
    """The scheduler did not answer: its jobs' states are not known."""


class TaskFailed(BalsamError):
    """A task ended without success.

    The arguments are plain JSON values, so that the error crosses the Celery result backend whole.

    Args:
        message: one line: what happened.
        outcome: the same dict that ``get()`` returns on success: ``task_id``, ``state``,
            ``exit_code``, ``signal``, ``work_dir``, ``output_tail``, ``reason``, timings.
    """

    def __init__(self, message: str, outcome: dict[str, Any] | None = None) -> None:
        super().__init__(message, outcome or {})
        self.message = message
        self.outcome: dict[str, Any] = outcome or {}

    def __str__(self) -> str:
        return self.message


class TaskTimeout(TaskFailed):
    """The task's ``wall_time`` was over and its retries were used up."""


class TaskKilled(TaskFailed):
    """The task was killed at a user's request."""
