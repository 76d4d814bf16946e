"""Network namespaces in which pilots run, so that one pilot's network can be cut."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

#: More than there are pilots at once.
COUNT = 6
#: Files below ``NAME/`` stand in a namespace in place of those of ``/etc``.
_ETC = Path("/etc/netns")


def available() -> bool:
    """This user may make network namespaces here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"balsam-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return False
    _ip("netns", "del", name)
    return True


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


class Namespaces:
    """Namespaces that reach this machine at :attr:`address`, each by a cable of its own.

    Attributes:
        address: where the site's Redis is to listen.
        names: of the namespaces.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self._net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.address = f"{self._net}.254"
        self.names = [f"bc{mark}n{number}" for number in range(COUNT)]

    def make(self) -> None:
        """Make them, with their cables."""
        _ip("addr", "add", f"{self.address}/32", "dev", "lo")
        for number, name in enumerate(self.names):
            inside, outside = f"{self._net}.{4 * number + 2}", f"{self._net}.{4 * number + 1}"
            _ip("netns", "add", name)
            # MPICH asks for the names of virtual nodes: here nobody knows any, and says so at once
            (_ETC / name).mkdir(parents=True)
            (_ETC / name / "resolv.conf").write_text("nameserver 127.0.0.1\n", encoding="ascii")
            peer = ["peer", "name", "eth0", "netns", name]
            _ip("link", "add", self._cable(name), "type", "veth", *peer)
            _ip("addr", "add", f"{outside}/30", "dev", self._cable(name))
            _ip("link", "set", self._cable(name), "up")
            for argv in (
                ["link", "set", "lo", "up"],
                ["addr", "add", f"{inside}/30", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["route", "add", "default", "via", outside],
            ):
                _ip("-n", name, *argv)

    def cut(self, name: str) -> None:
        """Nothing passes to or from a namespace, and nobody is told."""
        _ip("link", "set", self._cable(name), "down")

    def mend(self, name: str) -> None:
        """What was cut passes again."""
        _ip("link", "set", self._cable(name), "up")

    def remove(self) -> None:
        """Remove all of it."""
        for name in self.names:
            _ip("link", "del", self._cable(name), check=False)
            _ip("netns", "del", name, check=False)
            shutil.rmtree(_ETC / name, ignore_errors=True)
        _ip("addr", "del", f"{self.address}/32", "dev", "lo", check=False)

    def _cable(self, name: str) -> str:
        return f"{name}o"
