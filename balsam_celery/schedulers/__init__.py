"""Batch schedulers: one adapter for each kind, behind :class:`~.base.Scheduler`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from balsam_celery.errors import SettingsError
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.schedulers.local import make_local
from balsam_celery.schedulers.pbs import make_pbs
from balsam_celery.schedulers.psij import make_psij
from balsam_celery.schedulers.slurm import make_slurm
from balsam_celery.settings import Settings

#: Makes the adapter of a site from its settings and its local directory.
Factory = Callable[[Settings, Path], Scheduler]

#: Entry points of other packages that bring an adapter: name of the kind = a :data:`Factory`.
ENTRY_POINTS = "balsam_celery.schedulers"

_BUILT_IN: dict[str, Factory] = {
    "local": make_local,
    "slurm": make_slurm,
    "pbs": make_pbs,
    "psij": make_psij,
}


def kinds() -> list[str]:
    """Kinds of scheduler for which an adapter is installed."""
    return sorted({*_BUILT_IN, *metadata.entry_points(group=ENTRY_POINTS).names})


def make_scheduler(kind: str, *, settings: Settings, local_dir: Path) -> Scheduler:
    """The adapter named ``kind`` (``scheduler.kind`` in ``site.toml``).

    Raises:
        SettingsError: no such kind, or settings that it cannot use.
    """
    factory = _BUILT_IN.get(kind)
    if factory is None:
        others = metadata.entry_points(group=ENTRY_POINTS)
        if kind not in others.names:
            raise SettingsError(f"scheduler.kind is {kind!r}: give one of {', '.join(kinds())}")
        found = others[kind]
        try:
            factory = found.load()
        except (ImportError, AttributeError) as error:
            raise SettingsError(
                f"scheduler.kind is {kind!r}: {found.value} cannot be loaded: {error}"
            ) from None
    return factory(settings, local_dir)
