"""Which copy of a message may begin, on a real Redis."""

from __future__ import annotations

from balsam_celery import keys
from balsam_celery.copies import Copy, hook_order, last_begun, step_order
from tests.redis_server import RedisServer


def test_a_run_begins_once_and_never_after_a_later_one(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        key = keys.begun("copies.", "x")

        def copy(sent: float) -> Copy:
            return Copy(key, hook_order(sent))

        first, twin = copy(9.5), copy(9.5)
        assert last_begun(client, "copies.", "x") is None
        assert first.begin(client)
        assert first.begin(client), "its answer was lost"
        assert not twin.begin(client)
        assert last_begun(client, "copies.", "x") == hook_order(9.5)
        later = copy(1_795_363_200.25)
        assert later.begin(client), "numbers, not texts: it is longer"
        assert not copy(10.0).begin(client)
        assert not first.end(client), "the later one will tell"
        while_it_runs = client.ttl(key)
        assert later.end(client)
        assert 0 < client.ttl(key) < while_it_runs
        assert not copy(1_795_363_200.25).begin(client), "late"
        client.delete(key)
        assert later.end(client), "a Redis that has lost it keeps nobody from telling"
        client.delete(key)


def test_messages_of_one_step_follow_each_other() -> None:
    in_order = [step_order(1, 0, 0), step_order(1, 0, 9), step_order(1, 0, 10), step_order(1, 1, 0),
                step_order(2, 0, 0), step_order(10, 0, 0)]  # fmt: skip
    assert sorted(in_order) == in_order
