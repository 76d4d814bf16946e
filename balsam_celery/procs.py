"""Processes: who they are, which belong together, and how to end all of them.

A process is named by :class:`Identity` (pid, start time, boot), never by a pid alone. Which
processes belong to a job or to an attempt is told by a :class:`Quarry`, in four ways that fail
independently of each other:

* descent: children of children, as long as the ones between live;
* session: what a leader that called ``setsid`` left behind;
* mark: a ``NAME=VALUE`` in the environment the process was started with;
* brand: a number in the soft limit ``RLIMIT_RTTIME`` (see :mod:`balsam_celery.brands`), which
  survives ``setsid``, double forks and ``env -i`` alike.

Whatever one finds brings its descendants with it. Linux only: all is read from ``/proc``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from balsam_celery import brands

logger = logging.getLogger(__name__)

_PROC = Path("/proc")
#: What a look into ``/proc`` at a process raises that has ended, or that the kernel hides since it
#: is another user's (``hidepid=1``; proc(5)).
UNSEEN = (FileNotFoundError, ProcessLookupError, PermissionError)
_PR_SET_CHILD_SUBREAPER = 36
_POLL_FIRST, _POLL_LONGEST = 0.002, 0.05  # seconds
#: Passes of SIGSTOP over a set that keeps growing, before SIGKILL is sent regardless.
_FREEZE_PASSES = 20
#: Seconds after which processes that survive SIGKILL are named in the log, again and again.
_PATIENCE = 10.0
_Call = Callable[[], None] | None


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """One process for ever: a pid comes again, a pid with this start time and boot does not.

    Attributes:
        pid: its number.
        start_time: clock ticks from the machine's start to the process's.
        boot_id: which start of the machine.
    """

    pid: int
    start_time: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One process as ``/proc`` shows it at one moment.

    Attributes:
        lives: some thread of it runs (false for a zombie that only waits to be reaped).
    """

    identity: Identity
    parent: int
    group: int
    session: int
    lives: bool


@dataclass(frozen=True, slots=True)
class Quarry:
    """Processes that belong together; each field adds some, and all descendants of each count.

    Attributes:
        roots: these processes.
        parents: descendants of these, but not they themselves.
        sessions: members of the sessions that these led (they need not live any more).
        marks: ``NAME=VALUE`` texts, each alone enough, in the environment at the start.
        job, attempts: brand of the job and, when ``attempts`` is not empty, of those in it.
    """

    roots: frozenset[Identity] = frozenset()
    parents: frozenset[Identity] = frozenset()
    sessions: frozenset[Identity] = frozenset()
    marks: frozenset[str] = frozenset()
    job: str = ""
    attempts: frozenset[str] = frozenset()


@functools.cache
def boot_id() -> str:
    """The kernel's name for this start of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def entry(pid: int) -> Entry | None:
    """The process ``pid`` as it is now (also a zombie), or ``None`` when none is to be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except UNSEEN:
        return None
    # the name, in parentheses, may itself hold spaces and parentheses
    fields = text[text.rindex(b")") + 2 :].split()
    state, threads = fields[0], int(fields[17])
    return Entry(
        identity=Identity(pid, int(fields[19]), boot_id()),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        # a main thread that has ended is shown as a zombie while others of its threads run on
        lives=state not in (b"Z", b"X") or threads > 1,
    )


def identity(pid: int) -> Identity | None:
    """Identity of the living process ``pid``, or ``None``."""
    found = entry(pid)
    return found.identity if found is not None and found.lives else None


def own_identity() -> Identity:
    """Identity of this process."""
    found = identity(os.getpid())
    assert found is not None, "the calling process lives"
    return found


def alive(process: Identity) -> bool:
    """Tell whether exactly this process still runs (a zombie does not)."""
    return process.boot_id == boot_id() and identity(process.pid) == process


def snapshot() -> dict[int, Entry]:
    """All processes that are to be seen, by pid, zombies too; about 20 µs for each."""
    entries = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - no objects for thousands of names
        if name.isdigit() and (found := entry(int(name))) is not None:
            entries[found.identity.pid] = found
    return entries


