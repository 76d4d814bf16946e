"""Batch scripts: a Jinja template of ``config/jobs``, or of the site, filled for one allocation.

A template sees: ``job`` (:class:`~balsam_celery.schedulers.base.JobRequest`), ``queue``
(:class:`~balsam_celery.settings.QueueSettings`), ``scheduler``
(:class:`~balsam_celery.settings.SchedulerSettings`), ``site`` (:class:`~balsam_celery.site.Site`),
``directives`` (of the scheduler, then of the queue), ``setup`` (shell lines), ``command`` (the
pilot's, quoted for the shell); and the filters ``quote`` (one word of a shell) and ``hms`` (seconds
as ``HH:MM:SS``). A template of a site may begin with ``{% extends "slurm.sh.j2" %}``.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from pathlib import Path

import jinja2

from balsam_celery.errors import SettingsError
from balsam_celery.schedulers.base import JobRequest, Scheduler
from balsam_celery.site import Site, config_file


def render(site: Site, scheduler: Scheduler, request: JobRequest, allocation: str) -> str:
    """The batch script of ``request``.

    Args:
        site: its settings name directives, setup lines, template and Python.
        scheduler: names the built-in template.
        request: queue, nodes, wall time, directory.
        allocation: its id, for the pilot.

    Raises:
        SettingsError: the queue is not in ``site.toml``, or the template cannot be read or fails;
            one line with the file and the line in it.
    """
    settings = site.settings.scheduler
    queue = site.settings.queues.get(request.queue)
    if queue is None:
        known = ", ".join(sorted(site.settings.queues)) or "none"
        raise SettingsError(f"no queue {request.queue!r}: site.toml has {known}")
    if settings.template:
        path = site.directory / Path(settings.template).expanduser()
    else:
        path = config_file(f"jobs/{scheduler.template}")
    values = {
        "job": request,
        "queue": queue,
        "scheduler": settings,
        "site": site,
        "directives": (*settings.directives, *queue.directives),
        "setup": settings.setup,
        "command": shlex.join(pilot_command(site, request.queue, allocation)),
    }
    return _render(path, values)


def pilot_command(site: Site, queue: str, allocation: str) -> list[str]:
    """What a batch script runs on the head node; holds no secret."""
    # on compute nodes the same path must lead to the same Python
    python = site.settings.pilot.python or sys.executable
    options = ["--site", str(site.directory), "--allocation", allocation, "--queue", queue]
    return [python, "-m", "balsam_celery.pilot", *options]


def _render(path: Path, values: dict[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(config_file("jobs/plain.sh.j2").parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - shell, not HTML; values are quoted by the filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["hms"] = _clock
    try:
        # not by the loader: a template of the site may extend the built-in one of the same name
        code = environment.compile(path.read_text(encoding="utf-8"), str(path), str(path))
        made = environment.template_class.from_code(environment, code, environment.make_globals({}))
        return made.render(values)
    except jinja2.TemplateSyntaxError as error:
        where, what = f"{error.filename or path}:{error.lineno}", error.message
    except Exception as error:  # noqa: BLE001 - whatever a template's expressions raise
        where, what = _place(error, path), str(error)
    raise SettingsError(f"the template of the batch script, {where}: {what}")


def _place(error: Exception, path: Path) -> str:
    """File and line of the template in which ``error`` was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{f.filename}:{f.lineno}" for f in frames if f.filename.endswith((".j2", str(path)))]
    return places[-1] if places else str(path)


def _clock(seconds: int) -> str:
    """``seconds`` as ``HH:MM:SS``; hours may be more than a day's."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}"
