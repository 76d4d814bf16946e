"""When a node is put aside: case by case, and what must hold for any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.suspects import Rule, Run, Suspect, Verdict, suspects, verdict_of
from tests.service.acting import ended

RULE = Rule(tasks=3, within=10, starts=2, chance=0.05)
NODES = ("n0", "n1", "n2")


def bad(node: str, *tasks: str) -> list[Run]:
    return [Run(node, task, "bad", "exit code 1") for task in tasks]


def good(node: str, *tasks: str) -> list[Run]:
    return [Run(node, task, "good") for task in tasks]


def unfit(node: str, *tasks: str) -> list[Run]:
    return [Run(node, task, "unfit", "no space") for task in tasks]


def names(runs: list[Run], rule: Rule = RULE) -> list[str]:
    return [one.node for one in suspects(runs, NODES, rule)]


@pytest.mark.parametrize(
    ("runs", "aside"),
    [
        ([*good("n1", "a"), *bad("n0", "x", "y", "z")], ["n0"]),
        ([*bad("n0", "x", "y", "z"), *good("n1", "x")], ["n0"]),
        ([*good("n1", "a"), *bad("n0", "x", "y")], []),  # too few
        ([*good("n1", "a"), *bad("n0", "x", "x", "x")], []),  # the same one
        (bad("n0", "x", "y", "z"), []),  # nothing is known of elsewhere
        ([*good("n0", "a"), *bad("n0", "x", "y", "z")], []),  # nor here
        ([*good("n1", "a"), *bad("n0", "x", "y"), *good("n0", "b"), *bad("n0", "z")], []),
        # they fail elsewhere too
        ([*good("n1", *"abcdefgh"), *bad("n1", "z"), *bad("n0", "x", "y", "z")], []),
        # so do others, and often
        ([*good("n1", "a"), *bad("n2", "q"), *bad("n0", "x", "y", "z")], []),
        (unfit("n0", "x", "x"), ["n0"]),
        (unfit("n0", "x"), []),
        ([*unfit("n0", "x"), *good("n0", "y"), *unfit("n0", "x")], []),
        ([*unfit("n0", *"xy"), *unfit("n1", *"xy"), *unfit("n2", *"xy")], ["n0", "n1", "n2"]),
    ],
)
def test_cases(runs: list[Run], aside: list[str]) -> None:
    assert names(runs) == aside


def test_the_reason_names_the_last_failure_and_the_tasks_in_order() -> None:
    assert suspects([*good("n1", "a"), *bad("n0", "x", "y", "z")], NODES, RULE) == [
        Suspect(
            "n0",
            "3 different tasks in a row failed there within 10s of their start, while others run"
            " well elsewhere; the last: exit code 1",
            ("x", "y", "z"),
        )
    ]
    assert names([*good("n1", "a"), *bad("n0", "x", "y", "z")], Rule(tasks=0)) == []


@pytest.mark.parametrize(("share", "needed"), [(0.0, 5), (0.01, 5), (0.13, 8), (0.5, 24)])
def test_the_more_fail_everywhere_the_more_must_fail_there(share: float, needed: int) -> None:
    ends = [bad("n1", f"b{n}") if n < share * 1000 else good("n1", f"g{n}") for n in range(1000)]
    elsewhere = [run for end in ends for run in end]
    least = next(
        count
        for count in range(1, 1000)
        if names([*elsewhere, *bad("n0", *(f"t{n}" for n in range(count)))], Rule())
    )
    assert least == needed


@pytest.mark.parametrize(
    ("outcome", "code", "ran", "verdict"),
    [
        ("exit", 0, 1, "good"),
        ("exit", 1, 1, "bad"),
        ("exit", 1, 11, "good"),  # the node ran it
        ("signal", None, 0, "bad"),
        ("cannot-start", None, None, "bad"),
        ("unfit", None, None, "unfit"),
        ("unfit", 1, 1, None),  # its launcher ran, and could not start the ranks
        ("killed", None, 1, None),
        ("drained", None, 1, None),
        ("lost", None, 1, None),
        ("cut", None, 1, None),
    ],
)
def test_verdicts(outcome: str, code: int | None, ran: float | None, verdict: str | None) -> None:
    started = None if ran is None else 1003.0 - ran
    one = ended("t", outcome, code, started=started)  # type: ignore[arg-type]
    assert verdict_of(one, 10) == verdict


VERDICTS: list[Verdict] = ["good", "bad", "unfit"]
RUNS = st.lists(
    st.builds(
        Run, st.sampled_from(NODES), st.sampled_from("abcdefghij"), st.sampled_from(VERDICTS)
    ),
    max_size=40,
)


@st.composite
def failing(draw: st.DrawFn) -> list[Run]:
    """At last one node fails what it is given, while another has run much well."""
    node, other = draw(st.permutations(NODES))[:2]
    tasks = draw(st.lists(st.sampled_from("abcklmnop"), max_size=8))
    well = good(other, *draw(st.sampled_from(["klmnopqrst" * 4, "kl", ""])))
    return [*well, *draw(RUNS), *bad(node, *tasks)]


@given(st.one_of(failing(), RUNS))
def test_who_is_put_aside_has_failed_of_late_and_others_have_not(runs: list[Run]) -> None:
    found = suspects(runs, NODES, RULE)
    for one in found:
        own = [run for run in runs if run.node == one.node]
        if not one.tasks:
            assert [run.verdict for run in own[-RULE.starts :]] == ["unfit"] * RULE.starts
            continue
        assert len(set(one.tasks)) == len(one.tasks) >= RULE.tasks
        assert own[-1].verdict == "bad"
        elsewhere = [run for run in runs if run.node != one.node]
        assert any(run.verdict == "good" for run in elsewhere)
        assert not any(run.task in one.tasks and run.verdict == "bad" for run in elsewhere)
    if len(found) == len(NODES):
        # the last one is given up only where nothing can start at all
        assert not all(one.tasks for one in found)


@given(RUNS, st.sampled_from(NODES))
def test_a_good_run_clears_its_node(runs: list[Run], node: str) -> None:
    assert node not in names([*runs, Run(node, "new", "good")])


@given(RUNS)
def test_tasks_that_fail_wherever_they_run_blame_no_node(runs: list[Run]) -> None:
    failing = [Run(run.node, run.task, "bad") for run in runs]
    assert names(failing) == []
    everywhere = [Run(node, run.task, "bad") for run in runs for node in NODES]
    assert names([*good("n1", *"klmnopqrst"), *everywhere]) == []


@given(RUNS, st.permutations(NODES))
def test_names_of_nodes_do_not_matter(runs: list[Run], order: list[str]) -> None:
    other = dict(zip(NODES, order, strict=True))
    renamed = [Run(other[run.node], run.task, run.verdict) for run in runs]
    unlimited = (*NODES, "idle")  # so that none is the last one
    before = {one.node for one in suspects(runs, unlimited, RULE)}
    assert {one.node for one in suspects(renamed, unlimited, RULE)} == {other[n] for n in before}
