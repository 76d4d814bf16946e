"""Whatever comes over the wire is one of ours or refused, and nothing else."""

from __future__ import annotations

import pytest

from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.wire import Ended, Heartbeat, MalformedMessage, Report, decode, encode

DEEP = "[" * 200_000
HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        "",
        "[]",
        DEEP,
        '{"records": ' + DEEP,
        '{"records": [[1, {"type": "Wake", "more": 1}]]}',
        '{"records": [[1, {"type": ["Wake"]}]]}',
        '{"records": [[1, {"type": "Started", "id": "t", "attempt": 1, "pid": 1, "time": '
        + HUGE
        + "}]]}",
        '{"pilot": 5}',
    ],
    ids=[
        "bytes",
        "nothing",
        "list",
        "deep",
        "deeper",
        "unknown",
        "kind",
        "huge",
        "number",
    ],
)
def test_refused(text: str | bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(Report, text)


@pytest.mark.parametrize(
    ("cls", "text", "value"),
    [
        (NodeShare, '{"node": "n", "cores": [1], "gpus": []}', NodeShare("n", (1,))),
        (
            NodeCapacity,
            '{"name": "n", "cores": [1], "gpus": [], "memory": 5, "pinned": true, "lost": false}',
            NodeCapacity("n", (1,), memory=5, pinned=True),
        ),
    ],
)
def test_what_an_earlier_release_wrote_is_read(cls: type[object], text: str, value: object) -> None:
    assert decode(cls, text) == value


@pytest.mark.parametrize(
    "value",
    [
        NodeShare("n", (0, 1), memory=1 << 40, resources=(("licence", 2), ("nvme", 1))),
        NodeCapacity("n", (0,), memory=1 << 40, resources=(("licence", 2),)),
    ],
)
def test_memory_and_resources_survive_the_wire(value: object) -> None:
    assert decode(type(value), encode(value)) == value


def test_a_whole_number_is_a_time() -> None:
    assert decode(Heartbeat, '{"time": 5, "pid": 1, "state": "running"}').time == 5.0


def test_what_utf8_cannot_hold_is_replaced() -> None:
    """A key of Redis is made of a pilot's name, and a row of the rest."""
    forged = '{"pilot": "\\ud800", "node": "n", "records": [[1, {"type": "Wake"}]]}'
    assert decode(Report, forged).pilot == "\ufffd"
    sent = Report("p", "n", ((1, Ended("t", 1, "exit", "no file \udcff", 1.0, argv=("\ud800",))),))
    [(_, got)] = decode(Report, encode(sent)).records
    assert isinstance(got, Ended)
    assert (got.reason, got.argv) == ("no file \ufffd", ("\ufffd",))
