"""What the head knows of a node that the scheduler has given up."""

from __future__ import annotations

import socket
import time

from balsam_celery.pilot.channel import Channel
from balsam_celery.pilot.host import Host
from balsam_celery.resources import NodeCapacity


def test_its_word_alone_is_no_proof() -> None:
    host = Host(NodeCapacity("n1", (0,)))
    past, future = time.monotonic() - 1, time.monotonic() + 1000
    host.over_at = past
    assert not host.over, "the scheduler has not given it up"
    host.taken = True
    assert host.over
    host.over_at = future
    assert not host.over, "one that is cut off has not had its time"
    pair = socket.socketpair()
    with pair[1]:
        host.channel = Channel(pair[0], b"a token", "head")
        host.over_at = past
        assert not host.over, "its keeper may answer"
        host.close()
    assert host.over
