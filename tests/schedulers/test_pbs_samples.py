"""What a real OpenPBS 23.06 printed, read by the pure parts of the adapter. Each trap is a test."""

from __future__ import annotations

import dataclasses
import locale
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import cutoff
from balsam_celery.schedulers import pbs_commands, pbs_jobs, pbs_nodes, pbs_queues
from balsam_celery.schedulers.base import Job, JobState
from balsam_celery.schedulers.pbs_jobs import Unreadable
from balsam_celery.schedulers.pbs_nodes import Shape
from tests.schedulers.pbs_samples import changed, sample

QUEUED, RUNNING, ENDED = JobState.QUEUED, JobState.RUNNING, JobState.ENDED
#: 16:01:23 on 22 November 2026 in UTC.
START = 1795363283.0


def job(name: str) -> Job:
    """The job in a captured answer of ``qstat``."""
    return pbs_jobs.make_job("1.x", pbs_jobs.attributes(sample(name).out))


@pytest.mark.parametrize(
    ("name", "reason", "seconds"),
    [
        ("qstat-xf-json-finished-OK", "", 1),
        ("qstat-xf-json-finished-NODES", "", 1),
        ("qstat-xf-json-finished-EX3", "exit status 3", 1),
        ("qstat-xf-json-finished-SEGV", "exit status 139", 2),
        ("qstat-xf-json-finished-K9", "exit status 137", 2),
        ("qstat-xf-json-finished-WALL", "its wall time was over", 11),
        ("qstat-xf-json-finished-WALLN", "its wall time was over", 21),
        ("qstat-xf-json-finished-KT", "cancelled", 10),
        ("qstat-xf-json-finished-KN", "cancelled", 9),
        ("qstat-xf-json-finished-KF", "cancelled by force", 8),
        ("qstat-xf-json-finished-BADOUT", "", 35),
    ],
)
def test_trap_exit_statuses_and_substates_tell_why_a_job_ended(
    name: str, reason: str, seconds: int
) -> None:
    found = job(name)
    assert (found.state, found.reason) == (ENDED, reason)
    assert (found.started, found.ended) == (START, START + seconds)
    assert found.nodes == ()


def test_trap_the_first_node_of_a_job_was_lost() -> None:
    found = job("qstat-xf-json-nodefail-K2")
    assert (found.state, found.reason) == (ENDED, "its first node was lost")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qstat-xf-json-finished-QDELQ", "cancelled before it started"),
        ("qstat-xf-json-finished-HOLD", "cancelled before it started"),
        ("qstat-xf-json-finished-DEPF", "it never ran"),
    ],
)
def test_trap_a_job_that_never_ran_has_no_exit_status(name: str, reason: str) -> None:
    found = job(name)
    assert (found.state, found.reason, found.started) == (ENDED, reason, None)
    assert found.ended is not None


@pytest.mark.parametrize("name", ["nodefail-J", "nodefail-J2"])
def test_trap_a_job_that_lost_another_node_than_its_first_stays_running(name: str) -> None:
    found = job(f"qstat-xf-json-{name}")
    assert (found.state, found.nodes) == (RUNNING, ("pbs6", "pbs7"))


def test_a_rerun_job_is_queued_again_whatever_its_exit_status() -> None:
    found = job("qstat-xf-json-nodefail-K")
    assert (found.state, found.started, found.ended, found.impossible) == (
        QUEUED,
        None,
        None,
        False,
    )


def test_trap_an_impossible_job_waits_for_ever() -> None:
    found = job("qstat-f-json-impossible")
    assert (found.state, found.impossible) == (QUEUED, True)
    assert found.reason == "Can Never Run: Not enough total nodes available"
    waiting = job("qstat-f-json-queued-big")
    assert (waiting.state, waiting.impossible) == (QUEUED, False)
    assert waiting.reason == "Not Running: Not enough free nodes available"
    assert waiting.expected_start is None


