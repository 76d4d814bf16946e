"""How long a pilot over many nodes takes to start, and what memory its processes have.

Usage: startup.py [--nodes 8 64] [--rounds N]

The nodes are names on this machine, as in the tests: all processes are real, keepers and node
workers start through the real ``mpiexec`` of MPICH, and only the way to another host is short. The
time is from the start of the pilot's process to its registration. Memory is the proportional set
size (PSS: shared pages are divided among those that share them) and, in brackets, the resident set
size. On a cluster a node has one keeper and one worker, which share with each other only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.pilot.cluster import Cluster
from tests.pilot.service import Pilot, Service
from tests.redis_server import RedisServer


def memory(pid: int) -> tuple[float, float]:
    """PSS and RSS of a process in MB."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Pss", "Rss"):
            values[name] = int(rest.split()[0]) / 1024
    return values["Pss"], values["Rss"]


def show(title: str, pids: list[int]) -> None:
    """One line: medians over processes."""
    pss, rss = zip(*map(memory, pids), strict=True)
    print(
        f"  {title}: {statistics.median(pss):.1f} MB ({statistics.median(rss):.1f}), "
        f"in all {sum(pss):.0f} MB"
    )


def measure(service: Service, nodes: int, rounds: int) -> None:
    """Start pilots of so many nodes, one after the other."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        pilot: Pilot = service.begin([1] * nodes, virtual=False)
        registered = pilot.wait_registered(600)
        seconds.append(time.perf_counter() - began)
        assert len(registered.nodes) == nodes, "all of them came"
        last = len(seconds) == rounds
        if last:
            print(f"{nodes} nodes: {statistics.median(seconds):.1f} s ({seconds})")
            show("keeper", [pilot.identity_of(f"{node}.keeper").pid for node in pilot.nodes])
            show("node worker", [pilot.pid_of(node) for node in pilot.nodes])
            show("main process", [pilot.process.pid])
            show("gang worker", [pilot.pid_of("gang")])
        began = time.perf_counter()
        pilot.process.terminate()
        pilot.wait_ended(300)
        if last:
            print(f"  its end: {time.perf_counter() - began:.1f} s")


def main() -> None:
    """Print a paragraph for each number of nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="balsam-startup-") as scratch:
        directory = Path(scratch)
        (directory / "redis").mkdir()
        server = RedisServer(directory / "redis")
        server.start()
        service = Service(Cluster(directory / "c", server, start_timeout=600).site, server)
        try:
            for nodes in options.nodes:
                measure(service, nodes, options.rounds)
        finally:
            service.close()
            server.stop()


if __name__ == "__main__":
    main()
