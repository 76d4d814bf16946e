"""A brand: a number that every descendant of a process carries, whatever it does.

The soft limit ``RLIMIT_RTTIME`` bounds how many microseconds a *real-time* process may run without
a blocking call. It is inherited over ``fork`` and ``exec``, and neither ``setsid`` nor a double
fork nor an emptied environment changes it. Set to some 2^62 µs (150,000 years) it limits nobody,
needs no privilege, and its lower bits are free to say whose the process is: 22 bits for the job
(the local scheduler's, or all hooks of a site), 40 bits for the attempt in it.

A program may change its own limit, so a brand is one of several ways to find it
(:mod:`balsam_celery.procs`), and the only one that finds an orphan with an emptied environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

_JOB_BITS, _ATTEMPT_BITS = 22, 40
_TAG = 1 << (_JOB_BITS + _ATTEMPT_BITS)
_LIMIT = resource.RLIMIT_RTTIME

#: Held while this process's own limit is changed for a child's sake.
spawning = threading.RLock()


@dataclass(frozen=True, slots=True)
class Brand:
    """Whose a process is; 0 stands for none."""

    job: int = 0
    attempt: int = 0


def job_number(job: str) -> int:
    """The brand's number for the job named ``job`` (0 for the empty name)."""
    return _number(job, _JOB_BITS)


def attempt_number(attempt: str) -> int:
    """The brand's number for the attempt named ``attempt`` (0 for the empty name)."""
    return _number(attempt, _ATTEMPT_BITS)


def _number(name: str, bits: int) -> int:
    if not name:
        return 0
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % ((1 << bits) - 1) + 1


def value(attempt: str) -> int:
    """The soft limit, in microseconds, that brands a process of this attempt in our own job."""
    return _value((of(0) or Brand()).job, attempt_number(attempt))


def _value(job: int, attempt: int) -> int:
    return _TAG | job << _ATTEMPT_BITS | attempt


def of(pid: int) -> Brand | None:
    """The brand of process ``pid``; ``None`` when it has none, is gone, or is another user's."""
    try:
        soft, _ = resource.prlimit(pid, _LIMIT)
    except (ProcessLookupError, PermissionError):
        return None
    if soft < 0 or soft >> (_JOB_BITS + _ATTEMPT_BITS) != 1:
        return None
    rest = soft - _TAG
    return Brand(rest >> _ATTEMPT_BITS, rest & ((1 << _ATTEMPT_BITS) - 1))


def branded(pids: Iterable[int], *, job: str = "", attempts: Collection[str] = ()) -> set[int]:
    """Those of ``pids`` that carry the brand of ``job`` and of one of ``attempts`` (empty: any).

    Without a ``job``, ``attempts`` are looked for in the job that this process belongs to itself.
    About 2 µs for each process.
    """
    own = of(0) or Brand()
    wanted_job = job_number(job) if job else own.job
    wanted_attempts = set(map(attempt_number, attempts))
    found = set()
    for pid in pids:
        brand = of(pid)
        if (
            brand is not None
            and brand.job == wanted_job
            and (not attempts or brand.attempt in wanted_attempts)
        ):
            found.add(pid)
    return found


@contextlib.contextmanager
def children_branded(*, job: str | None = None, attempt: str | None = None) -> Iterator[None]:
    """Children started inside the block, in this thread, carry this brand; the caller does not.

    The limit belongs to the whole process, so the block holds :data:`spawning`, and every other
    place that starts children should hold it too. A part that is ``None`` stays as it is; an
    empty name takes it away. Where the hard limit forbids a brand (someone lowered it), nothing
    happens.
    """
    with spawning:
        soft, hard = resource.getrlimit(_LIMIT)
        own = of(0) or Brand()
        job_part = own.job if job is None else job_number(job)
        attempt_part = own.attempt if attempt is None else attempt_number(attempt)
        limit = _value(job_part, attempt_part) if job_part or attempt_part else hard
        if hard != resource.RLIM_INFINITY and limit > hard:
            yield
            return
        resource.setrlimit(_LIMIT, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(_LIMIT, (soft, hard))
