"""What ``init`` found, and what has changed since.

``discovered.json`` in the site directory keeps what the scheduler told, so that a limit which the
user made smaller in ``site.toml`` is not taken for a change of the scheduler's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from balsam_celery.discovery import Machine
from balsam_celery.durations import format_duration
from balsam_celery.errors import InvalidInput, SettingsError, SiteError
from balsam_celery.private import write_private
from balsam_celery.schedulers.base import QueueInfo
from balsam_celery.settings import QueueSettings, Settings, parse
from balsam_celery.site import SITE_FILE, Site
from balsam_celery.sitefile import SiteFile, Value

FILE = "discovered.json"
#: Keys of ``[queues.NAME]`` that a scheduler tells.
_LIMITS = ("min_nodes", "max_nodes", "min_wall_time", "max_wall_time", "max_queued", "max_running")
_SHAPE = ("cores_per_node", "gpus_per_node", "memory_per_node")
_TIMES = ("min_wall_time", "max_wall_time")
#: ``max_wall_time`` where the scheduler names no limit.
_DAY = 86400
_UNLIMITED = "the scheduler names no limit"


class Action(StrEnum):
    """What ``refresh --write`` does about a difference."""

    SET = "set"
    ADD = "add"
    REMOVE = "remove"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; values are those of ``site.toml``, durations in seconds.

    Attributes:
        key: ``queues.NAME``, ``queues.NAME.KEY`` or ``launcher.KIND``.
        queue: its name; ``None`` for a launcher.
        name: the key in the queue's table; ``""``: the whole table.
        site: what ``site.toml`` has; ``None``: nothing.
        now: what the scheduler says; ``None``: no limit, or it is gone; of a queue that cannot be
            used now, the words for that.
        before: what it said when ``site.toml`` was written; ``None``: no limit, or not known.
    """

    key: str
    queue: str | None
    name: str
    site: Any
    now: Any
    before: Any
    action: Action


def told(queue: QueueInfo) -> dict[str, int]:
    """Limits and node of a queue, by their keys in ``site.toml``; no limit, no key."""
    values = {key: getattr(queue, key) for key in (*_LIMITS, *_SHAPE)}
    return {key: value for key, value in values.items() if value is not None}


def queue_values(queue: QueueInfo) -> tuple[dict[str, Value], dict[str, str]]:
    """The keys of ``[queues.NAME]`` for a queue that was found, and what to say of them."""
    limits = told(queue)
    comments = {} if "max_wall_time" in limits else {"max_wall_time": _UNLIMITED}
    defaults = QueueSettings()
    least = limits.get("min_wall_time", defaults.min_wall_time)
    limits.setdefault("max_wall_time", max(_DAY, least))
    # a longest time below our shortest leaves that one time
    limits["min_wall_time"] = min(least, limits["max_wall_time"])
    values: dict[str, Value] = {}
    for key in (*_LIMITS, *_SHAPE):
        value = limits.get(key, getattr(defaults, key))
        values[key] = format_duration(value) if key in _TIMES else value
    return values, comments


def trouble(queue: QueueInfo, scheduler: str) -> str:
    """Why a queue cannot be used as it is now; ``""``: it can.

    Args:
        queue: as the scheduler of that kind describes it.
        scheduler: its kind.
    """
    if not queue.enabled:
        return "stopped now"
    values, _ = queue_values(queue)
    try:
        parse({"scheduler": {"kind": scheduler}, "queues": {queue.name: values}})
    except InvalidInput as error:
        return str(error)
    return ""


def remember(directory: Path, machine: Machine, before: Mapping[str, Any] | None = None) -> None:
    """Keep what was found, where the scheduler tells anything.

    Of a queue that cannot be used now stays what was known before: once it can be, its limits are
    compared with that, or it is offered as a new one.

    Args:
        directory: of the site.
        machine: what was found.
        before: of :func:`recall`.

    Raises:
        SiteError: it cannot be written.
    """
    if machine.scheduler == "local":
        return
    known = before["queues"] if before else {}
    queues = {}
    for queue in machine.queues:
        if not trouble(queue, machine.scheduler):
            queues[queue.name] = told(queue)
        elif queue.name in known:
            queues[queue.name] = known[queue.name]
    plain = {
        "scheduler": machine.scheduler,
        "queues": queues,
        "launchers": machine.launchers,
    }
    write_private(directory / FILE, json.dumps(plain, indent=2) + "\n")


