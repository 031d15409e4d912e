"""`warpsmith verify PROBLEM FILE`: judge one candidate.

Exit 0 correct, 1 judged and not correct, 2 usage or a broken problem, 3 infrastructure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands import flags

if TYPE_CHECKING:
    from verifier.interpreter.gate import Zygotes

HELP = "judge one candidate file"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", help="attention/relative_position, kernelbench:level1/19 or a file")
    parser.add_argument("file", type=Path, help="Python file that defines ModelNew")
    parser.add_argument("--json", action="store_true", help="print the whole verdict as JSON")
    parser.add_argument("--seed", type=flags.natural, help="seed of the secret inputs; default a random one")
    parser.add_argument(
        "--deep", action="store_true", help="on a GPU: also hardware counters (ncu) and compute-sanitizer"
    )
    flags.judging(parser)


def run(args: argparse.Namespace, zygotes: Zygotes | None = None) -> int:
    """`zygotes` are warm servers; without them it starts its own."""
    from experiments.api import verify
    from experiments.live import warn

    verdict = verify(
        args.problem,
        args.file,
        seed=args.seed,
        kernelbench=args.kernelbench,
        target=args.target,
        gpus=args.gpus,
        deep=args.deep,
        zygotes=zygotes,
        warn=warn,
    )
    if args.json:
        print(verdict.model_dump_json(indent=2))
    else:
        from experiments.tables import print_verdict

        print_verdict(verdict)
    return 0 if verdict.ok else 1
