"""Runs one attempt from work directory to outcome; called on a waiter thread of the pool."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from balsam_celery.copying import fill_tree
from balsam_celery.durations import format_duration
from balsam_celery.errors import BalsamError
from balsam_celery.launchers import Launch, Launcher, find_launcher
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.pilot.ending import Ending, Launched, Sweep
from balsam_celery.pilot.environment import Environments
from balsam_celery.pilot.output import Output
from balsam_celery.pilot.part import Part
from balsam_celery.pilot.process import Exit, Spawner
from balsam_celery.pilot.ranks import make_ranks, needs_launcher
from balsam_celery.unfit import is_of_the_node, single
from balsam_celery.wire import Ended, Outcome, TaskSpec

logger = logging.getLogger(__name__)


class Runner:
    """Runs attempts for one worker.

    Args:
        context: the worker.
        spawner: starts and reaps its programs.
        on_start: told of each attempt whose program runs now.
        sweep: reaches the other nodes of an attempt; ``None`` where all are on this host.

    Attributes:
        ending: ends attempts, on all nodes.
    """

    def __init__(
        self,
        context: WorkerContext,
        spawner: Spawner,
        on_start: Callable[[Attempt], None],
        sweep: Sweep | None = None,
    ) -> None:
        self._context = context
        self._spawner = spawner
        self._on_start = on_start
        self._launchers: dict[str | None, Launcher] = {}
        self._launchers_lock = threading.Lock()
        settings = context.pilot.site.settings
        self._settings = settings
        pilot = context.pilot
        self.ending = Ending(spawner, pilot.environment, sweep, pilot.last_moment)
        self._pinned = {node.name: node.pinned for node in context.nodes}
        nodefile = context.pilot.directory / f"{context.node}.nodes"
        nodefile.write_text("".join(f"{node.name}\n" for node in context.nodes), encoding="utf-8")
        self._environments = Environments(context, str(nodefile))
        self._part = Part(context)

    def run(self, attempt: Attempt) -> Ended:
        """Run it to its end; when this returns no process of it lives."""
        try:
            output, started = self._start(attempt)
        except (OSError, ValueError, BalsamError) as error:
            why = single(error) if isinstance(error, OSError) else error
            verdict = attempt.finish()
            kind: Outcome = "unfit" if is_of_the_node(why) else "cannot-start"
            outcome, reason = verdict or (kind, f"cannot start: {_why(why)}")
            return attempt.ended(outcome, reason)
        if started is None:
            outcome, reason = attempt.finish() or ("killed", "")
            return attempt.ended(outcome, reason)
        return self._watch(attempt, output, started)

    def _start(self, attempt: Attempt) -> tuple[Output, str | None]:
        """Make everything ready and start the program; returns its environment's digest."""
        spec = attempt.spec
        directory = Path(spec.work_dir)
        try:
            _make_directory(spec.work_dir)
        except PermissionError as error:
            # the run directory is missing or read-only here
            raise OSError(errno.EROFS, error.strerror, error.filename) from error
        if spec.staged is not None:
            if spec.restartable:
                # what an earlier attempt may have changed is left alone
                fill_tree(Path(spec.staged), directory)
            else:
                shutil.copytree(spec.staged, directory, symlinks=True, dirs_exist_ok=True)
        environment, digest = self._environments.make(attempt, _write_files(spec, directory))
        command = self._command(attempt, environment)
        for name, content in command.files.items():
            (directory / name).write_text(content, encoding="utf-8")
        for name, value in command.environment.items():
            if name not in spec.environment:
                environment[name] = value
        output = Output(directory, append=spec.restartable and spec.attempt > 1)
        try:
            if attempt.verdict is not None:
                output.close(0)
                return output, None
            started = time.time()
            pid = self._spawner.start(
                command.argv,
                environment,
                spec.work_dir,
                output.files,
                cores=self._cores(attempt),
                brand=attempt.brand,
            )
        except BaseException:
            output.close(0)
            raise
        if attempt.has_started(pid, started):
            self.ending.begin([attempt])
        self._on_start(attempt)
        return output, digest

    def _command(self, attempt: Attempt, variables: dict[str, str]) -> Launch:
        """Of an attempt, whose program gets ``variables``; may add to these."""
        spec = attempt.spec
        launcher = self._launcher(spec.launcher if needs_launcher(spec) else "none")
        virtual = self._context.pilot.virtual
        if launcher.kind == "none":
            if len(spec.shares) > 1 and not virtual:
                # it may start processes on its other nodes by its own means
                attempt.launched = Launched(launcher, elsewhere=True)
            variables |= self._part.variables(spec, variables)
            return Launch(spec.argv)
        ranks = make_ranks(
            spec,
            launcher,
            virtual=virtual,
            pinned=self._pinned,
            exports=variables,
            root=os.geteuid() == 0,
        )
        command = launcher.launch(ranks)
        attempt.launched = Launched(launcher, command.step, elsewhere=not ranks.one_host)
        return command

    def _launcher(self, kind: str | None) -> Launcher:
        with self._launchers_lock:
            if kind not in self._launchers:
                environment = self._context.pilot.environment
                self._launchers[kind] = find_launcher(self._settings.launcher, kind, environment)
            return self._launchers[kind]

    def _cores(self, attempt: Attempt) -> frozenset[int]:
        """Cores to bind to: only real ones, and all of the attempt's on this machine.

        None where some of its nodes are other hosts: ranks bind themselves, and a program without
        a launcher need not run on any of these nodes.
        """
        spec, launched = attempt.spec, attempt.launched
        shares = spec.shares
        if launched is not None and launched.elsewhere:
            return frozenset()
        if not spec.pin or not all(self._pinned.get(share.node, False) for share in shares):
            return frozenset()
        return frozenset(core for share in shares for core in share.cores)

    def _watch(self, attempt: Attempt, output: Output, digest: str) -> Ended:
        spec = attempt.spec
        assert attempt.pid is not None, "it was started"
        end = self._spawner.wait(attempt.pid)
        now = time.time()
        verdict = attempt.finish()
        launched = attempt.launched
        if (
            verdict is not None
            or (launched is not None and not launched.are_children)
            or self._spawner.left_behind(attempt.brand)
        ):
            # a kill leaves no process anywhere (R8), and nothing outlives its program
            by_itself = verdict is None and end.signal is None
            self.ending.end(attempt, spec.kill_grace, by_itself=by_itself)
        outcome, reason = verdict or _verdict(end)
        stdout, stderr = output.close(self._settings.pilot.output_tail)
        if outcome == "exit" and end.code != 0 and launched is not None:
            trouble = launched.launcher.not_started(stderr)
            if trouble:
                # the batch system was away: the program has had no try
                outcome, reason = "unfit", f"its ranks could not be started: {trouble}"
        return Ended(
            id=spec.id,
            attempt=spec.attempt,
            outcome=outcome,
            reason=reason,
            ended=now if verdict is None else time.time(),
            started=attempt.started,
            exit_code=end.code,
            signal=end.signal,
            user_time=end.user_time,
            system_time=end.system_time,
            max_memory=max(end.max_memory, attempt.peak),
            stdout_tail=stdout,
            stderr_tail=stderr,
            argv=spec.argv,
            environment_digest=digest,
        )


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path)  # noqa: PTH102 - on the path of every attempt
    except FileNotFoundError:
        os.makedirs(path, exist_ok=True)  # noqa: PTH103 - as above
    except FileExistsError:
        if not os.path.isdir(path):  # noqa: PTH112 - as above
            raise