def children_of(pid: int) -> list[int]:
    """Pids of the children of ``pid``, zombies too; cheap: no scan where the kernel lists them."""
    children: list[int] = []
    for thread in _threads(pid):
        task = Path(f"/proc/{pid}/task/{thread}")
        try:
            children += map(int, (task / "children").read_bytes().split())
        except ProcessLookupError:
            continue  # the thread ended: its children are another's now
        except FileNotFoundError:
            if (task / "stat").exists():  # a kernel without these lists
                return [p for p, found in snapshot().items() if found.parent == pid]
    return children


def descendants(roots: Iterable[int], entries: dict[int, Entry] | None = None) -> dict[int, Entry]:
    """Children of ``roots``, their children and so on, without the roots themselves."""
    entries = snapshot() if entries is None else entries
    by_parent: dict[int, list[int]] = {}
    for pid, found in entries.items():
        by_parent.setdefault(found.parent, []).append(pid)
    start = set(roots)
    closure: dict[int, Entry] = {}
    frontier = list(start)
    while frontier:
        for child in by_parent.get(frontier.pop(), ()):
            if child not in closure and child not in start:
                closure[child] = entries[child]
                frontier.append(child)
    return closure


def marked(marks: Collection[str], entries: Collection[int] | None = None) -> set[int]:
    """Pids whose environment, as it was when they were started, holds one of ``marks``.

    Processes of other users cannot be read and are passed over.
    """
    wanted = {mark.encode() for mark in marks}
    common = os.path.commonprefix([*wanted]) or b""  # noqa: RUF071 - one search for all of them
    among = snapshot() if entries is None else entries
    shown = ((pid, environment(pid)) for pid in among)
    return {pid for pid, text in shown if common in text and wanted & {*text.split(b"\0")}}


def environment(pid: int) -> bytes:
    """The environment of a process as it was when it was started; empty for others' processes."""
    if shown := _read(f"/proc/{pid}/environ"):
        return shown
    # nothing is shown for a main thread that has ended; its other threads still tell
    for thread in _threads(pid):
        if thread != pid and (shown := _read(f"/proc/{pid}/task/{thread}/environ")):
            return shown
    return b""


def _threads(pid: int) -> list[int]:
    try:
        return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    except UNSEEN:
        return []


def _read(path: str) -> bytes:
    """What ``path`` in ``/proc`` holds; nothing when the process ended or is another user's."""
    try:
        return Path(path).read_bytes()
    except UNSEEN:
        return b""


def find(quarry: Quarry, seen: Collection[Identity] = ()) -> list[Identity]:
    """Living processes of ``quarry``, never the calling one.

    Args:
        seen: members known from earlier; their descendants count too.
    """
    entries = snapshot()
    heads = _there((*quarry.roots, *seen), entries)
    heads |= _session_members(quarry.sessions, entries)
    if quarry.marks:
        heads |= marked(quarry.marks, entries)
    if quarry.job or quarry.attempts:
        heads |= brands.branded(entries, job=quarry.job, attempts=quarry.attempts)
    parents = _there(quarry.parents, entries)
    heads -= parents
    members = heads | descendants(heads | parents, entries).keys()
    members -= parents | {os.getpid()}
    return sorted(entries[pid].identity for pid in members if entries[pid].lives)


def _there(processes: Iterable[Identity], entries: dict[int, Entry]) -> set[int]:
    return {one.pid for one in processes if (e := entries.get(one.pid)) and e.identity == one}


def _session_members(leaders: Collection[Identity], entries: dict[int, Entry]) -> set[int]:
    numbers = set()
    for leader in leaders:
        # a number is not given again while a member lives; if another process bears it now,
        # the session is over
        now = entries.get(leader.pid)
        if leader.boot_id == boot_id() and (now is None or now.identity == leader):
            numbers.add(leader.pid)
    return {pid for pid, found in entries.items() if found.session in numbers}


