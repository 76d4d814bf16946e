"""What a launcher that has failed leaves on this host: its ways to other hosts.

An ``mpiexec`` reaches each host by an agent (``ssh``, ``pbs_tmrsh``), a child that inherits its
open files. When it fails to reach one host, hydra just exits: the agents of the others live on, and
hold open the socket on which it has listened, so that the proxies which they have started wait for
a word on connections that nobody will ever accept. Once the agents have ended these are reset, and
the proxies end too, on all hosts.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from balsam_celery import procs

logger = logging.getLogger(__name__)

#: In the command line of what a launcher starts on each node (:mod:`balsam_celery.pilot.node`).
_NODE = b"balsam_celery.pilot.node"


def end_agents(mark: str) -> None:
    """Kill what a launcher that has ended has left here; keepers and what they started stay.

    Args:
        mark: environment entry of the launcher and all that it starts.
    """
    entries = procs.snapshot()
    marked = procs.marked([mark], entries)
    nodes = {pid for pid in marked if _is_node(pid)}
    left = marked - nodes - procs.descendants(nodes, entries).keys()
    if left:
        logger.warning("processes %s are left of a launcher: killed", sorted(left))
    for pid in left:
        procs.send(entries[pid].identity, signal.SIGKILL)


def _is_node(pid: int) -> bool:
    try:
        return _NODE in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
