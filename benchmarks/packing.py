"""How long a packing pass takes over a million waiting tasks in 50 shapes.

Usage: packing.py [--tasks N] [--shapes N] [--rounds N]

Beside each pass a known piece of work runs, sorting 100,000 numbers: the ratio of the two is the
same on a slow machine. Times are of the CPU. A pass is pure; the query that counts the backlog is
not in it. The first pass of a process also counts how many tasks of each shape fit a node, and is
shown by itself.

Three states are measured: nothing exists; all that may be asked for is queued; four allocations run
on 1,000 nodes, each of which is busy, many with their GPUs held.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from balsam_celery.limits import Policy, Queue, per_node
from balsam_celery.packing import Demand, Existing, Lane, Window, pack
from balsam_celery.resources import NodeCapacity, Resources

NODE = NodeCapacity("node", tuple(range(64)), tuple(range(4)))
QUEUES = (
    Queue("short", 1, 256, 60, 3600, 4, 4, NODE),
    Queue("wide", 64, 4000, 600, 86_400, 4, 4, NODE),
)
POLICY = Policy(10, 60, 30, 5)
WINDOWS = (Window("short", 40, 1800.0), Window("wide", 100))


def backlog(tasks: int, shapes: int) -> list[Demand]:
    """So many tasks in so many shapes, the same ones each time."""
    draw = random.Random(1)  # noqa: S311
    made = []
    for _ in range(shapes):
        wide = draw.choice([1, 1, 1, 2, 8, 64])
        wanted = Resources(
            num_nodes=wide,
            ranks_per_node=draw.choice([1, 2, 8, 32]) if wide == 1 else 64,
            gpus_per_rank=draw.choice([0, 0, 0.1]) if wide == 1 else 0,
        )
        limit = draw.choice([300, 1800, 3000, 20_000])
        expected = draw.choice([None, limit / 3, limit / 10])
        made.append(Demand(wanted, limit, tasks // shapes, draw.choice([0, 0, 1]), expected))
    return made


def states() -> dict[str, list[Existing]]:
    """What may exist already."""
    draw = random.Random(2)  # noqa: S311
    queued = [
        Existing(f"q{n}", QUEUES[n % 2].name, "queued", 200, 3000.0, NODE, waited=100.0)
        for n in range(8)
    ]
    running = [
        Existing(
            f"r{n}", "wide", "running", 1000, 40_000.0, NODE,
            tuple(
                Lane(
                    draw.randrange(32), t := draw.uniform(0, 3000), t / 2,
                    gpus=draw.choice([None, (0, 0, 0, 0), (0, 0, 500_000, 1_000_000)]),
                )
                for _ in range(1000)
            ),
        )
        for n in range(4)
    ]  # fmt: skip
    return {"nothing exists": [], "all is queued": queued, "4 × 1,000 nodes run": running}


def seconds(work: Callable[[], object]) -> float:
    """CPU time that it takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def show(title: str, passes: Sequence[float], known: Sequence[float]) -> None:
    """One line: medians."""
    took, beside = statistics.median(passes), statistics.median(known)
    print(f"  {title:20} {took * 1000:7.2f} ms, {took / beside:5.2f} × the known work", flush=True)


def main() -> None:
    """Print a line for each state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--shapes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    waiting = backlog(options.tasks, options.shapes)
    draw = random.Random(3)  # noqa: S311
    numbers = [draw.random() for _ in range(100_000)]
    print(f"{options.tasks:,} waiting tasks in {options.shapes} shapes")
    for title, there in states().items():

        def one(there: list[Existing] = there) -> object:
            return pack(waiting, QUEUES, there, POLICY, windows=WINDOWS)

        per_node.cache_clear()
        first = seconds(one)
        passes, known = [], []
        for _ in range(options.rounds):
            known.append(seconds(lambda: sorted(numbers)))
            passes.append(seconds(one))
        show(title, passes, known)
        print(f"  {'the first pass':20} {first * 1000:7.2f} ms")


if __name__ == "__main__":
    main()
