"""The local scheduler: batch jobs as processes of this machine, on virtual nodes.

There is no daemon. The state is in files (:mod:`~balsam_celery.schedulers.local_state`); whoever
submits or looks moves the queue (:mod:`~balsam_celery.schedulers.local_advance`), and so does each
job's keeper (:mod:`~balsam_celery.schedulers.local_keeper`) when its job ends. So jobs outlive
every user of this class.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from balsam_celery import wire
from balsam_celery.durations import format_duration
from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.schedulers.base import (
    Capabilities,
    IdleWindow,
    Job,
    JobNodes,
    JobRequest,
    JobState,
    QueueInfo,
    Scheduler,
)
from balsam_celery.schedulers.local_advance import advance, end, expected, free_nodes
from balsam_celery.schedulers.local_state import MARK, NODES, Config, Record, State, node_name
from balsam_celery.settings import LocalSettings, QueueSettings, Settings

_NATIVE_ID = re.compile(r"local-([1-9]\d*)")
#: Seconds between TERM and KILL of a job at the least, and what a pilot takes beside its programs.
_LEAST_GRACE, _END_MARGIN = 10.0, 2.0
_STATES = {
    "queued": JobState.QUEUED,
    "starting": JobState.QUEUED,
    "running": JobState.RUNNING,
    "ending": JobState.RUNNING,
    "ended": JobState.ENDED,
}


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the scheduler needs beside its directory.

    Attributes:
        site: the site's id; marks the processes of its jobs.
        local: the virtual nodes.
        queues: the queues with their limits.
        kill_grace: seconds between TERM and KILL when a job is ended.
        lock_timeout: seconds to wait for others that use the directory.
        hidden: names of environment variables that jobs must not see.
    """

    site: str
    local: LocalSettings
    queues: dict[str, QueueSettings]
    kill_grace: float = _LEAST_GRACE
    lock_timeout: float = 30.0
    hidden: tuple[str, ...] = ()


