"""Ending the site's processes, and finding those that an earlier life left."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Collection, Iterable

from balsam_celery import brands, procs
from balsam_celery.celeryapp import ROLE_VARIABLE
from balsam_celery.errors import SiteError
from balsam_celery.keys import HOOK_MARK, hooks_job
from balsam_celery.procs import Identity
from balsam_celery.site import Site
from balsam_celery.supervisor import records
from balsam_celery.supervisor.children import NAMES, mark

#: Seconds that a process gets between TERM and KILL.
GRACE = {"redis": 30.0, "service": 10.0, "transitions": 10.0, "tasks": 10.0}
_GRACE_OF_OTHERS = 5.0
_POLL = 0.02


def wait_for(done: Callable[[], bool], timeout: float) -> bool:
    """Poll ``done`` until it is true (tells so) or ``timeout`` seconds are over."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def members(site: Site, names: Iterable[str]) -> list[Identity]:
    """Living processes marked as ``names`` of this site, those of local allocations aside.

    An allocation inherits the mark from the service that started it, and must outlive that: the
    local scheduler takes the role out of its jobs' environment, so a process counts only when it
    carries mark and role. Programs of hooks have no role either; of these there are a mark and a
    brand of their own, which the local scheduler takes away too.
    """
    found = []
    for name in names:
        with_mark = procs.marked({mark(site, name)})
        of_it = procs.marked({f"{ROLE_VARIABLE}={name}"}, with_mark)
        if name == "transitions":
            of_it |= _of_hooks(site, with_mark)
        for pid in of_it:
            if (process := procs.identity(pid)) is not None:
                found.append(process)
    return found


def _of_hooks(site: Site, pids: Collection[int]) -> set[int]:
    """Those of hooks among processes, and those of the site's hooks without an environment."""
    own = f"{HOOK_MARK}=".encode()
    found = {
        pid
        for pid in pids
        if any(one.startswith(own) for one in procs.environment(pid).split(b"\0"))
    }
    return found | brands.branded(procs.snapshot(), job=hooks_job(site.settings.site.id))


def end(site: Site, *names: str) -> list[str]:
    """End the processes ``names``, all at once, and what they left; which there were to end.

    TERM to each process itself, so that it can end its own children in order; after its grace
    (:data:`GRACE`) KILL to all that carry its mark.

    Raises:
        SiteError: something of them does not end.
    """
    alive: dict[str, Identity] = {}
    for name in names:
        record = records.read(site, name)
        if record is not None and record.process is not None and record.is_alive:
            alive[name] = record.process
            procs.send(record.process, signal.SIGTERM)
            procs.send(record.process, signal.SIGCONT)  # a stopped one would not act on TERM
    begin = time.monotonic()
    for name, process in alive.items():
        limit = begin + GRACE.get(name, _GRACE_OF_OTHERS) - time.monotonic()
        if not wait_for(functools.partial(_gone, process), limit):
            procs.send(process, signal.SIGKILL)
    found = [name for name in names if sweep(site, (name,)) or name in alive]
    for name in names:
        records.remove(site, name)
    return found


def _gone(process: Identity) -> bool:
    return not procs.alive(process)


def sweep(site: Site, names: Iterable[str] = NAMES) -> bool:
    """Kill whatever still carries the mark of ``names``; tell whether there was any.

    Raises:
        SiteError: a process does not end.
    """
    names = tuple(names)
    found = members(site, names)
    if not found:
        return False
    deadline = time.monotonic() + 30.0
    left = found
    while left:
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in left)
            raise SiteError(f"processes of {'/'.join(names)} do not end: {pids}")
        # each by itself, not with its descendants: allocations may be among these
        for process in left:
            procs.send(process, signal.SIGKILL)
        time.sleep(_POLL)
        left = members(site, names)
    return True
