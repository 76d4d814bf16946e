"""``python -m balsam_celery.simulate``."""

from __future__ import annotations

import sys

import click

from balsam_celery.errors import BalsamError
from balsam_celery.simulate.command import simulate


def main() -> None:
    """Run the command; an error of ours is one line."""
    try:
        simulate(prog_name="python -m balsam_celery.simulate")
    except BalsamError as error:
        click.echo(f"simulate: {error}", err=True)
        sys.exit(error.exit_status)


main()
