"""A pilot over several hosts: how it starts, or says why it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery import keys, procs
from balsam_celery.wire import PilotEnded, Registered
from tests.pilot.cluster import MPIEXEC, Cluster
from tests.pilot.service import Pilot, Service
from tests.redis_server import RedisServer
from tests.waiting import wait_until

pytest.importorskip("mpi4py")


def log_of(pilot: Pilot) -> str:
    """What the pilot's log says so far."""
    directory = pilot.service.site.run_dir / "allocations" / pilot.allocation
    return "".join(path.read_text() for path in directory.glob("*/pilot.log"))


def keepers(pilot: Pilot) -> list[procs.Identity]:
    """The keepers of all its nodes."""
    return [pilot.identity_of(f"{node}.keeper") for node in pilot.nodes]


def test_eight_nodes(head: Service) -> None:
    """All come, each with what it has; then all go, and the last word comes after that."""
    pilot = head.start([2] * 8, virtual=False)
    [registered] = head.all(Registered)
    assert [node.name for node in registered.nodes] == pilot.nodes
    usable = tuple(sorted(os.sched_getaffinity(0)))
    for node in registered.nodes:
        assert node.memory > 0
        assert node.cores == (usable if len(usable) == 2 else (0, 1))
    assert len({keeper.pid for keeper in keepers(pilot)}) == 8
    for number, node in enumerate(pilot.nodes):
        share = (pilot.share(node),)
        pilot.run(
            pilot.spec(f"on-{node}", "/bin/sh", "-c", f"exit {number}", shares=share), node=node
        )
    assert [head.ended(f"on-{node}").exit_code for node in pilot.nodes] == list(range(8))
    assert pilot.inspect("stats", keys.GANG)["pool"]["max-concurrency"] == 8
    processes = [*keepers(pilot), *(pilot.identity_of(name) for name in [*pilot.nodes, keys.GANG])]
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert [one for one in processes if procs.alive(one)] == []
    assert [last.reason for last in head.all(PilotEnded)] == ["SIGTERM received"]


@pytest.mark.timeout(1200)
def test_sixty_four_nodes(tmp_path: Path, redis_server: RedisServer) -> None:
    """All keepers and workers come on this one machine, run what they are sent, and go."""
    service = Service(Cluster(tmp_path / "c", redis_server, start_timeout=600).site, redis_server)
    try:
        pilot = service.begin([1] * 64, virtual=False)
        registered = pilot.wait_registered(600)
        assert [node.name for node in registered.nodes] == pilot.nodes
        processes = [*keepers(pilot), *(pilot.identity_of(name) for name in pilot.nodes)]
        assert len(set(processes)) == 2 * 64
        for node in pilot.nodes:
            share = (pilot.share(node),)
            pilot.run(pilot.spec(f"on-{node}", "/bin/true", shares=share), node=node)
        assert {service.ended(f"on-{node}", timeout=60).exit_code for node in pilot.nodes} == {0}
        pilot.process.send_signal(signal.SIGTERM)
        assert pilot.wait_ended(300) == 0
        assert [one for one in processes if procs.alive(one)] == []
    finally:
        service.close()


def test_the_token_is_in_no_argument_or_variable(head: Service) -> None:
    pilot = head.start([1, 1], virtual=False)
    invitation = pilot.directory / "nodes.json"
    assert invitation.stat().st_mode & 0o077 == 0
    token = invitation.read_text().partition('"token":"')[2].partition('"')[0]
    secrets = [token.encode(), head.server.password.encode()]
    for pid in [pilot.process.pid, *(keeper.pid for keeper in keepers(pilot))]:
        shown = (
            Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        )
        assert not [secret for secret in secrets if secret in shown]
    logs = "".join(path.read_text() for path in pilot.directory.glob("*.log"))
    assert token not in logs
    assert head.server.password not in logs


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # as a launcher does whose PMI the library does not speak: every rank is alone
        (["env", "-u", "PMI_FD", "sh", "{hostfile}.each", "{hosts}", "{command}"], "size 1, not 3"),
        (
            [MPIEXEC, "-launcher", "fork", "-hosts", "n1", "-n", "2", "{command}"],
            "size 2, not 3",
        ),
        (["false", "{command}"], "no node can be used"),
    ],
    ids=["singletons", "too few", "nothing"],
)
def test_launcher_that_starts_something_else(
    tmp_path: Path, redis_server: RedisServer, template: list[str], message: str
) -> None:
    each = tmp_path / "each"
    each.write_text('IFS=,; hosts=$1; shift; for host in $hosts; do "$@" & done; wait\n')
    template = [str(each) if part == "{hostfile}.each" else part for part in template]
    service = Service(Cluster(tmp_path / "c", redis_server, template).site, redis_server)
    try:
        pilot = service.begin([1, 1, 1], virtual=False)
        assert pilot.wait_ended(60) == 1
        said = pilot.log.read_text()
        assert message in said
        assert said.count("\n") == 1, said
        error = service.site.run_dir / "allocations" / pilot.allocation / "error.txt"
        assert f"pilot: {error.read_text()}" == said
        assert not service.all(Registered)
    finally:
        service.close()


