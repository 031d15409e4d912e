"""`warpsmith baseline PROBLEM`: all baselines of a problem against eager. Exit 0 where every declared one has a time,
else 1.
"""

from __future__ import annotations

import argparse

from experiments.commands import flags

HELP = "time the baselines of a problem against eager"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", help="attention/relative_position, kernelbench:level1/19 or a file")
    parser.add_argument(
        "--tune", action="store_true", help="autotune the compiled ones on the GPU first, which takes a minute or more"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    flags.judging(parser)


def run(args: argparse.Namespace) -> int:
    import json

    from experiments.api import fitting
    from experiments.baselines import Baselines
    from experiments.suites import resolve
    from experiments.tables import print_baselines
    from verifier.gpu.found import chosen_gpus
    from verifier.judge import open_zygotes

    problem, devices = resolve(args.problem, args.kernelbench), chosen_gpus(args.gpus)
    fit = fitting(args.target, devices)
    device = devices[0] if devices else None
    with open_zygotes() as zygotes:
        rows = list(Baselines(problem, zygotes, fit, device, tuning=args.tune).rows())
    if args.json:
        print(json.dumps([row.model_dump() for row in rows], indent=2))
    else:
        print_baselines(rows)
    return 0 if all(row.kind or row.baseline in problem.excuses for row in rows) else 1
