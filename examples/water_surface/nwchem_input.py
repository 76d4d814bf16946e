"""The same geometries as an input file of NWChem, and the energies out of what it prints."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

#: Hartree, at O (0,0,0), H (0, ±0.757, 0.587) Å, whatever the number of ranks.
REFERENCE_ENERGY = -76.010496172446
_ENERGY = re.compile(r"^\s*Total SCF energy =\s*(-?\d+\.\d+)", re.MULTILINE)
_HEAD = """\
start water
memory total 200 mb
basis cartesian noprint
  * library "6-31G*"
end
scf
  singlet
  rhf
  thresh 1e-8
end
"""


def cartesian(length: float, angle: float) -> tuple[float, float]:
    """|y| and z of the hydrogens, in ångström."""
    half = math.radians(angle) / 2
    return length * math.sin(half), length * math.cos(half)


def input_file(hydrogens: Sequence[tuple[float, float]]) -> str:
    """NWChem's input: one energy for each (|y|, z) of the hydrogens, in ångström."""
    parts = [_HEAD]
    for y, z in hydrogens:
        parts.append(
            "geometry units angstroms noautoz noprint\n"
            f"  O 0.0 0.0 0.0\n  H 0.0 {y:.12f} {z:.12f}\n  H 0.0 {-y:.12f} {z:.12f}\nend\n"
            "scf; vectors input atomic; end\ntask scf energy\n"
        )
    return "".join(parts)


def energies(output: str) -> list[float]:
    """The energies in hartree, in the order of the input."""
    return [float(text) for text in _ENERGY.findall(output)]
