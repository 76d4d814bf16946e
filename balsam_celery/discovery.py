"""What a machine offers: its batch scheduler with the queues, and the MPI launchers.

The parsers and the choice of ``srun --mpi`` are pure; :func:`discover` asks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from balsam_celery import schedulers
from balsam_celery.errors import InvalidInput, SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.launchers import KINDS, find_launcher
from balsam_celery.schedulers import pbs_commands
from balsam_celery.schedulers.base import QueueInfo, Scheduler
from balsam_celery.schedulers.commands import Commands
from balsam_celery.settings import LauncherSettings, SchedulerSettings, Settings

#: Seconds for one command: a controller that is down lets its clients wait for long.
_TIMEOUT = 10
#: Kinds that "auto" looks for, and the commands that tell of them.
_SIGNS = {"slurm": ("sbatch", "sinfo"), "pbs": ("qsub", "qstat")}
#: PSI/J's executors, and the commands that tell of them.
_EXECUTORS = {"lsf": "bsub", "flux": "flux", "cobalt": "cqsub"}
#: The launchers that belong to a scheduler; elsewhere, and without them, the first one found.
_OWN_LAUNCHERS = {"slurm": "srun", "pbs": "aprun", "lsf": "jsrun", "flux": "flux"}
#: How MPI libraries' words of themselves begin, and the kinds of their launchers.
_LIBRARIES = {"MPICH": "mpich", "Open MPI": "openmpi", "Intel(R) MPI": "intelmpi"}
#: Prints which MPI library this Python's mpi4py works with; starts no MPI.
_LIBRARY = (
    "import mpi4py; mpi4py.rc.initialize = False;"
    " from mpi4py import MPI; print(MPI.Get_library_version())"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found.

    Attributes:
        scheduler: kind for ``[scheduler]``.
        executor: PSI/J's, for the kind ``psij``; ``""``: none was found.
        tells_queues: the scheduler can be asked for its queues.
        queues: those that the user is let into, the default first; stopped ones too.
        launchers: kind → path of its program, of all that are here.
        launcher: the one to use; ``None``: none was found.
        notes: for people, one line each.
    """

    scheduler: str = "local"
    executor: str = ""
    tells_queues: bool = False
    queues: tuple[QueueInfo, ...] = ()
    launchers: dict[str, str] = field(default_factory=dict)
    launcher: LauncherSettings | None = None
    notes: tuple[str, ...] = ()


def discover(kind: str, settings: Settings | None = None) -> Machine:
    """Look at this machine, and ask its scheduler.

    Args:
        kind: of scheduler; ``"auto"``: Slurm or PBS where one is installed and answers, else the
            local one. For ``"local"`` nothing is asked.
        settings: of the site, once there is one.

    Raises:
        InvalidInput: no such kind.
        SchedulerError: the one that was named does not answer.
    """
    known = ("auto", *schedulers.kinds())
    if kind not in known:
        raise InvalidInput(f"the scheduler is {kind!r}: give one of {', '.join(known)}")
    notes: list[str] = []
    if kind == "auto":
        kind = _find_kind(notes)
    if kind == "local":
        return Machine(notes=tuple(notes))
    executor = settings.scheduler.executor if settings else ""
    if kind == "psij" and not executor:
        executor = _find_executor()
    queues: tuple[QueueInfo, ...] = ()
    tells = False
    if kind != "psij" or executor:
        scheduler = _adapter(kind, settings, executor)
        tells = scheduler.capabilities.tells_queues
        try:
            queues = scheduler.queues()
        except SchedulerUnavailable as error:
            raise SchedulerUnavailable(f"the scheduler {kind!r} does not answer: {error}") from None
    names = ", ".join(queue.name for queue in queues if queue.enabled)
    notes.append(f"scheduler {kind}: " + (f"queues {names}" if names else "no queue is known"))
    if kind == "psij" and not executor:
        notes.append("before 'balsam up': set [scheduler] executor to PSI/J's name of it")
    launchers = find_launchers()
    launcher = choose_launcher(executor or kind, launchers, notes)
    return Machine(kind, executor, tells, queues, launchers, launcher, tuple(notes))


def _find_kind(notes: list[str]) -> str:
    for kind, commands in _SIGNS.items():
        # PBS is often not on PATH
        paths = [
            pbs_commands.find(name, os.environ) if kind == "pbs" else name for name in commands
        ]
        if not all(map(shutil.which, paths)):
            continue
        try:
            _adapter(kind, None).queues()
        except SchedulerError as error:
            notes.append(f"{kind} is installed and does not answer: {error}")
            continue
        return kind
    notes.append("no batch scheduler answers here: allocations will be processes of this machine")
    return "local"


