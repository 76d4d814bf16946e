"""All launcher's processes that start keepers: the one for all nodes, and those for single ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from balsam_celery.errors import BalsamError
from balsam_celery.launchers import Launcher
from balsam_celery.pilot.agents import end_agents
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.crew import Crew
from balsam_celery.pilot.host import Host
from balsam_celery.pilot.starting import NodeStart

logger = logging.getLogger(__name__)

#: Nodes that are started again at the same time, at the most.
_AT_ONCE = 8
#: Seconds that so many of them take, if nothing is wrong with them.
_BATCH = 10.0
#: Tries to make sure that a launcher's job step has ended, and seconds between them.
_STEP_TRIES, _STEP_PAUSE = 5, 1.0


class Launches:
    """Starts nodes, again where it must be.

    Args:
        context: the pilot.
        launcher: which one.
        crew: of this process.
        hosts: the nodes.

    Attributes:
        stopping: no node is started again.
    """

    def __init__(
        self, context: PilotContext, launcher: Launcher, crew: Crew, hosts: Mapping[str, Host]
    ) -> None:
        self._context = context
        self._launcher = launcher
        self._crew = crew
        self._hosts = hosts
        self._starts: list[NodeStart] = []
        self._killed: list[NodeStart] = []
        self._queue: list[Host] = []
        self._most = 0  # that were in the queue at the same time
        self.stopping = False

    @property
    def living(self) -> list[NodeStart]:
        """Those whose process lives."""
        return [start for start in self._starts if start.lives]

    def files(self) -> dict[int, bool]:
        """What to wait for: what they say."""
        return {start.fileno(): False for start in self._starts if start.fileno() >= 0}

    def start_all(self, within: float) -> None:
        """Start all nodes by one launch.

        Raises:
            OSError, SettingsError: it cannot be started.
        """
        self._begin([*self._hosts], again=False, within=within)

    def again(self, host: Host) -> None:
        """Start a node by itself, once; with several it may take a while until that begins."""
        if not host.again and not self.stopping:
            host.again = True
            host.deadline = float("inf")
            if host not in self._queue:
                self._queue.append(host)
                self._most = max(self._most, len(self._queue))

    @property
    def patience(self) -> float:
        """Seconds more that the nodes need which wait for others to be started again."""
        return _BATCH * (self._most // _AT_ONCE)

    def _begin(self, nodes: list[str], *, again: bool, within: float) -> NodeStart:
        start = NodeStart(self._context, self._launcher, nodes, again=again, within=within)
        self._starts.append(start)
        self._crew.others.add(start.pid)
        return start

    def turn(self, reaped: Mapping[int, int]) -> list[str]:
        """Do what is due; returns nodes that the scheduler has given up, as its launcher says.

        Another launcher has only lost the way to a node, and the link to its keeper tells more.

        Args:
            reaped: children that have ended, with their wait status.
        """
        lost = []
        for start in self._starts:
            failed = start.read()
            if self._launcher.vouches:
                lost += failed
            for name in set(failed) & self._hosts.keys():
                host = self._hosts[name]
                host.trouble = host.trouble or "its launcher says that it failed"
            if start.pid in reaped:
                self._ended(start, start.ended(reaped[start.pid]))
            elif start.stopping and not (start.for_all and self._is_wanted(start)):
                start.stop()
        self._starts = [start for start in self._starts if start.lives or start.fileno() >= 0]
        return lost

    def _ended(self, start: NodeStart, how: str) -> None:
        logger.info("start of %s: %s", ", ".join(start.nodes), how)
        if start.killed:
            self._killed.append(start)
        said = f": {start.last_line}" if start.last_line else ""
        failed = how != "exit status 0"
        if failed and not start.stays:
            end_agents(start.mark)
        for name in start.nodes:
            host = self._hosts[name]
            if host.channel is not None or host.lost:
                continue
            host.trouble = host.trouble or f"its start ended ({how}){said}"
            if host.start is start and failed:
                host.deadline = 0.0
            elif host.start is None and (failed or start.stays):
                self.again(host)

    def start_queued(self) -> None:
        """Start nodes again that are to be."""
        while self._queue and not self.stopping:
            if self._under_way() >= _AT_ONCE:
                return
            host = self._queue.pop(0)
            if host.channel is not None or host.lost:
                continue
            logger.warning("node %s is started again: %s", host.name, host.trouble)
            within = self._context.site.settings.pilot.start_timeout
            host.deadline = time.monotonic() + within
            try:
                host.start = self._begin([host.name], again=True, within=within)
            except (BalsamError, OSError) as error:
                host.trouble = str(error)
                host.deadline = 0.0

    def _under_way(self) -> int:
        """Nodes that are started again, and whose keeper has yet to come."""
        return sum(
            host.channel is None and not host.late
            for host in self._hosts.values()
            if host.start is not None and host.start.lives
        )

    def stop_first(self) -> None:
        """End the launch of all nodes, if it has brought no keeper until now."""
        for start in self.living:
            if start.for_all and not self._has_keepers(start):
                start.stop()

    def stop_idle(self) -> None:
        """End those that have brought no keeper, or that keepers do not need to live."""
        for start in self.living:
            if not start.stays or not self._has_keepers(start):
                start.stop()

    def _is_wanted(self, start: NodeStart) -> bool:
        """Keepers have come of it after it was asked to end: what has survived that may go on."""
        return not self.stopping and self._has_keepers(start)

    def _has_keepers(self, start: NodeStart) -> bool:
        return any(self._hosts[name].channel is not None for name in start.nodes)

    def stop(self) -> None:
        """End them all."""
        for start in self.living:
            start.stop()

    def finish(self) -> None:
        """Make sure of the job steps of those that were killed; may take seconds."""
        for start in self._killed:
            for _ in range(_STEP_TRIES):
                if start.end_step():
                    break
                time.sleep(_STEP_PAUSE)
            else:
                logger.error("the job step of process %d may live on", start.pid)
