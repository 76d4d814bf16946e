"""What is no message of ours in the queues of the login node's workers harms nobody."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from celery import Celery

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.site import Site
from tests.service.running.workers import Workers, workers
from tests.waiting import wait_until

__all__ = ["workers"]

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


def message(tag: Any = "tag", **headers: Any) -> str:
    """A message of Celery's protocol 2, but for what ``headers`` and ``tag`` make of it."""
    body = base64.b64encode(b"[[], {}, {}]").decode()
    info = {"exchange": "", "routing_key": "x"}
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "id": "i", "task": "mine.nothing", **headers},
            "properties": {
                "correlation_id": "i",
                "delivery_info": info,
                "delivery_tag": tag,
                "body_encoding": "base64",
            },
        }
    )


#: Each of these ended a worker of Celery's, or would have been given to the next one again.
POISON = (
    b"garbage", b"\xff\xfe\x00", b"", b"null", b"[]", b"{}", b"3", b"[" * 100_000,
    b'{"properties": {}}', b'{"body": 3, "headers": 3, "properties": 3}',
    message(tag=None), message(tag={"a": 1}), message(id={"a": 1}), message(task={"a": 1}),
    message(task=None), message(task="balsam.pack", id={"a": 1}), message(expires={"a": 1}),
    message(task="balsam.poll", stamped_headers=3), message(task="balsam.poll", timelimit="x"),
)  # fmt: skip


@pytest.mark.parametrize("role", ["service", "transitions", "tasks"])
def test_poison_is_dropped(
    workers: Workers, site: Site, app: Celery[Any], role: str, store: object
) -> None:
    worker = workers.start(role, "one", "-P", "threads", "-c", "1")
    queue = {"service": keys.SERVICE_QUEUE, "transitions": keys.TRANSITIONS_QUEUE}.get(
        role, keys.TASKS_QUEUE
    )
    prefix = site.settings.key_prefix
    with redis_client(site) as client:
        for text in POISON:
            client.lpush(f"{prefix}{queue}", text)
        wait_until(lambda: client.llen(f"{prefix}{queue}") == 0, 30, "all of it is taken")
        # it holds no place among the few messages that the worker takes at once, and is not kept
        wait_until(
            lambda: client.hlen(f"{prefix}unacked") == 0, 20, "nothing is left unacknowledged"
        )
    assert worker.process.poll() is None, worker.log.read_text()
    assert worker.queues() == [queue]
    assert worker.log.read_text().count("dropped a message that is not one of ours") >= 10
