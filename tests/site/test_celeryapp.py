"""The Celery application: lazy settings, JSON only, no secret in sight."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery.celeryapp import make_pilot_app, make_site_app, pilot_settings, settings_for
from balsam_celery.site import Site
from balsam_celery.siteinit import init


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init(tmp_path / "site")


def python(code: str, cwd: Path, *arguments: str, **environment: str) -> str:
    """Output of a fresh interpreter."""
    inherited = {k: v for k, v in os.environ.items() if k != "BALSAM_SITE"}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True,
        check=False, env={**inherited, "PYTHONPATH": root, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_needs_no_site_and_loads_no_sql(tmp_path: Path) -> None:
    code = """
import sys
from balsam_celery.celeryapp import app
assert app.conf.task_default_queue == "tasks"
assert app.conf.accept_content == ["json"]
print([m for m in sys.modules if m.startswith(("sqlalchemy", "balsam_celery.store"))])
"""
    assert python(code, tmp_path) == "[]"


def test_what_depends_on_the_site_is_found_when_used(site: Site, tmp_path: Path) -> None:
    code = """
import os, sys
from balsam_celery.celeryapp import app
from balsam_celery.errors import SiteError
try:
    app.conf.broker_url
except SiteError as error:
    print("none" if "no site" in str(error) else error)
os.environ["BALSAM_SITE"] = sys.argv[1]
print(app.conf.broker_transport_options["global_keyprefix"])
"""
    lines = python(code, tmp_path, str(site.directory)).splitlines()
    assert lines == ["none", site.settings.key_prefix]


def test_role_decides_what_is_imported(site: Site, tmp_path: Path) -> None:
    path = site.directory / "site.toml"
    path.write_text(path.read_text().replace("imports = []", 'imports = ["analysis"]'))
    (site.directory / "analysis.py").write_text("import sys; print('imported', file=sys.stderr)")
    code = """
import sys
from balsam_celery.celeryapp import app
print(*app.conf.imports, "end")
app.loader.import_default_modules()
print("analysis" in sys.modules)
"""
    where = {"BALSAM_SITE": str(site.directory)}
    assert python(code, tmp_path, **where).splitlines() == ["end", "False"]
    assert python(code, tmp_path, BALSAM_ROLE="tasks", **where).splitlines() == [
        "analysis end",
        "True",
    ]


def test_json_only(site: Site) -> None:
    for settings in (settings_for(site), pilot_settings(site.settings, site.redis_url())):
        assert settings["accept_content"] == ["json"]
        assert settings["result_accept_content"] == ["json"]
        assert "pickle" not in str(settings)


def test_password_is_hidden_from_inspect_conf(site: Site) -> None:
    for app in (make_site_app(site), make_pilot_app(site)):
        assert app.conf.broker_url == site.redis_url()
        assert site.secret("redis") not in str(app.conf.table(with_defaults=True))
        assert site.secret("redis") not in app.connection().as_uri()


def test_pilots_have_no_backend_and_acknowledge_early(site: Site) -> None:
    settings = pilot_settings(site.settings, site.redis_url())
    assert settings["result_backend"] == "disabled://"
    assert settings["broker_transport_options"]["ack_emulation"] is False
    assert settings["imports"] == ()


def test_what_waits_behind_a_long_step_is_not_sent_again(site: Site) -> None:
    """Kombu's default is an hour, the time of a single stage-out."""
    told = settings_for(site)["broker_transport_options"]
    assert told["visibility_timeout"] >= 24 * site.settings.transitions.step_timeout
