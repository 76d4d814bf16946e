"""Which file systems a path lies on: SQLite and locks are not safe on network file systems."""

from __future__ import annotations

import os
from pathlib import Path

#: As ``/proc/self/mountinfo`` names them; ``fuse.`` and ``nfs`` also match as prefixes.
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs gfs gfs2 gpfs glusterfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs"
    " pvfs2 smb3 smbfs wekafs daos".split()
)
_FUSE_LOCAL = frozenset({"fuse.fuse-overlayfs", "fuseblk"})


def filesystem_of(path: Path, mountinfo: str | None = None) -> str:
    """Type of the file system that holds ``path`` (or its nearest existing parent).

    Args:
        path: need not exist.
        mountinfo: text of ``/proc/self/mountinfo``; read when ``None``.
    """
    if mountinfo is None:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    wanted = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, mounted = left.split(), right.split()
        if len(fields) < 5 or not mounted:
            continue
        # mountinfo writes blanks in paths as octal escapes
        point = fields[4].encode().decode("unicode_escape")
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        # of two mounts on one point the later hides the earlier
        if inside and len(point) >= len(best):
            best, kind = point, mounted[0]
    return kind


def network_filesystem(path: Path, mountinfo: str | None = None) -> str | None:
    """Type of the network file system that holds ``path``; ``None`` when it is a local one."""
    kind = filesystem_of(path, mountinfo)
    if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _FUSE_LOCAL):
        return kind
    return None
