"""Users' programs on a real Slurm: serial, MPI, wide and narrow, stubborn and hidden."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from balsam_celery import procs
from balsam_celery.store import queries, schema
from balsam_celery.store.rows import AttemptRow
from tests.acceptance.live import LiveSite
from tests.slurm.live import MPI_SUM, allocation_of, pilot_of, processes_of
from tests.slurm_cluster import NODES
from tests.waiting import wait_until

NASTY = str(Path(__file__).parent.parent / "nasty.py")
#: RHF/6-31G* of water at O (0,0,0), H (0, ±0.757, 0.587) Å, in hartree.
WATER = """\
start water
memory total 200 mb
geometry units angstroms noautoz noprint
  O 0.0 0.0 0.0
  H 0.0 0.757 0.587
  H 0.0 -0.757 0.587
end
basis cartesian noprint
  * library "6-31G*"
end
scf
  singlet
  rhf
  thresh 1e-8
end
task scf energy
"""
WATER_ENERGY = -76.010496172446

MIXED = """
import json, sys
from balsam_celery import program, submit_many
code = '''echo "$BALSAM_TASK_ID $BALSAM_ATTEMPT" >> "$1"; [ "$2" = fail ] && exit 7
[ "$2" = flaky ] && [ "$BALSAM_ATTEMPT" = 1 ] && exit 3; exit 0'''
mixed = program("mixed", ["/bin/sh", "-c", code, "sh", LEDGER, "{kind}"], workflow="mixed",
                wall_time="1m", launcher="none")
ranks = program("ranks", [sys.executable, MPI_SUM], workflow="mixed", wall_time="2m")
signatures = []
for n in range(288):
    kind = "fail" if n % 20 == 0 else "flaky" if n % 20 == 1 else "ok"
    shape = [dict(), dict(node_packing_count=1), dict(ranks_per_node=2), dict(num_nodes=2)][n % 4]
    signatures.append(mixed.s(kind=kind).set(
        name=f"mixed-{kind}", max_retries=1 if kind == "flaky" else 0, retry_delay=0, **shape))
for n in range(12):
    signatures.append(ranks.s().set(name="mixed-ok", num_nodes=1 + n % 4, ranks_per_node=2))
print(json.dumps([result.id for result in submit_many(signatures)]))
"""


def stdout(live: LiveSite, id: str) -> str:
    """What a finished task printed."""
    row = live.wait_for(id, "JOB_FINISHED", "FAILED", timeout=150)
    assert row.state == "JOB_FINISHED", (row.reason, stderr(live, id))
    path = Path(row.work_dir or "", "stdout")
    return path.read_text(encoding="utf-8") if path.exists() else ""  # none is kept of no output


def stderr(live: LiveSite, id: str) -> str | None:
    with live.store.read() as conn:
        return queries.attempts(conn, id)[-1].stderr_tail


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def lives(pid: int) -> bool:
    return procs.identity(pid) is not None


def test_mpi_programs_over_one_to_eight_nodes(slurm_site: LiveSite) -> None:
    shapes = [(1, 2), (2, 1), (3, 2), (4, 1), (8, 1)]
    ids = [
        slurm_site.submit(
            "--num-nodes", str(nodes), "--ranks-per-node", str(ranks), "--", sys.executable, MPI_SUM
        )[0]
        for nodes, ranks in shapes
    ]
    for id, (nodes, ranks) in zip(ids, shapes, strict=True):
        size = nodes * ranks
        printed = json.loads(stdout(slurm_site, id))
        given = [share["node"] for share in attempt_nodes(slurm_site, id)]
        assert printed["size"] == size
        assert printed["sum"] == size * (size + 1) // 2
        assert Counter(printed["nodes"]) == dict.fromkeys(given, ranks)
        assert len(given) == nodes
        assert set(given) <= set(NODES)


def test_own_steps_keep_to_the_nodes_of_their_task(slurm_site: LiveSite) -> None:
    """Of a job of eight nodes, of which a worker of one node knows from its keeper."""
    own = (
        "--launcher",
        "none",
        "--",
        "srun",
        "--input=none",
        "sh",
        "-c",
        'echo "$SLURMD_NODENAME"',
    )
    narrow = ("--array", "1-4", "--node-packing-count", "1")
    ids = [*slurm_site.submit(*narrow, *own), *slurm_site.submit("--num-nodes", "2", *own)]
    used = set()
    for id in ids:
        printed = stdout(slurm_site, id).split()
        given = [share["node"] for share in attempt_nodes(slurm_site, id)]
        assert sorted(printed) == sorted(given)
        used.update(printed)
    assert used != {NODES[0]}, "by itself Slurm takes the first"


def attempt_nodes(live: LiveSite, id: str) -> list[dict[str, str]]:
    with live.store.read() as conn:
        return queries.attempts(conn, id)[-1].nodes


def test_nwchem_over_two_nodes(slurm_site: LiveSite, tmp_path: Path) -> None:
    engine = shutil.which("nwchem.openmpi") or shutil.which("nwchem")
    if engine is None:
        pytest.fail("NWChem is not installed")
    (tmp_path / "water.nw").write_text(WATER, encoding="utf-8")
    # the nodes share a host name here, so ranks of two nodes would take the same shared memory
    # each rank writes down on which node Slurm has started its daemon, and becomes NWChem
    rank = f'touch "rank-$SLURMD_NODENAME.$OMPI_COMM_WORLD_RANK"; exec {engine} "$1"'
    (id,) = slurm_site.submit(
        "--num-nodes", "2", "--launcher", "openmpi",
        "--env", "OMPI_MCA_btl=self,tcp", "--env", "OMPI_MCA_osc=pt2pt",
        "--", "/bin/sh", "-c", rank, "sh", str(tmp_path / "water.nw"),
    )  # fmt: skip
    printed = stdout(slurm_site, id)
    found = re.search(r"Total SCF energy =\s*(-?\d+\.\d+)", printed)
    assert found, printed[-2000:]
    assert float(found[1]) == pytest.approx(WATER_ENERGY, abs=1e-8)
    assert re.search(r"nproc\s*=\s*2\b", printed)
    # NWChem itself knows both nodes by their one host name alone
    nodes = attempt_nodes(slurm_site, id)
    assert len({share["node"] for share in nodes}) == len(nodes) == 2
    assert Counter(ranks_on(slurm_site, id)) == dict.fromkeys((one["node"] for one in nodes), 1)


def ranks_on(live: LiveSite, id: str) -> list[str]:
    """Nodes of a task's ranks, by the files ``rank-NODE.RANK`` that these have left."""
    directory = Path(live.task(id).work_dir or "")
    return [path.name.removeprefix("rank-").partition(".")[0] for path in directory.glob("rank-*")]


