"""How each kind of fault is done and lifted; the functions' names are those of the kinds."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import redis
from sqlalchemy import select

from balsam_celery import procs
from balsam_celery.errors import StoreError
from balsam_celery.procs import Identity
from balsam_celery.store import schema
from tests.acceptance.live import BIN
from tests.chaos import messages
from tests.chaos.plan import Fault
from tests.chaos.world import World

#: Lifts a fault; raises NotNow while it cannot be lifted, and is called again then.
Lift = Callable[[], None]
#: Seconds by which a clock goes wrong, at the least and at the most.
WRONG = (60.0, 1800.0)
_SITE = ("service", "beat", "transitions", "tasks", "redis", "supervisor")
_pause = threading.Event()


class NotNow(Exception):
    """There is nothing to be broken at the moment."""


def inject(world: World, fault: Fault) -> Lift | None:
    """Do what the fault says; returns what lifts it, ``None`` if that is for the site to do.

    Raises:
        NotNow: there is no victim now.
    """
    action, _, whom = fault.kind.partition(":")
    if fault.kind in _SPECIAL:
        return _SPECIAL[fault.kind](world, fault)
    victim = _victim(world, whom, fault.choice)
    if action == "kill":
        procs.send(victim, signal.SIGKILL)
        return None
    assert action == "pause", fault.kind
    procs.send(victim, signal.SIGSTOP)
    return lambda: _go_on(victim)


def restarted(world: World, kind: str) -> float | None:
    """When the process began that stands for the one that ``kind`` has killed.

    Returns:
        A time of the monotonic clock; ``None`` unless that was a process of the site.
    """
    action, _, whom = kind.partition(":")
    # who gives `balsam up` after the supervisor's death has all processes started anew
    name = {"service-owing": "service", "supervisor": "service"}.get(whom, whom)
    if action != "kill" or name not in _SITE or (process := world.process(name)) is None:
        return None
    since_boot = process.start_time / os.sysconf("SC_CLK_TCK")
    return since_boot + time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _go_on(victim: Identity) -> None:
    procs.send(victim, signal.SIGCONT)


def _victim(world: World, whom: str, choice: float) -> Identity:
    if whom in _SITE:
        process = world.process(whom)
        candidates = [process] if process is not None else []
    elif whom == "worker":
        candidates = world.workers()
    else:
        candidates = [pilot.process for pilot in world.pilots()]
    if not candidates:
        raise NotNow(f"no {whom}")
    return candidates[int(choice * len(candidates))]


def _kill_supervisor(world: World, fault: Fault) -> Lift:
    procs.send(_victim(world, "supervisor", fault.choice), signal.SIGKILL)

    def again() -> None:
        """What a user or a cron job does; until all answers."""
        if world.is_sql_paused:
            raise NotNow("SQL is away")  # and is lifted by whom this would keep waiting
        done = subprocess.run(
            [str(BIN / "balsam"), "up"], env=world.live.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            world.notes.append(f"balsam up: {done.stderr.strip()}")
            raise NotNow("balsam up has failed")

    return again


def _kill_service_owing(world: World, _fault: Fault) -> None:
    """Stop the service, look whether it owes a result that Redis has not, and kill it then."""
    effect = schema.effect.c
    query = select(effect.task).where(effect.kind == "result")
    for _ in range(400):
        service = world.process("service")
        if service is None:
            raise NotNow("no service")
        procs.send(service, signal.SIGSTOP)
        try:
            with world.read() as conn:
                owed = list(conn.scalars(query))
            with world.redis() as client:
                prefix = world.live.site.settings.key_prefix
                kept = (
                    client.mget([f"{prefix}celery-task-meta-{id}" for id in owed]) if owed else []
                )
            if any(result is None for result in kept):
                procs.send(service, signal.SIGKILL)
                return
        except (StoreError, redis.RedisError):
            raise NotNow("SQL or Redis is away") from None
        finally:
            procs.send(service, signal.SIGCONT)
        _pause.wait(0.005)
    raise NotNow("the service owed nothing whenever it was looked at")


def _message_twice(world: World, _fault: Fault) -> None:
    _send_again(world, _seen(world))


def _message_late(world: World, _fault: Fault) -> Lift:
    seen = _seen(world)
    return lambda: _send_again(world, seen)


def _seen(world: World) -> list[messages.Message]:
    try:
        with world.redis() as client:
            prefix = world.live.site.settings.key_prefix
            seen = messages.watch(client, prefix, most=40, within=5.0)
    except (redis.RedisError, OSError):
        raise NotNow("Redis is away") from None
    if not seen:
        raise NotNow("no message passed")
    return seen


def _send_again(world: World, seen: list[messages.Message]) -> None:
    try:
        with world.redis() as client:
            messages.send_again(client, seen)
    except redis.RedisError:
        raise NotNow("Redis is away") from None


def _cut_network(world: World, fault: Fault) -> Lift:
    networks = world.house.namespaces
    assert networks is not None
    victim = _victim(world, "pilot", fault.choice)
    name = world.house.network_of(victim.pid)
    if name is None:
        raise NotNow("the pilot has no network of its own")
    networks.cut(name)
    return lambda: networks.mend(name)


def _wrong_clock(world: World, fault: Fault) -> Lift:
    victim = _victim(world, "pilot", fault.choice)
    least, most = WRONG
    error = least + (most - least) * (fault.choice * 997 % 1)
    if fault.kind == "clock:behind":
        error = -error
    if not world.house.set_clock(victim.pid, error):
        raise NotNow("the pilot's clock cannot be set")

    def right() -> None:
        world.house.set_clock(victim.pid, 0.0)

    return right


def _kill_postgres(world: World, _fault: Fault) -> Lift:
    assert world.postgres is not None
    world.postgres.halt(signal.SIGKILL)
    return world.postgres.resume


def _stop_postgres(world: World, _fault: Fault) -> Lift:
    assert world.postgres is not None
    world.postgres.halt(signal.SIGINT)
    return world.postgres.resume


def _pause_postgres(world: World, _fault: Fault) -> Lift:
    assert world.postgres is not None
    if not world.postgres.is_running or world.postgres.is_paused:
        raise NotNow("PostgreSQL is away")
    world.postgres.pause()
    return world.postgres.go_on


def _kill_controller(world: World, _fault: Fault) -> Lift:
    assert world.cluster is not None
    if not world.cluster.controller():
        raise NotNow("no slurmctld")
    world.cluster.stop_controller(signal.SIGKILL)
    return world.cluster.start_controller


def _kill_slurmd(world: World, fault: Fault) -> Lift:
    assert world.cluster is not None
    name = _node(fault)
    if not world.cluster.slurmd(name):
        raise NotNow(f"no slurmd on {name}")
    world.cluster.kill_slurmd(name)
    return lambda: world.cluster.start_slurmd(name)


def _pause_slurm(world: World, fault: Fault) -> Lift:
    assert world.cluster is not None
    is_controller = fault.kind == "pause:slurmctld"
    victims = world.cluster.controller() if is_controller else world.cluster.slurmd(_node(fault))
    if not victims:
        raise NotNow("it does not run")
    for victim in victims:
        procs.send(victim, signal.SIGSTOP)

    def go_on() -> None:
        for victim in victims:
            procs.send(victim, signal.SIGCONT)

    return go_on


def _node(fault: Fault) -> str:
    return f"n{1 + int(fault.choice * 8)}"


_SPECIAL: dict[str, Callable[[World, Fault], Lift | None]] = {
    "kill:supervisor": _kill_supervisor,
    "kill:service-owing": _kill_service_owing,  # type: ignore[dict-item]
    "message:twice": _message_twice,  # type: ignore[dict-item]
    "message:late": _message_late,
    "cut:network": _cut_network,
    "cut:short": _cut_network,
    "clock:ahead": _wrong_clock,
    "clock:behind": _wrong_clock,
    "kill:postgres": _kill_postgres,
    "stop:postgres": _stop_postgres,
    "pause:postgres": _pause_postgres,
    "kill:slurmctld": _kill_controller,
    "kill:slurmd": _kill_slurmd,
    "pause:slurmctld": _pause_slurm,
    "pause:slurmd": _pause_slurm,
}
