"""The start of a pilot over several hosts: waiting for all nodes, but not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.host import Host
from balsam_celery.pilot.launches import Launches
from balsam_celery.pilot.node import START_ERROR
from balsam_celery.pilot.staff import StartError


class Gathering:
    """Begins now.

    Nodes that have not come in half of the time are started by themselves.

    Args:
        context: the pilot.
        hosts: its nodes.
        launches: starts them.
        sees_redis: tells whether this process reaches Redis.
    """

    def __init__(
        self,
        context: PilotContext,
        hosts: Mapping[str, Host],
        launches: Launches,
        sees_redis: Callable[[], bool],
    ) -> None:
        self._error_file = context.directory / START_ERROR
        self._limit = context.site.settings.pilot.start_timeout
        self._hosts = hosts
        self._launches = launches
        self._sees_redis = sees_redis
        self._since = time.monotonic()

    def over(self) -> bool:
        """Tell whether the pilot has all the nodes that it will have: those that consume.

        Raises:
            StartError: there is none, or the nodes found that they cannot work together.
        """
        if (error := self._error()) is not None:
            raise StartError(error)
        hosts = list(self._hosts.values())
        passed = time.monotonic() - self._since
        if passed > self._limit / 2:
            self._launches.stop_first()
            for host in hosts:
                if host.channel is None and not host.again:
                    host.trouble = host.trouble or "its keeper did not come"
                    self._launches.again(host)
        waiting = [host for host in hosts if not (host.consumes or host.late or host.lost)]
        if waiting and passed < self._limit + self._launches.patience:
            return False
        if any(host.consumes and not host.lost for host in hosts):
            return True
        if any(host.channel is not None for host in hosts) and not self._sees_redis():
            return False  # it is away for everybody, and will come back
        raise StartError(f"no node can be used: {hosts[0].name}: {hosts[0].trouble}")

    def _error(self) -> str | None:
        try:
            text = self._error_file.read_text(encoding="utf-8")
        except OSError:
            return None
        return text.strip() or None
