"""What ``up`` makes ready before the site's own Redis starts: its address and its certificates."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from balsam_celery.errors import SiteError
from balsam_celery.private import write_private
from balsam_celery.redisaddress import TLS_DIR, find_address, is_loopback
from balsam_celery.redisserver import server_command
from balsam_celery.site import SITE_FILE, Site, this_host
from balsam_celery.tls import make_certificates


def prepare_redis(site: Site, progress: Callable[[str], None]) -> None:
    """Note the address where others find the server, and make its certificates and configuration.

    Certificates that end soon, or do not name that address, are made anew.

    Raises:
        SiteError: the address cannot be found or reached from elsewhere, the server would be open
            to the network (R11), or there is none that can be used.
    """
    settings = site.settings.redis
    if settings.interface:
        write_private(site.redis_address_file, f"{find_address(settings.interface)}\n")
    host = site.redis_host()
    addresses = {_address(name) for name in settings.bind.split()} | set(_resolved(site, host))
    addresses.discard("")
    if settings.tls:
        names = {this_host(), host} - addresses
        if make_certificates(site.directory, site.secrets_dir, names, addresses):
            progress(f"certificates of Redis made in {site.directory / TLS_DIR}")
    server_command(site)


def _address(name: str) -> str:
    """``name`` if it is the address of one interface, else ``""``."""
    try:
        address = ipaddress.ip_address(name.lstrip("-"))
    except ValueError:
        return ""
    return "" if address.is_unspecified else str(address)


def _resolved(site: Site, host: str) -> list[str]:
    """Addresses of ``host``, which must not be this machine's loopback under another name."""
    if _address(host) or host == "localhost":
        return [_address(host)]
    where = site.directory / SITE_FILE
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, socket.AF_INET)]
    except OSError as error:
        raise SiteError(
            f"[redis] host {host!r} is no address ({error.strerror}): give one in {where}"
        ) from None
    if all(is_loopback(address) for address in found):
        raise SiteError(
            f"[redis] host {host!r} is {found[0]} on this machine, where no other one reaches it:"
            f" give its address, or an interface, in {where}"
        )
    return found
