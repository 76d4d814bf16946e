"""The site and its database, opened when a command first needs them, closed at its end."""

from __future__ import annotations

from functools import cached_property

import click

from balsam_celery.site import Site, connect_store, find
from balsam_celery.store.engine import Store

_KEY = "balsam_celery.session"


class Session:
    """What one call of the command line works on."""

    @cached_property
    def site(self) -> Site:
        """The site.

        Raises:
            SiteError: there is none, or it is not ours.
        """
        return find()

    @cached_property
    def store(self) -> Store:
        """The site's database.

        Raises:
            SiteError: it is on another host, or does not exist yet.
        """
        return connect_store(self.site)

    def close(self) -> None:
        """Close what was opened."""
        if "store" in self.__dict__:
            self.store.close()


def session() -> Session:
    """The session of the command that runs now."""
    context = click.get_current_context()
    found = context.meta.get(_KEY)
    if found is None:
        found = context.meta[_KEY] = Session()
        context.find_root().call_on_close(found.close)
    assert isinstance(found, Session)
    return found
