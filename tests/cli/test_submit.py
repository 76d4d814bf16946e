"""``balsam submit``: what reaches the database."""

from __future__ import annotations

import pytest

from balsam_celery.states import State
from balsam_celery.store.queries import attempts, get_task
from balsam_celery.store.rows import TaskRow
from tests.cli.conftest import Cli
from tests.toml_keys import set_keys

NASTY = [
    "a b",
    "'q\"",
    "line\nbreak",
    ";",
    "$(rm -rf /)",
    "{}",
    "{0}",
    "{array}",
    "{line}",
    "é",
    "",
]


def submitted(cli: Cli, *args: str, stdin: bytes | None = None) -> list[TaskRow]:
    """The rows of a submission."""
    result = cli("submit", *args, stdin=stdin)
    with cli.store.read() as conn:
        return [get_task(conn, id) for id in result.stdout.split()]


@pytest.mark.parametrize("dashes", [["--"], []])
def test_arguments_stay_as_they_are(cli: Cli, dashes: list[str]) -> None:
    (row,) = submitted(cli, *dashes, "prog", *NASTY, "--", "-x", "--json")
    assert row.argv == row.command == ["prog", *NASTY, "--", "-x", "--json"]
    assert row.literal
    assert row.state == State.PREPROCESSED
    assert row.name == row.application == "prog"


def test_options_become_fields(cli: Cli) -> None:
    (row,) = submitted(
        cli, "--name", "n", "--workflow", "w", "--tag", "a", "--tag", "b", "-N", "2", "-r", "3",
        "-c", "2", "-g", "0", "-t", "10m", "--expected-time", "1m", "--priority", "-5",
        "--max-retries", "2", "--retry-on", "exit:1-127", "--retry-on", "!exit:2",
        "--retry-delay", "0", "--restartable", "--checkpoint-grace", "2m",
        "--end-signal", "sigusr1", "-e", "A=1=2", "-e", "B=", "--", "/bin/prog",
    )  # fmt: skip
    assert (row.name, row.workflow, row.tags) == ("n", "w", ("a", "b"))
    assert (row.num_nodes, row.ranks_per_node, row.threads_per_rank) == (2, 3, 2)
    assert (row.wall_time, row.expected_time, row.priority) == (600, 60.0, -5)
    assert (row.max_retries, row.restartable) == (2, True)
    assert (row.retry_on, row.retry_delay) == (["exit:1-127", "!exit:2"], 0.0)
    assert (row.checkpoint_grace, row.end_signal) == (120, "USR1")
    assert row.environment == {"A": "1=2", "B": ""}
    assert row.application == "prog"


def test_memory_and_countable_resources(cli: Cli) -> None:
    set_keys(cli.site, "local", resources_per_node="{ licence = 2, nvme = 1 }")
    (row,) = submitted(
        cli, "--memory-per-node", "1.5GiB", "--resource", "nvme=1", "--resource", "licence=2", "p"
    )
    assert (row.memory_per_node, row.resources_per_node) == (3 << 29, "licence=2,nvme=1")
    shown = cli.json("show", row.id)["resources"]
    assert (shown["memory_per_node"], shown["resources_per_node"]) == (
        3 << 29,
        {"licence": 2, "nvme": 1},
    )
    assert "memory_per_node 1.5GiB, licence 2, nvme 1" in cli("show", row.id).stdout
    cli("app", "add", "kept", "--resource", "licence=1", "--memory-per-node", "1GB", "--", "p")
    (row,) = submitted(cli, "--app", "kept")
    assert (row.memory_per_node, row.resources_per_node) == (10**9, "licence=1")
    words = cli.refused("submit", "--resource", "licence=3", "--", "p")
    assert words == "resources_per_node.licence is 3: a node has 2; ask for fewer"


def test_json_is_the_new_tasks(cli: Cli) -> None:
    plain = cli("submit", "--json", "--tag", "t", "--", "true")
    assert '"state": "PREPROCESSED"' in plain.stdout


def test_array(cli: Cli) -> None:
    rows = submitted(cli, "--array", "1-5:2,9", "--", "p", "{array}", "i={array},{line}", "{}")
    assert [row.argv for row in rows] == [
        ["p", str(i), f"i={i},{{line}}", "{}"] for i in (1, 3, 5, 9)
    ]
    assert [row.environment for row in rows] == [
        {"BALSAM_ARRAY_INDEX": str(i)} for i in (1, 3, 5, 9)
    ]
    assert [row.name for row in rows] == ["p.1", "p.3", "p.5", "p.9"]


def test_each_line(cli: Cli) -> None:
    rows = submitted(
        cli, "--each-line", "-", "-e", "A=1", "--", "p", "{array}", stdin=b"a b\r\n\n{line}$(x)"
    )
    assert [row.argv for row in rows] == [["p", "{array}", "a b"], ["p", "{array}", "{line}$(x)"]]
    assert rows[0].environment == {"A": "1", "BALSAM_LINE": "a b", "BALSAM_LINE_NUMBER": "1"}
    assert rows[1].name == "p.3"
    (row,) = submitted(cli, "--each-line", "-", "--", "p", "x={line}.dat", stdin=b"7")
    assert row.argv == ["p", "x=7.dat"]


