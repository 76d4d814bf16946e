"""What the head of a pilot and the keepers of its nodes tell each other, and how they find it.

The messages travel over a :class:`~balsam_celery.pilot.channel.Channel`, each as a JSON array of
its name and its fields; what does not fit is refused like anything on the wire.
"""

from __future__ import annotations

import json
import os
import socket
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balsam_celery.private import read_secret, write_private
from balsam_celery.resources import NodeCapacity
from balsam_celery.settings import Settings
from balsam_celery.site import Site, find
from balsam_celery.wire import MalformedMessage, decode, from_plain, to_plain
from balsam_celery.wire import encode as encode_value

#: File in the pilot's directory, for its owner alone, by which a keeper finds the head.
INVITATION = "nodes.json"


@dataclass(frozen=True, slots=True)
class Hello:
    """From a keeper, first: its node, what the node has, and whether it was started again."""

    node: str
    pid: int
    host: str
    capacity: NodeCapacity
    again: bool = False


@dataclass(frozen=True, slots=True)
class Consumes:
    """From a keeper: its worker consumes (again)."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """From a keeper: why its worker does not consume yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Died:
    """From a keeper: its worker died, nothing of it lives, and whether a new one was started."""

    reason: str
    restarted: bool


@dataclass(frozen=True, slots=True)
class Swept:
    """From a keeper: no process of the sweep of that number lives on its node."""

    number: int


@dataclass(frozen=True, slots=True)
class Drains:
    """From a keeper: it was told on its own node to end."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """From a keeper: its worker has ended and nothing of it lives; were all outcomes delivered?"""

    delivered: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """To a keeper: end the worker; ``alone``: the pilot goes on without this node."""

    reason: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """To a keeper: end every process of these marks and attempts (brands) on the node.

    ``signal``: only send that to those of the marks; 0: end them.
    """

    number: int
    marks: tuple[str, ...]
    attempts: tuple[str, ...]
    grace: float
    signal: int = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """To a keeper: nothing more is asked of it.

    Attributes:
        alone: the pilot goes on without its node, on which no task over several nodes is.
    """

    alone: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """Either way: a sign of life."""


@dataclass(frozen=True, slots=True)
class AskSweep:
    """From the gang worker: sweep these nodes, or, with a signal, only send that to the ranks."""

    number: int
    attempt: str
    nodes: tuple[str, ...]
    grace: float
    signal: int = 0


@dataclass(frozen=True, slots=True)
class SweepDone:
    """To the gang worker: nothing lives, or where nobody confirms that (in words)."""

    number: int
    unconfirmed: str


@dataclass(frozen=True, slots=True)
class NodeLost:
    """To the gang worker: the node is lost; so many are left."""

    node: str
    reason: str
    left: int


@dataclass(frozen=True, slots=True)
class NodeDoubt:
    """To the gang worker: why what ran on a node may have ended with it; "": it is there again."""

    node: str
    reason: str


FromKeeper = Hello | Consumes | Trouble | Died | Swept | Drains | Drained | Beat
ToKeeper = Drain | Sweep | Leave | Beat
FromGang = AskSweep
ToGang = SweepDone | NodeLost | NodeDoubt
Message = FromKeeper | ToKeeper | FromGang | ToGang
_NAMES: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(Message)}


def encode(message: Message) -> str:
    """The message as one line."""
    return json.dumps([type(message).__name__, to_plain(message)], separators=(",", ":"))


def decode_message(text: str, kinds: Any) -> Any:
    """The message that a line holds; it must be one of ``kinds`` (a union).

    Raises:
        MalformedMessage: it is not.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    match plain:
        case [str() as name, dict() as fields] if _NAMES.get(name) in typing.get_args(kinds):
            return from_plain(_NAMES[name], fields)
    raise MalformedMessage(f"not a message of this link: {text[:100]!r}")


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a keeper must know of the pilot.

    Attributes:
        nodes: of the allocation, as far as the head knows what they have.
        addresses: (host, port) pairs to try.
        token: proves that one belongs to this pilot; never in an argument or a variable.
    """

    pilot: str
    allocation: str
    end_time: float
    nodes: tuple[NodeCapacity, ...]
    addresses: tuple[tuple[str, int], ...]
    token: str

    def write(self, directory: Path) -> None:
        """Leave it in the pilot's directory, for its owner alone."""
        write_private(directory / INVITATION, encode_value(self))


@dataclass(frozen=True, slots=True)
class Briefing:
    """All that a keeper needs; one process reads it for all nodes. Holds secrets: never print it.

    Attributes:
        site: the site directory.
        local_dir: see :class:`balsam_celery.site.Site`.
        redis_url: with its password.
    """

    invitation: Invitation
    site: str
    local_dir: str
    settings: Settings
    redis_url: str

    @classmethod
    def read(cls, site_directory: Path, directory: Path) -> Briefing:
        """Read the site's settings and secrets, and what the head wrote into ``directory``.

        Raises:
            SiteError: one of them cannot be read.
            MalformedMessage: the head's file is not what it should be.
        """
        site = find(site_directory)
        invitation = decode(Invitation, read_secret(directory / INVITATION))
        return cls(
            invitation,
            str(site.directory),
            str(site.local_dir),
            site.settings,
            site.redis_url(),
        )

    def make_site(self) -> Site:
        """The site, without looking at any file."""
        return Site(Path(self.site), self.settings, Path(self.local_dir), self.redis_url)


def own_addresses(port: int, names: tuple[str, ...], toward: str) -> tuple[tuple[str, int], ...]:
    """Where other nodes may reach a socket of this host that listens on all interfaces.

    Args:
        port: the socket's.
        names: what this host is called.
        toward: a host in the network that the nodes can reach; the address that this host shows
            to it comes first.
    """
    found: list[str] = []
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            toward or "localhost", port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: it only chooses a route
            found.append(probe.getsockname()[0])
    except OSError:
        pass  # the names remain
    found += [*names, os.uname().nodename, "127.0.0.1"]
    return tuple((host, port) for host in dict.fromkeys(found) if host)
