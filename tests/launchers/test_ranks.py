"""Real MPI programs on this host under every ``mpiexec`` that is here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from balsam_celery.launchers import Launcher, Ranks, find_launcher
from balsam_celery.launchers.shim import Place, divide, in_front
from balsam_celery.outer import clean_environment
from balsam_celery.pilot.ranks import exported
from balsam_celery.resources import GpuShare, NodeShare
from balsam_celery.settings import LauncherSettings
from tests.waiting import wait_until

PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "mpi_program.py"))
#: What makes mpi4py load the MPI library of that launcher, if it would not by itself.
LIBRARY = {"mpich": {}, "openmpi": {"MPI4PY_MPIABI": "openmpi"}}
#: Writes what a rank sees of its cores, GPUs and arguments.
SEEN = (
    sys.executable,
    "-c",
    "import json, os, pathlib, sys;"
    'pathlib.Path(f\'rank-{os.environ.get("PMI_RANK", os.environ.get("PMIX_RANK"))}.json\')'
    ".write_text(json.dumps([sorted(os.sched_getaffinity(0)),"
    "os.environ.get('CUDA_VISIBLE_DEVICES'), sys.argv[1:]]))",
)
CORES = sorted(os.sched_getaffinity(0))


def ranks(nodes: int, per_node: int, argv: tuple[str, ...] = PROGRAM) -> Ranks:
    return Ranks(
        argv=argv,
        nodes=tuple(f"vnode{index}" for index in range(nodes)),
        ranks_per_node=per_node,
        one_host=True,
        root=os.geteuid() == 0,
    )


def run(what: Ranks, how: Launcher, directory: Path, **outer: str) -> list[Any]:
    """What each rank wrote, by rank; ``outer`` is added to this process's environment."""
    started = how.launch(what)
    done = subprocess.run(
        started.argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **clean_environment({**os.environ, **outer}),
            **started.environment,
            **LIBRARY[how.kind],
        },
    )
    assert done.returncode == 0, done.stderr
    files = sorted(directory.glob("rank-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_starts_the_ranks_asked_for(
    launcher: Launcher, nodes: int, per_node: int, tmp_path: Path
) -> None:
    seen = run(ranks(nodes, per_node), launcher, tmp_path)
    assert [row["rank"] for row in seen] == list(range(nodes * per_node))
    assert {row["size"] for row in seen} == {nodes * per_node}
    assert {row["library"] for row in seen} == {"MPICH" if launcher.kind == "mpich" else "Open"}


def test_virtual_nodes_are_nodes_to_mpich(tmp_path: Path) -> None:
    seen = run(ranks(2, 2), find_launcher(LauncherSettings(), "mpich"), tmp_path)
    assert {row["shared"] for row in seen} == {2}


def test_a_program_may_start_programs_of_its_own(launcher: Launcher, tmp_path: Path) -> None:
    """A pilot started by an ``mpiexec`` itself: the inner ranks must not join the outer."""
    outer = run(ranks(1, 2), launcher, tmp_path)[1]["environment"]
    named = {name for name in outer if name.startswith(("PMI", "OMPI_", "PMIX_"))}
    assert named, "the ranks of the outer launcher are marked"
    inner = tmp_path / "inner"
    inner.mkdir()
    seen = run(ranks(2, 2), launcher, inner, **outer)
    assert [(row["rank"], row["size"]) for row in seen] == [(rank, 4) for rank in range(4)]
    unlike = {"PMI_RANK", "PMI_FD", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"} & outer.keys()
    assert all(row["environment"][name] != outer[name] for row in seen[2:] for name in unlike)


def test_a_serial_program_under_an_outer_launcher_is_alone(
    launcher: Launcher, tmp_path: Path
) -> None:
    outer = run(ranks(1, 2), launcher, tmp_path)[0]["environment"]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert [row["size"] for row in run(ranks(1, 1), launcher, alone, **outer)] == [1]


@pytest.mark.parametrize(
    "argument",
    [
        ":",
        "",
        " a b ",
        "'",
        '"',
        "a\nb",
        ";",
        "$(id)",
        "$HOME",
        "{}",
        "*",
        "\\",
        "-n",
        "--",
        "=",
        "ü\x01",
    ],
)
def test_arguments_arrive_as_they_are(launcher: Launcher, argument: str, tmp_path: Path) -> None:
    argv = in_front(
        (*SEEN, "before", argument, "after"), {"vnode0": (Place(), Place())}, mark="M=1"
    )
    seen = run(ranks(1, 2, argv), launcher, tmp_path)
    assert [row[2] for row in seen] == [["before", argument, "after"]] * 2


def test_each_rank_has_its_own_part_of_its_node(launcher: Launcher, tmp_path: Path) -> None:
    share = NodeShare("vnode0", tuple(CORES[:2]), (GpuShare(2, 1.0), GpuShare(5, 1.0)))
    argv = in_front(SEEN, {"vnode0": divide(share, 2, pin=True)}, mark="M=1")
    seen = run(ranks(1, 2, argv), launcher, tmp_path)
    halves = [CORES[:1], CORES[1:2]] if len(CORES) > 1 else [CORES, CORES]
    assert [row[:2] for row in seen] == [[halves[0], "2"], [halves[1], "5"]]


def test_virtual_nodes_are_bound_apart(launcher: Launcher, tmp_path: Path) -> None:
    """They are one host, so ranks know their node by their number alone."""
    places = {
        f"vnode{node}": divide(
            NodeShare(f"vnode{node}", (CORES[node % len(CORES)],), (GpuShare(node, 1.0),)),
            1,
            pin=True,
        )
        for node in range(2)
    }
    argv = in_front(SEEN, places, mark="M=1", by_rank=True)
    seen = run(ranks(2, 1, argv), launcher, tmp_path)
    assert [row[:2] for row in seen] == [[[CORES[0]], "0"], [[CORES[1 % len(CORES)]], "1"]]


def test_survivors_go_on_without_a_lost_rank(launcher: Launcher, tmp_path: Path) -> None:
    """One rank on each node, as node workers are; the second is killed."""
    program = "echo $$ > pid-${PMI_RANK:-$PMIX_RANK}; while [ ! -e go ]; do sleep 0.1; done; : > on"
    what = replace(ranks(2, 1, ("/bin/sh", "-c", program)), survives=True)
    started = launcher.launch(what)
    process = subprocess.Popen(
        started.argv,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env={**clean_environment(os.environ), **started.environment},
    )
    try:
        pids = [tmp_path / f"pid-{rank}" for rank in range(2)]
        wait_until(lambda: all(path.exists() and path.read_text() for path in pids))
        doomed = int(pids[1].read_text())
        os.kill(doomed, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{doomed}").exists(), what="the launcher reaped it")
        (tmp_path / "go").touch()
        wait_until((tmp_path / "on").exists, what="the first rank went on")
    finally:
        (tmp_path / "go").touch()
        process.wait(60)


def test_ranks_of_mpich_keep_what_their_own_host_says_of_itself(tmp_path: Path) -> None:
    """Of the environment here only what is named goes to other hosts, and not in place of theirs.

    The way to another host is a stand-in for ``ssh``, which ends on this one.
    """
    ssh = tmp_path / "ssh"
    ssh.write_text(
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nhost=$1\nshift\n'
        'exec env -i PATH="$PATH" TMPDIR="/of/$host" PBS_NODENUM="$host" sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    environment = {
        **clean_environment(os.environ),
        "TMPDIR": "/of/head", "PBS_NODENUM": "0", "HOSTNAME": "head", "MINE": "a, b",
    }  # fmt: skip
    show = (
        "import json, os, pathlib; pathlib.Path('rank-' + os.environ['PMI_RANK']).write_text("
        "json.dumps([os.environ.get(name) for name in "
        "('TMPDIR', 'PBS_NODENUM', 'HOSTNAME', 'MINE')]))"
    )
    program = (sys.executable, "-c", show)
    what = replace(ranks(2, 1, program), one_host=False, exports=exported(environment))
    started = find_launcher(LauncherSettings(), "mpich", {"PATH": os.environ["PATH"]}).launch(what)
    subprocess.run(
        started.argv,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=True,
        env={**environment, **started.environment, "HYDRA_LAUNCHER_EXEC": str(ssh)},
    )
    for node in ("vnode0", "vnode1"):
        seen = json.loads((tmp_path / f"rank-{node[-1]}").read_text(encoding="utf-8"))
        assert seen == [f"/of/{node}", node, None, "a, b"]