def test_saved_program(cli: Cli) -> None:
    cli(
        "app",
        "add",
        "relax",
        "--num-nodes",
        "2",
        "-e",
        "A=1",
        "--",
        "relax.x",
        "-v",
        "{input}",
        "{0}",
    )
    (row,) = submitted(cli, "--priority", "3", "-e", "B=2", "--app", "relax", "input=a=b c", "pos")
    assert row.argv == ["relax.x", "-v", "a=b c", "pos"]
    assert (row.num_nodes, row.priority, row.environment) == (2, 3, {"A": "1", "B": "2"})
    rows = submitted(cli, "--array", "1-2", "--app", "relax", "input={array}.xyz", "x")
    assert [row.argv for row in rows if row.argv] == [
        ["relax.x", "-v", "1.xyz", "x"],
        ["relax.x", "-v", "2.xyz", "x"],
    ]


def test_after(cli: Cli) -> None:
    cli.task("aaaaaa-1")
    cli.task("bbbbbb-1", State.JOB_FINISHED)
    (row,) = submitted(cli, "--after", "aaaaaa,bbbbbb-1", "--", "p", "{0}")
    assert row.state == State.AWAITING_PARENTS
    assert row.waiting_on == 1
    assert row.command == ["p", "{0}"]
    with cli.store.read() as conn:
        assert attempts(conn, row.id) == []


def test_redis_down_is_told_and_the_task_is_there(cli: Cli) -> None:
    result = cli("submit", "true")
    assert "Redis does not answer" in result.stderr
    assert cli.json("ls")["total"] == 1


def test_wait_tells_how_it_ended(cli: Cli) -> None:
    cli.task("failed-1", State.FAILED)
    result = cli("submit", "--wait", "--json", "--after", "failed-1", "--", "true", status=1)
    assert '"state": "FAILED"' in result.stdout


def test_ten_thousand(cli: Cli) -> None:
    plain = cli("submit", "--array", "1-10000", "--", "true")
    assert len(plain.stdout.split()) == 10_000


REFUSED = {
    "no program": ([], "names no program"),
    "empty program": ([""], "names no program"),
    "zero nodes": (["-N", "0", "--", "p"], "num_nodes is 0"),
    "minus one node": (["-N", "-1", "--", "p"], "num_nodes is -1"),
    "too many nodes": (["-N", "5", "--", "p"], "no queue gives more than"),
    "wall_time of letters": (["-t", "abc", "--", "p"], "wall_time is 'abc'"),
    "wall_time of zero": (["-t", "0", "--", "p"], "wall_time is '0'"),
    "wall_time of years": (["-t", "9999h", "--", "p"], "wall_time"),
    "env without a name": (["-e", "=x", "--", "p"], "--env is '=x'"),
    "env that is not set": (["-e", "SURELY_NOT_SET", "--", "p"], "SURELY_NOT_SET"),
    "array of letters": (["--array", "a-b", "--", "p"], "--array is 'a-b'"),
    "array downwards": (["--array", "5-1", "--", "p"], "goes down"),
    "array of step zero": (["--array", "1-5:0", "--", "p"], "step of 1"),
    "endless array": (["--array", "1-99999999999", "--", "p"], "at the most"),
    "two sources": (["--array", "1-2", "--each-line", "-", "--", "p"], "give one of them"),
    "no lines": (["--each-line", "-", "--", "p"], "no lines"),
    "unknown parent": (["--after", "nonesuch", "--", "p"], "there is no task 'nonesuch'"),
    "unknown program": (["--app", "nonesuch", "x=1"], "nonesuch"),
    "bad launcher": (["--launcher", "srunn", "--", "p"], "launcher is 'srunn'"),
    "bad affinity": (["--cpu-affinity", "x", "--", "p"], "cpu_affinity is 'x'"),
    "memory of letters": (["--memory-per-node", "4G", "--", "p"], "memory_per_node is '4G': give"),
    "resource without amount": (
        ["--resource", "gpu", "p"],
        "--resource is 'gpu': give NAME=",
    ),
    "resource of zero": (["--resource", "a=0", "p"], "resources_per_node.a is 0: give a whole"),
    "unknown resource": (["--resource", "a=1", "p"], "no node has any; name it in local.resources"),
    "empty tag": (["--tag", "", "--", "p"], "empty tag"),
    "long name": (["--name", "x" * 201, "--", "p"], "200"),
    "not UTF-8": (["p", "\udcff"], "not UTF-8"),
}


def test_refused(cli: Cli) -> None:
    for case, (args, words) in REFUSED.items():
        assert words in cli.refused("submit", *args, stdin=""), case
    assert cli.json("ls")["total"] == 0


def test_bad_lines_are_named(cli: Cli) -> None:
    assert "line 2: not UTF-8" in cli.refused("submit", "--each-line", "-", "p", stdin=b"a\n\xff\n")
    assert "line 1: a NUL" in cli.refused("submit", "--each-line", "-", "p", stdin=b"a\0\n")


def test_saved_program_wants_its_fields(cli: Cli) -> None:
    cli("app", "add", "relax", "relax.x", "{input}")
    assert "{input} has no value" in cli.refused("submit", "--app", "relax")
    assert "no field 'inpt'" in cli.refused("submit", "--app", "relax", "inpt=x", "input=y")
    assert "given twice" in cli.refused("submit", "--app", "relax", "input=x", "input=y")
    assert "did you mean 'relax'" in cli.refused("submit", "--app", "relaks")


def test_unknown_option_names_the_nearest(cli: Cli) -> None:
    result = cli("submit", "--wal-time", "1", "p", status=2)
    assert "--wall-time" in result.stderr
