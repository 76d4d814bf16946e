"""What it means that nodes were told to end, each by somebody on the node: the pilot, or them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from balsam_celery.pilot.host import Host

#: Seconds until a node that was told to end is taken to be meant alone: who ends a whole job
#: signals its nodes and the pilot's main process in any order. Less than workers wait to know why
#: programs of theirs were signalled.
_OWN_WORD = 0.7


def judge(hosts: Iterable[Host]) -> tuple[str, list[Host]]:
    """Tell who is meant.

    Returns:
        Why the whole pilot is to end, if most of its nodes were told so, else ""; and the nodes
        that are to end alone.
    """
    here = [host for host in hosts if host.channel is not None and not host.lost]
    asked = [host for host in here if host.asked]
    if 2 * len(asked) > len(here):
        return asked[0].asked, []
    now = time.monotonic()
    return "", [host for host in asked if now > host.asked_at + _OWN_WORD]
