"""Jobs of conformance tests that really run: each waits for a file and leaves its environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from balsam_celery.schedulers.base import JobRequest
from tests.waiting import wait_until


def write_script(request: JobRequest, directives: str = "") -> JobRequest:
    """Write the script of ``request``; it ends once :func:`finish` has said with what status."""
    own = directory_of(request)
    own.mkdir(parents=True)
    script = own / "script"
    script.write_text(
        f"#!/bin/sh\n{directives}\n"
        f"env -0 > {own}/environment.new && mv {own}/environment.new {own}/environment\n"
        f"until [ -e {own}/status ]; do sleep 0.1; done\n"
        f"exit $(cat {own}/status)\n",
        encoding="utf-8",
    )
    return dataclasses.replace(request, script=script)


def finish(request: JobRequest, status: int) -> None:
    """Let the job of ``request`` end."""
    new = directory_of(request) / "status.new"
    new.write_text(str(status), encoding="utf-8")
    new.replace(new.with_suffix(""))


def environment(request: JobRequest) -> Mapping[str, str]:
    """The environment of the request's job, once it runs."""
    path = directory_of(request) / "environment"
    wait_until(path.exists, 60, f"the job {request.name} to run")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def directory_of(request: JobRequest) -> Path:
    """Where the files of the request's job are."""
    return request.directory / request.name
