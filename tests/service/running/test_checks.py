"""What is left of messages that were lost with their worker."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from celery import Celery

from balsam_celery import keys
from balsam_celery.copies import Copy, hook_order
from balsam_celery.service.checks import Checks
from balsam_celery.service.hooks import Outstanding, StepKey, message_id
from balsam_celery.service.leading import Leadership
from balsam_celery.settings import RetrySettings
from balsam_celery.store.engine import Store
from tests.service.running.player import Player
from tests.store.making import add, program, task


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
    make_checks(store, app, player, outstanding)._send_again([lost])
    assert player.client.hkeys(unacknowledged) == [b"tag2"]
    assert outstanding.sent == {other: 1.0}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_lost_hook_is_counted_if_it_had_begun(
    store: Store, app: Celery[Any], player: Player
) -> None:
    """What waited in a queue that was lost is not to blame."""
    add(store, *(dataclasses.replace(program(f"t0000{n}"), hooks={"preprocess": ["x"]})
                 for n in range(1, 5)))  # fmt: skip
    begun, waited, other, earlier = ((f"t0000{n}", 0, "preprocess") for n in range(1, 5))
    for key, time in ((begun, 5.0), (other, 4.0), (earlier, 3.0)):
        copy_of(player, key, time).begin(player.client)
    outstanding = Outstanding(copies={begun: 5.0, waited: 5.0, other: 5.0, earlier: None})
    checks = make_checks(store, app, player, outstanding)
    checks._send_again([begun, waited, other, earlier])
    assert [task(store, f"t0000{n}").cuts for n in range(1, 5)] == [1, 0, 0, 1]
    assert not outstanding.given_up
    # the new message is a later one than any that has begun
    again = outstanding.copies[begun]
    assert again is not None
    assert copy_of(player, begun, again).begin(player.client)
    checks._send_again([begun])
    assert list(outstanding.given_up) == [begun]


def make_checks(store: Store, app: Celery[Any], player: Player, outstanding: Outstanding) -> Checks:
    leadership = Leadership(store)
    leadership.keep()
    said = RetrySettings(max_cuts=2)
    return Checks(store, app, player.client, player.prefix, leadership, outstanding, said)


def copy_of(player: Player, key: StepKey, sent: float) -> Copy:
    name = keys.hook_message(message_id(key))
    return Copy(keys.begun(player.prefix, name), hook_order(sent))
