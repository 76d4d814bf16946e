"""Which launcher is found, and how it reaches other nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery.errors import SettingsError
from balsam_celery.launchers import KINDS, Launcher, Ranks, detect, find_launcher
from balsam_celery.launchers.find import Mpi, whose
from balsam_celery.launchers.hydra import Hydra, IntelHydra
from balsam_celery.launchers.mpiexec import Mpiexec
from balsam_celery.launchers.openmpi import OpenMpi
from balsam_celery.launchers.remote import Remote, find_remote
from balsam_celery.launchers.srun import Srun
from balsam_celery.launchers.template import NoLauncher, Template
from balsam_celery.outer import clean_environment
from balsam_celery.settings import LauncherSettings
from balsam_celery.tasks.options import LAUNCHERS


def executable(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(params=["mpich", "openmpi"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    try:
        return find_launcher(LauncherSettings(), request.param)
    except SettingsError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no mpiexec of {request.param}: {error}")


def test_every_kind_can_be_asked_for_by_a_task() -> None:
    assert LAUNCHERS == KINDS


def test_finds_the_launcher_by_its_kind() -> None:
    found = find_launcher(LauncherSettings())
    mpi = detect(found.path)
    assert mpi is not None
    assert found.kind == mpi.kind
    assert isinstance(find_launcher(LauncherSettings(kind="none")), NoLauncher)
    named = find_launcher(LauncherSettings(mpiexec=found.path))
    assert (type(named), named.path) == (type(found), found.path)


@pytest.mark.parametrize(
    ("version", "mpi"),
    [
        ("HYDRA build details:\n    Version: 4.2.1\n", Mpi("mpich")),
        (
            "Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 20230619 (id: c2e19c2f3e)\n"
            "Copyright 2003-2023, Intel Corporation.\n",
            Mpi("intelmpi"),
        ),
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to …", Mpi("openmpi", 4)),
        ("mpirun.openmpi (OpenRTE) 4.1.4\n", Mpi("openmpi", 4)),
        ("mpirun (Open MPI) 5.0.3\n", Mpi("openmpi", 5)),
        ("prterun (PRRTE) 3.0.5\n", Mpi("openmpi", 5)),
        ("mpiexec version 1.3.4 (PALS)\n", None),
    ],
)
def test_an_mpiexec_tells_whose_it_is(version: str, mpi: Mpi | None, tmp_path: Path) -> None:
    assert whose(version) == mpi
    (tmp_path / "version").write_text(version)
    assert detect(executable(tmp_path / "mpiexec", f"cat {tmp_path}/version")) == mpi


def test_intel_mpi_is_a_hydra_with_other_options(tmp_path: Path) -> None:
    path = executable(tmp_path / "mpiexec", "echo 'Intel(R) MPI Library for Linux* OS'")
    assert type(find_launcher(LauncherSettings(mpiexec=path))) is IntelHydra


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LauncherSettings(kind="lam"), "give one of auto, none, mpich, intelmpi, openmpi, srun"),
        (LauncherSettings(mpiexec="/no/such/mpiexec"), "no such program"),
        (LauncherSettings(mpiexec="/bin/true"), "neither MPICH, Intel MPI, Open MPI"),
        (LauncherSettings(kind="aprun"), "no aprun was found on PATH"),
        (LauncherSettings(kind="srun", mpiexec="/no/srun"), "no such program"),
        (
            LauncherSettings(kind="template", template=("/no/run", "{command}")),
            "begins with '/no/run': no such program",
        ),
    ],
)
def test_bad_settings_are_told(settings: LauncherSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        find_launcher(settings)


def test_a_named_mpiexec_of_another_mpi_is_told(launcher: Launcher) -> None:
    other = "openmpi" if launcher.kind == "mpich" else "mpich"
    with pytest.raises(SettingsError, match=f"which is {launcher.kind}"):
        find_launcher(LauncherSettings(kind=other, mpiexec=launcher.path))


def test_none_found_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SettingsError, match=r"install the extra 'balsam_celery\[local\]'"):
        find_launcher(LauncherSettings(), environ={"PATH": str(tmp_path)})


def test_an_application_asks_for_another_than_the_site(tmp_path: Path) -> None:
    """What the site says of its own launcher does not hold for the other."""
    srun = executable(tmp_path / "srun", "exit 0")
    site = LauncherSettings(kind="srun", mpiexec=srun, mpi="pmi2", options=("--network=x",))
    found = find_launcher(site)
    assert isinstance(found, Srun)
    assert (found.path, found.mpi, found.options) == (srun, "pmi2", ("--network=x",))
    other = find_launcher(site, "mpich")
    assert isinstance(other, Hydra)
    assert other.options == ()
    template = LauncherSettings(kind="srun", template=("sh", "{command}"))
    assert isinstance(find_launcher(template, "template"), Template)


def test_the_way_to_other_nodes_is_told_by_the_environment(
    tmp_path: Path, launcher: Launcher
) -> None:
    assert find_remote({"PATH": "/bin"}) == Remote()
    assert find_remote({"SLURM_JOB_ID": "7"}) == Remote(slurm=True)
    installed = tmp_path / "bin"
    installed.mkdir()
    tmrsh = executable(installed / "pbs_tmrsh", "exit 0")
    configuration = tmp_path / "pbs.conf"
    configuration.write_text(f"PBS_SERVER=head\nPBS_EXEC={tmp_path}\n")
    for environ in (
        {"PATH": str(installed)},
        {"PATH": "/bin", "PBS_EXEC": str(tmp_path)},
        {"PATH": "/bin", "PBS_CONF_FILE": str(configuration)},
    ):
        assert find_remote({"PBS_JOBID": "7.head", **environ}) == Remote(tmrsh=tmrsh)
    in_job = find_launcher(LauncherSettings(), launcher.kind, {**os.environ, "SLURM_JOB_ID": "7"})
    assert isinstance(in_job, Hydra | OpenMpi)
    assert in_job.remote.slurm
    assert in_job.stays, "what ranks leave behind ends with Slurm's step"
    assert not launcher.stays


def test_daemons_are_started_through_pbs(launcher: Launcher, tmp_path: Path) -> None:
    """With a stand-in for ``pbs_tmrsh`` that executes its words as they are, as that does."""
    installed = tmp_path / "pbs's own"
    installed.mkdir()
    stand_in = executable(
        installed / "pbs_tmrsh", f'echo "$1" >> {tmp_path}/hosts; shift; exec "$@"'
    )
    rank = 'echo > "rank ${PMI_RANK:-$OMPI_COMM_WORLD_RANK}"'
    assert isinstance(launcher, Mpiexec)
    launcher.remote = Remote(tmrsh=stand_in)
    launch = launcher.launch(
        Ranks(
            argv=("/bin/sh", "-c", rank),
            nodes=("node-1", "node-2"),
            ranks_per_node=2,
            root=os.geteuid() == 0,
        )
    )
    for name, text in launch.files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        launch.argv,
        cwd=tmp_path,
        env={**clean_environment(os.environ), **launch.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("rank *")) == [
        f"rank {rank}" for rank in range(4)
    ]
    assert sorted((tmp_path / "hosts").read_text().split()) == ["node-1", "node-2"]
