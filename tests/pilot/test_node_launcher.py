"""Which launcher starts the keepers of a pilot's nodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from balsam_celery.errors import SettingsError
from balsam_celery.pilot.starting import node_launcher
from balsam_celery.settings import LauncherSettings, PilotSettings, Settings


def context_of(kind: str, own: str = "") -> Any:
    """Of a pilot on two nodes: what is asked of it."""
    settings = Settings(launcher=LauncherSettings(kind=kind), pilot=PilotSettings(launcher=own))
    return SimpleNamespace(site=SimpleNamespace(settings=settings), nodes=("n0", "n1"))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for name in ("aprun", "jsrun", "flux", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize("kind", ["none", "aprun", "jsrun", "flux"])
def test_one_that_cannot_serve_both_the_pilot_and_its_tasks(
    environ: dict[str, str], kind: str
) -> None:
    with pytest.raises(SettingsError, match=r"name .* as pilot\.launcher in site\.toml"):
        node_launcher(context_of(kind), environ)
    assert node_launcher(context_of(kind, "srun"), environ).kind == "srun"


def test_one_that_the_user_has_named(environ: dict[str, str]) -> None:
    assert node_launcher(context_of("srun", "flux"), environ).kind == "flux"
    assert node_launcher(context_of("srun"), environ).kind == "srun"
