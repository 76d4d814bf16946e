"""A stream of JSON lines between two processes of a pilot: never blocks, bounded, authentic.

Both sides know a token, which never travels. Each sends a random number first; from token and both
numbers come two keys, one for each direction, and every line carries an HMAC-SHA256 of its number
in the stream and its text. So a peer is authentic from its first line on, and nobody can forge,
repeat or reorder lines; what they say is no secret.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from typing import Literal

#: Bytes of a line, and of what waits to be sent, at the most.
_LINE, _WAITING = 1_000_000, 8_000_000
#: The same of a peer's number, and of its first line that proves who it is: a ``Hello`` names all
#: cores of a node.
_NONCE, _FIRST = 200, 65_536
_READ = 65536
_MAC = 32  # hexadecimal digits

Side = Literal["head", "node"]


class ChannelBroken(Exception):
    """The peer is gone, or not who it should be; says why."""


class _Seal:
    """Signs or checks the lines of one direction."""

    def __init__(self, token: bytes, sender: str, nonces: bytes) -> None:
        self._key = hmac.digest(token, sender.encode() + b" " + nonces, "sha256")
        self._count = 0

    def mac(self, text: bytes) -> bytes:
        self._count += 1
        digest = hmac.digest(self._key, b"%d %s" % (self._count, text), "sha256")
        return digest.hex()[:_MAC].encode()


class Channel:
    """One end.

    Args:
        connection: a connected stream socket; it is this object's now.
        token: what both sides know.
        side: which end this is.

    Attributes:
        heard: when something authentic last came, on the monotonic clock (at first: when made).
        authentic: the peer has proved that it knows the token.
    """

    def __init__(self, connection: socket.socket, token: bytes, side: Side) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._token = token
        self._side = side
        self._in = bytearray()
        self._nonce = secrets.token_hex(32).encode()
        self._out = bytearray(self._nonce + b"\n")
        self._early: list[bytes] = []  # to be sent once there are keys
        self._sending: _Seal | None = None
        self._receiving: _Seal | None = None
        self.heard = time.monotonic()
        self.authentic = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def writing(self) -> bool:
        """Something waits to be sent."""
        return bool(self._out)

    def send(self, text: str) -> None:
        """Send a line, now or by later calls of :meth:`flush`.

        Raises:
            ChannelBroken: the peer is gone, or does not read.
        """
        line = text.encode()
        if self._sending is None:
            self._early.append(line)
        else:
            self._seal(self._sending, line)
        self.flush()

    def _seal(self, seal: _Seal, line: bytes) -> None:
        if len(self._out) + len(line) > _WAITING:
            raise ChannelBroken("it does not read what it is sent")
        self._out += seal.mac(line) + b" " + line + b"\n"

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it.

        Raises:
            ChannelBroken: the peer is gone.
        """
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelBroken(error.strerror or str(error)) from None

    def receive(self) -> list[str]:
        """Lines that have come.

        Raises:
            ChannelBroken: the peer is gone or has closed its end, or sent what it should not.
        """
        try:
            read = self._socket.recv(_READ)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelBroken(error.strerror or str(error)) from None
        if not read:
            raise ChannelBroken("the connection was closed")
        self._in += read
        *lines, rest = self._in.split(b"\n")
        self._in = rest
        texts = []
        for line in lines:
            if self._receiving is None:
                self._agree(bytes(line))
            else:
                texts.append(self._opened(self._receiving, bytes(line)))
        first = _NONCE if self._receiving is None else _FIRST
        if len(rest) > (_LINE if self.authentic else first):
            raise ChannelBroken("a line without end")
        return texts

    def _agree(self, nonce: bytes) -> None:
        """Make the keys; what waited for them is sent."""
        if len(nonce) != len(self._nonce) or nonce == self._nonce:
            raise ChannelBroken("it does not speak our language")
        mine, other = (self._nonce, nonce) if self._side == "head" else (nonce, self._nonce)
        to_node = _Seal(self._token, "head", mine + other)
        to_head = _Seal(self._token, "node", mine + other)
        head = self._side == "head"
        self._sending, self._receiving = (to_node, to_head) if head else (to_head, to_node)
        for early in self._early:
            self._seal(self._sending, early)
        self._early = []
        self.flush()

    def _opened(self, seal: _Seal, line: bytes) -> str:
        mac, _, text = line.partition(b" ")
        if not hmac.compare_digest(mac, seal.mac(text)):
            raise ChannelBroken("a line that is not authentic")
        self.authentic = True
        self.heard = time.monotonic()
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise ChannelBroken("a line that is not UTF-8") from None

    def close(self) -> None:
        """Close it; what waits is lost."""
        self._socket.close()
