"""Processes of attempts: start one, wait for it, find what it left behind, end all of it."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from balsam_celery import brands, procs
from balsam_celery.pilot.attempt import rank_mark
from balsam_celery.procs import Identity, Quarry


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: times in seconds, memory in bytes, of it and what it waited for.

    ``max_memory`` is 0 when it is not known.
    """

    code: int | None
    signal: int | None
    user_time: float
    system_time: float
    max_memory: int


class Spawner:
    """Starts and reaps the programs of one worker, and tells its own children from orphans.

    The worker is a subreaper, so a process whose parent has died becomes the worker's child. The
    kernel lists children by thread: those that the waiter threads started under these, orphans
    under the main thread, which never starts a program itself. One short read tells whether there
    are any.
    """

    def __init__(self) -> None:
        self._leaders: set[int] = set()
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._cores = os.sched_getaffinity(0)
        pid = os.getpid()
        self._orphans: int | None = None
        with contextlib.suppress(FileNotFoundError):  # a kernel without these lists
            path = f"/proc/{pid}/task/{pid}/children"
            self._orphans = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        output: Sequence[int],
        *,
        cores: frozenset[int],
        brand: str,
    ) -> int:
        """Start a program in a session of its own and return its pid.

        Args:
            output: open files for stdout and stderr.
            cores: bind it to these; empty: to none.
            brand: name of the attempt for ``balsam_celery.brands``.

        Raises:
            OSError: no such program, not executable, no such core, no memory.
            ValueError: a NUL byte in an argument or variable.
        """
        with brands.children_branded(attempt=brand):
            if cores:
                os.sched_setaffinity(0, cores)  # of this thread; the child inherits it
            try:
                process = subprocess.Popen(
                    argv,
                    env=environment,
                    cwd=directory,
                    stdin=self._null,
                    stdout=output[0],
                    stderr=output[1],
                    start_new_session=True,
                )
            finally:
                if cores:
                    os.sched_setaffinity(0, self._cores)
            self._leaders.add(process.pid)
        # reaped by wait4 below, for its usage; Popen must not wait for this number ever again
        process.returncode = 0
        return process.pid

    def wait(self, pid: int) -> Exit:
        """Wait for a program's end and reap it.

        ``vfork`` makes the kernel count this worker's own peak as its child's, so a peak is known
        from here only where it is above that; :func:`peak_memory` tells the smaller ones.
        """
        _, status, usage = os.wait4(pid, 0)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with procs.spawning:
            self._leaders.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        return Exit(
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            user_time=usage.ru_utime,
            system_time=usage.ru_stime,
            max_memory=usage.ru_maxrss * 1024 if usage.ru_maxrss > own else 0,
        )

    def orphans(self) -> list[Identity]:
        """Living processes whose parents have died; dead ones are reaped on the way."""
        if self._orphans is None:
            return procs.unknown_children(self._leaders)
        listed = b""
        while part := os.pread(self._orphans, 65536, len(listed)):
            listed += part
        living = []
        for pid in map(int, listed.split()):
            found = procs.entry(pid)
            if found is not None and found.lives:
                living.append(found.identity)
            else:
                procs.reap(pid)
        return living

    def orphan_of(self, brand: str) -> Identity | None:
        """An orphan that certainly belongs to the attempt of that brand."""
        number = brands.attempt_number(brand)
        for orphan in self.orphans():
            found = brands.of(orphan.pid)
            if found is not None and found.attempt == number:
                return orphan
        return None

    def left_behind(self, brand: str) -> bool:
        """Tell whether an orphan may belong to the attempt of that brand, whose leader is gone."""
        number = brands.attempt_number(brand)
        for orphan in self.orphans():
            found = brands.of(orphan.pid)
            if found is None or found.attempt in (0, number):
                return True
        return False


def peak_memory(pid: int) -> int:
    """Bytes that a running process has had at the most; 0 when that cannot be told."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - read often
            status = file.read()
    except procs.UNSEEN:
        return 0
    _, found, rest = status.partition(b"VmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else 0


def named(name: str) -> set[int]:
    """Numbers of the processes of this host whose program's file has that name."""
    found = set()
    for pid in os.listdir("/proc"):  # noqa: PTH208 - names, often thousands
        if pid.isdigit():
            with (
                contextlib.suppress(*procs.UNSEEN),
                open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file,  # noqa: PTH123
            ):
                if file.read().rstrip("\n") == name:
                    found.add(int(pid))
    return found


def signal_all(quarry: Quarry, number: int) -> None:
    """Send the signal ``number`` to every process of ``quarry``, once."""
    for process in procs.find(quarry):
        procs.send(process, number)


def end_all(
    quarry: Quarry,
    grace: float,
    spawner: Spawner | None = None,
    before_kill: Callable[[], None] | None = None,
) -> None:
    """TERM, grace, KILL; returns when no process of the quarry lives, however long that takes."""
    procs.end_all(quarry, grace=grace, before_kill=before_kill)
    if spawner is not None:
        spawner.orphans()


def end_processes(
    marks: tuple[str, ...],
    attempts: tuple[str, ...],
    grace: float,
    roots: frozenset[Identity] = frozenset(),
) -> None:
    """End processes by marks, by brands of attempts, and descendants of ``roots``.

    However many attempts there are, it takes two graces: this is counted on by those who wait for
    a node that is cut off (:mod:`balsam_celery.cutoff`).
    """
    # ranks first: a launcher that is here kills those that it started at a TERM of its own
    end_all(Quarry(marks=frozenset(map(rank_mark, attempts))), grace)
    end_all(Quarry(roots=roots, marks=frozenset(marks), attempts=frozenset(attempts)), grace)


def attempts_with_ranks(mark: str) -> tuple[str, ...]:
    """Brands of the attempts, of the worker with this mark, of which a rank lives here."""
    name = rank_mark("").encode()
    found = set()
    for pid in procs.marked([mark]):
        for entry in procs.environment(pid).split(b"\0"):
            if entry.startswith(name):
                found.add(os.fsdecode(entry.removeprefix(name)))
    return tuple(sorted(found))


def union(quarries: Iterable[Quarry]) -> Quarry:
    """All of them, of one job."""
    whole = Quarry()
    for quarry in quarries:
        whole = Quarry(
            roots=whole.roots | quarry.roots,
            parents=whole.parents | quarry.parents,
            sessions=whole.sessions | quarry.sessions,
            marks=whole.marks | quarry.marks,
            job=quarry.job,
            attempts=whole.attempts | quarry.attempts,
        )
    return whole


def end_in_background(
    quarries: Sequence[Quarry], grace: float, before_kill: Callable[[], None]
) -> threading.Thread:
    """Begin to end running attempts; whoever waits for their leaders makes sure of the rest."""
    thread = threading.Thread(
        target=end_all,
        args=(union(quarries), grace, None, before_kill),
        name="killer",
        daemon=True,
    )
    thread.start()
    return thread
