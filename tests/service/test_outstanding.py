"""Which steps were sent: by this service, by an earlier one, and what was lost of them."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from balsam_celery.service import hooks, transitions
from balsam_celery.service.requests import request_kill
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from tests.service.acting import advance, tell
from tests.service.hooking import Publisher, batch, done, doomed, hooked
from tests.store.conftest import Clock
from tests.store.making import NOW, add, task

S = State


def test_a_message_that_may_have_been_sent_is_sent_again_as_the_same(store: Store) -> None:
    """Redis took it and did not say so: of two that differ both would run."""
    for id in ("t00001", "t00002"):
        add(store, hooked(id, hooks={"preprocess": ["x"]}))
    publisher, outstanding = Publisher(), hooks.Outstanding()
    typed: Any = publisher

    def send(now: float) -> None:
        unsent = outstanding.unsent(advance(store), now)
        hooks.send(typed, unsent, Path("/run"), outstanding, now)

    publisher.deaf = 1
    with pytest.raises(OperationalError):
        send(NOW + 10)
    send(NOW + 20)
    first, *others = publisher.taken
    assert [one["id"] for one in others] == [
        first["id"],
        ({"t00001", "t00002"} - {first["id"]}).pop(),
    ]
    assert {one["sent"] for one in publisher.taken} == {NOW + 10}
    # what was lost is another message
    outstanding.lose((first["id"], 0, "preprocess"), NOW + 30, "")
    send(NOW + 40)
    assert (publisher.taken[-1]["id"], publisher.taken[-1]["sent"]) == (first["id"], NOW + 30)
    assert len(publisher.taken) == 4


def test_what_was_sent_is_not_pushed_out_by_older_tasks_that_come_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their times are those of another host's clock, or of a long transaction's begin."""
    monkeypatch.setattr(hooks, "WINDOW", 2)
    preprocess = {"preprocess": ["x"]}
    add(store, hooked("t00001", hooks=preprocess))
    outstanding = hooks.Outstanding()
    [one] = outstanding.unsent(advance(store), NOW + 1)
    outstanding.sent[one.key] = NOW + 1
    add(store, *(hooked(f"s{n:05}", hooks=preprocess) for n in range(3)), now=NOW - 60)
    unsent = outstanding.unsent(advance(store, outstanding.copies), NOW + 2)
    assert sorted(two.row.id for two in unsent) == ["s00000", "s00001"]
    assert one.key in outstanding.sent
    assert outstanding.copies[one.key] == NOW + 1
    request_kill(store, ["t00001"], "enough")
    end = hooks.end_killed
    assert store.run(lambda conn: end(batch(store, conn), doomed(store), outstanding))
    assert task(store, "t00001").state is S.READY
    tell(store, done("t00001", "preprocess"))
    assert task(store, "t00001").state is S.USER_KILLED
    outstanding.unsent(advance(store, outstanding.copies), NOW + 3)
    assert one.key not in outstanding.copies


def test_the_next_service_knows_what_was_sent_before_others_were_due_again(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that were put off have waited for longer, and have not been sent."""
    monkeypatch.setattr(hooks, "WINDOW", 2)
    preprocess = {"preprocess": ["x"]}
    add(store, *(hooked(f"s{n:05}", hooks=preprocess) for n in range(3)))
    for n in range(3):
        tell(store, dataclasses.replace(done(f"s{n:05}", "preprocess", ok=False), unfit=True))
    add(store, hooked("t00001", hooks=preprocess, not_before=NOW + 1), now=NOW)
    add(store, hooked("t00002", hooks=preprocess), now=NOW + 2)
    clock.now += 3
    outstanding = hooks.Outstanding()
    sent = [one.key for one in outstanding.unsent(advance(store), clock())]
    assert [id for id, _, _ in sent] == ["t00001", "t00002"]
    clock.now += transitions.UNFIT_PAUSE
    with store.read() as conn:
        pending = hooks.pending(conn, clock())
    outstanding.adopt(pending, clock())
    assert outstanding.copies.keys() >= {*sent}


def test_a_step_that_is_found_lost_while_others_are_looked_at_stays_lost() -> None:
    """Another thread finds that, at any moment: it must not be sent as the copy that was lost."""
    key = ("t00001", 0, "preprocess")
    outstanding = hooks.Outstanding(sent={key: 1.0})
    finds = threading.Thread(target=outstanding.lose, args=(key, 9.0, "cut short"))

    class Interrupted(dict[hooks.StepKey, float | None]):
        def items(self) -> Any:
            yield from super().items()
            finds.start()
            finds.join(0.5)  # it may have to wait until all have been looked at

    outstanding.copies = Interrupted({key: 1.0})
    row: Any = SimpleNamespace(id=key[0], attempt=key[1], not_before=0.0, changed=0.0)
    outstanding.unsent([hooks.Pending(row, key[2])], 2.0)
    finds.join()
    assert (outstanding.sent, outstanding.copies) == ({}, {key: 9.0})
    assert outstanding.given_up == {key: "cut short"}
