"""What the leader sends, and sends again."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from balsam_celery.service.dispatch import Dispatcher
from balsam_celery.service.kill import REPEAT
from balsam_celery.site import Site
from tests.service.running.player import Player


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_order_to_take_back_what_still_waits_is_sent_again(
    site: Site, app: Celery[Any], player: Player
) -> None:
    """The first may be lost with Redis; the task would wait behind another for as long as that."""
    out = Dispatcher(app, player.client, site)
    one, other = ("p1", "n0", "t1", 1), ("p1", "n0", "t2", 1)

    def sent(recalled: set[tuple[str, str, str, int]], now: float) -> list[str]:
        out.recall(recalled, now)
        orders = player.take("p1")[1]
        assert all(order.waiting_only for order in orders)
        return [order.id for order in orders]

    assert sent({one}, 100.0) == ["t1"]
    assert sent({one, other}, 101.0) == ["t2"]
    assert sent({one, other}, 100.0 + REPEAT) == ["t1"]
    assert sent(set(), 110.0) == []
    assert sent({other}, 110.5) == ["t2"]
    out.close()
