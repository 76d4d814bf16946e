"""Launchers: how a program of several MPI ranks is started on the nodes that it was given.

:func:`launch` is pure: placement → argv and environment. :func:`find_launcher` looks for an
``mpiexec`` on this machine and asks it whose it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from balsam_celery.errors import SettingsError
from balsam_celery.settings import LauncherSettings
from balsam_celery.wire import TaskSpec

KINDS = ("none", "mpich", "openmpi")
_DETECT_TIMEOUT = 30  # seconds
#: What ``mpiexec --version`` prints, whichever stream it prints it on.
_SIGNS = (
    ("mpich", re.compile(r"HYDRA build details", re.IGNORECASE)),
    ("openmpi", re.compile(r"Open ?MPI|OpenRTE|PRRTE", re.IGNORECASE)),
)
#: Names under which distributions install them, when both are there.
_NAMES = {
    "mpich": ("mpiexec.hydra", "mpiexec.mpich", "mpiexec", "mpirun"),
    "openmpi": ("mpiexec.openmpi", "mpirun.openmpi", "mpirun", "mpiexec"),
    "auto": ("mpiexec", "mpirun", "mpiexec.hydra", "mpiexec.mpich", "mpiexec.openmpi"),
}

#: What an outer ``mpiexec`` or ``srun`` says to *its* ranks; an inner one must not hear it.
_OUTER_PREFIXES = (
    "PMI_",
    "PMIX_",
    "PRTE_",
    "OMPI_",
    "ORTE_",
    "HYDRA_",
    "HYDI_",
    "MPI_",
    "MPIEXEC_",
    "PALS_",
    "SLURM_STEP",
    "SLURM_PMI",
    "SLURM_SRUN_",
    "SLURM_CPU_BIND",
    "SLURM_MEM_BIND",
)
_OUTER_NAMES = frozenset(
    {
        "SLURM_DISTRIBUTION",
        "SLURM_GTIDS",
        "SLURM_LAUNCH_NODE_IPADDR",
        "SLURM_LOCALID",
        "SLURM_MPI_TYPE",
        "SLURM_NODEID",
        "SLURM_PROCID",
        "SLURM_TASK_PID",
        "SLURM_TOPOLOGY_ADDR",
        "SLURM_TOPOLOGY_ADDR_PATTERN",
        "SLURM_UMASK",
    }
)

#: Becomes the program whose argv it is given as one JSON text.
_EXEC = "import json,os,sys;a=json.loads(sys.argv[1]);os.execvp(a[0],a)"


@dataclass(frozen=True, slots=True)
class Launcher:
    """A way to start ranks.

    Attributes:
        kind: one of :data:`KINDS`.
        mpiexec: path of its ``mpiexec``; empty for ``none``.
    """

    kind: str
    mpiexec: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start an attempt: what to execute, and what to add to the environment.

    Attributes:
        ranks_are_children: the launcher starts the ranks; ``False`` when ``argv`` is the program
            itself.
    """

    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    ranks_are_children: bool = False


def needs_launcher(spec: TaskSpec) -> bool:
    """Tell whether ``spec`` goes through a launcher: several ranks, or one asked for by name."""
    if spec.launcher is not None:
        return spec.launcher != "none"
    return len(spec.shares) * spec.ranks_per_node > 1


def launch(spec: TaskSpec, launcher: Launcher | None, *, one_host: bool, root: bool) -> Launch:
    """How to start ``spec``.

    A serial program, and any whose launcher is ``none``, is executed directly: it finds its nodes
    in ``BALSAM_NODES`` and may start more processes itself. Binding to cores is the caller's, by
    the affinity of what it starts, which every rank inherits: two launchers on one node would
    both bind their ranks from core 0 on.

    Args:
        spec: the attempt.
        launcher: what :func:`find_launcher` gave; may be ``None`` when none is needed.
        one_host: the nodes are virtual ones of this machine.
        root: the caller is root (Open MPI must be told that this is meant).

    Raises:
        ValueError: a launcher is needed and none was given.
    """
    if not needs_launcher(spec):
        return Launch(spec.argv)
    if launcher is None:
        raise ValueError(f"{spec.id}: {spec.ranks_per_node} ranks per node need a launcher")
    if launcher.kind == "none":
        return Launch(spec.argv)
    nodes = [share.node for share in spec.shares]
    build = _mpich if launcher.kind == "mpich" else _openmpi
    return build(spec, launcher.mpiexec, nodes, one_host, root)


def _mpich(spec: TaskSpec, mpiexec: str, nodes: list[str], one_host: bool, root: bool) -> Launch:
    ranks = len(nodes) * spec.ranks_per_node
    argv = [mpiexec, "-rmk", "user", "-bind-to", "none"]
    if one_host:
        # hydra starts one proxy for each name and never looks the names up: MPI sees as many
        # nodes as there are virtual ones, with ranks that share memory only within theirs
        argv += ["-launcher", "fork"]
    argv += ["-hosts", ",".join(nodes), "-ppn", str(spec.ranks_per_node), "-n", str(ranks)]
    return Launch((*argv, *_as_one_program(spec.argv)), ranks_are_children=True)


