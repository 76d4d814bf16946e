"""What a pilot's worker and its main process refuse, record, and outlive."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import keys, procs, wire
from balsam_celery.wire import Ended, KillOrder
from tests.pilot.service import Pilot
from tests.security.forged import NOISE, celery_message, pickled
from tests.waiting import wait_until

_counter = itertools.count()


class Witness:
    """The pilot goes on: the same processes, a good task beside the bad, lines in the log."""

    def __init__(self, pilot: Pilot, log: str) -> None:
        self._pilot = pilot
        self._log = pilot.directory / f"{log}.log"
        self._at = self._log.stat().st_size
        self._before = [pilot.identity_of(name) for name in ("pilot", "n0")]

    def check(self, *said: str) -> None:
        """Run a good task, and wait until the log has said all of ``said``, as often as there."""
        task = f"good-{next(_counter)}"
        self._pilot.run(self._pilot.spec(task, "/bin/true"))
        assert self._pilot.service.ended(task).exit_code == 0
        for words in set(said):
            times = said.count(words)
            wait_until(
                lambda words=words, times=times: self._new().count(words) >= times,
                20,
                f"{words!r} {times} times in {self._log}",
            )
        assert all(procs.alive(process) for process in self._before)
        assert max(map(len, self._new().splitlines()), default=0) < 20_000, (
            "giants are not logged whole"
        )

    def _new(self) -> str:
        return self._log.read_bytes()[self._at :].decode()


def queue_of(pilot: Pilot) -> str:
    return pilot.service.prefix + keys.pilot_queue(pilot.id, "n0")


def test_noise_in_the_queue(pilot: Pilot) -> None:
    witness = Witness(pilot, "n0")
    for noise in NOISE:
        pilot.service.client.lpush(queue_of(pilot), noise)
    witness.check(*["dropped a message that is not one of ours"] * len(NOISE))


def test_celery_tasks_that_it_does_not_know(pilot: Pilot) -> None:
    witness = Witness(pilot, "n0")
    for task in ("celery.backend_cleanup", "balsam.pack", "os.system"):
        message = celery_message(task, [["touch /tmp/forged"], {}, {}])
        pilot.service.client.lpush(queue_of(pilot), message)
    witness.check("unregistered task of type 'balsam.pack'", "unregistered task of type 'os.system")


def test_a_pickle_is_not_opened(pilot: Pilot, tmp_path: Path) -> None:
    witness = Witness(pilot, "n0")
    for task in (keys.RUN, keys.KILL):
        message = pickled(task, tmp_path / "opened")
        pilot.service.client.lpush(queue_of(pilot), message)
    witness.check("x-python-serialize")
    assert not (tmp_path / "opened").exists()


def test_a_bundle_that_is_another_pilots(pilot: Pilot, tmp_path: Path) -> None:
    """Replayed, or gone astray: it would run twice."""
    witness = Witness(pilot, "n0")
    spec = pilot.spec(f"astray-{next(_counter)}", "/bin/touch", str(tmp_path / "ran"))
    for address in ("pilot.other-abc123.n0", keys.pilot_queue(pilot.id, "n1"), "", 3):
        body = [[address, [wire.to_plain(spec)]], {}, {}]
        pilot.service.client.lpush(queue_of(pilot), celery_message(keys.RUN, body))
    witness.check("it is addressed to 'pilot.other-abc123.n0'", "args does not hold an address")
    assert not (tmp_path / "ran").exists()
    assert not [e for e in pilot.service.all(Ended) if e.id == spec.id]


def test_a_kill_order_that_is_another_pilots(pilot: Pilot) -> None:
    """An answer to it would end the attempt on the pilot that has it."""
    witness = Witness(pilot, "n0")
    order = wire.to_plain(KillOrder("elsewhere", 1, "forged"))
    body = [["pilot.other-abc123.n0", [order]], {}, {}]
    pilot.service.client.lpush(queue_of(pilot), celery_message(keys.KILL, body))
    witness.check("it is addressed to 'pilot.other-abc123.n0'")
    assert not [e for e in pilot.service.all(Ended) if e.id == "elsewhere"]


@pytest.mark.parametrize(
    "change",
    [
        {"id": 5}, {"attempt": "1"}, {"argv": []}, {"argv": "rm"}, {"argv": [1]}, {"shares": []},
        {"work_dir": "here"}, {"environment": {"A": 1}}, {"wall_time": 1e400}, {"wall_time": None},
        {"\n2026 forged log line": 1}, {"name": ["x" * 20_000_000]},
        {"end_signal": 999}, {"end_signal": 0}, {"end_signal": -9}, {"attempt": 0},
        {"wall_time": 10**400}, {"wall_time": -1}, {"kill_grace": 10**400}, {"kill_grace": -1},
        {"checkpoint_grace": 10**400}, {"checkpoint_grace": -1}, {"ranks_per_node": 0},
        {"threads_per_rank": 10**400}, {"shares": [{"node": "n0", "cores": [10**400]}]},
        {"shares": [{"node": "n0", "cores": [-1]}]},
        {"shares": [{"node": "n0", "cores": [0], "gpus": [{"index": 0, "fraction": 1e300}]}]},
    ],
    ids=lambda change: str(change)[:30],
)  # fmt: skip
def test_tasks_of_wrong_types(pilot: Pilot, change: dict[str, Any]) -> None:
    witness = Witness(pilot, "n0")
    task = f"wrong-{next(_counter)}"
    good = wire.to_plain(pilot.spec(f"beside-{task}", "/bin/true"))
    bad = {**wire.to_plain(pilot.spec(task, "/bin/true")), **change}
    address = keys.pilot_queue(pilot.id, "n0")
    body = [[address, [bad, good]], {}, {}]
    pilot.service.client.lpush(queue_of(pilot), celery_message(keys.RUN, body))
    # its neighbour in the same bundle is not lost
    assert pilot.service.ended(f"beside-{task}").exit_code == 0
    witness.check("refused a task that is not one")
    assert not [e for e in pilot.service.all(Ended) if e.id == task]


@pytest.mark.parametrize("change", [{"end_signal": 64}, {"wall_time": 999_999_999}])
def test_tasks_at_the_limits(pilot: Pilot, change: dict[str, Any]) -> None:
    task = f"limit-{next(_counter)}"
    pilot.run(pilot.spec(task, "/bin/true", **change))
    assert pilot.service.ended(task).exit_code == 0


def test_acknowledgements(pilot: Pilot) -> None:
    """Outcomes are still told, and acknowledged."""
    witness = Witness(pilot, "n0")
    key = keys.acks(pilot.service.prefix, pilot.id, "n0")
    wrong = [noise for noise in (*NOISE, b"[true]", b'["1"]', b"[1e999]") if noise != b"[]"]
    pilot.service.client.rpush(key, *wrong)
    wait_until(lambda: not pilot.service.client.exists(key), 20, "all is taken")
    witness.check(*["an acknowledgement that is not one"] * len(wrong))


def test_orders_to_the_pilot(pilot: Pilot) -> None:
    witness = Witness(pilot, "pilot")
    wrong = [b"\xff", b"[" * 100_000, b"{}", b'{"action": "rm", "reason": ""}']
    pilot.service.client.rpush(keys.control(pilot.service.prefix, pilot.id), *wrong)
    witness.check(*["refused an order that is not one"] * len(wrong))


def test_limits(pilot: Pilot) -> None:
    witness = Witness(pilot, "n0")
    limits = keys.limits(pilot.service.prefix, pilot.id)
    acks = keys.acks(pilot.service.prefix, pilot.id, "n0")
    for noise in (b"x", b"-1", b"9" * 5000, b""):
        pilot.service.client.hset(limits, "n0", noise)
        # taken in the same exchange as limits are read
        pilot.service.client.rpush(acks, b"[]")
        wait_until(lambda: not pilot.service.client.exists(acks), 20, "an exchange")
    witness.check()
    pilot.service.client.hset(limits, "n0", 2)


def test_broadcasts(pilot: Pilot) -> None:
    """Remote control of Celery's: heard by all workers."""
    witness = Witness(pilot, "n0")
    client = pilot.service.client
    channel = f"{pilot.service.prefix}/0.celery.pidbox"
    bodies = [
        {"method": command, "arguments": {"x": "y"}, "destination": None}
        for command in ("no_such_command", {"a": 1}, None, "pool_grow")
    ]
    for text in (*NOISE, *(celery_message("", body) for body in bodies)):
        assert client.publish(channel, text) >= 1
    witness.check("dropped a broadcast that is not one of ours")
    assert pilot.inspect("ping") == {"ok": "pong"}