class LocalScheduler(Scheduler):
    """Batch jobs on this machine; safe to use from several threads and processes at once.

    Args:
        directory: where the state is; on a local disk, made when missing.
        options: see :class:`LocalOptions`.

    Raises:
        SettingsError: no virtual node, or none with a core.
    """

    capabilities = Capabilities(
        finds_by_name=True, tells_queues=True, tells_idle=True, releases_nodes=True
    )

    def __init__(self, directory: Path, options: LocalOptions) -> None:
        local = options.local
        for name in ("nodes", "cores_per_node"):
            if getattr(local, name) < 1:
                raise SettingsError(f"local.{name} is {getattr(local, name)}: give 1 or more")
        self.directory = directory
        self.options = options
        self._state = State(directory)
        self._config = Config(
            options.site, local, options.queues, options.kill_grace, options.hidden
        )

    def submit(self, request: JobRequest) -> str:
        """Submit a job and start it when its nodes are free.

        A name that a known job bears gives that job's id again, and submits nothing.

        Raises:
            SchedulerError: no such queue, or beyond its limits or the machine's.
            SchedulerUnavailable: the state could not be read or written.
        """
        try:
            script = request.script.read_bytes()
        except OSError as error:
            raise SchedulerError(f"{request.script}: the script cannot be read: {error}") from None
        self._prepare()
        with self._state.locked(self.options.lock_timeout):
            self._state.write_config(self._config)
            records = self._state.load_all()
            for record in records:
                if record.name == request.name:
                    return record.native_id
            self._check(request, records)
            record = self._enter(request, script)
            self._advance()
        return record.native_id

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """All jobs of the last 30 days; moves the queue first."""
        self._prepare()
        with self._state.locked(self.options.lock_timeout):
            records = self._advance()
        starts = expected(self._config, records, time.time())
        return {record.native_id: _job(record, starts.get(record.number)) for record in records}

    def cancel(self, native_id: str) -> None:
        """Ask for a job's end; ``jobs`` tells when it has ended.

        Raises:
            SchedulerError: not the id of a job that was ever submitted here.
            SchedulerUnavailable: the state could not be read or written.
        """
        match = _NATIVE_ID.fullmatch(native_id)
        self._prepare()
        with self._state.locked(self.options.lock_timeout):
            if match is None or not self._state.known(int(match[1])):
                raise SchedulerError(f"{native_id!r} is not a job of the local scheduler")
            record = self._state.load(int(match[1]))
            if record is None or record.phase == "ended":
                return
            if record.phase == "queued":
                end(self._state, record, "cancelled before it started")
            elif not record.cancelled:
                self._state.save(replace(record, cancelled="cancelled"))
            self._advance()  # tells the keeper, or starts what the job stood before

    def release(self, native_id: str, nodes: Collection[str], kept: Sequence[str]) -> None:
        """Take virtual nodes out of a running job.

        Raises:
            SchedulerError: no job that runs.
            SchedulerUnavailable: the state could not be read or written.
        """
        match = _NATIVE_ID.fullmatch(native_id)
        self._prepare()
        with self._state.locked(self.options.lock_timeout):
            record = self._state.load(int(match[1])) if match is not None else None
            if record is None or record.phase != "running":
                raise SchedulerError(f"{native_id!r} is not a running job of the local scheduler")
            left = tuple(index for index in record.nodes if node_name(index) not in nodes)
            self._state.save(replace(record, nodes=left))
            self._advance()  # others may start on what is free now

    def inside(self, environment: Mapping[str, str]) -> JobNodes:
        """The nodes of the job whose environment this is.

        Raises:
            SchedulerError: not the environment of a local job.
            SchedulerUnavailable: the job's file cannot be read.
        """
        path = environment.get(NODES)
        if not path:
            raise SchedulerError(f"not inside a job of the local scheduler: {NODES} is not set")
        try:
            return wire.decode(JobNodes, Path(path).read_bytes())
        except (OSError, wire.MalformedMessage) as error:
            raise SchedulerUnavailable(f"{NODES}={path}: {error}") from None

    def queues(self) -> tuple[QueueInfo, ...]:
        """The queues of ``site.toml``, on the virtual nodes."""
        local = self.options.local
        return tuple(
            QueueInfo(
                name=name,
                min_nodes=queue.min_nodes,
                max_nodes=min(queue.max_nodes, local.nodes),
                min_wall_time=queue.min_wall_time,
                max_wall_time=queue.max_wall_time,
                max_queued=queue.max_queued,
                max_running=queue.max_running,
                cores_per_node=local.cores_per_node,
                gpus_per_node=local.gpus_per_node,
                memory_per_node=local.memory_per_node,
            )
            for name, queue in self.options.queues.items()
        )

    def idle(self) -> tuple[IdleWindow, ...]:
        """Virtual nodes that no job holds now and no queued job could take, in each queue."""
        self._prepare()
        with self._state.locked(self.options.lock_timeout):
            free = len(free_nodes(self._config, self._advance()))
        queues = self.options.queues.items()
        widths = {name: min(free, queue.max_nodes) for name, queue in queues}
        return tuple(IdleWindow(name, nodes) for name, nodes in widths.items() if nodes)

    def _prepare(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.directory / "jobs").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SchedulerUnavailable(f"local scheduler: {error}") from error

    def _advance(self) -> list[Record]:
        if os.environ.get(MARK, "").rpartition(".")[0] == self._config.site:
            # in a job of this very site, a keeper started here would end with that job
            return self._state.load_all()
        self._state.write_config(self._config)
        return advance(self._state, self._config)

    def _check(self, request: JobRequest, records: list[Record]) -> None:
        queue = self.options.queues.get(request.queue)
        if queue is None:
            known = ", ".join(sorted(self.options.queues)) or "none"
            raise SchedulerError(f"no queue {request.queue!r}: the site has {known}")
        most = min(queue.max_nodes, self.options.local.nodes)
        if not queue.min_nodes <= request.nodes <= most:
            raise SchedulerError(
                f"{request.nodes} nodes: queue {request.queue!r} takes {queue.min_nodes} to {most}"
            )
        if not queue.min_wall_time <= request.wall_time <= queue.max_wall_time:
            raise SchedulerError(
                f"a wall time of {request.wall_time} s: queue {request.queue!r} takes "
                f"{format_duration(queue.min_wall_time)} to {format_duration(queue.max_wall_time)}"
            )
        waiting = Counter(record.queue for record in records if record.phase == "queued")
        if waiting[request.queue] >= queue.max_queued:
            raise SchedulerError(
                f"queue {request.queue!r} holds {waiting[request.queue]} waiting jobs, "
                f"its max_queued is {queue.max_queued}"
            )

    def _enter(self, request: JobRequest, script: bytes) -> Record:
        number = self._state.take_number()
        directory = self._state.job_directory(number)
        directory.mkdir(mode=0o700)
        try:
            (directory / "script").write_bytes(script)
            return self._state.save(
                Record(
                    number=number,
                    name=request.name,
                    queue=request.queue,
                    num_nodes=request.nodes,
                    wall_time=request.wall_time,
                    directory=str(request.directory.absolute()),
                    submitted=time.time(),
                )
            )
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)  # a full disk: the job was not taken
            raise


def _job(record: Record, expected_start: float | None) -> Job:
    return Job(
        native_id=record.native_id,
        name=record.name,
        state=_STATES[record.phase],
        started=record.started,
        ended=record.ended,
        reason=record.reason,
        expected_start=expected_start,
    )


def make_local(settings: Settings, local_dir: Path) -> LocalScheduler:
    """The local scheduler of a site."""
    return LocalScheduler(
        local_dir / "scheduler",
        LocalOptions(
            site=settings.site.id,
            local=settings.local,
            queues=settings.queues,
            # a grace for the programs of a pilot, and one for what they have left
            kill_grace=max(_LEAST_GRACE, 2.0 * settings.site.kill_grace + _END_MARGIN),
            lock_timeout=settings.scheduler.command_timeout,
            hidden=(settings.database.url_env,) if settings.database.url_env else (),
        ),
    )
