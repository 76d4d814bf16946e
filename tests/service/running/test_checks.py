"""What is left of messages that were lost with their worker."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from celery import Celery

from balsam_celery import keys
from balsam_celery.copies import Copy, hook_order
from balsam_celery.service import checks as checks_module
from balsam_celery.service import inbox
from balsam_celery.service.checks import Checks
from balsam_celery.service.hooks import Outstanding, StepKey, message_id
from balsam_celery.service.leading import Leadership
from balsam_celery.settings import RetrySettings
from balsam_celery.states import State
from balsam_celery.store import scans
from balsam_celery.store.engine import Store
from balsam_celery.wire import TransitionEnded
from tests.service.running.player import Player
from tests.store.making import NOW, add, program, task, walk


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
                 for n in range(1, 6)))  # fmt: skip
    begun, waited, other, earlier, past = ((f"t0000{n}", 0, "preprocess") for n in range(1, 6))
    for key, sent in ((begun, 5.0), (other, 4.0), (earlier, 3.0), (past, -3.0)):
        copy_of(player, key, NOW + sent).begin(player.client)
    copies = {begun: NOW + 5, waited: NOW + 5, other: NOW + 5, earlier: None, past: None}
    outstanding = Outstanding(copies=copies)
    checks = make_checks(store, app, player, outstanding)
    checks._send_again([begun, waited, other, earlier, past])
    # what begins before a task waits for it is no run of this wait
    assert [task(store, f"t0000{n}").cuts for n in range(1, 6)] == [1, 0, 0, 1, 0]
    assert not outstanding.given_up
    # the new message is a later one than any that has begun
    again = outstanding.copies[begun]
    assert again is not None
    assert copy_of(player, begun, again).begin(player.client)
    checks._send_again([begun])
    assert list(outstanding.given_up) == [begun]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_has_ended_is_not_lost_while_its_end_waits_in_the_inbox(
    store: Store, app: Celery[Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service may be slow to read it; what is over must not run once more."""
    ended, lost = ("t00001", 0, "preprocess"), ("t00002", 0, "preprocess")
    told = TransitionEnded(*ended, ok=True, reason="", verdict=None, time=2.0)
    inbox.push(player.client, player.prefix, told)
    outstanding = Outstanding(sent={ended: 1.0, lost: 1.0}, copies={ended: 1.0, lost: 1.0})
    checks = make_checks(store, app, player, outstanding)
    # a worker that has none of the two
    monkeypatch.setattr(checks, "_known", lambda _ids, _role: set())
    for _ in range(4):
        checks._checked = 0.0
        checks.run()
    assert outstanding.sent == {ended: 1.0}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_hook_is_sent_again_as_a_later_one_also_by_a_clock_that_has_gone_back(
    store: Store, app: Celery[Any], player: Player
) -> None:
    """A worker would drop it, and it would be taken for lost again and again."""
    ahead = time.time() + 3600
    begun, waits = ("t00001", 0, "handler"), ("t00002", 0, "handler")
    copy_of(player, begun, ahead).begin(player.client)
    outstanding = Outstanding(copies={begun: None, waits: ahead})
    make_checks(store, app, player, outstanding)._send_again([begun, waits])
    again = outstanding.copies[begun]
    assert again is not None
    assert copy_of(player, begun, again).begin(player.client)
    # nor may the one that is out still begin after it
    assert (outstanding.copies[waits] or 0.0) > ahead


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_long_queue_is_not_read_for_what_is_taken_next(
    store: Store, app: Celery[Any], player: Player
) -> None:
    checks = make_checks(store, app, player, Outstanding())
    fill(player, [f"s{number:04}" for number in range(3000)])
    before = sent_by_redis(player)
    next_ones = {"s0000", "s0002"}
    assert checks._queued("mine", next_ones, next_ones) == next_ones
    assert sent_by_redis(player) - before < 100_000
    # what is not there may just have been taken; it is worth a long look the second time
    assert checks._queued("mine", {"s0000", "s1500", "none"}, set()) == {"s0000"}
    assert sent_by_redis(player) - before < 100_000
    assert checks._queued("mine", {"s0000", "s1500", "none"}, {"s1500"}) == {"s0000", "s1500"}
    assert checks._queued("mine", {"none"}, {"none"}) == set()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_all_of_a_queue_is_looked_through_page_by_page(
    store: Store, app: Celery[Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks_module, "_PAGE", 10)
    fill(player, [f"s{number:04}" for number in range(35)])
    checks = make_checks(store, app, player, Outstanding())
    every = {f"s{number:04}" for number in range(35)}
    for id in every:
        assert checks._queued("mine", {id}, {id}) == {id}
    assert checks._queued("mine", {*every, "none"}, {"none"}) == every


def test_more_steps_than_fit_a_look_are_looked_for_in_turns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand that wait in a queue that nobody serves must hide none that was lost."""
    monkeypatch.setattr(checks_module, "_MANY", 2)
    for number in (3, 1, 2, 4, 5):
        id = f"step-{number}"
        add(store, dataclasses.replace(program(id), kind="celery"), now=0.0)
        sent = [State.READY, State.PREPROCESSED, State.DISPATCHED]
        walk(store, id, sent, now=float(number // 2))
    add(store, program("other1"))
    walk(store, "other1", [State.PREPROCESSED, State.DISPATCHED], now=1.0)
    looks, after = [], scans.BEGIN
    for _ in range(4):
        with store.read() as conn:
            found, after = checks_module._open_steps(conn, 100.0, after)
        looks.append([id for id, _ in found])
    assert looks[:3] == [["step-1", "step-2"], ["step-3", "step-4"], ["step-5"]]
    assert looks[3] == looks[0]


def fill(player: Player, ids: Sequence[str]) -> None:
    """Messages of 1 kB in the queue ``mine``, the first of which is taken next."""
    name = f"{player.prefix}mine"
    for id in ids:
        player.client.lpush(name, json.dumps({"body": "x" * 1000, "headers": {"id": id}}))


def sent_by_redis(player: Player) -> int:
    """Bytes that the server has sent so far."""
    return int(player.client.info("stats")["total_net_output_bytes"])


def make_checks(store: Store, app: Celery[Any], player: Player, outstanding: Outstanding) -> Checks:
    leadership = Leadership(store)
    leadership.keep()
    said = RetrySettings(max_cuts=2)
    return Checks(store, app, player.client, player.prefix, leadership, outstanding, said)


def copy_of(player: Player, key: StepKey, sent: float) -> Copy:
    name = keys.hook_message(message_id(key))
    return Copy(keys.begun(player.prefix, name), hook_order(sent))
