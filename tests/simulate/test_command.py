"""``python -m balsam_celery.simulate`` and ``balsam simulate``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from balsam_celery.cli import balsam
from balsam_celery.simulate import gantt
from balsam_celery.simulate.runs import PLANNERS
from tests.simulate.test_scenario import SMALL


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def module(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "balsam_celery.simulate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_planner_in_one_table(small: Path) -> None:
    done = module(small, "--planner", "all")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert rows == list(PLANNERS)


def test_json(small: Path) -> None:
    done = CliRunner().invoke(balsam, ["simulate", str(small), "--seed", "5", "--json"])
    assert done.exit_code == 0, done.output
    [one] = json.loads(done.stdout)["runs"]
    assert (one["planner"], one["seed"], one["tasks"], one["done"]) == ("balsam_celery", 5, 20, 20)
    assert 0 < one["efficiency"] < 1 <= one["over_bound"]


def test_gantt(small: Path, tmp_path: Path) -> None:
    done = module(small, "--gantt", tmp_path / "run.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_gantt_without_matplotlib(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gantt, "mpl", None)
    done = CliRunner().invoke(balsam, ["simulate", str(small), "--gantt", str(tmp_path / "x.png")])
    assert done.exit_code == 2
    assert "needs matplotlib, which is missing: pip install" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.toml"], "missing.toml: No such file or directory: give a scenario file"),
        (["SMALL", "--gantt", "x.png", "--planner", "all"], "--gantt draws one run"),
        (["SMALL", "--gantt", "x.nonsense"], "cannot draw x.nonsense"),
    ],
)
def test_bad_input_is_one_line(small: Path, arguments: list[str], words: str) -> None:
    done = module(*(str(small) if one == "SMALL" else one for one in arguments))
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
