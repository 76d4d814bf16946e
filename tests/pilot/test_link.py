"""The link between the head and its nodes: what passes, and what breaks it."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator

import pytest

from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.link import (
    Beat,
    Drain,
    FromKeeper,
    Hello,
    Leave,
    Sweep,
    ToKeeper,
    Trouble,
    decode_message,
    encode,
    own_addresses,
)
from balsam_celery.pilot.sweeping import Sweeping
from balsam_celery.resources import NodeCapacity
from balsam_celery.wire import MalformedMessage

TOKEN = b"a token"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for one in pair:
        one.close()


def received(channel: Channel) -> list[str]:
    """What comes, with the handshake on the way."""
    channel.flush()
    return channel.receive()


def joined(ends: tuple[socket.socket, socket.socket]) -> tuple[Channel, Channel]:
    """Two ends that have agreed."""
    head, node = Channel(ends[0], TOKEN, "head"), Channel(ends[1], TOKEN, "node")
    for _ in range(2):
        assert received(head) == received(node) == []
    return head, node


def test_both_ways(ends: tuple[socket.socket, socket.socket]) -> None:
    head, node = Channel(ends[0], TOKEN, "head"), Channel(ends[1], TOKEN, "node")
    head.send("early")  # before either knows the other's number
    for _ in range(2):
        received(head)
        texts = received(node)
    assert texts == ["early"]
    assert node.authentic
    assert not head.authentic, "the node has said nothing yet"
    node.send("täglich")
    node.send("again")
    assert received(head) == ["täglich", "again"]
    assert head.authentic


def test_the_first_line_may_come_in_pieces(ends: tuple[socket.socket, socket.socket]) -> None:
    """A node with hundreds of cores has a ``Hello`` longer than a packet of the network."""
    head, node = joined(ends)
    capacity = NodeCapacity("n0", tuple(range(1024)))
    hello = encode(Hello("n0", 1, "n0", capacity))
    node.send(hello)
    sent = ends[0].recv(1_000_000)
    assert len(sent) > 4000
    for part in (sent[:1448], sent[1448:2896], sent[2896:]):
        between, again = socket.socketpair()
        with between, again:
            again.sendall(part)
            head._socket = between
            texts = received(head)
    assert texts == [hello]
    assert head.authentic


def test_another_token(ends: tuple[socket.socket, socket.socket]) -> None:
    head, node = Channel(ends[0], TOKEN, "head"), Channel(ends[1], b"another", "node")
    node.send("let me in")
    received(node)
    with pytest.raises(ChannelBroken, match="not authentic"):
        for _ in range(3):
            received(head)
            received(node)
    assert not head.authentic


def test_lines_are_not_repeated_changed_or_reflected(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    for forge in (
        lambda line, own: line + line,
        lambda line, own: line.replace(b"word", b"warp"),
        lambda line, own: own,
    ):
        pair = socket.socketpair()
        outer = socket.socketpair()
        try:
            # the middle reads what the node says and tells the head what it likes
            head, node = Channel(outer[0], TOKEN, "head"), Channel(pair[0], TOKEN, "node")
            head.flush()
            node.flush()
            pair[1].sendall(outer[1].recv(1000))
            outer[1].sendall(pair[1].recv(1000))
            received(head)
            received(node)
            head.send("own word")
            own = outer[1].recv(1000)
            node.send("a word")
            outer[1].sendall(forge(pair[1].recv(1000), own))
            with pytest.raises(ChannelBroken, match="not authentic"):
                received(head)
        finally:
            for one in (*pair, *outer):
                one.close()


def test_a_peer_that_does_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    head, _ = joined(ends)
    with pytest.raises(ChannelBroken, match="does not read"):
        for _ in range(100):
            head.send("x" * 900_000)
    assert head.writing


def test_a_peer_that_is_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    head, node = joined(ends)
    node.close()
    with pytest.raises(ChannelBroken, match="the connection was closed"):
        received(head)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\n", b"x" * 1000, b"\xff\n"])
def test_a_stranger(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    head = Channel(ends[0], TOKEN, "head")
    ends[1].sendall(sent)
    with pytest.raises(ChannelBroken):
        received(head)


def test_its_own_number_sent_back(ends: tuple[socket.socket, socket.socket]) -> None:
    head = Channel(ends[0], TOKEN, "head")
    head.flush()
    ends[1].sendall(ends[1].recv(1000))
    with pytest.raises(ChannelBroken, match="language"):
        received(head)


@pytest.mark.parametrize(
    "message",
    [
        Hello("n1", 17, "host", NodeCapacity("n1", (0, 1), (0,), 5, pinned=True)),
        Trouble("no Redis"),
        Drain("why", alone=True),
        Sweep(1, ("A=b",), ("t/1",), 2.5),
        Leave(),
        Beat(),
    ],
)
def test_messages(message: FromKeeper | ToKeeper) -> None:
    kinds = FromKeeper if isinstance(message, FromKeeper) else ToKeeper
    assert decode_message(encode(message), kinds) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '["Leave"]',
        '["Hello",{}]',
        '["Nothing",{}]',
        '["Trouble",{"reason":1}]',
        "[" * 9999,
    ],
)
def test_what_is_no_message_of_a_keeper(text: str) -> None:
    with pytest.raises(MalformedMessage):
        decode_message(text, FromKeeper)


def test_a_keeper_gives_no_orders() -> None:
    with pytest.raises(MalformedMessage):
        decode_message(encode(Leave()), FromKeeper)


def test_addresses_begin_with_the_one_that_redis_sees() -> None:
    addresses = own_addresses(7, ("head.cluster",), "127.0.0.1")
    assert addresses[0] == ("127.0.0.1", 7)
    assert ("head.cluster", 7) in addresses
    assert own_addresses(7, (), "no.such.host.invalid")[-1] == ("127.0.0.1", 7)


def test_sweeps_wait_for_every_node() -> None:
    sweeping, over = Sweeping(), []
    first = sweeping.begin(["a", "b"], ("M=1",), ("t/1",), 1.0, over.append)
    second = sweeping.begin(["b"], ("M=2",), (), 0.0, over.append)
    assert dataclasses.replace(first, number=second.number) != second
    assert sweeping.orders("b") == [first, second]
    sweeping.confirmed("a", first.number)
    sweeping.confirmed("a", first.number)
    sweeping.confirmed("a", 99)
    assert sweeping.orders("a") == []
    assert over == []
    sweeping.confirmed("b", first.number)
    assert over == [""]
    sweeping.gone("b")
    assert over == ["", ""]
    assert sweeping.begin([], (), (), 0.0, over.append).number == 3
    assert over == ["", "", ""]


def test_a_silent_node_ends_no_sweep_until_all_is_given_up() -> None:
    sweeping, over = Sweeping(), []
    order = sweeping.begin(["a", "b"], (), (), 0.0, over.append)
    sweeping.give_up(["b"])
    assert over == [], "the other one may still confirm"
    sweeping.confirmed("a", order.number)
    sweeping.give_up(["b"])
    assert over == ["not confirmed by b"]
