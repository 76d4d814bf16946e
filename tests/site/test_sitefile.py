"""``site.toml`` as text: what changes, and what stays."""

from __future__ import annotations

import difflib
import tomllib

import pytest

from balsam_celery import settings
from balsam_celery.errors import SettingsError
from balsam_celery.site import config_file
from balsam_celery.sitefile import SiteFile, Value

EXAMPLE = config_file("site.example.toml").read_text(encoding="utf-8")


def changed(before: str, after: str) -> list[str]:
    """Lines that differ, with their sign."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_nothing_set_changes_nothing() -> None:
    assert SiteFile(EXAMPLE).text == EXAMPLE


def test_a_value_changes_its_line_alone() -> None:
    file = SiteFile(EXAMPLE)
    file.set("site", {"name": 'a "b" \\ ü'})
    file.set("redis", {"port": 4711, "tls": True})
    file.set("scheduler", {"setup": ["module load a", "x 'y'"]})
    before = [line[2:] for line in changed(EXAMPLE, file.text) if line[0] == "-"]
    after = [line[2:] for line in changed(EXAMPLE, file.text) if line[0] == "+"]
    assert len(before) == len(after) == 4
    for old, new in zip(before, after, strict=True):
        assert old.partition("#")[2] == new.partition("#")[2] != ""
    assert after[0] == 'name = "a \\"b\\" \\\\ ü"      # for people; shown by `balsam status`'
    read = settings.parse(file.values)
    assert (read.site.name, read.redis.port, read.redis.tls) == ('a "b" \\ ü', 4711, True)
    assert read.scheduler.setup == ("module load a", "x 'y'")


def test_comments_may_be_given() -> None:
    file = SiteFile(EXAMPLE)
    file.set("launcher", {"kind": "srun"}, {"kind": "found here: srun"})
    assert 'kind = "srun"              # found here: srun\n' in file.text
    assert "auto: the first mpiexec found" not in file.text


def test_new_keys_and_tables() -> None:
    file = SiteFile("[site]\nname = 'x'  # mine\n\n[redis]\nport = 3\n")
    file.set("site", {"run_dir": "/r"})
    file.set("logs", {"backups": 2})
    assert file.text == (
        "[site]\nname = 'x'  # mine\nrun_dir = \"/r\"\n\n[redis]\nport = 3\n\n[logs]\nbackups = 2\n"
    )


def test_queues() -> None:
    file = SiteFile(EXAMPLE)
    file.rename_queue("local", "debug")
    file.set_queue("debug", {"max_nodes": 200})
    new: dict[str, Value] = {"max_nodes": 3, "max_wall_time": "1d"}
    file.set_queue("a.b c", new, {"max_wall_time": "no limit"})
    text = file.text
    assert "max_nodes = 200\n" in text
    assert "# of one allocation" in text  # comments of the renamed one
    assert '[queues."a.b c"]\nmax_nodes = 3\nmax_wall_time = "1d"       # no limit\n\n' in text
    assert text.index("[queues.debug]") < text.index('[queues."a.b c"]') < text.index("[packing]")
    file.remove_queue("debug")
    assert tomllib.loads(file.text)["queues"] == {"a.b c": new}
    file.remove_queue("a.b c")
    assert not file.values.get("queues")
    file.set_queue("again", {"max_nodes": 1})
    assert file.values["queues"] == {"again": {"max_nodes": 1}}


def test_queues_that_stand_apart() -> None:
    file = SiteFile("[queues.a]\nmax_nodes=3 #x\n[packing]\n[queues.b]\nmax_nodes=4\n")
    file.set_queue("b", {"max_nodes": 5})
    file.set_queue("c", {"max_nodes": 6})
    file.set_queue("a", {"max_nodes": 7})
    assert file.values["queues"] == {
        "a": {"max_nodes": 7}, "b": {"max_nodes": 5}, "c": {"max_nodes": 6},
    }  # fmt: skip
    assert "#x" in file.text
    file.remove_queue("b")
    assert set(file.values["queues"]) == {"a", "c"}


def test_what_is_not_toml() -> None:
    with pytest.raises(SettingsError, match="not valid TOML"):
        SiteFile("[site\n")