def _openmpi(spec: TaskSpec, mpiexec: str, nodes: list[str], one_host: bool, root: bool) -> Launch:
    ranks = len(nodes) * spec.ranks_per_node
    slots = [f"{node}:{spec.ranks_per_node}" for node in nodes]
    if one_host:
        slots = [f"localhost:{ranks}"]  # Open MPI looks names up, and virtual ones are not known
    argv = [mpiexec, "--host", ",".join(slots), "--oversubscribe", "--bind-to", "none"]
    if not one_host:
        argv += ["--map-by", f"ppr:{spec.ranks_per_node}:node"]
    if root:
        argv.append("--allow-run-as-root")
    # without this, ranks that wait for each other on too few cores spin instead of yielding
    environment = {"OMPI_MCA_mpi_yield_when_idle": "1"}
    argv += ["-n", str(ranks), *_as_one_program(spec.argv)]
    return Launch(tuple(argv), environment, ranks_are_children=True)


def _as_one_program(argv: tuple[str, ...]) -> tuple[str, ...]:
    """``argv`` in a form that no ``mpiexec`` takes for its own options.

    A lone ``:`` separates programs for every ``mpiexec``, and nothing quotes it.
    """
    if ":" not in argv and not argv[0].startswith("-"):
        return argv
    return (sys.executable, "-I", "-c", _EXEC, json.dumps(argv))


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what an outer MPI launcher or job step has put there.

    Allocation-wide variables of the scheduler (``SLURM_JOB_ID``, ``PBS_NODEFILE``) stay: an inner
    launcher needs them. A user's own tuning (``UCX_*``, ``FI_*``, ``MPICH_*``) stays too.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in _OUTER_NAMES and not name.startswith(_OUTER_PREFIXES)
    }


def find_launcher(
    settings: LauncherSettings, kind: str | None = None, environ: Mapping[str, str] = os.environ
) -> Launcher:
    """The launcher that the site names, or the first one found.

    Looked for beside this Python first (where the ``mpich`` wheel puts it), then on ``PATH``.

    Args:
        settings: the site's ``[launcher]``.
        kind: what an application asks for instead; ``None``: the site's kind.

    Raises:
        SettingsError: no such kind, no such ``mpiexec``, or one that belongs to another MPI.
    """
    wanted = kind or settings.kind
    if wanted == "none":
        return Launcher("none")
    if wanted not in _NAMES:
        known = ", ".join(("auto", *KINDS))
        raise SettingsError(f"launcher kind is {wanted!r}: give one of {known}")
    if settings.mpiexec and wanted in ("auto", settings.kind):
        return _named(settings.mpiexec, wanted, environ)
    for path in _candidates(wanted, environ):
        found = detect(path, environ)
        if found is not None and wanted in ("auto", found):
            return Launcher(found, path)
    what = "MPICH or Open MPI" if wanted == "auto" else wanted
    raise SettingsError(
        f"launcher {wanted!r}: no mpiexec of {what} was found beside {sys.executable} or on PATH: "
        "install the extra 'balsam_celery[local]' or name one as launcher.mpiexec in site.toml"
    )


def _named(mpiexec: str, wanted: str, environ: Mapping[str, str]) -> Launcher:
    path = shutil.which(mpiexec, path=environ.get("PATH"))
    if path is None:
        raise SettingsError(f"launcher.mpiexec is {mpiexec!r}: no such program can be executed")
    found = detect(path, environ)
    if found is None:
        raise SettingsError(
            f"launcher.mpiexec is {mpiexec!r}: its --version tells of neither MPICH nor Open MPI"
        )
    if wanted not in ("auto", found):
        raise SettingsError(
            f"launcher.mpiexec is {mpiexec!r}, which is {found}: make launcher.kind {found!r} too"
        )
    return Launcher(found, path)


def _candidates(wanted: str, environ: Mapping[str, str]) -> Iterator[str]:
    # not resolved: a virtual environment's python is a link out of its bin directory
    beside = str(Path(sys.executable).parent)
    seen = set()
    for directory in (beside, environ.get("PATH", os.defpath)):
        for name in _NAMES[wanted]:
            path = shutil.which(name, path=directory)
            if path is not None and path not in seen:
                seen.add(path)
                yield path


def detect(mpiexec: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The kind of MPI that ``mpiexec`` belongs to, or ``None`` when it does not tell."""
    try:
        done = subprocess.run(
            [mpiexec, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(environ),
            timeout=_DETECT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stdout.decode(errors="replace")
    return next((kind for kind, sign in _SIGNS if sign.search(text)), None)