def recall(directory: Path) -> dict[str, Any] | None:
    """What :func:`remember` kept; ``None``: nothing.

    Raises:
        SiteError: the file cannot be read.
    """
    path = directory / FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SiteError(f"{path} cannot be read ({error}): remove it") from None
    if not isinstance(plain, dict) or not {"queues", "launchers"} <= plain.keys():
        raise SiteError(f"{path} is not what 'balsam init' wrote: remove it")
    return plain


def changes(machine: Machine, before: Mapping[str, Any] | None, settings: Settings) -> list[Change]:
    """What differs from what was known, or is beyond what the scheduler allows.

    Args:
        machine: what was found now.
        before: of :func:`recall`.
        settings: the site's.
    """
    found: list[Change] = []
    if machine.tells_queues:
        found += _queues(machine, before, settings)
    found += _launchers(machine, before, settings)
    return found


def _queues(
    machine: Machine, before: Mapping[str, Any] | None, settings: Settings
) -> Iterator[Change]:
    known: Mapping[str, Mapping[str, int]] | None = before["queues"] if before else None
    for queue in machine.queues:
        key = f"queues.{queue.name}"
        table = settings.queues.get(queue.name)
        earlier = (known or {}).get(queue.name)
        if why := trouble(queue, machine.scheduler):
            # a stop is for a while, and may hide what the limits are
            if table is not None:
                yield Change(key, queue.name, "", {}, why, earlier, Action.KEEP)
        elif table is not None:
            yield from _limits(queue.name, table, told(queue), earlier)
        elif known is not None and queue.name not in known:
            yield Change(key, queue.name, "", None, told(queue), None, Action.ADD)
        # else the user has left it out
    names = {queue.name for queue in machine.queues}
    for name in settings.queues:
        if name not in names:
            earlier = (known or {}).get(name)
            # one that was never told is the user's own: the template may make a QOS of its name
            action = Action.KEEP if earlier is None else Action.REMOVE
            yield Change(f"queues.{name}", name, "", {}, None, earlier, action)


def _limits(
    queue: str, table: QueueSettings, now: Mapping[str, int], before: Mapping[str, int] | None
) -> Iterator[Change]:
    for key in (*_LIMITS, *_SHAPE):
        site, value = getattr(table, key), now.get(key)
        earlier = before.get(key) if before is not None else None
        beyond = value is not None and (site < value if key.startswith("min") else site > value)
        changed = before is not None and earlier != value
        # of its nodes the user may know better than the scheduler
        if not changed and not (beyond and (key in _LIMITS or before is None)):
            continue
        follows = value is not None and ((beyond and key in _LIMITS) or site == earlier)
        if site != value:
            action = Action.SET if follows else Action.KEEP
            yield Change(f"queues.{queue}.{key}", queue, key, site, value, earlier, action)


def _launchers(
    machine: Machine, before: Mapping[str, Any] | None, settings: Settings
) -> Iterator[Change]:
    known: Mapping[str, str] = before["launchers"] if before else machine.launchers
    chosen = settings.launcher
    for kind in sorted({*known, *machine.launchers, chosen.kind} - {"auto", "none", "template"}):
        now, earlier = machine.launchers.get(kind), known.get(kind)
        site = (chosen.mpiexec or kind) if kind == chosen.kind else None
        if now != earlier or (site is not None and now is None and not chosen.mpiexec):
            yield Change(f"launcher.{kind}", None, "", site, now, earlier, Action.KEEP)


def rewrite(site: Site, machine: Machine, found: Iterable[Change]) -> None:
    """Bring ``site.toml`` in line with what was found, and remember that.

    Raises:
        SiteError: a file cannot be read or written.
        SettingsError: what would come of it cannot be used; nothing is written.
    """
    path = site.directory / SITE_FILE
    try:
        file = SiteFile(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SiteError(f"cannot read {path}: {error.strerror}") from None
    queues = {queue.name: queue for queue in machine.queues}
    found = [change for change in found if change.queue is not None]
    for change in found:
        assert change.queue is not None
        if change.action is Action.ADD:
            file.set_queue(change.queue, *queue_values(queues[change.queue]))
        elif change.action is Action.REMOVE:
            file.remove_queue(change.queue)
        elif change.action is Action.SET:
            value = format_duration(change.now) if change.name in _TIMES else change.now
            file.set_queue(change.queue, {change.name: value})
    try:
        parse(file.values)
    except InvalidInput as error:
        raise SettingsError(f"{path} is left as it is, for with the changes {error}") from None
    if any(change.action is not Action.KEEP for change in found):
        write_private(path, file.text)
    remember(site.directory, machine, recall(site.directory))
