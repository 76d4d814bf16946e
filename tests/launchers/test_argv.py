"""The commands that launchers build; the sources are named in their modules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from balsam_celery.errors import SettingsError
from balsam_celery.launchers import Launcher, Ranks
from balsam_celery.launchers.hydra import Hydra, IntelHydra
from balsam_celery.launchers.openmpi import OpenMpi
from balsam_celery.launchers.others import Aprun, Flux, Jsrun
from balsam_celery.launchers.remote import Remote
from balsam_celery.launchers.srun import Srun
from balsam_celery.launchers.template import NoLauncher, Template

SLURM = Remote(slurm=True)
PBS = Remote(tmrsh="/opt/pbs pro/bin/pbs_tmrsh")
RANKS = Ranks(
    argv=("prog", "arg"),
    nodes=("n3", "n1"),
    ranks_per_node=2,
    cores_per_rank=4,
    gpus_per_rank=1.0,
    exports=("A", "B"),
    name="t1.1",
)
VIRTUAL = replace(RANKS, one_host=True)
SURVIVORS = replace(RANKS, survives=True, ranks_per_node=1)
STEP = "--overlap --overcommit --mem=0 --cpu-bind=none --export=ALL --wait=0"


def line(launcher: Launcher, ranks: Ranks = RANKS) -> str:
    return " ".join(launcher.launch(ranks).argv)


def test_mpich() -> None:
    one, both = (f"m -rmk user -bind-to none {which}" for which in ("-genvall", "-genvlist A,B"))
    where = "-hosts n3,n1 -ppn 2 -n 4 prog arg"
    assert line(Hydra("m")) == f"{both} -launcher ssh {where}"
    assert line(Hydra("m"), VIRTUAL) == f"{one} -launcher fork {where}"
    assert line(Hydra("m", ("-verbose",))) == (
        f"{both} -launcher ssh -hosts n3,n1 -ppn 2 -n 4 -verbose prog arg"
    )
    assert line(Hydra("m"), SURVIVORS).startswith(f"{both} -disable-auto-cleanup -launcher ssh")


def test_mpich_under_slurm_names_its_step() -> None:
    launch = Hydra("m", remote=SLURM).launch(RANKS)
    assert "-launcher slurm" in " ".join(launch.argv)
    assert launch.step == "t1.1"
    assert launch.environment == {"HYDRA_LAUNCHER_EXTRA_ARGS": f"{STEP} --job-name=t1.1 --mpi=none"}
    survivors = Hydra("m", remote=SLURM).launch(SURVIVORS)
    assert survivors.environment == {
        "HYDRA_LAUNCHER_EXTRA_ARGS": (
            f"{STEP} --no-kill --kill-on-bad-exit=0 --job-name=t1.1 --mpi=none"
        )
    }
    assert Hydra("m", remote=SLURM).launch(VIRTUAL).step == "", "no step is made on one host"


def test_mpich_under_pbs_starts_all_ranks_by_the_task_manager() -> None:
    launch = Hydra("m", remote=PBS).launch(RANKS)
    assert "-launcher rsh -launcher-exec /bin/sh -hosts" in " ".join(launch.argv)
    assert launch.environment == {
        "HYDRA_LAUNCHER_EXTRA_ARGS": ".balsam-t1.1.rsh",
        "HYDRA_LAUNCHER_AUTOFORK": "0",
    }
    assert launch.files[".balsam-t1.1.rsh"].endswith(
        """exec '/opt/pbs pro/bin/pbs_tmrsh' "$host" /bin/sh -c "$*"\n"""
    )


def test_intel_mpi() -> None:
    where = "-genvlist A,B -hosts n3,n1 -ppn 2 -n 4 prog arg"
    assert line(IntelHydra("m")) == f"m -bootstrap ssh {where}"
    launch = IntelHydra("m", remote=SLURM).launch(SURVIVORS)
    assert launch.argv[:3] == ("m", "-bootstrap", "slurm")
    assert launch.environment == {
        "I_MPI_PIN": "off",
        "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "off",
        "I_MPI_FAULT_CONTINUE": "on",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": (
            f"{STEP} --no-kill --kill-on-bad-exit=0 --job-name=t1.1 --mpi=none"
        ),
    }
    pbs = IntelHydra("m", remote=PBS).launch(RANKS)
    assert pbs.argv[:5] == ("m", "-bootstrap", "rsh", "-bootstrap-exec", "/bin/sh")
    assert pbs.environment["I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS"] == ".balsam-t1.1.rsh"
    assert list(pbs.files) == [".balsam-t1.1.rsh"]
    assert line(IntelHydra("m"), VIRTUAL) == (
        "m -bootstrap fork -genvall -hosts localhost -ppn 4 -n 4 prog arg"
    )


def test_open_mpi_4() -> None:
    assert line(OpenMpi("m")) == (
        "m --host n3:2,n1:2 --bind-to none --oversubscribe --map-by ppr:2:node "
        "-x A -x B -n 4 prog arg"
    )
    assert line(OpenMpi("m"), replace(VIRTUAL, root=True)) == (
        "m --host localhost:4 --bind-to none --oversubscribe --allow-run-as-root -n 4 prog arg"
    )
    assert "--enable-recovery --mca orte_abort_on_non_zero_status 0" in line(
        OpenMpi("m"), SURVIVORS
    )
    slurm = OpenMpi("m", remote=SLURM).launch(RANKS)
    assert slurm.step == "t1.1"
    assert slurm.environment["OMPI_MCA_plm_slurm_args"] == f"{STEP} --job-name=t1.1 --mpi=none"
    launch = OpenMpi("m", remote=PBS).launch(RANKS)
    pbs = launch.environment
    assert pbs["OMPI_MCA_plm_rsh_agent"] == "/bin/sh .balsam-t1.1.rsh"
    assert list(launch.files) == [".balsam-t1.1.rsh"]
    assert pbs["OMPI_MCA_plm_rsh_no_tree_spawn"] == "1"


def test_open_mpi_5() -> None:
    launcher = OpenMpi("m", major=5)
    assert line(launcher) == (
        "m --host n3:2,n1:2 --bind-to none --map-by ppr:2:node:OVERSUBSCRIBE "
        "-x A -x B -n 4 prog arg"
    )
    assert "--map-by :OVERSUBSCRIBE" in line(launcher, VIRTUAL)
    assert "--runtime-options recoverable,continuous" in line(launcher, SURVIVORS)
    slurm = OpenMpi("m", remote=SLURM, major=5).launch(RANKS).environment
    assert slurm["PRTE_MCA_plm_slurm_args"] == f"{STEP} --job-name=t1.1 --mpi=none"
    pbs = OpenMpi("m", remote=PBS, major=5).launch(RANKS).environment
    assert pbs["PRTE_MCA_plm_ssh_agent"] == "/bin/sh .balsam-t1.1.rsh"


def test_srun() -> None:
    assert line(Srun("srun", ("--network=x",), "pmi2")) == (
        f"srun {STEP} --job-name=t1.1 --nodes=2 --ntasks=4 --ntasks-per-node=2 "
        "--nodelist=n3,n1 --distribution=block --input=none "
        "--kill-on-bad-exit=1 --mpi=pmi2 --network=x prog arg"
    )
    assert Srun("srun").launch(RANKS).step == "t1.1"
    survivors = line(Srun("srun"), SURVIVORS)
    assert f"{STEP} --no-kill --kill-on-bad-exit=0 " in survivors
    assert "--kill-on-bad-exit=1" not in survivors


def test_aprun() -> None:
    cray = replace(RANKS, nodes=("nid00012", "7"))
    assert line(Aprun("aprun"), cray) == ("aprun -q -n 4 -N 2 -d 4 -cc none -L 12,7 -b prog arg")
    with pytest.raises(SettingsError, match="node 'n3' is no node id"):
        Aprun("aprun").launch(RANKS)


def test_jsrun_names_hosts_in_a_file() -> None:
    launch = Jsrun("jsrun").launch(RANKS)
    name = ".balsam-t1.1.erf"
    assert launch.argv == ("jsrun", "--erf_input", name, "--exit_on_error", "1", "prog", "arg")
    assert launch.files[name] == (
        "overlapping_rs: allow\n"
        "oversubscribe_cpu: allow\n"
        "oversubscribe_gpu: allow\n"
        "rank: 0: { host: n3; cpu: {0-3}; gpu: {0} }\n"
        "rank: 1: { host: n3; cpu: {4-7}; gpu: {1} }\n"
        "rank: 2: { host: n1; cpu: {0-3}; gpu: {0} }\n"
        "rank: 3: { host: n1; cpu: {4-7}; gpu: {1} }\n"
    )
    half = replace(RANKS, gpus_per_rank=0.5, nodes=("n3",), cores_per_rank=1)
    assert (
        Jsrun("jsrun")
        .launch(half)
        .files[name]
        .endswith(
            "rank: 0: { host: n3; cpu: {0}; gpu: {0} }\nrank: 1: { host: n3; cpu: {1}; gpu: {0} }\n"
        )
    )


def test_flux() -> None:
    assert line(Flux("flux")) == (
        "flux run --nodes=2 --ntasks=4 --cores-per-task=4 --gpus-per-task=1 "
        "--requires=hosts:n3,n1 --setopt=cpu-affinity=off --setopt=gpu-affinity=off "
        "--setopt=exit-timeout=none --setopt=exit-on-error --job-name=t1.1 "
        "--input=/dev/null prog arg"
    )
    survivors = line(Flux("flux"), replace(SURVIVORS, gpus_per_rank=0.0))
    assert "--setopt=exit-on-error" not in survivors
    assert "--gpus-per-task" not in survivors


def test_none_executes_the_program_itself() -> None:
    assert NoLauncher().launch(RANKS).argv == ("prog", "arg")


def test_a_template_is_filled() -> None:
    """Cray PALS, as on Polaris: another ``mpiexec`` that has no kind of its own."""
    words = (
        "mpiexec -n {ranks} --ppn {ranks_per_node} --depth {cores_per_rank} --hosts {hosts} "
        "--nodes={nodes} --gpus {gpus_per_rank} --cpu-bind none {command}"
    )
    assert line(Template(words.split(), ("--line-buffer",))) == (
        "mpiexec -n 4 --ppn 2 --depth 4 --hosts n3,n1 --nodes=2 --gpus 1 --cpu-bind none "
        "--line-buffer prog arg"
    )
    launch = Template(("run", "--file={hostfile}", "{{x}}", "{command}")).launch(RANKS)
    assert launch.argv == ("run", "--file=.balsam-t1.1.hosts", "{x}", "prog", "arg")
    assert launch.files == {".balsam-t1.1.hosts": "n3\nn1\n"}


def test_a_template_may_know_how_ranks_survive() -> None:
    words = ("run", "{command}", "end")
    known = Template(words, ("-v",), survival=("--no-abort", "{x}"))
    assert known.launch(SURVIVORS).argv == ("run", "--no-abort", "{x}", "-v", "prog", "arg", "end")
    assert known.launch(RANKS).argv == ("run", "-v", "prog", "arg", "end")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ((), r"give launcher\.template, such as"),
        (("run", "-n", "{ranks}"), "must hold '{command}' once"),
        (("run", "{command}", "{command}"), "must hold '{command}' once"),
        (("{command}",), "behind the launcher's name"),
        (("run", "--x={command}"), "must hold '{command}' once"),
        (("run", "{rank}", "{command}"), "'{rank}': of braces it knows {ranks}, {nodes}"),
        (("run", "{ranks:4}", "{command}"), "of braces it knows"),
        (("run", "{ranks!r}", "{command}"), "of braces it knows"),
        (("run", "{", "{command}"), "holds '{': .*; write a brace twice"),
    ],
)
def test_a_template_that_cannot_be_used_is_told(template: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Template(template)


@pytest.mark.parametrize("argv", [("prog", ":"), ("-n", "prog")])
def test_what_launchers_take_for_their_own_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="would take a part of this for its own"):
        replace(RANKS, argv=argv)


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        (Srun("srun"), "srun: error: Node failure on n3"),
        (Hydra("m"), "[mpiexec@n1] control_cb: connection to proxy 1 at host n3 failed"),
        (OpenMpi("m"), "  Remote daemon: [[5216,0],2] on node n3"),
    ],
)
def test_lost_nodes_are_read_from_their_words(launcher: Launcher, said: str) -> None:
    assert launcher.lost_node(said) == "n3"
    assert launcher.lost_node("srun: error: n3: task 2: Killed") is None
    assert Flux("flux").lost_node(said) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "srun: error: Unable to confirm allocation for job 8583442: Unable to contact slurm"
            " controller (connect failure)\n"
            "srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 8583442\n",
            "srun: Unable to confirm allocation for job 8583442: Unable to contact slurm"
            " controller (connect failure)",
        ),
        (
            "srun: cluster configuration lacks support for cpu binding\n"
            "srun: error: slurm_msg_sendto: address:port=127.0.0.1:40407 msg_type=5001: Unexpected"
            " missing socket error\n"
            "srun: error: Unable to create step for job 6136: Unexpected missing socket error\n",
            "srun: Unable to create step for job 6136: Unexpected missing socket error",
        ),
        (
            "srun: error: Unable to create step for job 613685: Memory required by task is not"
            " available\n",
            "srun: Unable to create step for job 613685: Memory required by task is not available",
        ),
        (
            "srun: error: Unable to confirm allocation for job 3323090: Job is pending execution\n",
            "srun: Unable to confirm allocation for job 3323090: Job is pending execution",
        ),
        (
            "srun: error: Task launch for StepId=8583442.1 failed on node n2: Communication"
            " connection failure\n"
            "srun: error: Application launch failed: Communication connection failure\n"
            "srun: Job step aborted\n",
            "srun: Application launch failed: Communication connection failure",
        ),
    ],
)
def test_ranks_that_were_never_started_are_told_from_ranks_that_failed(
    said: str, reason: str
) -> None:
    """As Slurm 22.05 of the tests printed it."""
    assert Srun("srun").not_started(said) == reason
    assert Hydra("m").not_started(said) == ""
    for other in (
        "",
        "srun: error: n3: task 2: Exited with exit code 1\n",
        "srun: error: Unable to create step for job 7: Invalid account\n",
        # of an srun in the program
        "srun: error: Unable to create step for job 7: Socket timed out on send/recv operation\n"
        "srun: error: n3: task 2: Exited with exit code 1\n",
        "my program says srun: error: Application launch failed: Socket timed out\n",
    ):
        assert Srun("srun").not_started(other) == ""
