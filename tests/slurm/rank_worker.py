"""A pilot's worker without a pilot: runs and ends attempts, as told line by line on stdin.

``rank_worker.py SITE ENVIRONMENT NODE… [/ NODE…]`` in a job whose environment is in that file; the
nodes behind ``/`` are of its pilot, and not its own. It reads
``["run", attempt]`` and ``["kill", id, number]`` and writes ``["started", id]``,
``["swept", brand, grace]`` and ``["ended", outcome]``. In place of the keepers of other nodes it
sweeps this host, which is all of the test cluster.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from balsam_celery import site, wire
from balsam_celery.pilot.attempt import Attempt, rank_mark
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.environment import inherited
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.pilot.process import Spawner, end_all
from balsam_celery.pilot.runner import Runner
from balsam_celery.pilot.slots import Slots
from balsam_celery.procs import Quarry, become_subreaper
from balsam_celery.resources import NodeCapacity
from balsam_celery.wire import Ended, TaskSpec

_WRITING = threading.Lock()


def say(*what: object) -> None:
    with _WRITING:
        print(json.dumps(what), flush=True)


def sweep(attempt: Attempt, grace: float, _signal: int) -> str:
    say("swept", attempt.brand, grace)
    end_all(Quarry(marks=frozenset((rank_mark(attempt.brand),))), grace)
    end_all(Quarry(marks=frozenset((attempt.mark,)), attempts=frozenset((attempt.brand,))), grace)
    return ""


def main(directory: str, variables: str, *names: str) -> None:
    text = Path(variables).read_bytes().decode().rstrip("\0")
    os.environ.clear()
    os.environ.update(entry.split("=", 1) for entry in text.split("\0"))
    become_subreaper()
    found = site.find(Path(directory))
    cores = tuple(sorted(os.sched_getaffinity(0)))
    own, _, others = " ".join(names).partition("/")
    nodes = tuple(NodeCapacity(name, cores, pinned=True) for name in own.split())
    rest = tuple(NodeCapacity(name, cores, pinned=True) for name in others.split())
    pilot = PilotContext(
        site=found,
        pilot="p1",
        allocation="a1",
        nodes=(*nodes, *rest),
        end_time=2e9,
        environment=inherited(os.environ, found.settings),
    )
    pilot.directory.mkdir(parents=True)
    node = nodes[0].name if len(nodes) == 1 else "gang"
    context = WorkerContext(pilot, node, nodes)
    pool = AttemptPool(limit=len(nodes))
    runner = Runner(
        context,
        Spawner(),
        lambda attempt: say("started", attempt.spec.id),
        sweep if len(nodes) > 1 else None,
    )

    def report(ended: Ended, idle: bool) -> None:
        say("ended", wire.to_plain(ended))

    slots = Slots((one.name, core) for one in nodes for core in one.cores)
    pool.attach(slots, runner.run, runner.ending, report)
    for line in sys.stdin:
        word, *what = json.loads(line)
        if word == "run":
            pool.submit([Attempt(wire.from_plain(TaskSpec, what[0]))])
        else:
            pool.condemn([((what[0], what[1]), "killed", "asked")])
    pool.drain("the test is over")


if __name__ == "__main__":
    main(*sys.argv[1:])
