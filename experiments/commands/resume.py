"""`warpsmith resume RUN`: go on with a stopped, killed or waiting run."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.commands import flags

HELP = "go on with a stopped or waiting run; one that was begun without a GPU is judged anew where there is one"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="batch results, OpenAI batch output format")
    flags.searching(parser)
    flags.gpus(parser)


def run(args: argparse.Namespace) -> int:
    from experiments.api import open_run
    from experiments.session import run_session

    folder = open_run(args.run)
    return run_session(
        folder, answers=args.answers, workers=args.workers, fleet=args.fleet, gpus=args.gpus, quiet=args.quiet
    )
