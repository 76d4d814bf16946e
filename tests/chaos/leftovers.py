"""What a run must not leave: processes of tasks, hooks, pilots and workers, keys of dead pilots.

Processes are looked for in ways that fail independently of each other: by the marks of attempts and
hooks, by their brands and those of local jobs (which an emptied environment does not change), and
by the run's own directory in command line, environment or working directory.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from balsam_celery import brands, procs
from balsam_celery.pilot.attempt import attempt_brand

#: Servers that the harness itself has started, some of them again within the run.
_SERVERS = {"munged", "slurmctld", "slurmd", "postgres"}
#: What keeps the processes of a node of the tests' Slurm.
_NODE = b"/tests/slurm/node.py\0"


@dataclass(frozen=True, slots=True)
class Hunted:
    """Processes that must not live when all is over.

    Attributes:
        directory: holds the site and all else of the run.
        marks: ``NAME=VALUE`` in the environment of what attempts and hooks start.
        attempts: brands of these, as numbers.
        jobs: brands of the local scheduler's jobs, as numbers.
    """

    directory: Path
    marks: frozenset[str]
    attempts: frozenset[int]
    jobs: frozenset[int]

    @classmethod
    def of(
        cls, directory: Path, rows: Iterable[Mapping[str, Any]], jobs: Iterable[str] = ()
    ) -> Hunted:
        """Those of a run.

        Args:
            directory: holds the site and all else of the run.
            rows: of the table ``task``.
            jobs: names of the local scheduler's, as their processes are branded.
        """
        marks, names = set(), set()
        for row in rows:
            marks.add(f"BALSAM_TASK_ID={row['id']}")
            for attempt in range(row["attempt"] + 1):
                names.add(attempt_brand(row["id"], attempt))
                # a hook is branded as it is marked
                hooks = {f"BALSAM_HOOK={row['id']}.{attempt}.{step}" for step in row["hooks"] or ()}
                names |= hooks
                marks |= hooks
        return cls(
            directory,
            frozenset(marks),
            frozenset(map(brands.attempt_number, names)),
            frozenset(map(brands.job_number, jobs)),
        )

    def alive(self, services: Iterable[int] = ()) -> list[str]:
        """Those that live, in words.

        Args:
            services: processes of the site that may live, with their descendants, unless these
                are of an attempt, of a hook or of a job.
        """
        entries = procs.snapshot()
        roots = list(services)
        known = {*roots, *procs.descendants(roots, entries)}
        marked = procs.marked(self.marks, entries)
        found = []
        for pid in sorted(entries.keys() - {os.getpid()}):
            brand = brands.of(pid) or brands.Brand()
            ways = {
                "its mark": pid in marked,
                "the brand of an attempt or hook": brand.attempt in self.attempts,
                "the brand of a job": brand.job in self.jobs,
                "the run's directory": pid not in known and _belongs(pid, self.directory),
            }
            how = [way for way, leads in ways.items() if leads]
            if how and procs.identity(pid) is not None:
                command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
                found.append(f"pid {pid}, found by {' and '.join(how)}: {command[:200]}")
        return found


def _belongs(pid: int, directory: Path) -> bool:
    """Whether a process of the site names the run's directory; the harness's servers do not count.

    One that has emptied its environment is found by the others.
    """
    command = _read(pid, "cmdline")
    if _read(pid, "comm").strip().decode(errors="replace") in _SERVERS or _NODE in command:
        return False
    name = os.fsencode(directory)
    try:
        place = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))  # noqa: PTH115 - of bytes
    except OSError:
        place = b""
    return name in command or name in place or name in _read(pid, "environ")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def keys(
    client: redis.Redis, prefix: str, pilots: Collection[str], allocations: Collection[str]
) -> list[str]:
    """What Redis keeps of pilots and allocations that have ended, in words.

    Keys with their names, and members of sets and fields of hashes, such as the bindings of
    mailboxes; keys that expire go by themselves.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    dead = [id.encode() for id in (*pilots, *allocations)]
    found = []
    for key in client.scan_iter(f"{prefix}*", count=1000):
        if client.ttl(key) >= 0:
            continue
        if _names(key, dead):
            found.append(key.decode(errors="replace"))
            continue
        members: Iterable[bytes] = ()
        kind = client.type(key)
        if kind == b"set":
            members = client.smembers(key)
        elif kind == b"zset":
            members = client.zrange(key, 0, -1)
        elif kind == b"hash":
            members = client.hkeys(key)
        found += [
            f"{member.decode(errors='replace')} in {key.decode(errors='replace')}"
            for member in members
            if _names(member, dead)
        ]
    return found


def _names(text: bytes, dead: Sequence[bytes]) -> bool:
    return any(id in text for id in dead)
