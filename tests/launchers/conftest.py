"""What tests of launchers share."""

from __future__ import annotations

import os

import pytest

from balsam_celery.errors import SettingsError
from balsam_celery.launchers import Launcher, find_launcher
from balsam_celery.outer import clean_environment
from balsam_celery.settings import LauncherSettings


@pytest.fixture(params=["mpich", "openmpi"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """Each launcher that this machine has; with ``CI=true`` it must have all."""
    try:
        return find_launcher(LauncherSettings(), request.param, clean_environment(os.environ))
    except SettingsError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no mpiexec of {request.param}: {error}")
