"""Errors that say nothing of a task: no room, no memory, a file system that is away.  Pure.

Any other task would meet them here too. Whoever fails a task for such an error fails all that wait.
"""

from __future__ import annotations

import errno
import os
import re
import shutil

#: They pass when somebody makes room, or a server comes back.
_PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
    }
)
#: They are the node's; of a path that a user has named they may be that path's.
_OF_THE_NODE = _PASSING | {errno.EROFS, errno.EIO}
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NUMBER = re.compile(r"\[Errno (\d+)\]")


def passes(error: Exception) -> bool:
    """It may be over by itself, whatever the task asks for."""
    return isinstance(error, OSError) and error.errno in _PASSING


def is_of_the_node(error: Exception) -> bool:
    """Any program would meet it on this node: the task is not to blame."""
    return isinstance(error, OSError) and error.errno in _OF_THE_NODE


def single(error: OSError) -> OSError:
    """``error``, with the name of the file that found no room.

    Of those that copying a directory has gathered as texts it is one; one of the node's, if any is.
    """
    if error.errno in _NO_ROOM and error.filename2 is not None:
        return OSError(error.errno, error.strerror, str(error.filename2))
    found = [
        OSError(int(number[1]), os.strerror(int(number[1])), target)
        for target, why in gathered(error)
        if (number := _NUMBER.match(why))
    ]
    return min(found, key=lambda one: not is_of_the_node(one), default=error)


def gathered(error: Exception) -> list[tuple[str, str]]:
    """Target and reason of each file of a directory that was not copied; else none.

    Last, without a target, what ``copytree`` took letter by letter: a file of a directory below
    that is the same as its target.
    """
    if not isinstance(error, shutil.Error) or not error.args or not isinstance(error.args[0], list):
        return []
    found, letters = [], ""
    for one in error.args[0]:
        if isinstance(one, tuple) and len(one) == 3:
            found.append((str(one[1]), str(one[2])))
        else:
            letters += str(one)
    return [*found, ("", letters)] if letters else found
