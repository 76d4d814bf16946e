"""The head's side of the links: a listening socket, and peers that have yet to say who they are."""

from __future__ import annotations

import logging
import socket
import time
from urllib.parse import urlsplit

from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.link import (
    Beat,
    FromKeeper,
    Hello,
    Invitation,
    decode_message,
    encode,
    own_addresses,
)
from balsam_celery.wire import MalformedMessage

logger = logging.getLogger(__name__)

#: Seconds for a peer to prove who it is, and how many may be about it at once.
_PATIENCE, _STRANGERS = 10.0, 512


class Links:
    """Accepts keepers.

    It listens on all interfaces: which of them the nodes can reach is known to nobody before they
    do. Whoever does not know the token gets no further than a random number.

    Args:
        token: see :class:`~balsam_celery.pilot.channel.Channel`.

    Raises (when made):
        OSError: no socket can be had.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            self._socket = socket.create_server(("", 0), backlog=1024)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._strangers: list[tuple[Channel, float]] = []

    def invite(self, context: PilotContext) -> None:
        """Tell keepers how to come: see :class:`~balsam_celery.pilot.link.Invitation`.

        Raises:
            BalsamError: the file cannot be written, or where Redis is is not known.
        """
        redis = urlsplit(context.site.redis_url()).hostname or ""
        Invitation(
            context.pilot,
            context.allocation,
            context.end_time,
            context.nodes,
            own_addresses(self.port, (context.nodes[0].name,), redis),
            self._token.decode(),
        ).write(context.directory)

    def files(self) -> dict[int, bool]:
        """What to wait for, and whether to write."""
        strangers = {channel.fileno(): channel.writing for channel, _ in self._strangers}
        return {self._socket.fileno(): False, **strangers}

    def greetings(self) -> list[tuple[Channel, Hello, list[str]]]:
        """Keepers that have said who they are, and what they have said since."""
        self._accept()
        found = []
        strangers, self._strangers = self._strangers, []
        for channel, deadline in strangers:
            try:
                channel.flush()
                texts = channel.receive()
                if texts:
                    hello = decode_message(texts[0], FromKeeper)
                    if not isinstance(hello, Hello):
                        raise ChannelBroken("it does not say who it is")
                    found.append((channel, hello, texts[1:]))
                elif time.monotonic() > deadline:
                    raise ChannelBroken("it says nothing")
                else:
                    self._strangers.append((channel, deadline))
            except (ChannelBroken, MalformedMessage) as error:
                logger.warning("a stranger at port %d: %s", self.port, error)
                channel.close()
        return found

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # none waits, or it left, or there are no descriptors: they try again
            if len(self._strangers) >= _STRANGERS:
                connection.close()
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = Channel(connection, self._token, "head")
            try:
                channel.send(encode(Beat()))  # proves to the keeper who we are
            except ChannelBroken:
                channel.close()
                continue
            self._strangers.append((channel, time.monotonic() + _PATIENCE))

    def close(self) -> None:
        """Accept nobody any more."""
        self._socket.close()
        for channel, _ in self._strangers:
            channel.close()
        self._strangers = []
