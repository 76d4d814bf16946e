"""What ``tests.clients`` starts: forks each client, with all that it may import loaded already."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BIN = str(Path(sys.executable).parent)
#: What clients import of others, beside what our modules do.
_OTHERS = (
    "celery.bin.celery",
    "celery.canvas",
    "celery.result",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
)
_MOST = 1 << 20


def load() -> None:
    """Import what clients do."""
    for package in ("cli", "tasks", "store"):
        root = importlib.import_module(f"balsam_celery.{package}")
        for module in pkgutil.iter_modules(root.__path__, f"{root.__name__}."):
            if not module.name.endswith(("__main__", "migrations")):
                importlib.import_module(module.name)
    for name in _OTHERS:
        with contextlib.suppress(ImportError):  # PostgreSQL's driver is an extra
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def serve(listener: socket.socket) -> Callable[[], object] | None:
    """Fork clients until stdin is closed.

    Returns:
        In the process of a client: the client. Else ``None``: the tests are over.
    """
    # nobody waits for those that wait for clients
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _client(connection)
        connection.close()


def _client(connection: socket.socket) -> Callable[[], object]:
    """Fork the client, and tell its pid and its exit status; returns in its process alone."""
    text, descriptors, _, _ = socket.recv_fds(connection, _MOST, 3)
    size = int.from_bytes(text[:4])
    text = text[4:]
    while len(text) < size:
        text += connection.recv(_MOST)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _prepared(json.loads(text), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _prepared(request: dict[str, Any], descriptors: list[int]) -> Callable[[], object]:
    """Become a process that was started as ``request`` says."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["directory"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    random.seed()
    program, *arguments = request["argv"]
    if program == "python":
        sys.argv, sys.path[0] = ["-c"], ""
        warnings.simplefilter("error")
        code = compile(arguments[0], "<client>", "exec")
        return lambda: exec(code, {"__name__": "__main__"})  # noqa: S102 - a test's own program
    sys.argv, sys.path[0] = [f"{_BIN}/{program}", *arguments], _BIN
    module = {"balsam": "balsam_celery.cli", "celery": "celery.__main__"}[program]
    main = importlib.import_module(module).main
    return lambda: sys.exit(main())


def _finish(run: Callable[[], object]) -> None:
    """Run the client and end as Python does, but leave its memory to the system.

    To take down all that is loaded would take ten times as long as most clients do.
    """
    status = 0
    try:
        run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python itself does
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    load()
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        run = serve(listening)
    if run is not None:
        _finish(run)
