"""`warpsmith diff A B`: what differs between two verdicts, for a person."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compare two verdicts"


def add(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, help="file with a verdict (`verify --json`), or RUN/ATTEMPT")


def run(args: argparse.Namespace) -> int:
    from experiments.explain import print_difference, read_verdict

    print_difference(read_verdict(args.first), read_verdict(args.second))
    return 0