def _find_executor() -> str:
    return next((name for name, sign in _EXECUTORS.items() if shutil.which(sign)), "")


def _adapter(kind: str, settings: Settings | None, executor: str = "") -> Scheduler:
    if settings is None:
        scheduler = SchedulerSettings(kind=kind, command_timeout=_TIMEOUT, executor=executor)
        settings = Settings(scheduler=scheduler)
    return schedulers.make_scheduler(kind, settings=settings, local_dir=Path())


def find_launchers() -> dict[str, str]:
    """Kind → path of its program, of all launchers that are here."""
    found = {}
    for kind in KINDS:
        if kind in ("none", "template"):
            continue
        try:
            found[kind] = find_launcher(LauncherSettings(), kind).path
        except SettingsError:
            continue  # it is not here
    return found


def choose_launcher(
    scheduler: str, launchers: dict[str, str], notes: list[str]
) -> LauncherSettings | None:
    """The launcher to write into ``site.toml``.

    Args:
        scheduler: kind, or PSI/J's executor.
        launchers: what :func:`find_launchers` gave.
        notes: gets a line where something is to be seen to.
    """
    library = _mpi_library()
    if not library:
        notes.append(
            "mpi4py finds no MPI library, which a pilot over several nodes needs: load the module"
            " of one, or pip install 'balsam_celery[local]'"
        )
    if not launchers:
        notes.append("no MPI launcher was found: set [launcher] once there is one")
        return None
    kind = choose_kind(scheduler, launchers, library)
    if kind != "srun":
        return LauncherSettings(kind=kind, mpiexec=launchers[kind])
    commands = Commands(_TIMEOUT)
    listed = commands.run(["srun", "--mpi=list"])
    default = mpi_default(commands.run(["scontrol", "show", "config"]).out)
    types = mpi_types(listed.out + listed.err)
    mpi = choose_mpi(types, default, library)
    if mpi is None:
        notes.append(
            f"srun offers --mpi={', '.join(sorted(types)) or 'none'}, none of them known to suit"
            f" {library or 'the MPI here'}: set [launcher] mpi"
        )
    return LauncherSettings(kind=kind, mpiexec=launchers[kind], mpi=mpi or "")


def _mpi_library() -> str:
    """First line of what the MPI library says of itself; ``""``: there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LIBRARY],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""  # no library, or one that does not load here
    return done.stdout.partition("\n")[0].strip()


def choose_kind(scheduler: str, launchers: Collection[str], library: str) -> str:
    """The kind of launcher for ``[launcher]``, of those that are here.

    The scheduler's own, else the one of the MPI library that this Python's mpi4py loads: ranks that
    another MPI starts would each be alone. Else the first.

    Args:
        scheduler: kind, or PSI/J's executor.
        launchers: kinds; not empty.
        library: what the MPI library says of itself.
    """
    kin = next((kind for sign, kind in _LIBRARIES.items() if library.startswith(sign)), "")
    wanted = (_OWN_LAUNCHERS.get(scheduler, ""), kin, *launchers)
    return next(kind for kind in wanted if kind in launchers)


def mpi_types(text: str) -> set[str]:
    """The types that ``srun --mpi=list`` lists; older ones print them on stderr, after ``srun:``.

    Slurm 22.05 and later add a line "specific pmix plugin versions available: …".
    """
    lines = [line.removeprefix("srun:").strip() for line in text.splitlines()]
    return {line for line in lines if re.fullmatch(r"\w+", line)}


def mpi_default(text: str) -> str:
    """``MpiDefault`` in the output of ``scontrol show config``; ``""`` when it is none."""
    match = re.search(r"^MpiDefault\s*=\s*(\S+)", text, re.MULTILINE)
    value = match.group(1) if match else ""
    return "" if value in ("none", "(null)") else value


def choose_mpi(types: set[str], default: str, library: str) -> str | None:
    """``[launcher] mpi`` for ``srun``: ``""`` is Slurm's default, ``None``: none is right.

    What the administrators made the default fits the MPI that they installed. Without one, MPICH
    and its kin are started by PMI-2, which the wheel of MPICH speaks and PMIx it does not; Open MPI
    by PMIx.

    Args:
        types: of :func:`mpi_types`.
        default: of :func:`mpi_default`.
        library: what the MPI library says of itself.
    """
    if default:
        return ""
    order = ("pmix", "pmi2") if library.startswith("Open MPI") else ("pmi2", "cray_shasta", "pmix")
    return next((one for one in order if one in types), None)
