"""What Flower shows to a site's owner."""

from __future__ import annotations

import base64
import http.client

from balsam_celery.site import Site


def flower(site: Site, path: str) -> str:
    """One of its pages."""
    settings = site.settings.flower
    login = base64.b64encode(f"balsam:{site.secret('flower')}".encode()).decode("ascii")
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=20)
    try:
        connection.request("GET", path, headers={"Authorization": f"Basic {login}"})
        return connection.getresponse().read().decode()
    finally:
        connection.close()