def test_three_hundred_mixed_tasks(slurm_site: LiveSite, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    code = MIXED.replace("LEDGER", repr(str(ledger))).replace("MPI_SUM", repr(MPI_SUM))
    ids = slurm_site.python(code)
    assert len(set(ids)) == 300

    def final() -> int:
        return sum(row.finished is not None for row in slurm_site.tasks(workflow="mixed"))

    wait_until(lambda: final() == 300, 330, "all 300 are final")
    expected = {"mixed-ok": "JOB_FINISHED", "mixed-flaky": "JOB_FINISHED", "mixed-fail": "FAILED"}
    rows = slurm_site.tasks(workflow="mixed")
    assert [(r.id, r.state, r.reason) for r in rows if r.state != expected[r.name]] == []
    with slurm_site.store.read() as conn:
        attempt = schema.attempt.c
        query = select(attempt.task, attempt.number, attempt.outcome, attempt.exit_code)
        attempts = conn.execute(query.where(attempt.task.in_(ids))).all()
    successes = Counter(one.task for one in attempts if one.exit_code == 0)
    assert successes == {row.id: 1 for row in rows if row.state == "JOB_FINISHED"}
    ran = Counter(tuple(line.split()) for line in ledger.read_text().splitlines())
    assert set(ran.values()) == {1}


def test_a_task_over_all_nodes_amid_small_ones(slurm_site: LiveSite) -> None:
    small = slurm_site.submit("--array", "1-60", "--workflow", "amid", "--", "sleep", "0.5")
    slurm_site.wait_for(small[0], "RUNNING", "JOB_FINISHED")
    (wide,) = slurm_site.submit("--num-nodes", "8", "--", sys.executable, MPI_SUM)
    later = slurm_site.submit("--array", "1-60", "--workflow", "amid", "--", "sleep", "0.2")
    assert json.loads(stdout(slurm_site, wide))["size"] == 8
    for id in (*small, *later):
        slurm_site.wait_for(id, "JOB_FINISHED")
    with slurm_site.store.read() as conn:
        last = {id: queries.attempts(conn, id)[-1] for id in (wide, *small, *later)}
    whole = last.pop(wide)
    assert {one.pilot for one in last.values()} == {whole.pilot}
    begun, ended = times(whole)
    before = [one for one in last.values() if times(one)[1] <= begun]
    after = [one for one in last.values() if times(one)[0] >= ended]
    assert len(before) + len(after) == len(last), "it had all the nodes to itself"
    assert {one.task for one in before} & set(small)
    assert {one.task for one in after} & set(later)


def times(attempt: AttemptRow) -> tuple[float, float]:
    """When an attempt that is over was running."""
    assert attempt.started is not None
    assert attempt.ended is not None
    return attempt.started, attempt.ended


def test_kill_over_four_nodes_of_ranks_that_ignore_term(
    slurm_site: LiveSite, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    (first,) = slurm_site.submit("--num-nodes", "8", "--launcher", "none", "--", "true")
    slurm_site.wait_for(first, "JOB_FINISHED", timeout=120)
    (id,) = slurm_site.submit(
        "--num-nodes", "4", "--ranks-per-node", "2",
        "--", sys.executable, NASTY, "session", str(pids),
    )  # fmt: skip
    # each of eight ranks notes itself and its child in a session of its own
    wait_until(lambda: len(pids_in(pids)) == 16, 90, "all ranks run")
    # the pilot has all nodes of the machine, so this one waits for those of the killed one
    check = f'for pid in $(cat "{pids}"); do kill -0 $pid 2>/dev/null && echo alive; done; true'
    (follower,) = slurm_site.submit(
        "--num-nodes", "8", "--launcher", "none", "--", "/bin/sh", "-c", check
    )
    slurm_site.balsam("kill", id)
    slurm_site.wait_for(id, "USER_KILLED")
    assert not [pid for pid in pids_in(pids) if lives(pid)]
    assert not processes_of(id)
    # when the nodes were given again nothing lived
    assert stdout(slurm_site, follower) == ""


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_program_under_env_i_is_found(slurm_site: LiveSite, tmp_path: Path, nodes: str) -> None:
    """Its processes have no mark, no parent and no session of ours: nothing outlives the kill."""
    pids = tmp_path / "pids"
    (id,) = slurm_site.submit(
        "--num-nodes", nodes, "--ranks-per-node", "2", "--",
        "/bin/sh", "-c", f'"{sys.executable}" "{NASTY}" nameless "{pids}"; '
        f'exec env -i "{sys.executable}" "{NASTY}" deaf "{pids}"',
    )  # fmt: skip
    # each rank: the nameless daemon, the one that made it, and the rank itself
    ranks = 2 * int(nodes)
    wait_until(lambda: len(pids_in(pids)) == 3 * ranks, 90, "all of it runs")
    assert len([pid for pid in pids_in(pids) if lives(pid)]) == 2 * ranks
    slurm_site.balsam("kill", id)
    slurm_site.wait_for(id, "USER_KILLED")
    assert not [pid for pid in pids_in(pids) if lives(pid)]


def test_what_ranks_leave_behind_ends_with_their_task(slurm_site: LiveSite, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # Slurm waits a minute for the end of a rank's output, whoever holds it
    script = f'exec "{sys.executable}" "{NASTY}" nameless "{pids}" > /dev/null 2>&1'
    (id,) = slurm_site.submit("--num-nodes", "2", "--", "/bin/sh", "-c", script)
    stdout(slurm_site, id)
    assert len(pids_in(pids)) == 4
    assert not [pid for pid in pids_in(pids) if lives(pid)]


def test_what_the_user_sees(slurm_site: LiveSite) -> None:
    of_a_step = "^(PMI|PMI2|PMIX|OMPI|PRTE|HYDRA)_|^SLURM_(STEP|PROCID|LOCALID|NODEID|SRUN)"
    # but what keeps an mpirun of its own to the task's node is the task's
    script = f"env | grep -v _plm_slurm_args= | grep -Ec '{of_a_step}'; sleep 600"
    (id,) = slurm_site.submit("--", "/bin/sh", "-c", script)
    slurm_site.wait_for(id, "RUNNING", timeout=120)
    row = allocation_of(slurm_site, id)
    shown = {one["id"]: one for one in slurm_site.json("allocations")["allocations"]}
    assert shown[row.id]["native_id"] == row.native_id
    node = attempt_nodes(slurm_site, id)[0]["node"]
    worker = f"{node}@{pilot_of(slurm_site, id).id}"
    only = ("--timeout", "30", "--destination", worker)
    assert id in slurm_site.celery("inspect", "active", "--json", *only)
    # the keeper of its node, a rank of the pilot's own step, has such variables
    directory = slurm_site.site.run_dir / "allocations" / row.id / pilot_of(slurm_site, id).id
    keeper = json.loads((directory / f"{node}.keeper.pid").read_text(encoding="utf-8"))["pid"]
    variables = Path(f"/proc/{keeper}/environ").read_bytes().decode().split("\0")
    assert len([one for one in variables if re.match(of_a_step, one)]) > 1
    slurm_site.balsam("kill", id)
    slurm_site.wait_for(id, "USER_KILLED")
    with slurm_site.store.read() as conn:
        assert queries.attempts(conn, id)[-1].stdout_tail == "0\n"
