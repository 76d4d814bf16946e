"""The water surface, from an empty directory to the picture: ``make demo`` runs this.

Makes a fresh site with two virtual nodes of two slots, submits a chord of 29 tasks (1, 2 and 4
ranks: half a node, a whole node, two nodes) and the fit, waits with a progress bar, checks the
minimum against the reference, draws how busy the nodes were, and leaves nothing running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from celery import chord
from node_use import Busy, draw_node_use, node_use
from nwchem_input import REFERENCE_ENERGY, cartesian, energies, input_file
from rich.console import Console
from rich.progress import Progress as Bar

from balsam_celery import program, tasks, wait
from balsam_celery.errors import BalsamError
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.supervisor import down, up

HERE = Path(__file__).resolve().parent
NODES, CORES = 2, 2
#: (tolerance, reference) of the minimum: ångström, degrees, hartree.
REFERENCE = {"length": (5e-5, 0.9473), "angle": (5e-3, 105.50), "energy": (6e-7, -76.010747)}
#: Resources of the tasks, taken in turn: half a node, a whole node, two nodes.
SHAPES = (
    {"num_nodes": 1, "ranks_per_node": 1},
    {"num_nodes": 1, "ranks_per_node": 2},
    {"num_nodes": 2, "ranks_per_node": 2},
)
NWCHEM = ("nwchem.openmpi", "nwchem")


def geometry_batches() -> list[list[tuple[float, float]]]:
    """174 geometries (length in ångström, angle in degrees) in 29 batches."""
    grid = [
        (round(float(length), 4), round(float(angle), 3))
        for length in np.linspace(0.85, 1.06, 14)
        for angle in np.linspace(90, 122, 12)
    ]
    near = [(length, angle) for length in (0.945, 0.9475, 0.95) for angle in (105.0, 106.0)]
    rows = grid + near
    return [rows[start::29] for start in range(29)]


@contextmanager
def fresh_site(keep: bool) -> Iterator[Site]:
    """A site of its own, up; afterwards down, and removed unless it is to be kept."""
    directory = Path(tempfile.mkdtemp(prefix="water-surface-"))
    site = init(directory, name="water", local=LocalSettings(nodes=NODES, cores_per_node=CORES))
    os.environ["BALSAM_SITE"] = str(directory)
    try:
        up(site, progress=print)
        yield site
    finally:
        down(site, progress=print)
        if keep:
            print(f"the site is kept: {site.directory}")
        else:
            shutil.rmtree(site.local_dir)
            shutil.rmtree(site.directory)


def pyscf_header() -> list:
    """Signatures of the tasks that compute the energies with PySCF."""
    energy = program(
        "energy",
        [sys.executable, str(HERE / "energies.py"), "{geometries}"],
        workflow="water",
        wall_time="5m",
    )
    header = []
    for number, batch in enumerate(geometry_batches()):
        text = " ".join(f"{length},{angle}" for length, angle in batch)
        signature = energy.s(geometries=text)
        header.append(signature.set(name=f"energy-{number:02}", **SHAPES[number % len(SHAPES)]))
    return header


def nwchem_header(inputs: Path) -> list:
    """Signatures of the same tasks with NWChem; their input files are written to ``inputs``."""
    engine = next((path for name in NWCHEM if (path := shutil.which(name))), None)
    if engine is None:
        raise BalsamError("NWChem is not installed: apt install nwchem-openmpi (as root)")
    energy = program(
        "nwchem", [engine, "{input}"], workflow="water", wall_time="5m", launcher="openmpi"
    )
    header = []
    geometries = {}
    for number, batch in enumerate(geometry_batches()):
        name = f"nwchem-{number:02}"
        path = inputs / f"{name}.nw"
        path.write_text(input_file([cartesian(*geometry) for geometry in batch]))
        geometries[name] = batch
        header.append(energy.s(input=str(path)).set(name=name, **SHAPES[number % len(SHAPES)]))
    (inputs / "geometries.json").write_text(json.dumps(geometries))
    path = inputs / "reference.nw"
    path.write_text(input_file([(0.757, 0.587)]))
    results = [energy.s(input=str(path)).set(name="reference", **shape) for shape in SHAPES]
    check_reference([result.apply_async() for result in results])
    return header


def check_reference(results: Sequence) -> None:
    """Hold NWChem's energy of the reference geometry against the known one, for 1, 2, 4 ranks."""
    wait(results)
    for ranks, result in zip((1, 2, 4), results, strict=True):
        outcome = result.get(timeout=30)
        (energy,) = energies((Path(outcome["work_dir"]) / "stdout").read_text())
        print(f"NWChem, {ranks} ranks: {energy:.12f} hartree")
        if abs(energy - REFERENCE_ENERGY) > 1e-8:
            raise BalsamError(f"reference energy with {ranks} ranks: expected {REFERENCE_ENERGY}")


def check(minimum: dict[str, float]) -> None:
    """Hold the minimum against the reference."""
    for key, (tolerance, expected) in REFERENCE.items():
        if abs(minimum[key] - expected) > tolerance:
            raise BalsamError(f"{key} is {minimum[key]}, expected {expected} ± {tolerance}")


def run(site: Site, engine: str, output: Path) -> None:
    """Submit, wait, check, and put the results into ``output``."""
    inputs = site.run_dir / "inputs"
    inputs.mkdir(parents=True)
    header = pyscf_header() if engine == "pyscf" else nwchem_header(inputs)
    arguments = [str(inputs / "geometries.json")] if engine == "nwchem" else []
    fit = program(
        "fit",
        [sys.executable, str(HERE / "fit.py"), *arguments],
        workflow="water",
        wall_time="5m",
    )
    surface = chord(header, fit.s()).apply_async()
    print(f"{len(header)} tasks and the fit are in SQL")
    with Bar(console=Console(stderr=True)) as bar:
        row = bar.add_task("tasks", total=len(header) + 1)
        wait(
            [*surface.parent.results, surface],
            on_progress=lambda seen: bar.update(row, completed=seen.finished + seen.unsuccessful),
        )
    work_dir = Path(surface.get(timeout=60)["work_dir"])

    output.mkdir(parents=True, exist_ok=True)
    for name in ("surface.csv", "surface.png", "minimum.json"):
        shutil.copy(work_dir / name, output / name)
    busy = [
        Busy(
            share["node"],
            tuple(share["cores"]),
            attempt.started,
            attempt.ended,
            task.name,
            task.resources.ranks,
        )
        for task in tasks.filter(workflow="water")
        for attempt in tasks.attempts(task.id)
        for share in attempt.nodes
    ]
    draw_node_use(busy, CORES, output / "node_use.png")
    minimum = json.loads((output / "minimum.json").read_text())
    print(
        f"minimum: O–H {minimum['length']:.4f} Å, H–O–H {minimum['angle']:.2f}°, "
        f"{minimum['energy']:.6f} hartree ({minimum['geometries']} geometries)"
    )
    print(f"slots in use between the first start and the last end: {node_use(busy, CORES):.0%}")
    print(f"pictures: {output / 'surface.png'}  {output / 'node_use.png'}")
    check(minimum)
    print("the minimum agrees with the reference")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("pyscf", "nwchem"), default="pyscf")
    parser.add_argument("--output", type=Path, default=Path("water-surface"))
    parser.add_argument("--keep", action="store_true", help="keep the site for a look into it")
    options = parser.parse_args()
    try:
        with fresh_site(options.keep) as site:
            run(site, options.engine, options.output.resolve())
    except BalsamError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
