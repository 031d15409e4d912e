"""`warpsmith explain RUN ATTEMPT`: why an attempt got its verdict, for a person."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "say why an attempt got its verdict"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("attempt", help="its name, for example a0003, or best")


def run(args: argparse.Namespace) -> int:
    from experiments.api import open_run
    from experiments.explain import print_attempt

    print_attempt(open_run(args.run), args.attempt)
    return 0