def test_mpi_that_cannot_be_loaded(
    cluster: Cluster, head: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
    pilot = head.begin([1, 1], virtual=False)
    assert pilot.wait_ended(60) == 1
    said = pilot.log.read_text()
    assert "mpi4py cannot be used" in said
    assert said.count("\n") == 1, said


def test_launcher_none(tmp_path: Path, redis_server: RedisServer) -> None:
    cluster = Cluster(tmp_path / "c", redis_server)
    file = cluster.site.directory / "site.toml"
    file.write_text(file.read_text().replace("[pilot]\n", '[pilot]\nlauncher = "none"\n'))
    service = Service(cluster.site, redis_server)
    try:
        pilot = service.begin([1, 1], virtual=False)
        assert pilot.wait_ended() == 1
        said = pilot.log.read_text()
        assert "name one as pilot.launcher" in said
        assert said.count("\n") == 1, said
    finally:
        service.close()


def test_a_node_that_cannot_be_started(tmp_path: Path, redis_server: RedisServer) -> None:
    """It takes the launch of all with it; then each is started by itself, and one is missing.

    The ``mpiexec`` that failed leaves nothing on the hosts that it had reached.
    """
    cluster = Cluster(tmp_path / "c", redis_server, start_timeout=20)
    cluster.cut("n2")
    service = Service(cluster.site, redis_server)
    try:
        pilot = service.begin([1, 1, 1, 1], virtual=False)
        registered = pilot.wait_registered()
        assert [node.name for node in registered.nodes] == ["n0", "n1", "n3"]
        assert "node n2 is not used" in log_of(pilot)
        wait_until(lambda: not cluster.proxies(), 20, "nothing of the launchers is left anywhere")
        pilot.run(pilot.spec("task", "/bin/true", shares=(pilot.share("n3"),)), node="n3")
        assert service.ended("task").exit_code == 0
        pilot.process.send_signal(signal.SIGTERM)
        assert pilot.wait_ended() == 0
        assert service.all(PilotEnded)
    finally:
        service.close()


def test_what_pbs_tells_of_a_tasks_nodes(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has nodes of which a node's worker, or the pilot, makes no use."""
    file = tmp_path / "7.head"
    file.write_text("n0\nn1\nn2\n")
    monkeypatch.setenv("PBS_JOBID", file.name)
    monkeypatch.setenv("PBS_NODEFILE", str(file))
    cluster = Cluster(tmp_path / "c", redis_server, start_timeout=20)
    cluster.cut("n2")
    service = Service(cluster.site, redis_server)
    try:
        pilot = service.begin([1, 1, 1], virtual=False)
        assert [node.name for node in pilot.wait_registered().nodes] == ["n0", "n1"]
        show = ("/bin/sh", "-c", 'cat "$PBS_NODEFILE"')
        own = pilot.spec("one", *show, shares=(pilot.whole("n1"),))
        pilot.run(own, node="n1")
        shares = (pilot.whole("n0"), pilot.whole("n1"))
        pilot.run(pilot.spec("wide", *show, shares=shares, launcher="none"), node=keys.GANG)
        assert service.ended("one").stdout_tail.split() == ["n1"]
        assert service.ended("wide").stdout_tail.split() == ["n0", "n1"]
    finally:
        service.close()


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    os.environ.get("CI") != "true" and not _can_mount(),
    reason="needs a mount namespace of its own",
)
def test_a_node_that_cannot_reach_redis(tmp_path: Path, redis_server: RedisServer) -> None:
    """Its name of the host where Redis is leads elsewhere; the pilot says so and has the others."""
    cluster = Cluster(tmp_path / "c", redis_server, start_timeout=15)
    url = cluster.site.directory / "redis-url"
    url.write_text(redis_server.url.replace("127.0.0.1", "localhost"))
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.77 localhost\n127.0.0.1 {os.uname().nodename}\n")
    mount = f"mount --bind {hosts} /etc/hosts"
    cluster.wrap("n1", f'exec unshare -m sh -c "{mount} && $1"\n')
    service = Service(cluster.site, redis_server)
    try:
        pilot = service.begin([1, 1, 1], virtual=False)
        registered = pilot.wait_registered()
        assert [node.name for node in registered.nodes] == ["n0", "n2"]
        log = log_of(pilot)
        assert "node n1: cannot reach Redis: Error 111 connecting to localhost" in log
        assert "node n1 is not used" in log
        pilot.run(pilot.spec("task", "/bin/true", shares=(pilot.share("n2"),)), node="n2")
        assert service.ended("task").exit_code == 0
        pilot.process.send_signal(signal.SIGTERM)
        assert pilot.wait_ended() == 0
        assert service.all(PilotEnded)
    finally:
        service.close()


def test_redis_away_at_the_start(tmp_path: Path) -> None:
    """For all nodes: they wait for it, as a pilot of one host does."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    service = Service(Cluster(tmp_path / "c", server, start_timeout=8).site, server)
    server.stop()
    try:
        pilot = service.begin([1, 1], virtual=False)
        wait_until(lambda: log_of(pilot).count("cannot reach Redis") >= 2, 30, "both try")
        server.start()
        assert len(pilot.wait_registered().nodes) == 2
    finally:
        service.close()
        server.stop()


def test_sigterm_before_it_is_ready(cluster: Cluster, head: Service, tmp_path: Path) -> None:
    """While the launcher still waits for a node that never comes."""
    cluster.wrap("n1", "exec sleep 300\n")
    pilot = head.begin([1, 1], virtual=False)
    wait_until(lambda: "start of n0, n1" in log_of(pilot), 20, "it starts the nodes")
    found = keys.heartbeats(head.prefix, f"{pilot.allocation}*")
    [beats] = wait_until(lambda: head.client.keys(found), 20, "it has a heartbeat")
    assert head.client.ttl(beats) > 0, "nobody deletes that of one that never registers"
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0


@pytest.mark.parametrize("taken", [False, True])
def test_claim(service: Service, taken: bool) -> None:
    """One job serves an allocation; another one that comes for it steps back."""
    pilot = service.begin([1], native_id="17")
    pilot.wait_registered()
    claim = keys.claim(service.prefix, pilot.allocation)
    assert service.client.get(claim) == b"17"
    assert service.client.ttl(claim) > 0, "nobody deletes that of one that never registers"
    other = "18" if taken else "17"
    options = ["--site", str(service.site.directory), "--allocation", pilot.allocation]
    nodes = service.site.directory / f"{pilot.allocation}.nodes"
    nodes.write_text(nodes.read_text().replace('"17"', f'"{other}"'))
    second = subprocess.Popen(
        [sys.executable, "-m", "balsam_celery.pilot", *options],
        env={**os.environ, "BALSAM_LOCAL_NODES": str(nodes)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if taken:
            _, said = second.communicate(timeout=60)
            assert second.returncode == 0
            assert said == f"pilot: allocation {pilot.allocation} is served by job 17\n"
            assert pilot.process.poll() is None
        else:
            assert pilot.wait_ended() == 0, "a second incarnation of one job fences the first"
    finally:
        second.send_signal(signal.SIGTERM)
        # its last word is acknowledged, or it would wait for that
        wait_until(lambda: service.look() or second.poll() is not None, 60, "the second ends")
        second.communicate(timeout=60)
