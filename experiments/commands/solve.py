"""`warpsmith solve PROBLEM`: search for a kernel under a budget and write the best one with its verdict.

Exit 0 something correct was found, 1 nothing, 2 usage or a broken problem, 3 infrastructure, 4 it waits for answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.commands import flags

HELP = "search for a kernel under a budget"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", help="attention/relative_position, kernelbench:level1/19 or a file")
    parser.add_argument("--model", default="sampler", help="sampler, batch:NAME, replay:RUN or a profile's name")
    parser.add_argument("--models", type=Path, metavar="FILE", help="TOML file with more model profiles")
    parser.add_argument("--strategy", default="beam", help="best_of_n, reflection, beam, or beam(width=4,branching=3)")
    parser.add_argument(
        "--budget", default="calls=24,minutes=15", help="caps: calls, tokens, minutes, gpu_seconds, dollars"
    )
    parser.add_argument("--seed", type=flags.natural, default=0, help="of the strategy and the sampler")
    parser.add_argument("--width", type=flags.positive, default=4, help="attempts in flight")
    parser.add_argument("--max-repairs", type=flags.natural, default=1, help="repair calls within one attempt")
    parser.add_argument("--init", type=Path, metavar="FILE", help="a candidate to start from")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder; default runs/TIME-PROBLEM")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in DIR")
    parser.add_argument(
        "--no-deep", dest="deep", action="store_false", help="no hardware counters and sanitizer for a new best"
    )
    flags.searching(parser)
    flags.judging(parser)


def run(args: argparse.Namespace) -> int:
    from experiments.api import prepare
    from experiments.session import run_session

    folder = prepare(
        args.problem,
        model=args.model,
        models_file=args.models,
        strategy=args.strategy,
        budget=args.budget,
        seed=args.seed,
        width=args.width,
        max_repairs=args.max_repairs,
        init=args.init,
        out=args.out,
        overwrite=args.overwrite,
        kernelbench=args.kernelbench,
        target=args.target,
        gpus=args.gpus,
        deep=args.deep,
    )
    return run_session(folder, workers=args.workers, fleet=args.fleet, gpus=args.gpus, quiet=args.quiet)