@pytest.mark.parametrize(
    ("start", "expected"), [("Sun Nov 22 16:01:23 2026", START), ("UNKNOWN", None)]
)
def test_pbs_tells_when_it_expects_a_waiting_job_to_start(
    start: str, expected: float | None
) -> None:
    """Only where the site has estimates; the samples' had none. As ``src/cmds/qstat.c`` prints."""

    def estimate(told: dict[str, Any]) -> None:
        told["estimated"] = {"exec_vnode": "(pbs1:ncpus=4)", "start_time": start}

    told = pbs_jobs.attributes(changed("qstat-f-json-queued-big", estimate).out)
    assert pbs_jobs.make_job("1.x", told).expected_start == expected
    told = pbs_jobs.attributes(changed("qstat-f-json-running", estimate).out)
    assert pbs_jobs.make_job("1.x", told).expected_start is None


def test_a_job_that_pbs_failed_to_start_too_often_is_held_for_ever() -> None:
    def fail(told: dict[str, Any]) -> None:
        told.update(Hold_Types="s", comment="job held, too many failed attempts to run")

    told = pbs_jobs.attributes(changed("qstat-f-json-held", fail).out)
    found = pbs_jobs.make_job("1.x", told)
    assert found.impossible
    assert found.reason == "held by PBS: job held, too many failed attempts to run"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("held", "held by its user"),
        ("depend", "held: waits for another job"),
        ("waiting", "waits until Thu Dec 31 23:59:00 2026"),
    ],
)
def test_a_job_that_is_held_or_waits_is_queued(name: str, reason: str) -> None:
    found = job(f"qstat-f-json-{name}")
    assert (found.state, found.reason, found.impossible) == (QUEUED, reason, False)


def test_a_running_job_tells_its_start_and_nodes() -> None:
    found = job("qstat-f-json-running")
    assert found == Job("1.x", "running", RUNNING, START, nodes=("pbs4", "pbs5"))


def test_a_job_that_exits_or_was_told_to_end_still_runs() -> None:
    jobs = pbs_jobs.document(sample("qstat-f-json-all").out)["Jobs"]
    exits = pbs_jobs.make_job("79.pbsserver", jobs["79.pbsserver"])
    assert jobs["79.pbsserver"]["job_state"] == "E"
    assert (exits.state, exits.ended) == (RUNNING, None)
    assert job("qstat-f-json-after-qdel").state is RUNNING


def test_a_state_that_pbs_does_not_have_is_not_guessed() -> None:
    with pytest.raises(Unreadable, match="'Z'"):
        pbs_jobs.make_job("1.x", {"job_state": "Z"})


@pytest.mark.parametrize(
    ("given", "name"), [('"123"', "123"), ("7", "7"), ('"balsam-a-b"', "balsam-a-b")]
)
def test_trap_the_types_of_json_values_are_guessed(given: str, name: str) -> None:
    # "-N 123" came as text from 23.06; other versions print the number
    text = sample("qstat-f-json-numeric").out.replace('"Job_Name":\t"123"', f'"Job_Name":\t{given}')
    told = pbs_jobs.attributes(text)
    assert (told["Variable_List"]["X"], told["Variable_List"]["Y"]) == (7, 100000)  # 007, 1e5
    assert pbs_jobs.make_job("88.pbsserver", told).name == name
    assert pbs_jobs.name_of(text) == name


def test_trap_of_several_ids_the_first_job_alone_is_told() -> None:
    jobs = pbs_jobs.document(sample("qstat-xf-json-two-ids").out)["Jobs"]
    assert list(jobs) == ["61.pbsserver"]
    assert list(pbs_jobs.document(sample("qstat-mixed-unknown").out)["Jobs"]) == ["61.pbsserver"]
    assert pbs_commands.job("61.pbsserver", history=True)[-1:] == ["61.pbsserver"]


@pytest.mark.parametrize(
    "name", ["qstat-unknown", "qstat-finished-without-x", "err-serverdown-qstat"]
)
def test_trap_a_failed_qstat_prints_valid_json(name: str) -> None:
    assert sample(name).status != 0
    assert "pbs_version" in pbs_jobs.document(sample(name).out)
    with pytest.raises(Unreadable):
        pbs_jobs.attributes(sample(name).out)


