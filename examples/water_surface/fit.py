"""The last task: gather the energies of all others, fit the surface, find its minimum, draw it.

Usage: fit.py [GEOMETRIES]   a JSON file {task name: [[length, angle], …]}, for NWChem's outputs

Reads the parents' results from the file that ``$BALSAM_INPUTS`` names and writes ``surface.csv``,
``surface.png`` and ``minimum.json`` into its work directory.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
from numpy.polynomial import polynomial
from nwchem_input import energies
from scipy.optimize import minimize

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DEGREE = 7
CENTRE = np.array([0.95, 105.0])
SCALE = np.array([0.1, 15.0])


def rows_of(work_dir: Path, geometries: list[list[float]] | None) -> list[tuple[float, ...]]:
    """(length, angle, energy) rows that one task computed; NWChem prints no angles."""
    if geometries is None:
        return [tuple(row) for row in json.loads((work_dir / "energies.json").read_text())]
    found = energies((work_dir / "stdout").read_text())
    if len(found) != len(geometries):
        raise RuntimeError(f"{work_dir}: {len(found)} energies for {len(geometries)} geometries")
    return [(*geometry, energy) for geometry, energy in zip(geometries, found, strict=True)]


def main() -> None:
    (parents,) = json.loads(Path(os.environ["BALSAM_INPUTS"]).read_text())["args"]
    geometries = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else {}
    rows = sorted(
        row
        for parent in parents
        for row in rows_of(Path(parent["work_dir"]), geometries.get(parent["name"]))
    )
    table = np.array(rows)

    scaled = (table[:, :2] - CENTRE) / SCALE
    design = polynomial.polyvander2d(scaled[:, 0], scaled[:, 1], [DEGREE, DEGREE])
    coefficients, *_ = np.linalg.lstsq(design, table[:, 2], rcond=None)
    error = float(np.abs(design @ coefficients - table[:, 2]).max())
    matrix = coefficients.reshape(DEGREE + 1, DEGREE + 1)
    found = minimize(lambda x: polynomial.polyval2d(x[0], x[1], matrix), [0.0, 0.0], tol=1e-12)
    length, angle = found.x * SCALE + CENTRE

    with Path("surface.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["length_angstrom", "angle_degree", "energy_hartree"])
        writer.writerows(rows)
    minimum = {
        "length": float(length),
        "angle": float(angle),
        "energy": float(found.fun),
        "geometries": len(rows),
        "largest_fit_error": error,
    }
    Path("minimum.json").write_text(json.dumps(minimum))
    draw(table, matrix, minimum)
    print(json.dumps(minimum))


def draw(table: np.ndarray, matrix: np.ndarray, minimum: dict[str, float]) -> None:
    """Contours of the fitted surface, the computed points and the minimum."""
    lengths = np.linspace(table[:, 0].min(), table[:, 0].max(), 200)
    angles = np.linspace(table[:, 1].min(), table[:, 1].max(), 200)
    grid = np.meshgrid(lengths, angles)
    scaled = [(axis - CENTRE[i]) / SCALE[i] for i, axis in enumerate(grid)]
    energy = (polynomial.polyval2d(*scaled, matrix) - minimum["energy"]) * 627.5095
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    filled = axes.contourf(*grid, energy, levels=24, cmap="viridis")
    axes.contour(*grid, energy, levels=24, colors="white", linewidths=0.3)
    axes.plot(table[:, 0], table[:, 1], ".", color="black", markersize=3, label="computed")
    axes.plot(minimum["length"], minimum["angle"], "*", color="red", markersize=14, label="minimum")
    axes.set(
        xlabel="O–H length / Å",
        ylabel="H–O–H angle / °",
        title="Water, RHF/6-31G*: "
        f"minimum {minimum['length']:.4f} Å, {minimum['angle']:.2f}°, "
        f"{minimum['energy']:.6f} hartree",
    )
    axes.legend(loc="upper right")
    figure.colorbar(filled, label="energy above the minimum / kcal mol⁻¹")
    figure.savefig("surface.png", dpi=150)


if __name__ == "__main__":
    main()
