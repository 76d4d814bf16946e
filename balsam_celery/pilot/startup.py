"""Start of a pilot: which site, which allocation, which nodes."""

from __future__ import annotations

import argparse
import logging
import os
import re
import secrets
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from balsam_celery import site as sites
from balsam_celery.celeryapp import make_pilot_app
from balsam_celery.errors import BalsamError, SchedulerUnavailable
from balsam_celery.pilot.claim import NotClaimed, claim
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.environment import inherited
from balsam_celery.pilot.inventory import completed, surveyed
from balsam_celery.pilot.supervisor import Supervisor, leave_error, tell_error
from balsam_celery.pilot.worker import log_to
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobNodes, Scheduler
from balsam_celery.settings import SiteSettings

logger = logging.getLogger(__name__)

#: Seconds between questions to a scheduler that does not answer: at first, and at the most.
_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
_ALLOCATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def main(argv: Sequence[str]) -> int:
    """Run a pilot to its end; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m balsam_celery.pilot",
        description="Runs inside an allocation and keeps its nodes busy.",
    )
    parser.add_argument("--site", type=Path, required=True, help="site directory")
    parser.add_argument(
        "--allocation", type=_allocation, required=True, help="id of the allocation"
    )
    parser.add_argument("--queue", default="", help="queue of the allocation")
    options = parser.parse_args(argv)
    # what it makes is for its owner alone, whatever the batch system or a shell says (R11)
    os.umask(0o077)
    try:
        context = make_context(options.site, options.allocation, options.queue)
    except (BalsamError, OSError) as error:
        leave_error(_allocation_dir(options.site, options.allocation), str(error))
        return getattr(error, "exit_status", 1)
    try:
        context.directory.mkdir(parents=True)
        log_to(context.directory / "pilot.log", context.site.settings.logs.level)
        app = make_pilot_app(context.site)
        claim(context)
    except (BalsamError, OSError) as error:
        tell_error(context, str(error))
        return getattr(error, "exit_status", 1)
    except NotClaimed as error:
        if not error.taken:
            tell_error(context, str(error))
            return 1
        logger.warning("%s", error)
        print(f"pilot: {error}", file=sys.stderr)
        return 0
    logger.info(
        "pilot %s of allocation %s: %d nodes until %.0f",
        context.pilot,
        context.allocation,
        len(context.nodes),
        context.end_time,
    )
    return Supervisor(context, app).run()


def make_context(directory: Path, allocation: str, queue: str = "") -> PilotContext:
    """Everything that a pilot knows before it forks.

    Args:
        directory: of the site.
        allocation: its id.
        queue: its queue, which tells what nodes have where the scheduler does not.

    Raises:
        SiteError: no site there, or not ours.
        SettingsError: its ``site.toml`` cannot be used.
        SchedulerError: this process is not inside a job of the site's scheduler, or that does not
            tell of it within ``start_timeout``.
    """
    site = sites.find(directory)
    settings = site.settings
    scheduler = make_scheduler(settings.scheduler.kind, settings=settings, local_dir=site.local_dir)
    job = _inside(scheduler, settings.pilot.start_timeout)
    nodes = tuple(completed(node, settings.queues.get(queue)) for node in job.nodes)
    if len(nodes) == 1 and not job.virtual:
        nodes = (surveyed(nodes[0], os.environ),)
    return PilotContext(
        site=site,
        # a new id for each incarnation, so that nothing of an older one is taken for this one's
        pilot=f"{allocation}-{secrets.token_hex(3)}",
        allocation=allocation,
        nodes=nodes,
        end_time=job.end_time,
        environment=inherited(os.environ, settings),
        native_id=job.native_id,
        virtual=job.virtual,
    )


def _inside(scheduler: Scheduler, within: float) -> JobNodes:
    """What the scheduler tells of this job; asked again while it does not answer."""
    deadline, pause, told = time.monotonic() + within, _PAUSE, False
    while True:
        try:
            return scheduler.inside(os.environ)
        except SchedulerUnavailable as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if not told:
                # there is no log yet
                print(f"pilot: {error}: trying again", file=sys.stderr, flush=True)
            told = True
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _allocation(text: str) -> str:
    """An allocation's id, which is the name of its directory."""
    if _ALLOCATION.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no id of an allocation")
    return text


def _allocation_dir(site: Path, allocation: str) -> Path:
    """Where the allocation's directory is, as far as can be told without usable settings."""
    try:
        table = tomllib.loads((site / sites.SITE_FILE).read_text(encoding="utf-8")).get("site")
    except (OSError, ValueError):
        table = None  # what is wrong with it is what is being told
    run_dir = table.get("run_dir") if isinstance(table, dict) else None
    if not isinstance(run_dir, str):
        run_dir = SiteSettings().run_dir
    return site / run_dir / "allocations" / allocation
