"""Runs the commands of batch schedulers: the one place where adapters meet the outside."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from balsam_celery.errors import SchedulerUnavailable

#: What belongs to the process that asks, and must not reach a job that it submits.
_OWN_PREFIXES = ("BALSAM_", "CELERY_", "FLOWER_", "SPT_NOENV", "_MP_FORK_")
#: Seconds past its time-out for which a command may live whose caller is gone.
LIVES_ON = 5.0
_KILL_TIMEOUT = 5.0  # seconds for a killed command to go; one that a dead file system holds stays


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended: exit status, output, error output."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Its complaint in one line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return "; ".join(lines) or f"exit status {self.status}"


class Commands:
    """Runs commands, each within a time-out.

    A command that outlives the process which asked is ended by ``timeout`` of coreutils, at most
    :data:`LIVES_ON` past its time; where that is missing, nobody ends it.

    Args:
        timeout: seconds for one command.
        hidden: names of environment variables that neither command nor job may see (R11).
        hidden_prefixes: so begin the names of others that would change what a command means.
        kept: names that are seen although they begin so.
        additions: variables to set, such as one that makes times readable.
    """

    def __init__(
        self,
        timeout: float,
        *,
        hidden: Collection[str] = (),
        hidden_prefixes: Collection[str] = (),
        kept: Collection[str] = (),
        additions: dict[str, str] | None = None,
    ) -> None:
        self._timeout = timeout
        self._hidden = frozenset(hidden)
        self._prefixes = (*_OWN_PREFIXES, *hidden_prefixes)
        self._kept = frozenset(kept)
        self._additions = additions or {}

    def run(self, argv: Sequence[str], directory: str | None = None) -> Done:
        """Run ``argv`` (in ``directory``) and return how it ended, whatever its exit status.

        Raises:
            SchedulerUnavailable: it is not there, or did not end in time: nothing is known.
        """
        environment = self._environment()
        try:
            # a group of its own: site-made wrappers start the real command as a child
            process = subprocess.Popen(
                [*_guard(argv[0], environment.get("PATH", ""), self._timeout), *argv],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise SchedulerUnavailable(f"{argv[0]}: {error.strerror}") from None
        try:
            out, err = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            raise SchedulerUnavailable(
                f"{argv[0]} did not end within {self._timeout:g} s"
            ) from None
        finally:
            _end(process)
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def _environment(self) -> dict[str, str]:
        seen = {
            name: value
            for name, value in os.environ.items()
            if name not in self._hidden
            and (name in self._kept or not name.startswith(self._prefixes))
        }
        return {**seen, **self._additions}


def _guard(command: str, path: str, seconds: float) -> list[str]:
    """What ends ``command``, and its group, when nobody is left to do so; by KILL, as here."""
    guard = shutil.which("timeout", path=f"{os.defpath}{os.pathsep}{path}")
    if guard is None or shutil.which(command, path=path or None) is None:
        return []  # that a command is missing is told by the system
    return [guard, "-s", "KILL", str(math.ceil(seconds + LIVES_ON))]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that was given up, with what it started: it must do nothing later."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_TIMEOUT)
