"""An MPI program for tests: prints its world, the sum over its ranks, and where they ran."""

import json
import os

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
nodes = world.gather(os.environ.get("SLURMD_NODENAME"))
if world.rank == 0:
    print(json.dumps({"size": world.size, "sum": total, "nodes": nodes}))
