"""Clients in processes of their own, as users have them, that need not load everything anew.

A new Python that loads Celery and SQLAlchemy takes most of a second of a core; tests of whole sites
start hundreds. So each is forked from a process that has loaded all of it (``client_server``). It
has its own environment, directory, umask and files, and ends like any other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_SERVER = Path(__file__).with_name("client_server.py")
#: Variables of the server itself; what finds processes by their environment must not find it.
_KEPT = ("PATH", "BALSAM_TEST_RUN")


class Clients:
    """Starts clients; the server comes with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._directory = ""

    def run(
        self,
        *argv: str,
        environment: Mapping[str, str],
        stdin: str | None = None,
        timeout: float = 170,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client and wait for its end.

        Args:
            argv: ``balsam`` or ``celery`` and its arguments, or ``python`` and code.
            environment: all of it.
            stdin: what it reads; ``None``: nothing.
            timeout: seconds.

        Raises:
            subprocess.TimeoutExpired: it was killed after ``timeout``.
        """
        umask = os.umask(0)
        os.umask(umask)
        request = {
            "argv": argv, "environment": dict(environment), "directory": os.getcwd(),  # noqa: PTH109
            "umask": umask,
        }  # fmt: skip
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            self._connect() as connection,
        ):
            given.write((stdin or "").encode())
            given.seek(0)
            _send(connection, request, (given, out, err))
            connection.settimeout(timeout)
            with connection.makefile("r") as answers:
                pid, status = int(answers.readline()), None
                try:
                    status = int(answers.readline())
                except TimeoutError:
                    raise subprocess.TimeoutExpired(argv, timeout, _text(out), _text(err)) from None
                finally:
                    if status is None:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            return subprocess.CompletedProcess(argv, status, _text(out), _text(err))

    def stop(self) -> None:
        """End the server."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(60)
            self._server = None
            shutil.rmtree(self._directory)

    def _connect(self) -> socket.socket:
        if self._server is None:
            self._directory = tempfile.mkdtemp(prefix="balsam-clients-")
            self._start()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{self._directory}/socket")
        return connection

    def _start(self) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or name.startswith(("PYTHON", "LC_", "LANG"))
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{self._directory}/socket")
            listener.listen()
            self._server = subprocess.Popen(
                [sys.executable, str(_SERVER), str(listener.fileno())],
                env=kept, stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
            )  # fmt: skip


def _send(connection: socket.socket, request: dict[str, Any], files: tuple[IO[bytes], ...]) -> None:
    text = json.dumps(request).encode()
    size = len(text).to_bytes(4)
    socket.send_fds(connection, [size], [file.fileno() for file in files])
    connection.sendall(text)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


#: Those of this process; ``tests.conftest`` stops them.
clients = Clients()
