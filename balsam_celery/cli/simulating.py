"""``balsam simulate``: planning over virtual time; needs no site."""

from __future__ import annotations

from balsam_celery.simulate.command import simulate

__all__ = ["simulate"]
