"""Moves the local scheduler's queue: whoever looks at it does this first, so no daemon is needed.

Every function wants the state's lock held.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from balsam_celery import procs
from balsam_celery.brands import children_branded
from balsam_celery.keys import HOOK_MARK
from balsam_celery.outer import clean_environment
from balsam_celery.procs import Identity
from balsam_celery.schedulers.local_queue import Holding, Waiting, choose, expected_starts
from balsam_celery.schedulers.local_state import MARK, NODES, Config, Record, State

_KEEPER = "balsam_celery.schedulers.local_keeper"
_KEEPER_TIMEOUT = 60  # seconds until a keeper has detached
_MOST_TRIES = 3
_KEEP_ENDED = 30 * 86400  # seconds that an ended job is remembered
_KEEP_MOST = 5000


def advance(state: State, config: Config) -> list[Record]:
    """Look after what runs, start what can start, forget what is old; all jobs afterwards."""
    records = {record.number: record for record in state.load_all()}
    now = time.time()
    for record in list(records.values()):
        if record.holds_nodes:
            records[record.number] = _look_after(state, config, record)
        elif record.phase == "queued" and record.num_nodes > config.local.nodes:
            reason = f"asks for {record.num_nodes} nodes, the site has {config.local.nodes}"
            records[record.number] = end(state, record, reason)
    for number in _startable(config, list(records.values()), now):
        nodes = free_nodes(config, list(records.values()))
        records[number] = _start(state, config, records[number], nodes)
    old = [record for record in records.values() if record.phase == "ended"]
    for index, record in enumerate(reversed(old)):
        if index >= _KEEP_MOST or now - (record.ended or now) > _KEEP_ENDED:
            state.forget(record.number)
            del records[record.number]
    return list(records.values())


def end(state: State, record: Record, reason: str) -> Record:
    """Write down that no process of the job lives."""
    return state.save(replace(record, phase="ended", ended=time.time(), reason=reason))


def free_nodes(config: Config, records: list[Record]) -> list[int]:
    """Indices of the virtual nodes that no job holds."""
    held = {node for record in records if record.holds_nodes for node in record.nodes}
    return [node for node in range(config.local.nodes) if node not in held]


def _look_after(state: State, config: Config, record: Record) -> Record:
    if record.keeper is not None and procs.alive(record.keeper):
        if record.cancelled:
            procs.send(record.keeper, signal.SIGTERM)  # again, should the first have been lost
        return record
    if record.phase == "starting":
        # it never took the job, and a late one will see a newer incarnation and step back
        return _not_started(state, record, "its keeper ended before it could start the job")
    successor = state.save(
        replace(record, phase="ending", incarnation=record.incarnation + 1, keeper=None)
    )
    keeper, trouble = _spawn_keeper(state, config, successor)
    # without one the nodes stay held, and the next look tries again
    return state.save(replace(successor, keeper=keeper, reason=trouble))


def _not_started(state: State, record: Record, trouble: str) -> Record:
    record = replace(record, tries=record.tries + 1, keeper=None, nodes=(), phase="queued")
    if record.cancelled:
        return end(state, record, record.cancelled)
    if record.tries >= _MOST_TRIES:
        return end(state, record, f"cannot start: {trouble}")
    return state.save(record)


def _startable(config: Config, records: list[Record], now: float) -> list[int]:
    waiting, holding = _queue(config, records, now)
    return choose(waiting, holding, nodes=config.local.nodes, max_running=_limits(config), now=now)


def expected(config: Config, records: list[Record], now: float) -> dict[int, float]:
    """When each queued job is expected to start, by number."""
    waiting, holding = _queue(config, records, now)
    return expected_starts(
        waiting, holding, nodes=config.local.nodes, max_running=_limits(config), now=now
    )


def _limits(config: Config) -> dict[str, int]:
    return {name: queue.max_running for name, queue in config.queues.items()}


def _queue(
    config: Config, records: list[Record], now: float
) -> tuple[list[Waiting], list[Holding]]:
    margin = config.kill_grace
    holding = [
        Holding(r.queue, len(r.nodes), max(now, (r.started or now) + r.wall_time + margin))
        for r in records
        if r.holds_nodes
    ]
    waiting = [
        Waiting(r.number, r.queue, r.num_nodes, r.wall_time + margin)
        for r in records
        if r.phase == "queued"
    ]
    return waiting, holding


def _start(state: State, config: Config, record: Record, nodes: list[int]) -> Record:
    record = state.save(
        replace(
            record,
            phase="starting",
            nodes=tuple(nodes[: record.num_nodes]),
            incarnation=record.incarnation + 1,
            keeper=None,
        )
    )
    keeper, trouble = _spawn_keeper(state, config, record)
    if keeper is None:
        return _not_started(state, record, trouble)
    return state.save(replace(record, keeper=keeper))


def _spawn_keeper(state: State, config: Config, record: Record) -> tuple[Identity | None, str]:
    """Start a keeper that is nobody's child; its identity, or ``None`` and why not."""
    command = [
        *(sys.executable, "-P", "-m", _KEEPER),
        *(str(state.directory), str(record.number), str(record.incarnation)),
    ]
    # a role would make the job's processes look like those of the service that starts them, and the
    # mark of a hook that looks at the queue like that hook's
    drop = {MARK, NODES, "BALSAM_ROLE", HOOK_MARK, *config.hidden}
    environment = {k: v for k, v in clean_environment(os.environ).items() if k not in drop}
    try:
        with children_branded(job="", attempt=""):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                env=environment,
                timeout=_KEEPER_TIMEOUT,
                check=False,
                start_new_session=True,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"keeper: {error}"
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return None, f"keeper: exit status {done.returncode}: {last}"
    pid, start_time = done.stdout.split()
    return Identity(int(pid), int(start_time), procs.boot_id()), ""
