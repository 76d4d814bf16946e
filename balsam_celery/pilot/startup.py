"""Start of a pilot: which site, which allocation, which nodes."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from balsam_celery import site as sites
from balsam_celery.celeryapp import make_pilot_app
from balsam_celery.errors import BalsamError
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.environment import inherited
from balsam_celery.pilot.supervisor import Supervisor
from balsam_celery.pilot.worker import log_to
from balsam_celery.schedulers import make_scheduler

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run a pilot to its end; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m balsam_celery.pilot",
        description="Runs inside an allocation and keeps its nodes busy.",
    )
    parser.add_argument("--site", type=Path, required=True, help="site directory")
    parser.add_argument("--allocation", required=True, help="id of the allocation")
    options = parser.parse_args(argv)
    try:
        context = make_context(options.site, options.allocation)
        context.directory.mkdir(parents=True)
        log_to(context.directory / "pilot.log", context.site.settings.logs.level)
        app = make_pilot_app(context.site)
    except (BalsamError, OSError) as error:
        print(f"pilot: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    logger.info(
        "pilot %s of allocation %s: %d nodes until %.0f",
        context.pilot,
        context.allocation,
        len(context.nodes),
        context.end_time,
    )
    return Supervisor(context, app).run()


def make_context(directory: Path, allocation: str) -> PilotContext:
    """Everything that a pilot knows before it forks.

    Raises:
        SiteError: no site there, or not ours.
        SchedulerError: this process is not inside a job of the site's scheduler.
    """
    site = sites.find(directory)
    scheduler = make_scheduler(
        site.settings.scheduler.kind, settings=site.settings, local_dir=site.local_dir
    )
    job = scheduler.inside(os.environ)
    return PilotContext(
        site=site,
        # a new id for each incarnation, so that nothing of an older one is taken for this one's
        pilot=f"{allocation}-{secrets.token_hex(3)}",
        allocation=allocation,
        nodes=job.nodes,
        end_time=job.end_time,
        environment=inherited(os.environ, site.settings),
    )
