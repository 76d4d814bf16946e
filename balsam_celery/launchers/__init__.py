"""Launchers: how a program of several MPI ranks is started on the nodes that it was given.

``Launcher.launch`` is pure: ranks → argv and environment; there is a module for each family.
:func:`find_launcher` looks for one on this machine. ``shim`` is what runs in front of each rank.
"""

from balsam_celery.launchers.base import Launch, Launcher, Ranks
from balsam_celery.launchers.find import KINDS, detect, find_launcher

__all__ = [
    "KINDS",
    "Launch",
    "Launcher",
    "Ranks",
    "detect",
    "find_launcher",
]
