"""Hosts that are names on this machine: a site whose launcher reaches them by a stand-in for ssh.

The launcher is the real ``mpiexec`` of MPICH, and all processes are real; only the way to another
host ends on this one. A host can be made unreachable, and what runs "on" it can be wrapped.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from balsam_celery.site import Site, find
from tests.pilot.service import make_site
from tests.redis_server import RedisServer

#: As hydra calls ssh: ``-x HOST COMMAND…``, the command being one text for a shell.
_SSH = """\
#!/bin/bash
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
[ -e "%(hosts)s/$host.down" ] && exit 255
wrapper="%(hosts)s/$host.wrapper"
[ -e "$wrapper" ] && command=(sh "$wrapper" "$*") || command=(sh -c "$*")
# what runs there has a session, an environment and files of its own; this process lives as long
(
    for file in /proc/self/fd/*; do
        [ "${file##*/}" -gt 2 ] && eval "exec ${file##*/}>&-"
    done
    exec env -i PATH="$PATH" setsid --wait "${command[@]}"
)
"""
_LAUNCHER = """
[launcher]
kind = "template"
template = [%s]
template_stays = false
"""
MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))


class Cluster:
    """A site on such hosts."""

    def __init__(
        self,
        directory: Path,
        server: RedisServer,
        template: list[str] | None = None,
        start_timeout: int = 60,
        silence_timeout: int = 60,
    ) -> None:
        self.hosts = directory / "hosts"
        self.hosts.mkdir(parents=True)
        ssh = self.hosts / "ssh"
        ssh.write_text(_SSH % {"hosts": self.hosts})
        ssh.chmod(0o755)
        site = make_site(directory / "site", server)
        command = template or [
            *(MPIEXEC, "-launcher", "ssh", "-launcher-exec", str(ssh), "-genvall"),
            *("-hosts", "{hosts}", "-ppn", "{ranks_per_node}", "-n", "{ranks}", "{command}"),
        ]
        file = site.directory / "site.toml"
        text = file.read_text() + _LAUNCHER % ", ".join(f'"{part}"' for part in command)
        times = {"start_timeout": start_timeout, "silence_timeout": silence_timeout}
        lines = "".join(f'{name} = "{seconds}s"\n' for name, seconds in times.items())
        text = text.replace("[pilot]\n", f"[pilot]\n{lines}")
        file.write_text(text)
        self.site: Site = find(site.directory)

    def proxies(self) -> list[int]:
        """Proxies of hydra, on all hosts, and the ways to them: those that name our ssh."""
        ssh = str(self.hosts / "ssh").encode()
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit() and place.name != str(os.getpid()):
                # those that ended, and those of others
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                    if ssh in (place / "cmdline").read_bytes():
                        found.append(int(place.name))
        return found

    def cut(self, host: str) -> None:
        """Nothing can be started on the host any more."""
        (self.hosts / f"{host}.down").touch()

    def wrap(self, host: str, script: str) -> None:
        """Run what is started on the host by this shell script, whose ``$1`` is the command."""
        (self.hosts / f"{host}.wrapper").write_text(script)
