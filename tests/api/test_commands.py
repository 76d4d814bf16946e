"""Templates of commands: what fills them, and what is refused."""

from __future__ import annotations

import pytest

from balsam_celery.commands import PENDING, check_values, field_names, parse_template, render
from balsam_celery.errors import InvalidInput

NASTY = ["a b", "it's", 'say "x"', "two\nlines", "a;b", "$(rm -rf /)", "{}", "{0}", "", "*", "ä…"]


@pytest.mark.parametrize("value", NASTY)
def test_a_value_is_exactly_one_argument(value: str) -> None:
    assert render(["x", "{v}", "-o{v}"], [], {"v": value}) == ("x", value, f"-o{value}")


@pytest.mark.parametrize("value", NASTY)
def test_a_literal_command_is_taken_as_it_stands(value: str) -> None:
    assert render(["x", value], [], {}, literal=True) == ("x", value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        ([1, "ü"], '[1, "ü"]'),
        ({"a": None}, '{"a": null}'),
    ],
)
def test_other_values(value: object, text: str) -> None:
    assert render(["x", "{0}"], [value], {}) == ("x", text)


def test_keys_look_into_results() -> None:
    results = [{"work_dir": "/a", "n": 3}, {"work_dir": "/b", "n": [4, 5]}]
    command = ["x", "{0[0][work_dir]}/f", "{0[1][n][1]}", "{{0}}"]
    assert render(command, [results], {}) == ("x", "/a/f", "5", "{0}")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ([], "names no program"),
        ([""], "names no program"),
        ("ls -l", "give a list"),
        (["x", 3], "write '3'"),
        (["x", "a\0b"], "NUL"),
        (["x", "\udce9"], "UTF-8"),
        (["x", "{}"], "no placeholder"),
        (["x", "{a.b}"], "no placeholder"),
        (["x", "{0.__class__}"], "no placeholder"),
        (["x", "{a!r}"], "no conversion"),
        (["x", "{a:>9999999999}"], "no conversion"),
        (["x", "{a:{b}}"], "no conversion"),
        (["x", "{a[}"], "argument"),
        (["x", "{a"], "argument"),
        (["x", "a}"], "argument"),
        (["x", "{a b}"], "no placeholder"),
    ],
)
def test_bad_templates(command: list[str], part: str) -> None:
    with pytest.raises(InvalidInput, match=part) as caught:
        parse_template(command)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "args", "kwargs", "part"),
    [
        (["x", "{a}"], [], {}, "give a="),
        (["x", "{1}"], ["only"], {}, "1 positional"),
        (["x", "{0[dir]}"], [{"work_dir": "/a"}], {}, "keys work_dir"),
        (["x", "{0[5]}"], [[1, 2]], {}, "list of 2"),
        (["x", "{0[a]}"], ["text"], {}, "type str"),
        (["x", "{a}"], [], {"a": "b\0"}, "NUL"),
        (["x", "{a}"], [], {"a": {1, 2}}, "JSON"),
        (["{a}"], [], {"a": ""}, "names no program"),
    ],
)
def test_bad_values(command: list[str], args: list, kwargs: dict, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        render(command, args, kwargs)


def test_values_that_come_later() -> None:
    check_values(["x", "{0[work_dir][0]}", "{1}"], [PENDING, 2], {})
    with pytest.raises(InvalidInput, match="no value"):
        check_values(["x", "{1}"], [PENDING], {})
    assert field_names(["x", "{a}{b[c]}", "{0}"]) == {"a", "b"}
