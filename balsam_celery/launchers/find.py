"""Finds the launcher that a site or an application names, or the first one there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from balsam_celery.errors import SettingsError
from balsam_celery.launchers.base import Launcher
from balsam_celery.launchers.hydra import Hydra, IntelHydra
from balsam_celery.launchers.openmpi import OpenMpi
from balsam_celery.launchers.others import Aprun, Flux, Jsrun
from balsam_celery.launchers.remote import find_remote
from balsam_celery.launchers.srun import Srun
from balsam_celery.launchers.template import NoLauncher, Template
from balsam_celery.outer import clean_environment
from balsam_celery.settings import LauncherSettings

_DETECT_TIMEOUT = 30  # seconds
#: What ``mpiexec --version`` prints, whichever stream it prints it on. Intel MPI's is a hydra too.
_SIGNS = (
    ("intelmpi", re.compile(r"Intel\(R\) MPI Library", re.IGNORECASE)),
    ("mpich", re.compile(r"HYDRA build details", re.IGNORECASE)),
    ("openmpi", re.compile(r"Open ?MPI|OpenRTE|PRRTE", re.IGNORECASE)),
)
_VERSION = re.compile(r"\((Open ?MPI|OpenRTE|PRRTE)\) (\d+)", re.IGNORECASE)
#: PRRTE 3 is the runtime of Open MPI 5; it numbers itself.
_PRRTE_AHEAD = 2
#: Names under which distributions install them, when several are there.
_NAMES = {
    "mpich": ("mpiexec.hydra", "mpiexec.mpich", "mpiexec", "mpirun"),
    "intelmpi": ("mpiexec.hydra", "mpiexec", "mpirun"),
    "openmpi": ("mpiexec.openmpi", "mpirun.openmpi", "mpirun", "mpiexec"),
    "auto": ("mpiexec", "mpirun", "mpiexec.hydra", "mpiexec.mpich", "mpiexec.openmpi"),
}
_MPIS = {"mpich": "MPICH", "intelmpi": "Intel MPI", "openmpi": "Open MPI"}
_OWN: dict[str, type[Aprun | Jsrun | Flux]] = {"aprun": Aprun, "jsrun": Jsrun, "flux": Flux}
KINDS = ("none", *_MPIS, "srun", *_OWN, "template")


@dataclass(frozen=True, slots=True)
class Mpi:
    """Whose an ``mpiexec`` is: a kind of launcher, and Open MPI's first number (else 0)."""

    kind: str
    major: int = 0


def find_launcher(
    settings: LauncherSettings, kind: str | None = None, environ: Mapping[str, str] = os.environ
) -> Launcher:
    """The launcher that the site names, or the first ``mpiexec`` found.

    An ``mpiexec`` is looked for beside this Python first (where the ``mpich`` wheel puts it), then
    on ``PATH``; the others on ``PATH``.

    Args:
        settings: the site's ``[launcher]``.
        kind: what an application asks for instead; ``None``: the site's kind.
        environ: of the allocation, which tells how other nodes are reached.

    Raises:
        SettingsError: no such kind, no such program, or one that belongs to another MPI.
    """
    wanted = kind or settings.kind
    own = wanted == settings.kind
    options = settings.options if own else ()
    if wanted == "none":
        return NoLauncher()
    if wanted == "template":
        return _template(settings, environ)
    if wanted == "srun" or wanted in _OWN:
        path = _program(wanted, settings.mpiexec if own else "", environ)
        if wanted == "srun":
            return Srun(path, options, settings.mpi)
        return _OWN[wanted](path, options)
    if wanted not in _NAMES:
        known = ", ".join(("auto", *KINDS))
        raise SettingsError(f"launcher kind is {wanted!r}: give one of {known}")
    if settings.mpiexec and (own or wanted == "auto"):
        path, mpi = _named(settings.mpiexec, wanted, environ)
    else:
        path, mpi = _first(wanted, environ)
    remote = find_remote(environ)
    if mpi.kind == "openmpi":
        return OpenMpi(path, options, remote, mpi.major)
    return (IntelHydra if mpi.kind == "intelmpi" else Hydra)(path, options, remote)


def _program(name: str, given: str, environ: Mapping[str, str]) -> str:
    path = shutil.which(given or name, path=environ.get("PATH"))
    if path is not None:
        return path
    if given:
        raise SettingsError(f"launcher.mpiexec is {given!r}: no such program can be executed")
    raise SettingsError(
        f"launcher {name!r}: no {name} was found on PATH: "
        "name it as launcher.mpiexec in site.toml, or choose another launcher.kind"
    )


def _template(settings: LauncherSettings, environ: Mapping[str, str]) -> Template:
    launcher = Template(
        settings.template,
        settings.options,
        stays=settings.template_stays,
        survival=settings.template_survival,
    )
    if "{" not in launcher.path and shutil.which(launcher.path, path=environ.get("PATH")) is None:
        raise SettingsError(
            f"launcher.template begins with {launcher.path!r}: no such program can be executed"
        )
    return launcher


def _named(mpiexec: str, wanted: str, environ: Mapping[str, str]) -> tuple[str, Mpi]:
    path = _program(wanted, mpiexec, environ)
    found = detect(path, environ)
    if found is None:
        raise SettingsError(
            f"launcher.mpiexec is {mpiexec!r}: its --version tells of neither "
            f"{', '.join(_MPIS.values())}; for another one make launcher.kind 'template'"
        )
    if wanted not in ("auto", found.kind):
        raise SettingsError(
            f"launcher.mpiexec is {mpiexec!r}, which is {found.kind}: "
            f"make launcher.kind {found.kind!r} too"
        )
    return path, found


def _first(wanted: str, environ: Mapping[str, str]) -> tuple[str, Mpi]:
    for path in _candidates(wanted, environ):
        found = detect(path, environ)
        if found is not None and wanted in ("auto", found.kind):
            return path, found
    what = _MPIS.get(wanted, "MPICH, Intel MPI or Open MPI")
    raise SettingsError(
        f"launcher {wanted!r}: no mpiexec of {what} was found beside {sys.executable} or on PATH: "
        "install the extra 'balsam_celery[local]' or name one as launcher.mpiexec in site.toml"
    )


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


def detect(mpiexec: str, environ: Mapping[str, str] = os.environ) -> Mpi | None:
    """The MPI that ``mpiexec`` belongs to, or ``None`` when it does not tell."""
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
    return whose(done.stdout.decode(errors="replace"))


def whose(version: str) -> Mpi | None:
    """The MPI that tells this as its version."""
    kind = next((kind for kind, sign in _SIGNS if sign.search(version)), None)
    if kind != "openmpi":
        return Mpi(kind) if kind else None
    found = _VERSION.search(version)
    if found is None:
        return Mpi(kind, 4)
    return Mpi(kind, int(found[2]) + (_PRRTE_AHEAD if found[1].upper() == "PRRTE" else 0))
