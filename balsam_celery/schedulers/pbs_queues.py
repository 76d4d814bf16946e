"""Queues of PBS → :class:`~.base.QueueInfo`. Pure.

Source: the reference guide of PBS Professional 2021.1 (attributes of queues; formats of limits),
and captured answers of OpenPBS 23.06.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from balsam_celery.schedulers.base import QueueInfo
from balsam_celery.schedulers.pbs_jobs import Unreadable, document, integer, seconds
from balsam_celery.schedulers.pbs_nodes import Node, common_shape, usable

_LIMIT = re.compile(r"\[([uo]):([^=\]]+)=(\d+)\]")


def parse_queues(
    text: str, *, nodes: Sequence[Node], default: str, user: str, groups: Collection[str]
) -> tuple[QueueInfo, ...]:
    """The queues that ``user`` may submit to, the default first.

    Args:
        text: answer of ``qstat -Q -f -F json``.
        nodes: all nodes of the machine.
        default: the server's default queue.
        user: name of the user.
        groups: names of the user's groups.

    Raises:
        Unreadable: not such an answer.
    """
    plain = document(text).get("Queue")
    if not isinstance(plain, dict):
        raise Unreadable('no "Queue"')
    told = {str(name): queue for name, queue in plain.items() if isinstance(queue, dict)}
    infos = [
        _route(name, queue, told, nodes, user)
        if queue.get("queue_type") == "Route"
        else _queue(name, queue, nodes, user)
        for name, queue in told.items()
        if not _true(queue, "from_route_only") and _admits(queue, user, groups)
    ]
    infos = [replace(info, is_default=info.name == default) for info in infos]
    return tuple(sorted(infos, key=lambda info: not info.is_default))


def default_queue(text: str) -> str:
    """The default queue in the answer of ``qstat -B -f -F json``; empty if there is none.

    Raises:
        Unreadable: not such an answer.
    """
    servers = document(text).get("Server")
    if not isinstance(servers, dict):
        raise Unreadable('no "Server"')
    return next((str(told.get("default_queue", "")) for told in servers.values()), "")


def _queue(name: str, told: Mapping[str, Any], nodes: Sequence[Node], user: str) -> QueueInfo:
    shape, count = common_shape(usable(nodes, name))
    most, least = told.get("resources_max") or {}, told.get("resources_min") or {}
    return QueueInfo(
        name=name,
        max_nodes=max(1, min(integer(most.get("nodect")) or count, count or 10**9)),
        min_nodes=integer(least.get("nodect")) or 1,
        min_wall_time=seconds(least.get("walltime")),
        max_wall_time=seconds(most.get("walltime")),
        max_queued=limit(told, ("queued_jobs_threshold", "max_queued"), "max_queuable", user),
        max_running=limit(told, ("max_run",), "max_user_run", user),
        cores_per_node=shape.cores,
        gpus_per_node=shape.gpus,
        memory_per_node=shape.memory,
        enabled=_true(told, "enabled") and _true(told, "started"),
    )


def _route(
    name: str,
    told: Mapping[str, Any],
    queues: Mapping[str, Mapping[str, Any]],
    nodes: Sequence[Node],
    user: str,
) -> QueueInfo:
    """A routing queue takes what any of its destinations takes."""
    given = told.get("route_destinations", "")
    names = given if isinstance(given, list) else str(given).split(",")
    ends = [
        _queue(end, queues[end], nodes, user)
        for end in (str(item).partition("@")[0].strip() for item in names)
        if end in queues and queues[end].get("queue_type") != "Route"
    ]
    own = _queue(name, told, nodes, user)
    if not ends:
        return replace(own, enabled=False)
    least = [end.min_wall_time or 0 for end in ends]
    most = [end.max_wall_time for end in ends if end.max_wall_time is not None]
    return replace(
        max(ends, key=lambda end: end.max_nodes),
        name=name,
        min_nodes=min(end.min_nodes for end in ends),
        min_wall_time=own.min_wall_time or min(least) or None,
        max_wall_time=own.max_wall_time or (max(most) if len(most) == len(ends) else None),
        max_queued=own.max_queued,
        max_running=own.max_running,
        enabled=own.enabled and any(end.enabled for end in ends),
    )


def limit(told: Mapping[str, Any], names: Sequence[str], old: str, user: str) -> int | None:
    """The least number of jobs that a queue lets ``user`` have; ``None``: no limit.

    Args:
        told: the queue's attributes.
        names: attributes of the form ``[u:PBS_GENERIC=2],[o:PBS_ALL=9]``: each user, everybody
            together, or one named user, whose own limit stands above that of each user.
        old: an older attribute, a plain number.
        user: name of the user.
    """
    found = [number for number in (integer(told.get(old)),) if number is not None]
    for name in names:
        value = told.get(name, "")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        limits = {(kind, who.strip('"')): int(most) for kind, who, most in _LIMIT.findall(text)}
        each = limits.get(("u", user), limits.get(("u", "PBS_GENERIC")))
        found += [most for most in (each, limits.get(("o", "PBS_ALL"))) if most is not None]
    return min(found, default=None)


def _true(told: Mapping[str, Any], name: str) -> bool:
    return str(told.get(name, "")).lower() in ("true", "1")


def _admits(told: Mapping[str, Any], user: str, groups: Collection[str]) -> bool:
    """The queue's access lists let the user in."""

    def listed(attribute: str) -> set[str]:
        value = told.get(attribute, "")
        items = value if isinstance(value, list) else str(value).split(",")
        return {str(item).strip().lstrip("+").partition("@")[0] for item in items}

    if _true(told, "acl_user_enable") and not listed("acl_users") & {user, "*"}:
        return False
    return not _true(told, "acl_group_enable") or bool(listed("acl_groups") & {*groups, "*"})
