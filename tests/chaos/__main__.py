"""``python -m tests.chaos``: runs of seeds that follow each other, results added to a file.

A run whose result is in the file already is not made again, so what was interrupted goes on where
it stopped. The exit status is 1 when some run found something.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.chaos import report
from tests.chaos.plan import KINDS, SOON, faults, possible
from tests.chaos.report import LOST_PILOT, RESTART, Result
from tests.chaos.run import Run
from tests.chaos.stage import DATABASES, SITES, present, stage

#: A run lasts no longer than this, in minutes.
LONGEST = 30.0


def main() -> int:
    """Run what is missing and print the figures of all results in the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run (default %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=1, help="how many, each with the next seed")
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults in a run")
    parser.add_argument("--tasks", type=int, default=1500, help="in a run")
    parser.add_argument("--share", type=float, default=0.2, help="of faults that overlap another")
    parser.add_argument(
        "--soon", type=float, default=SOON, help="of the others, that wait for no full work"
    )
    parser.add_argument("--site", choices=SITES, default="local")
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument(
        "--into", type=Path, default=Path("chaos.jsonl"), help="results, a line each"
    )
    parser.add_argument(
        "--strict-recovery",
        action="store_true",
        help=f"find fault with full work later than {RESTART:.0f} s after the restart of a process"
        f" of the site, or {LOST_PILOT:.0f} s after the loss of a pilot, each without other faults",
    )
    parser.add_argument(
        "--keep", type=Path, help="where the logs and files of runs that found something are kept"
    )
    options = parser.parse_args()
    # what was started is stopped then too
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if not 0 < options.minutes <= LONGEST:
        parser.error(f"--minutes is {options.minutes}: give more than 0, at most {LONGEST:.0f}")
    have = {one.key for one in report.load(options.into)}
    for seed in range(options.seed, options.seed + options.runs):
        result = Result(seed, options.site, options.database)
        if result.key in have:
            print(f"seed {seed}: done already", flush=True)
            continue
        _one(result, options)
        report.append(options.into, result)
        for line in result.told:
            print(f"FOUND {line}", flush=True)
    results = report.load(options.into)
    print(report.table(results))
    return 0 if all(one.passed for one in results) else 1


def _one(result: Result, options: argparse.Namespace) -> None:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:7.1f}] seed {result.seed}: {line}", flush=True)

    with stage(result.site, result.database) as world:
        kinds = possible(KINDS, present(world))
        left_out = sorted({kind.name for kind in KINDS} - {kind.name for kind in kinds})
        # times of attempts are told as seconds since the epoch
        say(f"now is {time.time():.1f}; without {', '.join(left_out) or 'nothing'}")
        strict, keep = options.strict_recovery, options.keep
        run = Run(world, result, options.tasks, say, strict=strict, keep=keep)
        plan = faults(result.seed, kinds, share=options.share, soon=options.soon)
        run.go(plan, 60 * options.minutes)
        for note in world.notes:
            say(note)
    say(f"passed: {result.passed}; {sum(result.faults.values())} faults, {result.tasks} tasks")


if __name__ == "__main__":
    sys.exit(main())
