"""`warpsmith report RUN`: write the run's report again, one HTML file that needs no network."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the HTML report of a run"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default RUN/report.html")


def run(args: argparse.Namespace) -> int:
    from experiments.api import open_run
    from experiments.report import write_report

    folder = open_run(args.run)
    print(write_report(folder, args.out))
    return 0
