"""CPU time of each process of a site, per 1,000 × /bin/true; for a machine that others use too.

Usage: cpu.py [--tasks N] [--rounds N] [--slots N]

Tasks per second (``throughput.py``) mean something on a quiet machine alone. What a task costs each
process in CPU time can be compared on a busy one as well, side by side: the kernel counts it.
After each round a table is printed: milliseconds of CPU time per task (user and system), and what
the site's Redis was asked per task.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path

import redis
from throughput import fresh_site

from balsam_celery import program, submit_many, wait
from balsam_celery.celeryapp import redis_client
from balsam_celery.site import SITE_VARIABLE, Site

_TICK = os.sysconf("SC_CLK_TCK")


def _name(pid: int, environment: bytes) -> str:
    """What a process of the site is, by its mark, else by its command and its parent's."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    if "balsam_celery.pilot" in command:
        parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        above = Path(f"/proc/{parent}/cmdline").read_bytes()
        return "pilot: worker" if b"balsam_celery.pilot" in above else "pilot: main process"
    if "local_keeper" in command:
        return "keeper of the job"
    for entry in environment.split(b"\0"):
        if entry.startswith(b"BALSAM_PROCESS="):
            return entry.rpartition(b"/")[2].decode()
    return "others"


def site_processes(site: Site) -> dict[int, str]:
    """Processes of the site and what they are, this one aside."""
    mark = f"{SITE_VARIABLE}={site.directory}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            if mark in environment.split(b"\0"):
                found[int(entry.name)] = _name(int(entry.name), environment)
        except OSError:
            continue
    return found


def cpu_times(processes: dict[int, str]) -> Counter[tuple[str, str]]:
    """Seconds by process and kind; of ended children only those that a process has waited for."""
    times: Counter[tuple[str, str]] = Counter()
    for pid, name in processes.items():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            continue
        user, system, waited_user, waited_system = map(int, stat.rpartition(")")[2].split()[11:15])
        times[name, "user"] += user / _TICK
        times[name, "system"] += system / _TICK
        if name == "pilot: worker":
            name = "programs"
        else:
            name += " (children)"
        times[name, "user"] += waited_user / _TICK
        times[name, "system"] += waited_system / _TICK
    own = os.times()
    times["client", "user"] = own.user
    times["client", "system"] = own.system
    return times


def commands(client: redis.Redis) -> Counter[str]:
    """How often each command was given to Redis."""
    stats = client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): of["calls"] for name, of in stats.items()})


def warm_up(slots: int) -> None:
    """Let a pilot start, whose allocation is long enough for all rounds."""
    wait(submit_many(program("true", ["/bin/true"], wall_time="20m").s() for _ in range(slots)))


def one_round(site: Site, tasks: int) -> None:
    client = redis_client(site)
    processes = site_processes(site)
    before, asked = cpu_times(processes), commands(client)
    true = program("true", ["/bin/true"], wall_time="1m")
    start = time.perf_counter()
    rows = submit_many(true.s() for _ in range(tasks))
    submitted = time.perf_counter() - start
    progress = wait(rows)
    seconds = time.perf_counter() - start
    if progress.finished != tasks:
        raise SystemExit(f"only {progress.finished} of {tasks} finished")
    after = cpu_times(processes)
    asked = commands(client) - asked
    print(f"\n{tasks} tasks, {seconds:.1f} s (submission {submitted:.1f} s)")
    print("| process | user, ms per task | system, ms per task | sum |")
    print("| --- | --- | --- | --- |")
    spent = {key: (value - before[key]) * 1000 / tasks for key, value in after.items()}
    total = 0.0
    for name in dict.fromkeys(name for name, _ in after):
        user, system = spent[name, "user"], spent[name, "system"]
        total += user + system
        if user + system >= 0.005:
            print(f"| {name} | {user:.2f} | {system:.2f} | {user + system:.2f} |")
    print(f"| all | | | {total:.2f} |")
    most = ", ".join(f"{name} {n / tasks:.2f}" for name, n in asked.most_common(14))
    print(f"Redis, commands per task: {most}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    with fresh_site(options.slots) as site:
        warm_up(options.slots)
        for _ in range(options.rounds):
            one_round(site, options.tasks)


if __name__ == "__main__":
    main()
