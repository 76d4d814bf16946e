"""The daemon: starts the site's processes and starts again those that end.

Signals: TERM, INT and HUP stop all processes in order, then the daemon; USR1 ends the daemon alone
and leaves the processes to whoever sent it (``down``, which ends them itself, so that it goes the
same way when the daemon was killed).
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from setproctitle import setproctitle

from balsam_celery import procs
from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import BalsamError, SiteError
from balsam_celery.redisserver import answers
from balsam_celery.site import Site, find
from balsam_celery.supervisor import records
from balsam_celery.supervisor.children import SUPERVISOR, child, names
from balsam_celery.supervisor.ending import end, sweep
from balsam_celery.supervisor.locks import try_lock
from balsam_celery.supervisor.logs import log_path, open_log, rotate

log = logging.getLogger("balsam_celery.supervisor")

#: A process that lived this long (seconds) was well: it is started again at once.
HEALTHY = 20.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
ROTATE_EVERY = 5.0
_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(slots=True)
class _Life:
    """One process and its past; times are of the monotonic clock."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    started: float = 0.0  # seconds since the epoch, for people
    due: float = 0.0
    starts: int = 0
    failures: int = 0
    last_exit: str = ""


def pause_before_restart(lived: float, failures: int) -> tuple[float, int]:
    """Seconds to wait before a process is started again, and its new count of failures.

    Args:
        lived: how long it ran, seconds.
        failures: how often in a row it had ended soon before.
    """
    if lived >= HEALTHY:
        return 0.0, 0
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**failures), failures + 1


class Daemon:
    """Keeps the processes of one site running, in one thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lives = [_Life(name) for name in names(site)]
        self.redis_seen = not site.has_own_redis
        self.wakeup, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.next_rotation = 0.0

    def run(self) -> None:
        """Run until a signal says otherwise."""
        for number in (signal.SIGCHLD, signal.SIGUSR1, *_STOP):
            signal.signal(number, _noted)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        while True:
            self.reap()
            due = self.start_due()
            self.rotate_due()
            received = self.sleep_until(min(due, self.next_rotation))
            if received & {int(number) for number in _STOP}:
                log.info("stopping all")
                self.stop()
                return
            if signal.SIGUSR1 in received:
                log.info("handing over")
                return

    def sleep_until(self, when: float) -> set[int]:
        """Sleep until ``when`` or a signal; the numbers of the signals that came."""
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        poll.poll(max(0.0, when - time.monotonic()) * 1000)
        try:
            return set(os.read(self.wakeup, 4096))
        except BlockingIOError:
            return set()

    def reap(self) -> None:
        """Note which processes have ended and when to start them again."""
        for life in self.lives:
            if life.process is None or (code := life.process.poll()) is None:
                continue
            lived = time.monotonic() - life.began
            life.last_exit = f"exit {code}" if code >= 0 else f"signal {-code}"
            pause, life.failures = pause_before_restart(lived, life.failures)
            life.due = time.monotonic() + pause
            life.process = None
            log.warning(
                "%s ended (%s) after %.1f s; starting again in %.1f s",
                life.name, life.last_exit, lived, pause,
            )  # fmt: skip
            # children of a worker that was killed would hold its place
            try:
                sweep(self.site, (life.name,))
            except SiteError as error:
                log.error("%s", error)
            self.write_record(life, None)

    def start_due(self) -> float:
        """Start what is due; when to look again (monotonic clock)."""
        next_due = time.monotonic() + 60.0
        for life in self.lives:
            if life.process is not None:
                continue
            if life.due <= time.monotonic():
                if life.name != "redis" and not self.redis_answers():
                    return time.monotonic() + 0.1  # a start takes it tenths of a second
                self.start(life)
            if life.process is None:
                next_due = min(next_due, life.due)
        return next_due

    def redis_answers(self) -> bool:
        """Redis has answered once: what starts before would wait seconds for its first try."""
        if not self.redis_seen:
            with redis_client(self.site, timeout=1.0) as client:
                self.redis_seen = answers(client) == ""
        return self.redis_seen

    def start(self, life: _Life) -> None:
        """Start a process; when that cannot be, it counts as a failure."""
        life.began, life.started = time.monotonic(), time.time()
        life.starts += 1
        try:
            plan = child(self.site, life.name)
            descriptor = open_log(plan.log)
            try:
                life.process = subprocess.Popen(
                    plan.argv, env=plan.environment, cwd=self.site.local_dir,
                    stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor,
                    start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(descriptor)
        except (OSError, BalsamError) as error:
            pause, life.failures = pause_before_restart(0.0, life.failures)
            life.due = time.monotonic() + pause
            life.last_exit = f"cannot start: {error}"
            log.error("%s cannot start: %s", life.name, error)
            self.write_record(life, None)
            return
        log.info("%s started, pid %d", life.name, life.process.pid)
        self.write_record(life, procs.identity(life.process.pid))

    def write_record(self, life: _Life, process: procs.Identity | None) -> None:
        """Write the pid file of a process."""
        record = records.Record(
            life.name,
            process,
            life.started,
            max(0, life.starts - 1),
            life.failures,
            life.last_exit,
        )
        try:
            records.write(self.site, record)
        except SiteError as error:
            # a full disk must not end the daemon; the mark still leads to the process
            log.error("%s", error)

    def rotate_due(self) -> None:
        """Rotate logs that have grown too long."""
        if time.monotonic() < self.next_rotation:
            return
        self.next_rotation = time.monotonic() + ROTATE_EVERY
        settings = self.site.settings.logs
        for name in (SUPERVISOR, *(life.name for life in self.lives)):
            try:
                rotate(log_path(self.site, name), settings.max_bytes, settings.backups)
            except OSError as error:
                log.error("cannot rotate the log of %s: %s", name, error)
        for life in self.lives:
            # one that lived long enough is well again
            lived = time.monotonic() - life.began
            if life.process is not None and life.failures and lived >= HEALTHY:
                life.failures = 0
                self.write_record(life, procs.identity(life.process.pid))

    def stop(self) -> None:
        """Stop every process, Redis last, from which the others take their leave."""
        others = [life.name for life in self.lives if life.name != "redis"]
        end(self.site, *others)
        end(self.site, "redis")
        for life in self.lives:
            if life.process is not None:
                life.process.wait()


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor brings the number; a handler must only exist."""


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m balsam_celery.supervisor.daemon --site DIR``: detach and run."""
    parser = argparse.ArgumentParser(prog="balsam_celery.supervisor.daemon")
    parser.add_argument("--site", type=Path, required=True)
    site = find(parser.parse_args(arguments).site)
    # the second fork (the first was up's): an orphan that can get no terminal
    if os.fork() > 0:
        return 0
    os.umask(0o077)
    os.chdir(site.local_dir)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="[%(asctime)s: %(levelname)s] %(message)s"
    )
    with try_lock(site.local_dir / "supervisor.lock") as got:
        if not got:
            log.error("another supervisor of %s runs", site.directory)
            return 1
        setproctitle(f"balsam supervisor: {site.settings.site.name} {site.settings.site.id}")
        records.write(site, records.Record(SUPERVISOR, procs.own_identity(), time.time()))
        log.info("supervising %s", site.directory)
        Daemon(site).run()
        records.remove(site, SUPERVISOR)
        log.info("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
