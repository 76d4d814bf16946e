"""Copies that can be made again, over what one that was cut short or found no room has left.

A file is there whole or not at all: it is written beside its place, and then takes it. So nothing
that is in its place is in the way: a file that is read-only as its source is, or a link, which may
lead to that source.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy one file, with its times and permissions; a link in its place is replaced, not followed.

    Raises:
        OSError: it names ``target``, not what is written beside it.
    """
    # the same each time: what a copy that was killed has left is used again, and no other's is
    name = hashlib.blake2b(os.fsencode(f"{source}\0{target}"), digest_size=8).hexdigest()
    part = Path(target).with_name(f".balsam-{name}.part")
    try:
        part.unlink(missing_ok=True)
        shutil.copy2(source, part)
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if error.filename is not None and os.fspath(error.filename) == str(part):
            raise OSError(error.errno, error.strerror, str(target)) from error
        if error.filename2 is not None and os.fspath(error.filename2) == str(part):
            raise OSError(error.errno, error.strerror, error.filename, None, str(target)) from error
        raise


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory, links as what they lead to, over one that may be there already.

    Raises:
        OSError: a ``shutil.Error`` for files that could not be copied; all the others have been.
    """

    def ignored(directory: str, names: list[str]) -> list[str]:
        _open(Path(directory), target / Path(directory).relative_to(source))
        # a copy that is made inside its source is kept out of itself
        return [target.name] if Path(directory) == target.parent else []

    shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True, copy_function=copy_file)


def fill_tree(source: Path, target: Path) -> None:
    """Copy into ``target`` what it does not have of a directory, links as links.

    Raises:
        OSError: a ``shutil.Error`` for files that could not be copied; all the others have been.
    """

    def there(directory: str, names: list[str]) -> list[str]:
        place = target / Path(directory).relative_to(source)
        if not place.is_dir():
            return []
        _open(Path(directory), place)
        return [name for name in names if not _is_to_be_filled(Path(directory, name), place / name)]

    shutil.copytree(
        source, target, symlinks=True, ignore=there, dirs_exist_ok=True, copy_function=copy_file
    )


def _is_to_be_filled(source: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return True
    return source.is_dir() and not source.is_symlink() and target.is_dir()


def _open(source: Path, target: Path) -> None:
    """Let files be made in a copy that is read-only as its source is, until it is made again."""
    with contextlib.suppress(FileNotFoundError, PermissionError):  # copying tells what is wrong
        mode = target.stat().st_mode
        if not (mode | source.stat().st_mode) & stat.S_IWUSR:
            target.chmod(stat.S_IMODE(mode) | stat.S_IWUSR)