def test_the_name_is_found_where_the_json_is_not_valid() -> None:
    text = sample("qstat-f-json-weird").out.replace('"{k:1}"', '"{"k":1}"')
    with pytest.raises(Unreadable, match="not valid JSON"):
        pbs_jobs.attributes(text)
    assert pbs_jobs.name_of(text) == "1e3"
    assert pbs_jobs.attributes(sample("qstat-f-json-weird").out)["Variable_List"]["C"] == "ü"


def test_a_line_feed_that_is_not_escaped_does_no_harm() -> None:
    text = sample("qstat-f-json-running").out.replace("l1\\nl2", "l1\nl2")
    assert pbs_jobs.attributes(text)["Variable_List"]["C"] == "l1\nl2"


@pytest.fixture
def german() -> Iterator[None]:
    """A locale whose months have other names, if the machine has it."""
    before = locale.setlocale(locale.LC_TIME)
    for name in ("de_DE.UTF-8", "C.UTF-8"):
        try:
            locale.setlocale(locale.LC_TIME, name)
            break
        except locale.Error:
            continue
    yield
    locale.setlocale(locale.LC_TIME, before)


@pytest.mark.usefixtures("german")
def test_times_are_read_in_utc_and_without_locale() -> None:
    assert pbs_jobs.moment("Sun Nov 22 16:01:23 2026") == START
    assert pbs_jobs.moment("Thu Dec  3 00:00:00 2026") == START + 10 * 86400 + 7 * 3600 + 3517
    assert [pbs_jobs.moment(bad) for bad in ("So Dez 3", 1795363283, None, "")] == [None] * 4


def test_durations_and_sizes() -> None:
    assert [pbs_jobs.seconds(t) for t in ("01:30:00", "30:00", "90", 90, "100:00:01", "x")] == [
        5400, 1800, 90, 90, 360001, None,
    ]  # fmt: skip
    assert [pbs_jobs.size(t) for t in ("4gb", "102400kb", "12b", "8mw", 17, "x", None)] == [
        4 << 30, 100 << 20, 12, 64 << 20, 17, 0, 0,
    ]  # fmt: skip


def test_trap_the_node_file_repeats_hosts() -> None:
    # mpiprocs=2 on each of two chunks
    assert pbs_nodes.node_file("pbs4\npbs4\npbs5\npbs5\n") == ("pbs4", "pbs5")


def test_what_each_host_gives_to_a_job() -> None:
    told = pbs_jobs.attributes(sample("qstat-f-json-running").out)
    assert pbs_nodes.shapes(told) == {
        "pbs4": Shape(2, 0, 100 << 20),
        "pbs5": Shape(2, 0, 100 << 20),
    }
    twice = pbs_jobs.attributes(sample("qstat-xf-json-nodefail-J").out)
    assert pbs_nodes.shapes(twice) == {"pbs6": Shape(2), "pbs7": Shape(1)}


def test_a_chunk_over_several_vnodes_of_a_host() -> None:
    told = {
        "exec_host": "x1/0*64+x2/0*64",
        "exec_vnode": "(x1[0]:ncpus=32:ngpus=2+x1[1]:ncpus=32:ngpus=2)+(x2:ncpus=64:ngpus=4)",
    }
    assert pbs_nodes.shapes(told) == {"x1": Shape(64, 4), "x2": Shape(64, 4)}
    assert pbs_nodes.shapes({**told, "exec_host": "x1/0*64"}) == {}


def test_nodes_of_the_machine() -> None:
    now, nodes = pbs_nodes.parse_nodes(sample("pbsnodes-a-json-busy").out)
    assert now == 1795363290
    assert [node.name for node in nodes] == [f"pbs{number}" for number in range(1, 9)]
    assert {node.shape for node in nodes} == {Shape(4, 0, 4 << 30)}
    # pbs3 is free for part of it alone, pbs5 is full, pbs4, 6 and 7 have jobs
    assert [node.name for node in nodes if node.idle] == ["pbs1", "pbs2", "pbs8"]


