"""``python -m balsam_celery.supervisor.celerycommand worker|beat …``: a process of the site.

It is ``celery -A balsam_celery worker|beat …`` without what that loads first: all of Celery's
commands and those of other packages, with a shell, a web server and their libraries, which is a
large part of what the start of a worker costs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click
from celery.bin.base import CLIContext

from balsam_celery.celeryapp import app


def main(arguments: Sequence[str]) -> None:
    """Run one of Celery's commands; exits with its status.

    Args:
        arguments: the command's name, and what follows it.
    """
    name, *rest = arguments
    command = getattr(importlib.import_module(f"celery.bin.{name}"), name)
    assert isinstance(command, click.Command)
    context = CLIContext(app, no_color=False, workdir=None)
    command.main(rest, prog_name=f"celery {name}", obj=context)


if __name__ == "__main__":
    main(sys.argv[1:])
