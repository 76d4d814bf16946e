"""The life of one worker of a pilot: a forked process that never returns."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery import Celery
from celery.worker import state

from balsam_celery.celeryapp import redis_client
from balsam_celery.outbox import Outbox
from balsam_celery.pilot import control, strategy
from balsam_celery.pilot.consumer import PilotConsumer
from balsam_celery.pilot.context import Parent, WorkerContext
from balsam_celery.pilot.courier import Courier
from balsam_celery.pilot.desk import Desk
from balsam_celery.pilot.earlier import Earlier
from balsam_celery.pilot.link import NodeDoubt, NodeLost
from balsam_celery.pilot.openfiles import allow_as_given
from balsam_celery.pilot.pidfiles import write_pid_file
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.pilot.process import Spawner
from balsam_celery.pilot.runner import Runner
from balsam_celery.pilot.slots import Slots
from balsam_celery.pilot.sweep import Sweeper
from balsam_celery.pilot.watchdog import Watchdog
from balsam_celery.procs import become_subreaper
from balsam_celery.wire import Ended, Outcome

logger = logging.getLogger(__name__)
#: Celery's flags of a worker that is to stop; its stubs take them for constants.
celery_state: Any = state

#: Exit status of a worker that stopped as told, with every outcome acknowledged or not.
DELIVERED, UNDELIVERED = 0, 3
#: Seconds that a stopping worker waits for acknowledgements, and for Celery's own end.
ACKNOWLEDGE_WITHIN = 5.0
_CELERY_STOPS_WITHIN = 3.0
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(path: Path, level: str) -> None:
    """Send this process's log to a file."""
    log_by(logging.FileHandler(path), level)


def log_by(handler: logging.Handler, level: str) -> None:
    """Send this process's log where a handler leads."""
    logging.basicConfig(handlers=[handler], level=level, format=_LOG_FORMAT, force=True)
    logging.captureWarnings(True)


def fork(
    context: WorkerContext,
    app: Celery[Any],
    ready: int,
    parent: Parent,
    inherited: Iterable[int] = (),
    sweeps: int | None = None,
) -> int:
    """Fork a worker and return its pid.

    It leads a session of its own. A batch system may know a job by the session of its script alone
    (PBS: ``kill_session`` in ``mom_mach.c``) and kill all of that at once. With the worker in it,
    nobody would be left to end the programs, which are in sessions of their own. So the worker
    stays, sees that its parent has died, and ends them.

    Args:
        context: which one.
        app: an application that has no connection yet.
        ready: the write end of a pipe; a byte tells that the worker consumes.
        parent: the calling process.
        inherited: descriptors of the parent that the worker must close.
        sweeps: the worker's end of the pair by which it asks for sweeps of other nodes.
    """
    gc.freeze()  # pages that the collector does not touch stay shared
    forked_by = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        for file in inherited:
            os.close(file)
        status = _live(context, app, ready, (forked_by, parent), sweeps)
    except BaseException:
        traceback.print_exc()
        logger.exception("the worker fails")
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)


def _live(
    context: WorkerContext,
    app: Celery[Any],
    ready: int,
    parent: tuple[int, Parent],
    sweeps: int | None,
) -> int:
    allow_as_given()
    settings = context.pilot.site.settings
    log_to(context.log_path, settings.logs.level)
    # not by its parent: a keeper must never wait for the shared file system
    write_pid_file(context.pid_path)
    become_subreaper()
    control.install()
    threading.excepthook = _thread_failed
    outbox = Outbox(context.outbox_path)
    worker: Any = app.WorkController(
        hostname=context.name,
        pool_cls=AttemptPool,
        consumer_cls=PilotConsumer,
        concurrency=context.capacity,
        queues=[context.queue],
        loglevel=settings.logs.level,
        task_events=False,
        without_gossip=True,
        without_mingle=True,
        ready_callback=lambda _: os.write(ready, b"r"),
    )
    pool: AttemptPool = worker.pool

    def set_limit(limit: int) -> None:
        pool.limit = limit

    client = redis_client(context.pilot.site, timeout=5.0)
    courier = Courier(context, outbox, client, set_limit)
    spawner = Spawner()
    slots = Slots((node.name, core) for node in context.nodes for core in node.cores)
    sweeper = _sweeper(sweeps, pool)
    runner = Runner(context, spawner, courier.announce, sweeper.sweep if sweeper else None)

    def report(ended: Ended, idle: bool) -> None:
        # what may still live somewhere is over when the scheduler says that the job is (R4)
        if sweeper is None or not sweeper.unconfirmed((ended.id, ended.attempt)):
            courier.put(ended, idle)

    pool.attach(slots, runner.run, runner.ending, report)
    in_slurm = "SLURM_JOB_ID" in context.pilot.environment and not context.pilot.virtual
    earlier = Earlier(
        outbox.lost,
        context.silent,
        sweeper.sweep_nodes if sweeper else None,
        lambda ended: courier.put(ended, True),
        # the steps of a gang worker are ended before it is started again
        None if sweeper or not in_slurm else context.pilot.environment,
    )
    desk = worker.desk = Desk(outbox, pool, courier)
    strategy.register(app, desk, context.queue)
    stopped = threading.Event()

    def drain(reason: str, outcome: Outcome, gently: bool) -> None:
        pool.drain(reason, outcome, gently=gently)
        delivered = courier.finish(ACKNOWLEDGE_WITHIN)
        celery_state.should_stop = DELIVERED if delivered else UNDELIVERED
        worker.hub.call_soon(_nothing)  # its loop looks at the flag only when it turns
        if not stopped.wait(_CELERY_STOPS_WITHIN):
            logger.warning("Celery does not stop; nothing is lost")
            logging.shutdown()
            os._exit(celery_state.should_stop)

    watchdog = Watchdog(pool, spawner, parent, drain, context.pilot.last_moment)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sweeper is not None:
        sweeper.start()
    courier.start()
    earlier.end()
    watchdog.start()
    worker.start()
    status: int | None = celery_state.should_stop
    if status is None:
        # stopped by remote control or by a fault: its programs must not outlive it
        pool.drain("its worker stops", "lost")
        courier.finish(ACKNOWLEDGE_WITHIN)
        return 1
    stopped.set()
    return status


def _sweeper(sweeps: int | None, pool: AttemptPool) -> Sweeper | None:
    """What asks other nodes, in the worker whose attempts have ranks there."""
    if sweeps is None:
        return None

    def trouble(message: NodeLost | NodeDoubt) -> None:
        node, reason = message.node, message.reason
        if isinstance(message, NodeDoubt):
            pool.doubt(node, reason and f"its node {node} had trouble: {reason}")
            return
        pool.limit = min(pool.limit, message.left)
        reason = f"its node {node} was lost: {reason}"
        pool.doubt(node, reason)
        pool.condemn(
            [
                (attempt.key, "lost", reason)
                for attempt in (*pool.waiting(), *pool.running())
                if attempt.is_on(node)
            ]
        )

    return Sweeper(socket.socket(fileno=sweeps), trouble)


def _thread_failed(arguments: threading.ExceptHookArgs) -> None:
    """A worker without one of its threads would only seem to live: the pilot replaces it."""
    name = arguments.thread.name if arguments.thread else "a thread"
    error = arguments.exc_value or arguments.exc_type()
    logger.critical("%s fails: the worker ends", name, exc_info=error)
    logging.shutdown()
    os._exit(1)


def _nothing() -> None:
    """Wakes the event loop."""
