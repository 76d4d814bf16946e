"""One node of a pilot over several hosts, as the head knows it."""

from __future__ import annotations

import time

from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.link import Hello, ToKeeper, encode
from balsam_celery.pilot.starting import NodeStart
from balsam_celery.resources import NodeCapacity


class Host:
    """A node and the link to its keeper.

    Attributes:
        capacity: what the scheduler said of it, then what its keeper found.
        channel: the link, while there is one.
        consumes: its worker has said so.
        used: it was registered as part of the pilot.
        trouble: why it does not consume, in words.
        again: it is to be started again, or a keeper that came so is or was there: no second time.
        start: the launcher's process that starts it again.
        deadline: until when it must have come, on the monotonic clock.
        lost: why nothing may start on it any more; "" while that is not so.
        taken: the scheduler has given it up, which is no proof: somebody may have set it down.
        released: it is to be given back to the scheduler.
        over_at: when nothing lives there any more, as long as there is no link, on the monotonic
            clock.
        vacant: the scheduler has given it up, and nothing lives there.
        gone: its worker has left nothing alive, by the word of its keeper or of the scheduler; what
            others have there is known by their sweeps.
        asked, asked_at: why its keeper was told on the node to end ("": it was not), and when, on
            the monotonic clock.
        drained: its worker has ended as told, and all its outcomes were acknowledged, or not.
    """

    def __init__(self, capacity: NodeCapacity) -> None:
        self.name = capacity.name
        self.capacity = capacity
        self.channel: Channel | None = None
        self.consumes = self.used = self.again = self.taken = self.gone = False
        self.released = self.vacant = False
        self.over_at = 0.0
        self.trouble = self.lost = ""
        self.start: NodeStart | None = None
        self.deadline = float("inf")
        self.drained: bool | None = None
        self.asked = ""
        self.asked_at = 0.0

    def came(self, channel: Channel, hello: Hello) -> None:
        """Its keeper has a link."""
        self.channel = channel
        self.capacity = hello.capacity
        self.deadline = float("inf")
        self.drained = None
        self.asked = ""
        if not hello.again:
            # the first launch was only slow: what was to mend that is needed no more
            self.again = False
            if self.start is not None:
                self.start.stop()
                self.start = None

    def send(self, order: ToKeeper) -> bool:
        """Send an order, if there is a link; a link that turns out broken is told by false."""
        if self.channel is None:
            return True
        try:
            self.channel.send(encode(order))
        except ChannelBroken:
            return False
        return True

    def close(self) -> None:
        """There is no link any more."""
        if self.channel is not None:
            self.channel.close()
        self.channel = None
        self.consumes = False

    @property
    def silent(self) -> bool:
        """What lives there nobody can tell, and nobody is to come who could."""
        return self.used and bool(self.lost) and self.channel is None and not self.vacant

    @property
    def late(self) -> bool:
        """It should have come by now."""
        return time.monotonic() > self.deadline

    @property
    def over(self) -> bool:
        """The scheduler has given it up, and a keeper that was cut off has ended all by now."""
        return self.taken and self.channel is None and time.monotonic() >= self.over_at
