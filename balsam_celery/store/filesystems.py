"""Which file system a path lies on, as the kernel tells in ``/proc/self/mountinfo``."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|cifs|smb\d?|smbfs|afs|ceph|beegfs|panfs|wekafs|pvfs2|orangefs|glusterfs"
    r"|fuse\.(sshfs|glusterfs|ceph|ceph-fuse|beegfs|s3fs|rclone|orangefs|pvfs2|gcsfuse|juicefs)"
)
_OCTAL = re.compile(r"\\([0-7]{3})")
MOUNTS = Path("/proc/self/mountinfo")


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the network file system that ``path`` lies on; ``None`` for a local one.

    Args:
        path: need not exist; links in it are followed.
        mounts: the kernel's table of mounts.
    """
    kind = file_system(path, mounts)
    return kind if kind is not None and _NETWORK.fullmatch(kind) else None


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that ``path`` lies on; ``None`` when the kernel does not tell."""
    if not mounts.is_file():
        return None
    real = path.resolve()
    found: tuple[int, str] | None = None
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        # "36 35 98:0 /root /mount/point options [optional fields…] - type source options"
        before, _, after = line.partition(" - ")
        point = Path(_OCTAL.sub(lambda m: chr(int(m[1], 8)), before.split(" ")[4]))
        depth = len(point.parts)
        # of two mounts on one point the later hides the earlier
        if real.is_relative_to(point) and (found is None or depth >= found[0]):
            found = (depth, after.split(" ")[0])
    return found[1] if found else None
