"""What the local scheduler remembers: one directory of small files, changed under one lock.

::

    config.json          site, virtual nodes and queues, as the last user of the directory set them
    next                 number of the next job
    lock                 held (flock) by whoever reads and changes
    jobs/<n>/job.json    the job, see Record; replaced by atomic renames
    jobs/<n>/script      copy of the batch script
    jobs/<n>/nodes.json  what the job was given, for the pilot in it
    jobs/<n>/keeper.log  what its keeper complained of

The lock makes each change whole to others; the renames make it whole to a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from balsam_celery import wire
from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.procs import Identity
from balsam_celery.settings import LocalSettings, QueueSettings

#: Name of the environment variable that marks every process of a job; its value is Config.mark().
MARK = "BALSAM_LOCAL_JOB"
#: Name of the environment variable that leads a pilot to the job's ``nodes.json``.
NODES = "BALSAM_LOCAL_NODES"
_LOCK_PAUSE = 0.01  # seconds between tries
T = TypeVar("T")

#: ``starting``: a keeper was asked for and has not taken the job yet, no process of it exists.
#: ``ending``: the keeper died, another one hunts what it left.
Phase = Literal["queued", "starting", "running", "ending", "ended"]


def node_name(index: int) -> str:
    """Name of a virtual node."""
    return f"vnode{index}"


@dataclass(frozen=True, slots=True)
class Config:
    """What the scheduler must know to start jobs, also when a keeper does it.

    Attributes:
        site: the site's id.
        local: the virtual nodes.
        queues: the queues with their limits.
        kill_grace: seconds between TERM and KILL.
        hidden: names of environment variables that jobs must not see.
    """

    site: str
    local: LocalSettings
    queues: dict[str, QueueSettings]
    kill_grace: float = 10.0
    hidden: tuple[str, ...] = ()

    def mark(self, number: int) -> str:
        """Value of :data:`MARK`, and name of the brand, of all processes of job ``number``."""
        return f"{self.site}.{number}"


@dataclass(frozen=True, slots=True)
class Record:
    """One job; times in seconds since the epoch.

    Attributes:
        nodes: indices of the virtual nodes it holds (from ``starting`` until ``ended``), less
            those that it gave back.
        incarnation: grows with each keeper asked for; a keeper with an older one steps back.
        tries: keepers that died before they took the job.
        keeper: the keeper last started, once known.
        leader: the batch script's process, once started.
        cancelled: why it was cancelled; empty when it was not.
    """

    number: int
    name: str
    queue: str
    num_nodes: int
    wall_time: int
    directory: str
    submitted: float
    phase: Phase = "queued"
    nodes: tuple[int, ...] = ()
    incarnation: int = 0
    tries: int = 0
    keeper: Identity | None = None
    leader: Identity | None = None
    cancelled: str = ""
    started: float | None = None
    ended: float | None = None
    reason: str = ""

    @property
    def native_id(self) -> str:
        """The id that users of the scheduler see."""
        return f"local-{self.number}"

    @property
    def holds_nodes(self) -> bool:
        """Its nodes may not be given to another job."""
        return self.phase in ("starting", "running", "ending")


@dataclass(slots=True)
class State:
    """The scheduler's directory. Call everything but :meth:`locked` with the lock held."""

    directory: Path
    _ended: dict[int, Record] = field(default_factory=dict)  # what ended does not change again

    @contextlib.contextmanager
    def locked(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock; ``timeout`` in seconds, ``None`` waits for ever.

        Raises:
            SchedulerUnavailable: not got in time, or the directory cannot be read or written.
        """
        try:
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SchedulerUnavailable(f"local scheduler: {error}") from error
        try:
            self._acquire(handle, timeout)
            try:
                yield
            except OSError as error:
                raise SchedulerUnavailable(f"local scheduler: {error}") from error
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)
        finally:
            os.close(handle)

    def _acquire(self, handle: int, timeout: float | None) -> None:
        if timeout is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SchedulerUnavailable(
                        f"local scheduler: {self.directory / 'lock'} was not free in {timeout:g} s"
                    ) from None
                time.sleep(_LOCK_PAUSE)
            else:
                return

    def job_directory(self, number: int) -> Path:
        """Where the files of job ``number`` are."""
        return self.directory / "jobs" / str(number)

    def config(self) -> Config:
        """The configuration as last written."""
        return self._read(Config, self.directory / "config.json")

    def write_config(self, config: Config) -> None:
        """Remember ``config`` unless it stands there already."""
        path = self.directory / "config.json"
        text = wire.encode(config)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace(path, text)

    def take_number(self) -> int:
        """A number that no job has had."""
        path = self.directory / "next"
        number = int(path.read_text(encoding="ascii")) if path.exists() else 1
        replace(path, str(number + 1))
        return number

    def known(self, number: int) -> bool:
        """Tell whether the job ``number`` was ever submitted."""
        path = self.directory / "next"
        return path.exists() and 0 < number < int(path.read_text(encoding="ascii"))

    def load(self, number: int) -> Record | None:
        """The job ``number``, or ``None`` when it was never there or has been forgotten."""
        if number in self._ended:
            return self._ended[number]
        path = self.job_directory(number) / "job.json"
        if not path.exists():
            return None
        record = self._read(Record, path)
        if record.phase == "ended":
            self._ended[number] = record
        return record

    def load_all(self) -> list[Record]:
        """All jobs, in order of submission."""
        jobs = self.directory / "jobs"
        numbers = sorted(int(entry.name) for entry in jobs.iterdir()) if jobs.exists() else []
        return [record for number in numbers if (record := self.load(number)) is not None]

    def save(self, record: Record) -> Record:
        """Write ``record`` and return it."""
        replace(self.job_directory(record.number) / "job.json", wire.encode(record))
        return record

    def forget(self, number: int) -> None:
        """Remove a job that has ended."""
        self._ended.pop(number, None)
        shutil.rmtree(self.job_directory(number))

    def _read(self, kind: type[T], path: Path) -> T:
        try:
            return wire.decode(kind, path.read_bytes())
        except wire.MalformedMessage as error:
            raise SchedulerUnavailable(f"local scheduler: {path} is damaged: {error}") from None


def replace(path: Path, text: str) -> None:
    """Make ``path`` hold ``text``, so that after a crash it holds either the old or the new."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
