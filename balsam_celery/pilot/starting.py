"""Starts keepers on nodes: one process of a launcher, and what it says."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from balsam_celery.errors import SettingsError
from balsam_celery.launchers import Launcher, Ranks, find_launcher
from balsam_celery.outer import settings_before
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.openfiles import allow_as_given
from balsam_celery.pilot.ranks import exported

logger = logging.getLogger(__name__)

#: Bytes of a line of a launcher's output, at the most.
_LINE = 4000
#: Seconds between TERM and KILL for a launcher that is to end.
_GRACE = 5.0
#: Which library belongs to the ranks of which launcher, where that is certain. From the library
#: mpi4py tells which build of its module to load; told the build alone ("MPI4PY_MPIABI"), it would
#: not look for the library beside this Python, where the wheel of MPICH puts it.
#: (https://mpi4py.readthedocs.io/en/stable/mpi4py.html, "MPI4PY_LIBMPI"; ``mpi4py/_mpiabi.py``)
_LIBRARIES = {"openmpi": "libmpi.so.40", "mpich": "libmpi.so.12", "intelmpi": "libmpi.so.12"}
#: Launchers of systems that give a node's cores to one program at a time.
_ALONE = frozenset({"aprun", "jsrun", "flux"})
#: Variable by which all that a launcher's process starts here is known.
_MARK = "BALSAM_LAUNCH"
_ABI_VARIABLE, _LIBRARY_VARIABLE = "MPI4PY_MPIABI", "MPI4PY_LIBMPI"


def node_launcher(context: PilotContext, environ: Mapping[str, str]) -> Launcher:
    """The launcher that starts the keepers.

    Raises:
        SettingsError: there is none, or it cannot be used.
    """
    settings = context.site.settings
    launcher = find_launcher(settings.launcher, settings.pilot.launcher or None, environ)
    if launcher.kind == "none":
        raise SettingsError(
            f"this job has {len(context.nodes)} nodes and the launcher is 'none': name one as"
            " pilot.launcher in site.toml"
        )
    if launcher.kind in _ALONE and not settings.pilot.launcher:
        raise SettingsError(
            f"{launcher.kind} gives a node's cores to one program at a time, so that tasks would"
            " wait for the pilot's end: name another launcher, such as mpich or openmpi, as"
            " pilot.launcher in site.toml"
        )
    return launcher


class NodeStart:
    """One launcher's process.

    Args:
        context: the pilot.
        launcher: which one.
        nodes: where; a single one in a pilot of several is started again, without MPI.
        again: whether it is.
        within: seconds for the nodes to come together.

    Raises (when made):
        OSError, SettingsError: it cannot be started.
    """

    def __init__(
        self,
        context: PilotContext,
        launcher: Launcher,
        nodes: Sequence[str],
        *,
        again: bool,
        within: float,
    ) -> None:
        self._launcher = launcher
        self.nodes = tuple(nodes)
        self.for_all = not again
        settings = context.site.settings
        environment = {**context.environment, **settings_before(context.environment)}
        secret = settings.redis.url_env
        if secret in os.environ:
            environment[secret] = os.environ[secret]
        told = os.environ.keys() & {_ABI_VARIABLE, _LIBRARY_VARIABLE}
        if launcher.kind in _LIBRARIES and not told:
            environment[_LIBRARY_VARIABLE] = _library(launcher)
        serial = f"-{nodes[0]}-{time.time():.0f}" if again else ""
        environment[_MARK] = f"{context.pilot}{serial}"
        self.mark = f"{_MARK}={environment[_MARK]}"
        launch = launcher.launch(
            Ranks(
                argv=_command(context, launcher, nodes, again=again, within=within),
                nodes=self.nodes,
                # what the smallest node has: nodes may differ, and more is refused there
                cores_per_rank=max(1, min(len(node.cores) for node in context.nodes)),
                gpus_per_rank=float(min(len(node.gpus) for node in context.nodes)),
                exports=exported(environment),
                name=f"balsam-nodes-{context.pilot}{serial}",
                survives=True,
                root=os.geteuid() == 0,
            )
        )
        self._step = launch.step
        self._environment = {**environment, **launch.environment}
        for name, text in launch.files.items():
            (context.directory / name).write_text(text, encoding="utf-8")
        self._output, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        try:
            process = subprocess.Popen(
                launch.argv,
                env=self._environment,
                cwd=context.directory,
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
                # posix_spawn would set the mask too, but no directory; this process has one thread
                preexec_fn=_as_given,
            )
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(write)
        process.returncode = 0  # the crew reaps it; Popen must not wait for this number ever again
        self.pid = process.pid
        self._rest = b""
        self._kill_at = float("inf")
        self.lives = True
        self.killed = False
        self.last_line = ""
        logger.info("start of %s by %s: process %d", ", ".join(nodes), launcher.kind, self.pid)

    @property
    def stays(self) -> bool:
        """It goes on as long as the keepers do."""
        return self._launcher.stays

    @property
    def stopping(self) -> bool:
        """It was asked to end, and has not yet."""
        return self.lives and self._kill_at != float("inf")

    def fileno(self) -> int:
        """Its output; -1 when that is over."""
        return self._output

    def read(self) -> list[str]:
        """Nodes that its output says are lost; the output goes into the log."""
        lost = []
        while self._output >= 0:
            try:
                read = os.read(self._output, 65536)
            except BlockingIOError:
                break
            *lines, self._rest = (self._rest + read).split(b"\n")
            if not read or len(self._rest) > _LINE:
                lines, self._rest = [*lines, self._rest], b""
            for line in filter(None, (one[:_LINE].strip() for one in lines)):
                self.last_line = line.decode(errors="replace")
                logger.info("%s: %s", self._launcher.kind, self.last_line)
                if (node := self._launcher.lost_node(self.last_line)) is not None:
                    lost.append(node)
            if not read:
                os.close(self._output)
                self._output = -1
        return lost

    def ended(self, status: int) -> str:
        """It was reaped; returns how it ended."""
        self.read()
        if self._output >= 0:
            # something that it has left holds the other end; nothing more is to be read
            os.close(self._output)
            self._output = -1
        self.lives = False
        code = os.waitstatus_to_exitcode(status)
        return f"ended by signal {-code}" if code < 0 else f"exit status {code}"

    def stop(self) -> None:
        """Ask it to end, and see to it when asked again later."""
        if not self.lives:
            return
        if self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + _GRACE
            os.killpg(self.pid, signal.SIGTERM)
        elif time.monotonic() > self._kill_at and not self.killed:
            self.killed = True
            logger.error("process %d does not stop: killed", self.pid)
            os.killpg(self.pid, signal.SIGKILL)

    def end_step(self) -> bool:
        """Make sure of the end of the job step that it made; may take seconds."""
        return not self._step or self._launcher.end_step(self._step, self._environment)


def _library(launcher: Launcher) -> str:
    """Where its MPI's library may be: beside the launcher, else where the loader looks."""
    name = _LIBRARIES[launcher.kind]
    installed = Path(launcher.path).parent.parent
    places = (installed / "lib" / name, installed / "lib64" / name, name)
    return os.pathsep.join(map(str, places))


def _as_given() -> None:
    """Take back in a launcher what this process has changed for itself.

    Signals go through, which wait in this process to be read; else it would be deaf. It may open
    no more files: some launchers pass their own limits on to what they start.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    allow_as_given()


def _command(
    context: PilotContext, launcher: Launcher, nodes: Sequence[str], *, again: bool, within: float
) -> tuple[str, ...]:
    """The keeper's start, as every node runs it."""
    python = context.site.settings.pilot.python or sys.executable
    command = [python, "-m", "balsam_celery.pilot.node"]
    command += ["--site", str(context.site.directory), "--directory", str(context.directory)]
    command += ["--count", str(len(nodes)), "--within", str(max(1, round(within)))]
    if launcher.stays:
        command.append("--stay")
    if again:
        command += ["--node", nodes[0]]
    return tuple(command)
