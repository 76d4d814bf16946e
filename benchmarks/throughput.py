"""Tasks per second for 1,000 × /bin/true with everything recorded, beside ``xargs -P``.

Usage: throughput.py [--tasks N] [--rounds N] [--slots 2 8]

A round times, one right after the other: ``xargs -P SLOTS`` over the same programs (no record at
all), and the same number of tasks on a running one-node pilot, from the call that submits them
until the last one is JOB_FINISHED in SQL. The figure to look at is the ratio: the machine cancels
out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balsam_celery import program, submit_many, wait
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.supervisor import down, up


@contextmanager
def fresh_site(slots: int) -> Iterator[Site]:
    """A site with one virtual node of ``slots`` slots, up; removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="balsam-bench-"))
    site = init(directory, name="bench", local=LocalSettings(nodes=1, cores_per_node=slots))
    os.environ["BALSAM_SITE"] = str(directory)
    up(site)
    try:
        yield site
    finally:
        down(site)
        shutil.rmtree(site.local_dir)
        shutil.rmtree(directory)


def xargs_rate(tasks: int, slots: int) -> float:
    """Programs per second of ``xargs -P slots``."""
    lines = "".join(f"{n}\n" for n in range(tasks))
    start = time.perf_counter()
    command = ["xargs", "-P", str(slots), "-n", "1", "/bin/true"]
    subprocess.run(command, input=lines, text=True, check=True)
    return tasks / (time.perf_counter() - start)


def balsam_rate(tasks: int) -> float:
    """Tasks per second from submission to the last record."""
    # as long as the benchmark may last: the first of them decide how long the pilot lives
    true = program("true", ["/bin/true"], wall_time="20m")
    start = time.perf_counter()
    progress = wait(submit_many(true.s() for _ in range(tasks)))
    seconds = time.perf_counter() - start
    if progress.finished != tasks:
        raise SystemExit(f"only {progress.finished} of {tasks} finished")
    return tasks / seconds


def measure(slots: int, tasks: int, rounds: int) -> None:
    """Print a row for one number of slots; runs in a process of its own (one site each)."""
    with fresh_site(slots):
        balsam_rate(slots)  # the pilot starts before the clock does
        pairs = [(xargs_rate(tasks, slots), balsam_rate(tasks)) for _ in range(rounds)]
    floor = statistics.median(pair[0] for pair in pairs)
    own = statistics.median(pair[1] for pair in pairs)
    ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
    print(f"| {slots} | {floor:,.0f} | {own:,.0f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 8])
    options = parser.parse_args()
    if len(options.slots) == 1:
        measure(options.slots[0], options.tasks, options.rounds)
        return
    print(f"{options.tasks} × /bin/true, medians of {options.rounds} rounds")
    print("| slots | xargs -P, programs/s | balsam_celery, tasks/s | ratio |")
    print("| --- | --- | --- | --- |", flush=True)
    for slots in options.slots:
        arguments = ["--slots", str(slots), "--tasks", str(options.tasks)]
        subprocess.run(
            [sys.executable, __file__, *arguments, "--rounds", str(options.rounds)], check=True
        )


if __name__ == "__main__":
    main()
