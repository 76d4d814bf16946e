"""Deleting the work directories of tasks that were removed."""

from __future__ import annotations

import shutil
from pathlib import Path

from balsam_celery.cli.output import say
from balsam_celery.service.specs import id_part
from balsam_celery.store.prune import Removed


def delete_work_directory(run_dir: Path, removed: Removed) -> bool:
    """Delete a removed task's directory, with those of its earlier attempts; tell whether it was.

    Only what lies under ``run_dir`` is touched, and links are never followed.
    """
    if removed.work_dir is None:
        return False
    target = Path(removed.work_dir)
    if target.parent.name.endswith(f".{id_part(removed.id)}"):
        target = target.parent  # the task's: holds the directories of its attempts
    # the links on the way are followed, as the file system would, but not one at its end
    if run_dir.resolve() not in (target.parent.resolve() / target.name).parents:
        say(f"{target} is outside {run_dir}: left alone")
        return False
    try:
        shutil.rmtree(target)
    except FileNotFoundError:
        return False
    except OSError as error:
        say(f"{target} could not be deleted: {error.strerror}")
        return False
    return True
