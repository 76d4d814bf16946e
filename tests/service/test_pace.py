"""The service's pace: what it sends ahead follows the short tasks that end."""

from __future__ import annotations

from balsam_celery.service.pace import Pace
from balsam_celery.wire import Ended, Wake


def over(seconds: float) -> Ended:
    return Ended("t", 1, "exit", "", ended=100.0 + seconds, started=100.0, exit_code=0)


def test_it_follows_the_rate_and_the_length_of_a_turn() -> None:
    pace = Pace(64)
    assert pace.ahead(0.0).tasks == 0
    pace.note([Wake(), over(5.0), Ended("t", 1, "fenced", "", ended=1.0)], 10.0)
    assert pace.ahead(10.0).tasks == 0
    pace.note([over(0.1)] * 400, 10.5)
    assert pace.ahead(11.0).tasks == 6
    for _ in range(50):
        pace.turn(0.05)
    assert pace.ahead(11.0).tasks == 26
    pace.note([over(0.1)] * 4000, 11.0)
    assert pace.ahead(11.0).tasks == 64
    assert Pace(0).ahead(0.0).tasks == 0
    # a while later nothing ends any more
    assert pace.ahead(14.0).tasks == 0
    pace.note([over(0.1)] * 40, 20.0)
    # the clock was set back
    assert pace.ahead(5.0).tasks == 0