def test_a_node_is_given_up_when_it_was_down_for_long() -> None:
    now, (node,) = pbs_nodes.parse_nodes(sample("pbsnodes-json-down").out)
    assert now - node.since == 25
    sights = pbs_nodes.Sights()
    assert not sights.given_up(node, now, 26)
    assert sights.given_up(node, now, 25)


def test_a_node_unknown_to_a_server_that_was_started_again_counts_from_our_own_look() -> None:
    """Its time of change may be of long before; what it may have said meanwhile nobody knows."""
    now, (plain,) = pbs_nodes.parse_nodes(sample("pbsnodes-json-down").out)
    node = dataclasses.replace(plain, states=frozenset({"state-unknown", "down"}), since=1.0)
    sights = pbs_nodes.Sights()
    assert not sights.given_up(node, now, 25)
    assert not sights.given_up(node, now + 24, 25)
    assert sights.given_up(node, now + 25, 25)
    # it was up in between: whether we saw that, or only that its state has changed
    up = dataclasses.replace(node, states=frozenset({"free"}))
    assert not sights.given_up(up, now + 30, 25)
    assert not sights.given_up(node, now + 60, 25)
    again = dataclasses.replace(node, since=now + 70)
    assert not sights.given_up(again, now + 90, 25)
    assert sights.given_up(again, now + 115, 25)


@pytest.mark.parametrize("grace", [0, 5, 300])
def test_a_node_that_lost_its_pilot_has_ended_all_before_it_is_given_up(grace: int) -> None:
    for silence in (10, 60, 600):
        takes = silence + grace + cutoff.STOP_SLACK + 2 * grace
        assert cutoff.over_after(grace, silence) >= takes + 30


@pytest.mark.parametrize("state", ["free", "offline", "job-busy", "stale,down", "stale"])
def test_a_node_in_another_state_is_not_given_up(state: str) -> None:
    _, (node,) = pbs_nodes.parse_nodes(sample("pbsnodes-json-down").out)
    node = dataclasses.replace(node, states=frozenset(state.split(",")))
    sights = pbs_nodes.Sights()
    assert not sights.given_up(node, node.since + 10**6, 25)
    assert not sights.given_up(node, node.since + 2 * 10**6, 25)


def test_an_unknown_node_has_no_state() -> None:
    _, (node,) = pbs_nodes.parse_nodes(sample("pbsnodes-unknown").out)
    assert (node.states, node.idle) == (frozenset(), False)


def test_queues_with_their_limits() -> None:
    _, nodes = pbs_nodes.parse_nodes(sample("pbsnodes-a-json-busy").out)
    default = pbs_queues.default_queue(sample("qstat-Bf-json").out)
    workq, short = pbs_queues.parse_queues(
        sample("qstat-Qf-json").out, nodes=nodes, default=default, user="me", groups=["users"]
    )
    assert (workq.name, workq.is_default, workq.max_wall_time) == ("workq", True, None)
    assert (short.name, short.is_default, short.max_wall_time) == ("short", False, 600)
    for queue in (workq, short):
        assert (queue.max_nodes, queue.cores_per_node, queue.memory_per_node) == (8, 4, 4 << 30)
        assert queue.enabled


def test_a_command_is_found_off_the_path(tmp_path: Path) -> None:
    # trap: jobs start with a login shell's PATH
    program = tmp_path / "pbs" / "bin" / "qstat"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    conf = tmp_path / "pbs.conf"
    conf.write_text(f"PBS_SERVER=pbsserver\nPBS_EXEC={tmp_path}/pbs\nPBS_START_MOM=1\n")
    nowhere = {"PATH": "/usr/bin:/bin", "PBS_CONF_FILE": str(tmp_path / "none")}
    assert pbs_commands.find("qstat", nowhere | {"PBS_CONF_FILE": str(conf)}) == str(program)
    assert pbs_commands.find("qstat", nowhere | {"PBS_EXEC": f"{tmp_path}/pbs"}) == str(program)
    assert pbs_commands.find("qstat-of-nobody", nowhere) == "qstat-of-nobody"
