"""Memory of every process of a site, and of its Redis, under a steady load.

Usage: memory.py [--fill N] [--minutes N] [--rate N] [--warm-up MINUTES] [--json FILE]

A site with one pilot of two virtual nodes first runs ``--fill`` tasks as fast as it can, so that
what remembers a certain number of them is full. Then it is given ``--rate`` tasks a second, in
equal groups each second, for ``--minutes``. Every half a minute the proportional set size (PSS) of
each process and ``used_memory`` of Redis are read. Printed are, of each that lived from the warm-up
to the end: megabytes after the warm-up and at the end, the line fitted to all samples between in
megabytes an hour, and the least and the most. Rows in SQL grow by design; the size of the database
is printed for that reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from balsam_celery import program, submit_many, tasks
from balsam_celery.celeryapp import redis_client
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.states import State
from balsam_celery.supervisor import children, down, records, up
from benchmarks.startup import memory

#: Seconds between two samples.
EVERY = 30.0
#: Tasks a second that even a loaded machine runs.
_LEAST_RATE = 20
#: Tasks of the fill that are submitted at once.
_FILL = 2000


@dataclass(frozen=True)
class Line:
    """What became of one process: megabytes, and megabytes an hour."""

    name: str
    first: float
    last: float
    least: float
    most: float
    an_hour: float


def line(name: str, samples: list[tuple[float, float]]) -> Line:
    """Of samples of seconds and megabytes."""
    times, sizes = zip(*samples, strict=True)
    slope = statistics.linear_regression(times, sizes).slope * 3600
    return Line(name, sizes[0], sizes[-1], min(sizes), max(sizes), slope)


def processes(site: Site) -> dict[str, int]:
    """Pids of the site's processes, by a name that tells them apart; users' programs are not."""
    supervisor = records.read(site, children.SUPERVISOR)
    assert supervisor is not None
    assert supervisor.process is not None
    found = {f"supervisor {supervisor.process.pid}": supervisor.process.pid}
    for name in children.NAMES:
        record = records.read(site, name)
        if record is not None and record.process is not None:
            found[f"{name} {record.process.pid}"] = record.process.pid
    for path in site.run_dir.glob("allocations/*/*/*.pid"):
        pid = json.loads(path.read_text(encoding="utf-8"))["pid"]
        found[f"pilot: {path.stem} {pid}"] = pid
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found[f"pilot: parent {parent}"] = parent
    return found


def sample(site: Site) -> dict[str, float]:
    """Megabytes of each process and of what Redis holds."""
    sizes = {}
    for name, pid in processes(site).items():
        try:
            sizes[name] = memory(pid)[0]
        except OSError:
            continue  # it has ended
    with redis_client(site) as client:
        sizes["Redis, used_memory"] = client.info("memory")["used_memory"] / 2**20
    return sizes


def load(
    site: Site, seconds: float, rate: int, fill: int
) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Submit at a steady rate and sample; returns the samples and how many were submitted."""
    true = program("true", ["/bin/true"], wall_time="1m")
    # for its time there is a pilot
    needed = int(seconds + fill / _LEAST_RATE)
    lasting = program("lasting", ["/bin/sleep", f"{needed}"], wall_time=needed + 60)
    submit_many([lasting.s()])
    for first in range(0, fill, _FILL):
        submit_many(true.s() for _ in range(min(_FILL, fill - first)))
        while tasks.count().get(State.JOB_FINISHED, 0) < first:  # the next ones wait meanwhile
            time.sleep(1.0)
    samples = defaultdict(list)
    begin = time.monotonic()
    submitted, looked = 0, 0.0
    while (now := time.monotonic() - begin) < seconds:
        due = int(now * rate) - submitted
        if due > 0:
            submit_many(true.s() for _ in range(due))
            submitted += due
        if now - looked >= EVERY:
            looked = now
            for name, size in sample(site).items():
                samples[name].append((now, size))
        time.sleep(1.0)
    return samples, fill + submitted


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--rate", type=int, default=4)
    parser.add_argument("--fill", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="balsam-memory-") as scratch:
        os.environ["XDG_STATE_HOME"] = scratch
        site = init(Path(scratch) / "s", name="m", local=LocalSettings(nodes=2, cores_per_node=4))
        os.environ["BALSAM_SITE"] = str(site.directory)
        up(site)
        try:
            samples, submitted = load(site, options.minutes * 60, options.rate, options.fill)
            finished = tasks.count().get(State.JOB_FINISHED, 0)
        finally:
            down(site)
        size = site.database_path.stat().st_size / 2**20
    since, until = options.warm_up * 60, options.minutes * 60 - 2 * EVERY
    lines = [
        line(name, kept)
        for name, some in samples.items()
        if some[-1][0] >= until and some[0][0] <= since
        if len(kept := [one for one in some if one[0] >= since]) > 1
    ]
    print(
        f"{submitted} tasks, the last in {options.minutes:g} min, {finished} finished;"
        f" SQL {size:.1f} MB"
    )
    print(f"{'MB':>60}    first     last    least     most    an hour")
    for one in sorted(lines, key=lambda one: -one.an_hour):
        values = f"{one.first:8.1f} {one.last:8.1f} {one.least:8.1f} {one.most:8.1f}"
        print(f"{one.name:>60} {values} {one.an_hour:+10.2f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in lines], indent=1))


if __name__ == "__main__":
    main()
