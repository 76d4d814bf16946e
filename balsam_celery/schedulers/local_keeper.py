"""The keeper of one local job: starts its script, holds it to its limits, ends all that is left.

Run as ``python -m balsam_celery.schedulers.local_keeper DIRECTORY NUMBER INCARNATION``. It detaches
(what starts it reads ``PID START_TIME`` from its output), adopts every orphan of the job as a
subreaper, and writes the job down as ended only when no process of it lives. A keeper that takes a
job in phase ``ending``, after another keeper was killed, starts nothing and only ends what is left.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from balsam_celery import procs, wire
from balsam_celery.brands import children_branded
from balsam_celery.durations import format_duration
from balsam_celery.procs import Quarry
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import local_state
from balsam_celery.schedulers.base import JobNodes
from balsam_celery.schedulers.local_advance import advance, end
from balsam_celery.schedulers.local_state import MARK, NODES, Config, Record, State, node_name

_TOLD = frozenset({signal.SIGTERM, signal.SIGINT})
_BLOCKED = _TOLD | {signal.SIGCHLD, signal.SIGHUP}
#: Signals that the script must not inherit as ignored (Python ignores some).
_DEFAULTED = _BLOCKED | {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT}
_LOOK = 0.2  # seconds between looks at a leader that is not this process's child
_END_TIMEOUT = 60.0
_TOLD_TO_END = "its keeper was told to end it"


class Keeper:
    """One keeper; ``record`` is the job as this keeper took it."""

    def __init__(self, state: State, config: Config, record: Record) -> None:
        self.state = state
        self.config = config
        self.record = record
        self.status: int | None = None  # wait status of the script

    def run(self) -> None:
        """Keep the job until no process of it lives, then write that down."""
        reason = "its keeper was killed, and its processes were ended"
        if self.record.phase == "running":
            try:
                self._start_script()
            except OSError as error:
                reason = f"cannot start: {error}"
            else:
                reason = self._until_ended_or_told()
        deadline = time.monotonic() + self.config.kill_grace
        self._ask_leader(deadline)
        while procs.end(
            self._quarry(), grace=max(0.0, deadline - time.monotonic()), timeout=_END_TIMEOUT
        ):
            print("processes of the job do not die; trying on", file=sys.stderr, flush=True)
            self._reap()
        self._finish(reason)

    def _start_script(self) -> None:
        record, job = self.record, self.state.job_directory(self.record.number)
        os.chdir(record.directory)
        output = str(Path(record.directory) / f"{record.native_id}.out")
        mark = self.config.mark(record.number)
        environment = {**os.environ, MARK: mark, NODES: str(job / "nodes.json")}
        command = command_for(job / "script")
        with children_branded(job=mark, attempt=""):
            pid = os.posix_spawn(
                command[0],
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULTED,
            )
        leader = procs.entry(pid)
        assert leader is not None, "a child that has not been reaped is in /proc"
        self.record = replace(record, leader=leader.identity)
        with self.state.locked():
            now = self.state.load(record.number)
            assert now is not None, "a running job is not forgotten"
            self.state.save(replace(now, leader=leader.identity))

    def _until_ended_or_told(self) -> str:
        limit = time.monotonic() + self.record.wall_time
        while True:
            self._reap()
            if self.status is not None:
                return _describe(self.status)
            left = limit - time.monotonic()
            if left <= 0:
                return f"its wall time of {format_duration(self.record.wall_time)} was over"
            got = signal.sigtimedwait(_BLOCKED, left)
            if got is not None and got.si_signo in _TOLD:
                return _TOLD_TO_END

    def _ask_leader(self, deadline: float) -> None:
        """TERM to the script alone, which so can end its own processes in order."""
        leader = self.record.leader
        if leader is None or not procs.send(leader, signal.SIGTERM):
            return
        procs.send(leader, signal.SIGCONT)
        while procs.alive(leader) and (left := deadline - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, min(left, _LOOK))
            self._reap()

    def _quarry(self) -> Quarry:
        mark = self.config.mark(self.record.number)
        leader = self.record.leader
        return Quarry(
            parents=frozenset({procs.own_identity()}),
            sessions=frozenset({leader} if leader else ()),
            marks=frozenset({f"{MARK}={mark}"}),
            job=mark,
        )

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.record.leader is not None and pid == self.record.leader.pid:
                self.status = status

    def _finish(self, reason: str) -> None:
        self._reap()
        with self.state.locked():
            record = self.state.load(self.record.number)
            assert record is not None, "a job that holds nodes is not forgotten"
            if record.cancelled and reason == _TOLD_TO_END:
                reason = record.cancelled
            end(self.state, record, reason)
            advance(self.state, self.state.config())


def take(state: State, number: int, incarnation: int) -> Keeper | None:
    """Take the job, or ``None`` when it is no longer this keeper's to take."""
    with state.locked():
        record = state.load(number)
        if (
            record is None
            or record.incarnation != incarnation
            or record.phase not in ("starting", "ending")
        ):
            return None
        config = state.config()
        record = replace(record, keeper=procs.own_identity())
        if record.phase == "starting":
            record = replace(record, phase="running", started=time.time())
            local_state.replace(
                state.job_directory(number) / "nodes.json",
                wire.encode(job_nodes(config, record, sorted(os.sched_getaffinity(0)))),
            )
        return Keeper(state, config, state.save(record))


def job_nodes(config: Config, record: Record, usable: list[int]) -> JobNodes:
    """The virtual nodes of a job that has started.

    The core ids go on from node to node. They are real ones, to which programs may be bound, only
    if all virtual nodes of the site together fit the ``usable`` cores of this machine.
    """
    local = config.local
    pinned = local.nodes * local.cores_per_node <= len(usable)
    ids = usable if pinned else range(local.nodes * local.cores_per_node)
    nodes = []
    for index in record.nodes:
        cores = ids[index * local.cores_per_node : (index + 1) * local.cores_per_node]
        gpus = range(index * local.gpus_per_node, (index + 1) * local.gpus_per_node)
        nodes.append(
            NodeCapacity(
                node_name(index),
                tuple(cores),
                tuple(gpus),
                local.memory_per_node,
                pinned,
                resources=tuple(sorted(local.resources_per_node.items())),
            )
        )
    end = (record.started or time.time()) + record.wall_time
    return JobNodes(tuple(nodes), end, record.native_id, virtual=True)


def command_for(script: Path) -> list[str]:
    """argv that runs ``script`` by its first line (``/bin/sh`` when it names no interpreter).

    Read here rather than by the kernel, so that a file system mounted ``noexec`` does.
    """
    with script.open("rb") as file:
        first = file.readline(4096)
    words = os.fsdecode(first[2:]).strip().split(None, 1) if first.startswith(b"#!") else []
    return [*(words or ["/bin/sh"]), str(script)]


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _detach(log: Path) -> None:
    """Go on as an orphan in a session of its own; what started this process learns who that is."""
    child = os.fork()
    if child:
        found = procs.entry(child)
        assert found is not None, "a child that has not been reaped is in /proc"
        os.write(1, f"{child} {found.identity.start_time}\n".encode())
        os._exit(0)
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)


def main(arguments: list[str]) -> None:
    """Keep one job; see the module's text for the arguments."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    state = State(Path(arguments[0]))
    number, incarnation = int(arguments[1]), int(arguments[2])
    _detach(state.job_directory(number) / "keeper.log")
    procs.become_subreaper()
    keeper = take(state, number, incarnation)
    if keeper is not None:
        keeper.run()


if __name__ == "__main__":
    main(sys.argv[1:])
