"""Hartree–Fock energies of water on some geometries, shared among the ranks of one MPI program.

Usage: energies.py "LENGTH,ANGLE LENGTH,ANGLE …"   (ångström, degrees)

Rank 0 writes ``energies.json``: a list of [length, angle, energy in hartree]. Each geometry is
computed by one rank alone from the same start, so the energies do not depend on how many there are.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from mpi4py import MPI
from pyscf import gto, scf


def energy(length: float, angle: float) -> float:
    """RHF/6-31G* energy in hartree."""
    half = math.radians(angle) / 2
    y, z = length * math.sin(half), length * math.cos(half)
    molecule = gto.M(
        atom=[("O", (0, 0, 0)), ("H", (0, y, z)), ("H", (0, -y, z))],
        basis="6-31g*",
        cart=True,
        verbose=0,
    )
    field = scf.RHF(molecule)
    field.conv_tol = 1e-11
    value = float(field.kernel())
    if not field.converged:
        raise RuntimeError(f"not converged at {length} Å, {angle}°")
    return value


def main() -> None:
    world = MPI.COMM_WORLD
    geometries = [
        (float(length), float(angle))
        for length, angle in (text.split(",") for text in sys.argv[1].split())
    ]
    mine = [
        (index, length, angle, energy(length, angle))
        for index, (length, angle) in enumerate(geometries)
        if index % world.size == world.rank
    ]
    parts = world.gather(mine)
    if parts is not None:
        rows = sorted(row for part in parts for row in part)
        Path("energies.json").write_text(json.dumps([row[1:] for row in rows]))
        print(f"{len(rows)} energies by {world.size} ranks")


if __name__ == "__main__":
    main()
