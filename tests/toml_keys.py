"""Changes of ``site.toml`` as a user makes them."""

from __future__ import annotations

from balsam_celery.site import SITE_FILE, Site, find


def set_keys(site: Site, table: str, **values: str) -> Site:
    """Change keys of a table of a site's file to TOML text; the site as it is then."""
    path = site.directory / SITE_FILE
    head, found, tail = path.read_text(encoding="utf-8").partition(f"[{table}]")
    lines = (found + tail).splitlines(keepends=True)
    for key, value in values.items():
        at = next(n for n, line in enumerate(lines) if line.startswith(f"{key} = "))
        lines[at] = f"{key} = {value}\n"
    path.write_text(head + "".join(lines), encoding="utf-8")
    return find(site.directory)
