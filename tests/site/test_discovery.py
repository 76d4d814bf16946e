"""What ``init`` finds on a machine: scheduler, queues, launchers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import settings
from balsam_celery.discovered import Action, changes, recall
from balsam_celery.discovery import (
    choose_kind,
    choose_launcher,
    choose_mpi,
    discover,
    mpi_default,
    mpi_types,
)
from balsam_celery.errors import InvalidInput, SchedulerUnavailable
from balsam_celery.launchers import KINDS
from balsam_celery.redisaddress import is_loopback
from balsam_celery.siteinit import init
from tests.schedulers.harness_pbs import PbsHarness

MPICH = "MPICH Version:      4.3.2"
OPEN_MPI = "Open MPI v4.1.4, package: Debian OpenMPI"
#: Output of ``srun --mpi=list`` of Slurm 22.05, and of 18.08, which writes to stderr.
LIST = "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\n"
LIST += "specific pmix plugin versions available: pmix_v4\n"
OLD_LIST = "srun: MPI types are...\nsrun: none\nsrun: openmpi\nsrun: pmi2\n"


class Programs:
    """A PATH of nothing but stand-ins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def add(self, name: str, text: str) -> None:
        """A shell script of that name."""
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.directory))
    monkeypatch.setenv("PBS_CONF_FILE", str(tmp_path / "no-pbs.conf"))
    return made


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[PbsHarness]:
    (tmp_path / "harness").mkdir()
    harness = PbsHarness(tmp_path / "harness")
    yield harness
    harness.stop()


def test_a_machine_without_a_scheduler_is_local(programs: Programs) -> None:
    found = discover("auto")
    assert (found.scheduler, found.queues, found.launcher) == ("local", (), None)
    assert found.notes == (
        "no batch scheduler answers here: allocations will be processes of this machine",
    )


def test_a_scheduler_that_does_not_answer(programs: Programs) -> None:
    for name in ("sbatch", "sinfo", "scontrol", "squeue", "srun"):
        programs.add(name, f"echo {name}: Unable to contact slurm controller >&2; exit 1")
    found = discover("auto")
    assert found.scheduler == "local"
    assert found.notes[0] == (
        "slurm is installed and does not answer: scontrol: scontrol: Unable to contact slurm"
        " controller"
    )
    with pytest.raises(SchedulerUnavailable, match=r"'slurm' does not answer: .*Unable to contact"):
        discover("slurm")


def test_a_scheduler_that_is_not_installed(programs: Programs) -> None:
    for kind in ("slurm", "pbs"):
        with pytest.raises(SchedulerUnavailable, match=f"'{kind}' does not answer: .*No such file"):
            discover(kind)


def test_an_unknown_kind() -> None:
    with pytest.raises(InvalidInput, match="'foo': give one of auto, local, pbs, psij, slurm"):
        discover("foo")


def test_a_local_site_is_asked_nothing(programs: Programs) -> None:
    programs.add("sbatch", "exit 1")
    programs.add("sinfo", "exit 1")
    assert discover("local").notes == ()


def test_psij_names_what_is_to_be_set(programs: Programs) -> None:
    found = discover("psij")
    assert (found.scheduler, found.executor, found.tells_queues) == ("psij", "", False)
    assert any("set [scheduler] executor" in note for note in found.notes)
    programs.add("bsub", "exit 0")
    assert discover("psij").executor == "lsf"


def test_psij_site_is_made(programs: Programs, tmp_path: Path) -> None:
    programs.add("flux", "exit 0")
    lines: list[str] = []
    made = init(tmp_path / "site", scheduler="psij", tls=False, say=lines.append)
    assert any("write a table [queues.NAME]" in line for line in lines)
    assert made.settings.scheduler.executor == "flux"
    assert made.settings.launcher.kind == "flux"
    assert made.settings.queues == {}


