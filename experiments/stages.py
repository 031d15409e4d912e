"""Where the time of a search goes: median and 90th percentile of each stage over all judged candidates of some runs.

    python -m experiments.stages runs/a runs/b runs/c

Wall seconds as the judge measured them, waiting for a free core included; machine and versions are the manifests'.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agent.record import RunRecord, load_run
from experiments.tables import seconds

ORDER = ("generate", "parse", "trace", "audit", "profile", "interpret")


def collect(records: Sequence[RunRecord]) -> dict[str, list[float]]:
    """Stage to its seconds, one for each candidate that reached it. A duplicate was not judged and does not count."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for turn in (turn for attempt in record.attempts for turn in attempt.turns):
            completion = record.completion(turn)
            if completion is not None:
                found["generate"].append(completion.seconds)
            if turn.verdict is not None and turn.verdict.duplicate_of is None:
                for stage, spent in turn.verdict.seconds.items():
                    found[stage].append(spent)
    return dict(found)


def p90(values: Sequence[float]) -> float:
    """90th percentile by the nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, -(-9 * len(ranked) // 10) - 1)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    records = [load_run(path) for path in parser.parse_args(argv).runs]
    found = collect(records)
    table = Table("stage", "candidates", "median", "p90")
    for stage in sorted(found, key=lambda s: ORDER.index(s) if s in ORDER else len(ORDER)):
        values = found[stage]
        table.add_row(stage, str(len(values)), seconds(statistics.median(values)), seconds(p90(values)))
    console = Console()
    console.print(table)
    for record in records:
        manifest = record.manifest
        console.print(
            f"{manifest.run}: {manifest.problem.name}, {manifest.strategy}, {len(record.attempts)} attempts, "
            f"{record.wall_seconds:.0f} s, {manifest.machine}, {manifest.versions}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
