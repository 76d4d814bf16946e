"""Making a site: its directories and secrets, and ``site.toml`` with what the machine told."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from balsam_celery.discovered import queue_values, remember, trouble
from balsam_celery.discovery import Machine, discover
from balsam_celery.errors import InvalidInput, SiteError
from balsam_celery.private import private_dir, write_private
from balsam_celery.redisaddress import find_address
from balsam_celery.redisserver import find_server
from balsam_celery.settings import LocalSettings, parse
from balsam_celery.site import SITE_FILE, Site, config_file, default_local_dir, find, this_host
from balsam_celery.sitefile import SiteFile, Value
from balsam_celery.tls import make_certificates

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: What a cluster's scheduler is asked at the most often.
_POLL_INTERVAL = "10s"
_LOOPBACK = "127.0.0.1"


def init(
    directory: Path,
    *,
    name: str | None = None,
    local: LocalSettings | None = None,
    scheduler: str = "local",
    tls: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Site:
    """Make a site.

    Args:
        directory: made (0700) when missing; a non-empty one must be closed to others already.
        name: for people; ``None``: the directory's name.
        local: virtual nodes of the local scheduler; ``None``: this machine's cores as two nodes.
        scheduler: kind of scheduler; ``"auto"``: the one that answers here, else local.
        tls: Redis is reached by TLS alone; ``None``: on a cluster, where the server can.
        say: told what was found, and what the user has to see to.

    Raises:
        SiteError: it is a site already, or the directory cannot be used, or no server has TLS.
        InvalidInput: a value that cannot be used.
        SchedulerError: the scheduler of that kind does not answer.
    """
    directory = directory.expanduser().absolute()
    if (directory / SITE_FILE).exists():
        raise SiteError(f"{directory} is a site already: remove it, or name another directory")
    name = name if name is not None else (directory.name or "site")
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"the site's name is {name!r}: give letters, digits, '-', '_' and '.' (--name NAME)"
        )
    local = local or _this_machine()
    for key, least in (("nodes", 1), ("cores_per_node", 1), ("gpus_per_node", 0)):
        if getattr(local, key) < least:
            raise InvalidInput(f"local.{key} is {getattr(local, key)}: give {least} or more")
    machine = discover(scheduler)
    for note in machine.notes:
        say(note)
    redis = _redis(machine, tls, say)
    site_id = secrets.token_hex(4)
    local_dir = default_local_dir(name, site_id)
    file = SiteFile(config_file("site.example.toml").read_text(encoding="utf-8"))
    file.set(
        "site",
        {"name": name, "id": site_id, "host": this_host(), "local_dir": str(local_dir)},
    )
    file.set("redis", {**redis, "port": free_port()})
    file.set("flower", {"enabled": _has_flower(say), "port": free_port()})
    if machine.scheduler == "local":
        # of what the site counts by itself nothing can be found
        shape = {key: value for key, value in dataclasses.asdict(local).items() if value != {}}
        file.set("local", shape)
        file.set_queue("local", {"max_nodes": local.nodes})
    else:
        _describe(file, machine, say)
    parse(file.values)  # nothing is made that could not be opened again
    _own_directory(directory)
    for path in (local_dir.parent, local_dir, directory / "secrets", directory / "logs"):
        private_dir(path)
    for secret in ("redis", "flower"):
        write_private(directory / "secrets" / secret, secrets.token_urlsafe(32) + "\n")
    if redis.get("tls"):
        address = str(redis.get("host", _LOOPBACK))
        make_certificates(directory, directory / "secrets", {this_host()}, {address})
    remember(directory, machine)
    # last, so that a directory is a site only when all else is there
    write_private(directory / SITE_FILE, re.sub(r"\n{3,}", "\n\n", file.text))
    return find(directory)


def _describe(file: SiteFile, machine: Machine, say: Callable[[str], None]) -> None:
    """Write the queues that can be used, and the launchers, of a cluster."""
    file.set("scheduler", {"kind": machine.scheduler, "poll_interval": _POLL_INTERVAL})
    if machine.executor:
        file.set("scheduler", {"executor": machine.executor})
    if machine.launcher is not None:
        chosen = machine.launcher
        found = f"found here: {', '.join(machine.launchers)}"
        values: dict[str, Value] = {"kind": chosen.kind, "mpiexec": chosen.mpiexec}
        file.set("launcher", values | {"mpi": chosen.mpi}, {"kind": found})
    queues = []
    for queue in machine.queues:
        if why := trouble(queue, machine.scheduler):
            say(f"queue {queue.name!r} is left out: {why}")
        else:
            queues.append(queue)
    for number, queue in enumerate(queues):
        if number == 0:
            file.rename_queue("local", queue.name)  # with the comments of its keys
        values, comments = queue_values(queue)
        file.set_queue(queue.name, values, comments)
    if not queues:
        file.remove_queue("local")
        say("before 'balsam up': write a table [queues.NAME] for each queue to be used")


def _redis(machine: Machine, tls: bool | None, say: Callable[[str], None]) -> dict[str, Value]:
    """``[redis]`` for pilots on this machine alone, or on the nodes of a cluster."""
    if tls:
        find_server("", tls=True)
    if machine.scheduler == "local":
        return {"tls": bool(tls)}
    values: dict[str, Value] = {}
    try:
        values["host"] = find_address()
        say(
            f"Redis will listen on {values['host']}: if the compute nodes reach another address of"
            " this host, give it as [redis] host, or its network interface"
        )
    except SiteError as error:
        say(str(error))
    if tls is None:
        try:
            find_server("", tls=True)
            tls = True
        except SiteError as error:
            say(f"Redis has no TLS yet: {error}")
    values["tls"] = bool(tls)
    if not tls:
        say("before 'balsam up': set [redis] tls or, where nobody can listen, trusted_network")
    return values


def _has_flower(say: Callable[[str], None]) -> bool:
    found = find_spec("flower") is not None
    if not found:
        say(
            "there is no web view, since Flower is not installed: later, install the extra 'flower'"
            " and set [flower] enabled"
        )
    return found


def _this_machine() -> LocalSettings:
    cores = len(os.sched_getaffinity(0))
    nodes = min(2, cores)
    return LocalSettings(nodes=nodes, cores_per_node=cores // nodes)


def _own_directory(directory: Path) -> None:
    ours = directory.is_dir() and directory.stat().st_uid == os.geteuid()
    # never close a directory that others may be using, such as /tmp for root
    if ours and not any(directory.iterdir()):
        directory.chmod(0o700)
    private_dir(directory)


def free_port() -> int:
    """A port that nobody listens on now, outside the range that outgoing connections take."""
    for _ in range(200):
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((_LOOPBACK, port))
            except OSError:
                continue
        return port
    raise SiteError(f"no free TCP port from 20000 to 32000 on {_LOOPBACK}")
