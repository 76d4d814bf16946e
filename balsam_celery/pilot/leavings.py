"""What a worker leaves that its pilot gives up: outcomes that must reach the service yet (R5)."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from balsam_celery import procs
from balsam_celery.celeryapp import redis_client
from balsam_celery.outbox import Outbox
from balsam_celery.pilot.children import fork_with_pipe
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.pilot.post import Post
from balsam_celery.wire import Ended, WorkerLost

logger = logging.getLogger(__name__)

#: Seconds after which an outbox that cannot be read is given up: servers of files are away for a
#: minute or two when another takes over.
PATIENCE = 120.0
#: Seconds between tries, and between exchanges with the service.
_AGAIN, _TICK = 5.0, 0.2
_READ, _DONE = b"\1", b"\2"


class Leavings:
    """The outbox of a worker that is not started again; no process of it lives.

    A child reads and delivers it. It is on the file system of the site, which may hang, and the
    pilot must go on meanwhile: without its beats all nodes would end what they run.

    Args:
        context: the worker.
        reason: why it is given up.
        adopt: told of each child, which the caller reaps.
        before_fork: lets go of what a child must not share; returns descriptors that it must close.
        patience: seconds after which an outbox that cannot be read is given up.

    Attributes:
        record: what the service is to be told once this is over.
    """

    def __init__(
        self,
        context: WorkerContext,
        reason: str,
        adopt: Callable[[int], None],
        before_fork: Callable[[], Iterable[int]],
        patience: float = PATIENCE,
    ) -> None:
        self._context = context
        self._adopt = adopt
        self._before_fork = before_fork
        self._patience = patience
        self._give_up_at = time.monotonic() + patience
        self._next = 0.0
        self._child: procs.Identity | None = None
        self._answer = -1
        self._trouble = "the file system does not answer"
        self.record = WorkerLost(context.pilot.pilot, context.node, reason, False, time.time())

    def over(self) -> bool:
        """All outcomes are acknowledged, or nobody can read them; never blocks."""
        if self._answer < 0 and time.monotonic() >= self._next:
            self._begin()
        if self._answer >= 0 and self._hear():
            return True
        if time.monotonic() < self._give_up_at:
            return False
        trouble = f"its outcomes are given up: {self._context.outbox_path}: {self._trouble}"
        logger.error("%s: %s", self._context.name, trouble)
        self.record = replace(self.record, reason=f"{self.record.reason}; {trouble}")
        return True

    def _hear(self) -> bool:
        """Take what the child says; true once it has delivered everything."""
        try:
            said = os.read(self._answer, 1000)
        except BlockingIOError:
            return False
        if said.startswith(_READ):
            # from here on it waits for the service alone
            self._give_up_at = float("inf")
            said = said.removeprefix(_READ)
            if not said:
                return False
        if said == _DONE:
            return True
        self._let_go()
        self._give_up_at = min(self._give_up_at, time.monotonic() + self._patience)
        self._failed(said.decode(errors="replace") or "the process that reads it has died")
        return False

    def _failed(self, trouble: str) -> None:
        self._next = time.monotonic() + _AGAIN
        self._trouble = trouble
        logger.error("%s: %s: trying again", self._context.outbox_path, trouble)

    def _begin(self) -> None:
        inherited = [*self._before_fork()]
        parent = os.getpid()
        try:
            pid, self._answer, write = fork_with_pipe()
        except OSError as error:
            self._failed(f"no process can read it: {error.strerror}")
            return
        if pid:
            os.close(write)
            self._adopt(pid)
            self._child = procs.identity(pid)
            return
        try:
            for file in (self._answer, *inherited):
                os.close(file)
            self._deliver(parent, write)
        except Exception as error:
            if not isinstance(error, OSError):
                logger.exception("the leavings of %s", self._context.name)
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            os.write(write, text.encode()[:900])
        finally:
            os._exit(0)

    def _deliver(self, parent: int, write: int) -> None:
        """The life of the child; it ends when its parent has."""
        outbox = Outbox(self._context.outbox_path)
        now = time.time()
        outbox.end(
            [Ended(id, attempt, "lost", "its worker died", now) for id, attempt in outbox.lost]
        )
        # whoever reads the file later takes all that is in it, acknowledged or not
        waiting = dict(outbox.unacknowledged())
        os.write(write, _READ)
        site = self._context.pilot.site
        post = Post(
            redis_client(site, timeout=2.0),
            site.settings.key_prefix,
            self._context.pilot.pilot,
            self._context.node,
        )
        while waiting:
            if os.getppid() != parent:
                return
            answer = post.exchange(list(waiting.items()), [])
            for number in answer.acknowledged if answer is not None else ():
                waiting.pop(number, None)
            time.sleep(_TICK if waiting else 0)
        os.write(write, _DONE)

    def _let_go(self) -> None:
        os.close(self._answer)
        self._answer, self._child = -1, None

    def close(self) -> None:
        """End the child; what is in the file stays."""
        if self._child is not None:
            procs.send(self._child, signal.SIGKILL)
        if self._answer >= 0:
            self._let_go()
