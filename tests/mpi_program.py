"""An MPI program for tests: each rank writes what it sees as ``rank-<n>.json``."""

import json
import os
import sys
from pathlib import Path

from mpi4py import MPI

world = MPI.COMM_WORLD
shared = world.Split_type(MPI.COMM_TYPE_SHARED)
total = world.allreduce(world.rank)
assert total == world.size * (world.size - 1) // 2
# a file for each rank: their lines on one stream may be torn
Path(f"rank-{world.rank}.json").write_text(
    json.dumps(
        {
            "rank": world.rank,
            "size": world.size,
            "shared": shared.size,
            "library": MPI.Get_library_version().split()[0],
            "argv": sys.argv[1:],
            "environment": dict(os.environ),
        }
    ),
    encoding="utf-8",
)