def send(process: Identity, number: int) -> bool:
    """Send the signal ``number`` to exactly this process; tell whether it could be sent."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return _send_by_number(process, number)  # Linux before 5.3
    try:
        if identity(process.pid) != process:
            return False
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def _send_by_number(process: Identity, number: int) -> bool:
    if identity(process.pid) != process:
        return False
    try:
        os.kill(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end(
    quarry: Quarry, *, grace: float, timeout: float = 60.0, before_kill: _Call = None
) -> list[Identity]:
    """End every process of ``quarry``: TERM, ``grace`` seconds, then KILL until none lives.

    Members that appear on the way are ended too. Zombies do not count; reaping is the parent's.

    Args:
        grace: seconds between TERM and KILL; 0 kills at once.
        timeout: seconds after the first KILL before giving up.
        before_kill: called before each KILL, while those that it is for are stopped.

    Returns:
        The processes that still live (in an uninterruptible wait, or another user's).
    """
    seen: set[Identity] = set()
    asked: set[Identity] = set()
    deadline = float("inf")  # the grace begins with TERM: a look before may take longer
    pause = _POLL_FIRST
    while grace > 0 and time.monotonic() < deadline:
        members = find(quarry, seen)
        if not members:
            return []
        seen.update(members)
        for process in seen - asked:
            send(process, signal.SIGTERM)
            send(process, signal.SIGCONT)  # a stopped one would not act on TERM
        if not asked:
            deadline = time.monotonic() + grace
        asked |= seen
        pause = _rest(pause, deadline)
    deadline = time.monotonic() + timeout
    pause = _POLL_FIRST
    while True:
        members = _freeze(quarry, seen)
        if members and before_kill is not None:
            before_kill()
        for process in members:
            send(process, signal.SIGKILL)
        if not members or time.monotonic() > deadline:
            return members
        pause = _rest(pause, deadline)


def end_all(quarry: Quarry, *, grace: float, before_kill: _Call = None) -> None:
    """TERM, grace, KILL; returns when no process of the quarry lives, however long that takes."""
    while survivors := end(quarry, grace=grace, timeout=_PATIENCE, before_kill=before_kill):
        logger.error("processes %s survive SIGKILL: waiting", [one.pid for one in survivors])
        grace = 0.0


def _freeze(quarry: Quarry, seen: set[Identity]) -> list[Identity]:
    """Stop members until no new one appears: what is stopped cannot fork away from the kill."""
    members: list[Identity] = []
    stopped: set[Identity] = set()
    for _ in range(_FREEZE_PASSES):
        members = find(quarry, seen)
        fresh = [process for process in members if process not in stopped]
        if not fresh:
            break
        for process in fresh:
            send(process, signal.SIGSTOP)
        stopped.update(fresh)
        seen.update(fresh)
    return members


def _rest(pause: float, deadline: float) -> float:
    """Wait ``pause`` seconds, not past ``deadline``, and return the next, longer pause."""
    time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
    return min(pause * 1.5, _POLL_LONGEST)


def become_subreaper(on: bool = True) -> None:
    """Make orphaned descendants of this process its children, instead of init's.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


#: Held while a child is started and entered in its starter's books; see :func:`unknown_children`.
spawning: threading.RLock = brands.spawning


def unknown_children(known: Collection[int]) -> list[Identity]:
    """Living children of this process that are not in ``known``; unknown zombies are reaped.

    In a subreaper these are the orphans of its programs. ``known`` must be the live container
    that starters change while they hold :data:`spawning`, so that no child just started is taken
    for an orphan. Cheap: reads only this process's list of children.
    """
    living = []
    with spawning:
        for pid in children_of(os.getpid()):
            if pid in known or (found := entry(pid)) is None:
                continue
            if found.lives:
                living.append(found.identity)
            else:
                reap(pid)
    return living


def reap(pid: int) -> int | None:
    """Reap the child ``pid`` if it has ended: its wait status, else ``None``."""
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if reaped == pid else None
