"""One run: a site under load, faults until the time or the tasks are over, then the audit."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import func, select

from balsam_celery.errors import StoreError
from balsam_celery.store import schema
from tests.chaos import after, faults, workload
from tests.chaos.ledger import parse
from tests.chaos.meter import BEFORE, OVER, Meter
from tests.chaos.plan import Fault, Injected
from tests.chaos.report import Result, slow
from tests.chaos.submitter import ENOUGH, SUBMITTED
from tests.chaos.world import World
from tests.waiting import wait_until

#: Seconds that full work may take to come back before the next fault comes regardless.
PATIENCE = 90.0
#: Cores at work from which on faults may come.
WARM = 6.0
#: Seconds until a fault that cannot be lifted yet is tried again.
AGAIN = 0.5
#: So many tasks must be left for a fault to come: with fewer, full work cannot come back.
LEFT = 60
_pause = threading.Event()


@dataclass(frozen=True, slots=True)
class Pending:
    """A fault that lasts: when it is due to be lifted (monotonic), how, and its place among all."""

    due: float
    lift: faults.Lift
    number: int


class Run:
    """One run.

    Args:
        world: what is broken.
        result: names the run; is filled in.
        count: how many tasks, at the most.
        say: told of each fault.
        all_tasks: all of them, also when the faults are over before.
        strict: a recovery that takes too long is a finding, too (``report.slow``).
        keep: where the site's directory and the ledger are copied to if anything was found.
    """

    def __init__(
        self,
        world: World,
        result: Result,
        count: int,
        say: Callable[[str], None],
        *,
        all_tasks: bool = True,
        strict: bool = False,
        keep: Path | None = None,
    ) -> None:
        self._strict = strict
        self._keep = keep
        self._all_tasks = all_tasks
        self.world = world
        self.result = result
        self.count = count
        self.directory = world.house.directory.parent / "work"
        (self.directory / "locks").mkdir(parents=True)
        self._say = say
        self._meter = Meter(self.directory / "ledger")
        self._pending: list[Pending] = []
        self._injected: list[Injected] = []
        self._lifted = 0.0
        self._group: list[str] = []
        self._level = 0.0
        self._began = time.monotonic()

    def go(self, plan: Iterable[Fault], seconds: float) -> None:
        """Submit, break, wait for the end, audit; the result is filled in."""
        self._meter.start()
        with (self.directory / "submitter.log").open("wb") as log:
            submitter = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.submitter", str(self.result.seed),
                 str(self.count), str(self.directory)],
                env=self.world.live.environment, cwd=Path(__file__).parents[2],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._break(plan, time.monotonic() + seconds, submitter)
            self._settle()
            if not self._all_tasks:
                (self.directory / ENOUGH).touch()
            wait_until(
                lambda: submitter.poll() is not None, 60 + self.count, "all tasks are submitted"
            )
            log_text = (self.directory / "submitter.log").read_text()
            assert submitter.returncode == 0, f"the submitter failed: {log_text[-3000:]}"
            # canvases come whole, so that fewer are a beginning of the same tasks
            self.count = int((self.directory / SUBMITTED).read_text(encoding="ascii"))
            self._say("waiting for the last tasks")
            site = self.world.live.site.settings.site.id
            wanted = workload.named(site, workload.tasks(self.result.seed, self.count))
            self.result.stale = after.wait_for_the_end(self.world, len(wanted))
        finally:
            self._meter.stop()
            while self._pending:
                self._sleep(AGAIN)
            if submitter.poll() is None:
                submitter.kill()
                submitter.wait()
        self._audit()

    def _break(
        self, plan: Iterable[Fault], until: float, submitter: subprocess.Popen[bytes]
    ) -> None:
        wait_until(lambda: self._meter.mean(time.monotonic() - OVER) >= WARM, 180, "work has begun")
        self._lifted = time.monotonic()
        self._sleep(5.0)
        before = time.monotonic()
        for fault in plan:
            if not fault.overlaps:
                self._lift_all()
                if not fault.soon:
                    self._settle()
                before = time.monotonic()
            self._sleep(max(0.0, before + fault.wait - time.monotonic()))
            if time.monotonic() > until or (submitter.poll() is not None and self._left() < LEFT):
                return
            before = time.monotonic()
            self._inject(fault)

    def _inject(self, fault: Fault) -> None:
        if not self._group:
            now = time.monotonic()
            seen = self._meter.level(max(now - BEFORE, self._lifted), now)
            # full work that came back only in part must not become the measure
            self._level = max(0.8 * self._level, seen)
        lasting = bool(self._pending)
        came = Injected(fault.kind, time.monotonic(), time.time())
        try:
            lift = faults.inject(self.world, fault)
        except faults.NotNow as reason:
            self._say(f"{fault.number} {fault.kind}: not now: {reason}")
            _count(self.result.missed, fault.kind)
            return
        self._say(f"{fault.number} {fault.kind} for {fault.duration} s (level {self._level:.0f})")
        _count(self.result.faults, fault.kind)
        # what is killed lasts until it is started again
        self.result.overlapping += lasting or fault.overlaps
        self._group.append(fault.kind)
        self._lifted = time.monotonic()
        self._injected.append(replace(came, lifted=self._lifted))
        if lift is not None:
            due, number = time.monotonic() + fault.duration, len(self._injected) - 1
            self._pending.append(Pending(due, lift, number))

    def _sleep(self, seconds: float) -> None:
        """Pass time, lifting what is due."""
        until = time.monotonic() + seconds
        while True:
            self._lift_due()
            left = min([until, *(one.due for one in self._pending)]) - time.monotonic()
            if time.monotonic() >= until:
                return
            _pause.wait(max(0.0, left))

    def _lift_due(self) -> None:
        for one in sorted(self._pending, key=lambda one: one.due):
            if one.due <= time.monotonic():
                self._pending.remove(one)
                self._lifted = time.monotonic()
                try:
                    one.lift()
                except faults.NotNow:
                    # what it needs is broken too, and is lifted from here
                    self._pending.append(replace(one, due=time.monotonic() + AGAIN))
                else:
                    self._injected[one.number] = replace(
                        self._injected[one.number], lifted=time.monotonic()
                    )

    def _lift_all(self) -> None:
        """Wait until nothing is broken."""
        while self._pending:
            self._sleep(max(0.0, min(one.due for one in self._pending) - time.monotonic()) + 0.01)

    def _settle(self) -> None:
        """Wait until nothing is broken and all cores are at work again; note how long it took."""
        self._lift_all()
        if not self._group:
            return
        group, self._group = self._group, []
        while (full := self._meter.full_since(self._lifted, self._level)) is None:
            if self._left() < LEFT:
                return
            if time.monotonic() - self._lifted > PATIENCE:
                self._say(f"no full work {PATIENCE:.0f} s after {' + '.join(group)}")
                full = time.monotonic()
                break
            _pause.wait(0.1)
        took = round(full - self._lifted, 1)
        self._say(f"    full work {took} s after {' + '.join(group)} (level {self._level:.0f})")
        if len(group) == 1:
            kind = group[0]
            self.result.recovery.setdefault(kind, []).append(took)
            if (began := faults.restarted(self.world, kind)) is not None:
                after_it = round(max(0.0, full - max(began, self._lifted)), 1)
                self.result.restarted.setdefault(kind, []).append(after_it)
        else:
            self.result.slowest = max(self.result.slowest, took)

    def _left(self) -> int:
        """Tasks that are waiting to be run."""
        task = schema.task.c
        states = ("PREPROCESSED", "RESTART_READY")
        query = select(func.count()).where(
            task.workflow == workload.WORKFLOW, task.state.in_(states)
        )
        try:
            with self.world.read() as conn:
                return conn.scalar(query) or 0
        except StoreError:
            return LEFT

    def _audit(self) -> None:
        lines = parse((self.directory / "ledger").read_text(encoding="utf-8"))
        after.fill_in(self.world, self.result, self.count, lines, self._injected)
        if self._strict:
            late = slow(self.result)
            self.result.findings["slow"] = len(late)
            self.result.told += [f"slow: {one}" for one in late]
        self.result.seconds = round(time.monotonic() - self._began, 1)
        if self._keep is not None and not self.result.passed:
            kept = self._keep / self.world.directory.name
            shutil.copytree(self.world.directory, kept, symlinks=True, ignore=_sockets)
            self._say(f"kept in {kept}")


def _sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(directory) / name).is_socket()]


def _count(book: dict[str, int], kind: str) -> None:
    book[kind] = book.get(kind, 0) + 1