def _write_files(spec: TaskSpec, directory: Path) -> dict[str, str]:
    """Files that tell the program more than variables can; returns the variables naming them."""
    files = {}
    if spec.inputs is not None:
        inputs = directory / "inputs.json"
        inputs.write_text(json.dumps(spec.inputs), encoding="utf-8")
        files["BALSAM_INPUTS"] = str(inputs)
    if len(spec.shares) > 1:
        nodefile = directory / "nodefile"
        nodefile.write_text("".join(f"{share.node}\n" for share in spec.shares), encoding="utf-8")
        files["BALSAM_NODEFILE"] = str(nodefile)
    return files


def _verdict(end: Exit) -> tuple[Outcome, str]:
    if end.signal is not None:
        return "signal", f"ended by signal {end.signal} ({_signal_name(end.signal)})"
    return "exit", "" if end.code == 0 else f"exit code {end.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time" if number >= signal.SIGRTMIN else "unknown"


def _why(error: Exception) -> str:
    """One line that names what is in the way."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def timeout_reason(spec: TaskSpec) -> str:
    """Reason of an attempt whose time is over."""
    told = f" but for {format_duration(spec.checkpoint_grace)}" if spec.checkpoint_grace else ""
    return f"its wall_time of {format_duration(spec.wall_time)} was over{told}"
