"""What is left of messages that were lost with their worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery

from balsam_celery.service.checks import Checks
from balsam_celery.service.hooks import Outstanding
from balsam_celery.service.leading import Leadership
from balsam_celery.store.engine import Store
from tests.service.running.player import Player


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_hook_that_is_sent_again_is_not_restored_too(
    store: Store, app: Celery[Any], player: Player
) -> None:
    """A worker that was killed leaves what it had not begun to kombu, which would send it later."""
    lost, other = ("t00001", 0, "preprocess"), ("t00002", 0, "preprocess")
    unacknowledged = f"{player.prefix}unacked"
    for tag, (id, attempt, step) in {"tag1": lost, "tag2": other}.items():
        message = {"body": "", "headers": {"id": f"{id}.{attempt}.{step}"}}
        player.client.hset(unacknowledged, tag, json.dumps([message, "", "transitions"]))
    outstanding = Outstanding(sent={lost: 1.0, other: 1.0})
    checks = Checks(store, app, player.client, player.prefix, Leadership(store), outstanding)
    checks._send_again([lost])
    assert player.client.hkeys(unacknowledged) == [b"tag2"]
    assert outstanding.sent == {other: 1.0}
