"""Earlier incarnations of an allocation's pilot that were killed whole: what they left here.

A pilot that dies with all that watches over it leaves programs in sessions of their own, which no
batch system without control groups finds. The next incarnation on the same host ends them before
it starts anything.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from balsam_celery import procs
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.pidfiles import read_pid_file
from balsam_celery.pilot.process import end_processes

logger = logging.getLogger(__name__)


def end_leftovers(context: PilotContext) -> None:
    """End the programs of earlier incarnations of ``context``'s allocation that are dead.

    One that lives ends them itself, once the fence has told it of this one.
    """
    for directory in sorted(context.allocation_dir.iterdir()):
        if directory == context.directory or not directory.is_dir():
            continue
        outboxes = sorted(directory.glob("*.outbox"))
        pilot = read_pid_file(directory / "pilot.pid")
        if pilot is None or pilot.boot_id != procs.boot_id() or _lives(pilot, outboxes):
            continue
        earlier = replace(context, pilot=directory.name)
        workers = [WorkerContext(earlier, outbox.stem, ()) for outbox in outboxes]
        brands = [brand for worker in workers for brand in worker.brands]
        if brands:
            logger.warning("pilot %s left %d attempts: %s", earlier.pilot, len(brands), brands)
        end_processes(tuple(worker.mark for worker in workers), tuple(brands), 0.0)


def _lives(pilot: procs.Identity, outboxes: list[Path]) -> bool:
    workers = [read_pid_file(outbox.with_suffix(".pid")) for outbox in outboxes]
    return any(one is not None and procs.alive(one) for one in (pilot, *workers))