def test_pbs(pbs: PbsHarness, tmp_path: Path) -> None:
    lines: list[str] = []
    made = init(tmp_path / "site", scheduler="auto", tls=False, say=lines.append)
    assert "scheduler pbs: queues workq, short" in lines
    assert made.settings.scheduler.kind == "pbs"
    assert made.settings.scheduler.poll_interval == 10
    workq, short = made.settings.queues["workq"], made.settings.queues["short"]
    assert (workq.max_nodes, workq.cores_per_node, workq.max_wall_time) == (8, 4, 86400)
    assert (short.max_nodes, short.max_wall_time) == (8, 600)
    assert not is_loopback(made.settings.redis.host)
    text = (made.directory / "site.toml").read_text()
    assert 'max_wall_time = "1d"       # the scheduler names no limit\n' in text
    assert text.index("[queues.workq]") < text.index("[queues.short]")  # the default first
    again = discover("pbs", made.settings)
    assert changes(again, recall(made.directory), made.settings) == []
    with (
        pbs.unavailable(),
        pytest.raises(SchedulerUnavailable, match="'pbs' does not answer"),
    ):
        discover("pbs", made.settings)


def test_pbs_off_the_path(pbs: PbsHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "pbs.conf"
    conf.write_text(f"PBS_EXEC={pbs.root}\nPBS_SERVER=pbsserver\n")
    monkeypatch.setenv("PBS_CONF_FILE", str(conf))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert discover("auto").scheduler == "pbs"


#: Partitions of a Slurm, as ``scontrol --oneliner`` and ``sinfo`` tell of them.
PARTITIONS = """\
PartitionName=odd Default=YES State=UP MinNodes=3 MaxNodes=2 TotalNodes=4 MaxTime=60:00
PartitionName=off Default=NO State=DOWN MinNodes=0 MaxNodes=UNLIMITED TotalNodes=4 MaxTime=60:00
PartitionName=bare Default=NO State=UP MinNodes=0 MaxNodes=UNLIMITED TotalNodes=4 MaxTime=60:00
PartitionName=good Default=NO State=UP MinNodes=0 MaxNodes=UNLIMITED TotalNodes=4 MaxTime=60:00
"""
SHAPES = "odd|4|1|4|100|\noff|4|1|4|100|\nbare|0|0|0|100|\ngood|4|1|4|100|\n"


def test_queues_that_cannot_be_used_are_left_out(programs: Programs, tmp_path: Path) -> None:
    def partitions(text: str) -> None:
        programs.add("scontrol", f'[ "$3" = partition ] && echo "{text}"; exit 0')

    programs.add("sinfo", f'echo "{SHAPES}"')
    partitions(PARTITIONS)
    lines: list[str] = []
    made = init(tmp_path / "site", scheduler="slurm", tls=False, say=lines.append)
    assert list(made.settings.queues) == ["good"]
    assert [line for line in lines if line.startswith("queue ")] == [
        "queue 'odd' is left out: queues.odd: min_nodes is above max_nodes",
        "queue 'off' is left out: stopped now",
        "queue 'bare' is left out: queues.bare.cores_per_node is 0: give the cores of each of its"
        " nodes",
    ]
    assert not any("write a table" in line for line in lines)
    # once they can be used they are offered
    partitions(PARTITIONS.replace("MinNodes=3", "MinNodes=2").replace("DOWN", "UP"))
    found = changes(discover("slurm", made.settings), recall(made.directory), made.settings)
    assert {change.key: change.action for change in found} == {
        "queues.odd": Action.ADD, "queues.off": Action.ADD,
    }  # fmt: skip


def test_without_any_queue_a_site_is_made_all_the_same(programs: Programs, tmp_path: Path) -> None:
    programs.add("sinfo", f'echo "{SHAPES}"')
    bare = PARTITIONS.splitlines()[2]
    programs.add("scontrol", f'[ "$3" = partition ] && echo "{bare}"; exit 0')
    lines: list[str] = []
    made = init(tmp_path / "site", scheduler="slurm", tls=False, say=lines.append)
    assert made.settings.queues == {}
    assert any("write a table [queues.NAME]" in line for line in lines)


def test_types_of_mpi() -> None:
    assert mpi_types(LIST) == {"pmix", "none", "cray_shasta", "pmi2"}
    assert mpi_types(OLD_LIST) == {"none", "openmpi", "pmi2"}
    assert mpi_types("srun: fatal: Could not establish a configuration source\n") == set()


def test_default_of_mpi() -> None:
    assert mpi_default("MessageTimeout = 10 sec\nMpiDefault              = cray_shasta\n") == (
        "cray_shasta"
    )
    assert mpi_default("MpiDefault              = none\n") == ""
    assert mpi_default("") == ""


@pytest.mark.parametrize(
    ("types", "default", "library", "mpi"),
    [
        ({"none", "pmi2", "pmix"}, "", MPICH, "pmi2"),
        ({"none", "pmi2", "pmix"}, "", OPEN_MPI, "pmix"),
        ({"none", "pmi2"}, "", OPEN_MPI, "pmi2"),
        ({"none", "pmix"}, "", MPICH, "pmix"),
        ({"none", "cray_shasta", "pmix"}, "", "MPI VERSION    : CRAY MPICH 8.1", "cray_shasta"),
        ({"none", "pmi2", "pmix"}, "pmix", MPICH, ""),
        ({"none"}, "", MPICH, None),
    ],
)
def test_choice_of_mpi(types: set[str], default: str, library: str, mpi: str | None) -> None:
    assert choose_mpi(types, default, library) == mpi


@pytest.mark.parametrize(
    ("scheduler", "launchers", "library", "kind"),
    [
        ("slurm", ("mpich", "openmpi", "srun"), MPICH, "srun"),
        ("slurm", ("mpich", "openmpi"), OPEN_MPI, "openmpi"),
        ("pbs", ("mpich", "openmpi", "srun"), MPICH, "mpich"),
        ("pbs", ("mpich", "openmpi"), OPEN_MPI, "openmpi"),
        ("pbs", ("mpich", "aprun"), MPICH, "aprun"),
        ("pbs", ("mpich", "intelmpi"), "Intel(R) MPI Library 2021.13", "intelmpi"),
        ("pbs", ("openmpi",), MPICH, "openmpi"),
        ("lsf", ("mpich", "jsrun"), "", "jsrun"),
        ("flux", ("mpich", "flux"), "", "flux"),
        ("cobalt", ("mpich",), "", "mpich"),
    ],
)
def test_choice_of_a_launcher(
    scheduler: str, launchers: tuple[str, ...], library: str, kind: str
) -> None:
    assert set(launchers) <= set(KINDS)
    assert choose_kind(scheduler, launchers, library) == kind


def test_srun_that_offers_nothing_is_noted(programs: Programs) -> None:
    programs.add("srun", "echo MPI plugin types are...; echo none")
    programs.add("scontrol", "echo MpiDefault = none")
    notes: list[str] = []
    srun = str(programs.directory / "srun")
    chosen = choose_launcher("slurm", {"srun": srun}, notes)
    assert chosen == settings.LauncherSettings(kind="srun", mpiexec=srun)
    assert any("set [launcher] mpi" in note for note in notes)


def test_no_launcher_is_noted(programs: Programs) -> None:
    notes: list[str] = []
    assert choose_launcher("pbs", {}, notes) is None
    assert "no MPI launcher was found: set [launcher] once there is one" in notes


def test_nothing_is_made_when_the_scheduler_does_not_answer(
    programs: Programs, tmp_path: Path
) -> None:
    state = Path(os.environ["XDG_STATE_HOME"]) / "balsam"
    before = set(state.glob("*"))
    with pytest.raises(SchedulerUnavailable):
        init(tmp_path / "site", scheduler="slurm")
    assert not (tmp_path / "site").exists()
    assert set(state.glob("*")) == before
