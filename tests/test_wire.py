"""Whatever comes over the wire is one of ours or refused, and nothing else."""

from __future__ import annotations

import pytest

from balsam_celery.wire import Heartbeat, MalformedMessage, Report, decode

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
    ids=["bytes", "nothing", "list", "deep", "deeper", "unknown", "kind", "huge", "number"],
)
def test_refused(text: str | bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(Report, text)


def test_a_whole_number_is_a_time() -> None:
    assert decode(Heartbeat, '{"time": 5, "pid": 1, "state": "running"}').time == 5.0
