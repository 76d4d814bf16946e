"""What the end of an attempt means, case by case, and that every path is in the table."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from balsam_celery.service.rules import Policy, describe, path
from balsam_celery.states import State, is_legal
from balsam_celery.wire import Ended, Outcome
from tests.service.acting import ended

S = State


def policy(**values: Any) -> Policy:
    """A task without retries, hooks or kill."""
    fields: dict[str, Any] = {
        "failures": 0, "max_retries": 0, "retry_on": None, "hooks": {}, "kill_asked": False,
    }  # fmt: skip
    return Policy(**{**fields, **values})


@pytest.mark.parametrize(
    ("state", "one", "said", "states", "counts"),
    [
        (S.RUNNING, ended("t"), policy(), (S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED), False),
        (
            S.DISPATCHED, ended("t"), policy(),
            (S.RUNNING, S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED), False,
        ),
        (S.RUNNING, ended("t"), policy(hooks={"postprocess": ["x"]}), (S.RUN_DONE,), False),
        (S.RUNNING, ended("t", code=3), policy(), (S.RUN_ERROR, S.FAILED), True),
        (
            S.RUNNING, ended("t", code=3), policy(max_retries=1),
            (S.RUN_ERROR, S.RESTART_READY), True,
        ),
        (
            S.RUNNING, ended("t", code=3), policy(max_retries=1, failures=1),
            (S.RUN_ERROR, S.FAILED), True,
        ),
        (
            S.RUNNING, ended("t", code=3), policy(max_retries=1, retry_on=["signal"]),
            (S.RUN_ERROR, S.FAILED), True,
        ),
        (
            S.RUNNING, ended("t", "signal", signal=9), policy(max_retries=1, retry_on=["signal"]),
            (S.RUN_ERROR, S.RESTART_READY), True,
        ),
        (S.RUNNING, ended("t", "timeout"), policy(), (S.RUN_TIMEOUT, S.FAILED), True),
        (
            S.RUNNING, ended("t", "timeout"), policy(hooks={"handler": ["x"]}),
            (S.RUN_TIMEOUT,), True,
        ),
        (
            S.DISPATCHED, ended("t", "cannot-start", started=None), policy(),
            (S.RUN_ERROR, S.FAILED), True,
        ),
        (S.RUNNING, ended("t", "lost"), policy(), (S.RUN_TIMEOUT, S.RESTART_READY), False),
        (
            S.DISPATCHED, ended("t", "lost"), policy(),
            (S.RUNNING, S.RUN_TIMEOUT, S.RESTART_READY), False,
        ),
        (S.DISPATCHED, ended("t", "drained", started=None), policy(), (S.RESTART_READY,), False),
        (S.DISPATCHED, ended("t", "fenced", started=None), policy(), (S.RESTART_READY,), False),
        (S.RUNNING, ended("t", "killed"), policy(), (S.RUN_TIMEOUT, S.RESTART_READY), False),
        (S.RUNNING, ended("t", "killed"), policy(kill_asked=True), (S.USER_KILLED,), False),
        (
            S.DISPATCHED, ended("t", "fenced", started=None), policy(kill_asked=True),
            (S.USER_KILLED,), False,
        ),
        (
            S.RUNNING, ended("t"), policy(kill_asked=True),
            (S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED), False,
        ),
        (
            S.RUNNING, ended("t", code=1), policy(kill_asked=True, max_retries=5),
            (S.USER_KILLED,), False,
        ),
    ],
)  # fmt: skip
def test_path(
    state: State, one: Ended, said: Policy, states: tuple[State, ...], counts: bool
) -> None:
    way = path(state, said, one)
    assert (way.states, way.counts) == (states, counts)


def test_a_retry_pauses_twice_as_long_each_time() -> None:
    said = {"max_retries": 9, "delay": 10.0, "max_delay": 60.0}
    for failures, seconds in enumerate((10, 20, 40, 60, 60)):
        way = path(S.RUNNING, policy(**said, failures=failures), ended("t", code=3))
        assert (way.states[-1], way.pause) == (S.RESTART_READY, seconds)
    last = path(S.RUNNING, policy(**said, failures=9), ended("t", code=3))
    assert (last.states[-1], last.pause) == (S.FAILED, 0)
    cut = path(S.RUNNING, policy(**said), ended("t", "drained", reason="its pilot stops"))
    assert (cut.states[-1], cut.pause) == (S.RESTART_READY, 0)


def test_ranks_that_cannot_be_started_wait_longer_each_time() -> None:
    said = {"delay": 10.0, "max_delay": 60.0, "max_cuts": 5}
    for cuts, seconds in enumerate((10, 20, 40, 60)):
        way = path(S.DISPATCHED, policy(**said, cuts=cuts), ended("t", "unfit"))
        assert way.states == (S.RUNNING, S.RUN_TIMEOUT, S.RESTART_READY)
        assert (way.counts, way.pause) == (False, seconds)
    last = path(S.DISPATCHED, policy(**said, cuts=4), ended("t", "unfit"))
    assert last.states[-1] is S.FAILED
    node = path(S.DISPATCHED, policy(**said), ended("t", "unfit", started=None))
    assert (node.states, node.pause) == ((S.RESTART_READY,), 10)


@pytest.mark.parametrize("outcome", ["drained", "lost"])
def test_what_is_cut_short_too_often_is_given_up(outcome: Outcome) -> None:
    end = ended("t", outcome, reason="allocation a1 ended")
    assert path(S.RUNNING, policy(cuts=1, max_cuts=3), end).states[-1] is S.RESTART_READY
    way = path(S.RUNNING, policy(cuts=2, max_cuts=3), end)
    assert (way.states, way.counts) == ((S.RUN_TIMEOUT, S.FAILED), False)
    assert way.reason == (
        "cut short 3 times before it was done, and [retry] max_cuts in site.toml is 3;"
        " the last time: allocation a1 ended"
    )
    # what never started was not cut
    never = ended("t", outcome, started=None)
    assert path(S.DISPATCHED, policy(cuts=9, max_cuts=3), never).states == (S.RESTART_READY,)


def test_every_path_is_in_the_table() -> None:
    policies = [
        policy(max_retries=retries, hooks=hooks, kill_asked=killed, max_cuts=most)
        for retries in (0, 1)
        for most in (None, 1)
        for hooks in ({}, {"postprocess": ["x"]}, {"handler": ["x"]})
        for killed in (False, True)
    ]
    for state, outcome, code, began, said in itertools.product(
        (S.DISPATCHED, S.RUNNING), get_args(Outcome), (0, 1), (None, 1001.0), policies
    ):
        way = path(state, said, ended("t", outcome, code, started=began))
        for source, target in itertools.pairwise((state, *way.states)):
            assert is_legal(source, target), (state, outcome, way)


def test_reasons_name_signals() -> None:
    assert describe(ended("t", "signal", signal=11)) == "signal 11 (SIGSEGV)"
    assert describe(ended("t", code=7)) == "exit code 7"
    assert describe(ended("t", reason="cannot start: no such program")) == (
        "cannot start: no such program"
    )
