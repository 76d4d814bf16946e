"""A private PostgreSQL for tests: its own directory, password and port, gone at the end."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import pytest

from balsam_celery import procs
from balsam_celery.procs import Identity
from tests.waiting import wait_until

_START_TRIES = 3


def find_binaries() -> Path | None:
    """Directory with ``initdb`` and ``postgres``: Debian's newest, or the one on PATH."""
    debian = Path("/usr/lib/postgresql")
    found = [path for path in debian.glob("*/bin") if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    if on_path is None:
        return None
    directory = Path(on_path).resolve().parent
    return directory if (directory / "postgres").exists() else None


class PostgresServer:
    """One server process; databases are made by :meth:`new_database`."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.password = secrets.token_hex(16)
        self.port = 0
        # short and open to traverse: the server may run as another user, and its socket lies here
        self.directory = Path(tempfile.mkdtemp(prefix="balsam-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        #: Processes that stand.
        self.paused: list[Identity] = []
        # PostgreSQL refuses to run as root
        self._user: str | None = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"

    def start(self) -> None:
        """Make the cluster and start it."""
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        secret = self.directory / "password"
        secret.write_text(self.password)
        if self._user is not None:
            shutil.chown(secret, self._user)
        argv = [
            self.binaries / "initdb",
            "-D",
            self.directory / "data",
            "--no-sync",
            "-U",
            "balsam",
        ]
        argv += ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"]
        with self._output() as output:
            subprocess.run(argv, check=True, stdout=output, stderr=output, **self._identity())
        for left in reversed(range(_START_TRIES)):
            if self._try_start():
                return
            # somebody may have taken the port since we looked
            assert left, f"PostgreSQL does not start: {(self.directory / 'log').read_text()}"

    def stop(self) -> None:
        """Stop it and remove its directory."""
        self.go_on()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # "fast": breaks off what runs
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(30)
        shutil.rmtree(self.directory)

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql+psycopg://balsam:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """Make a database and return its name."""
        self._count += 1
        name = f"test{self._count}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, also when somebody is connected."""
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run a statement as the administrator."""
        with self._connect() as connection:
            connection.execute(statement.encode())

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="balsam",
            password=self.password,
            dbname="postgres",
            autocommit=True,
        )

    def halt(self, number: signal.Signals) -> None:
        """End the server by a signal: SIGINT is "fast", SIGKILL what it is; data and port stay."""
        assert self._process is not None, "the server does not run"
        self.go_on()  # a stopped one, or its back ends, would not notice
        self._process.send_signal(number)
        self._process.wait(30)

    @property
    def is_running(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_paused(self) -> bool:
        """It is stopped by :meth:`pause`: whoever asks it waits."""
        return bool(self.paused)

    def pause(self) -> None:
        """Stop the server and all its back ends where they are (SIGSTOP)."""
        assert self._process is not None, "the server does not run"
        found = procs.identity(self._process.pid)
        assert found is not None, "the server has ended"
        # the server first, so that it starts no further ones
        self.paused.append(found)
        procs.send(found, signal.SIGSTOP)
        for entry in procs.descendants([found.pid]).values():
            self.paused.append(entry.identity)
            procs.send(entry.identity, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let what was paused go on."""
        while self.paused:
            procs.send(self.paused.pop(), signal.SIGCONT)

    def resume(self) -> None:
        """Start a halted server again, once what it left is gone."""

        def started() -> bool:
            return self._answers() or self._launch()

        wait_until(started, 60, "PostgreSQL starts again")

    def _try_start(self) -> bool:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        return self._launch()

    def _launch(self) -> bool:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "max_connections": "60",
        }
        argv: list[str | Path] = [self.binaries / "postgres", "-D", self.directory / "data"]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        with self._output() as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output, **self._identity())
        self._process = process
        wait_until(lambda: self._answers() or process.poll() is not None, 60, "PostgreSQL answers")
        return process.poll() is None

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _output(self) -> BinaryIO:
        return (self.directory / "log").open("ab")

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {"cwd": self.directory}
        entry = pwd.getpwnam(self._user)
        return {
            "cwd": self.directory,
            "user": entry.pw_uid,
            "group": entry.pw_gid,
            "extra_groups": [],
        }


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the run; skipped where there is none, but not when CI=true."""
    binaries = find_binaries()
    if binaries is None:
        message = "PostgreSQL's initdb and postgres are not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.stop()
