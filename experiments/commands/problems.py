"""`warpsmith problems`: list the problems of the suites, or show one."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "list or show problems"


def add(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = sub.add_parser("list", help="all problems of the installed suites")
    show = sub.add_parser("show", help="one problem: contract, workloads and source")
    show.add_argument("problem")
    for command in (listing, show):
        command.add_argument("--kernelbench", type=Path, metavar="PATH", help="your checkout of KernelBench")


def run(args: argparse.Namespace) -> int:
    from experiments.suites import list_problems, resolve
    from experiments.tables import print_problem, print_problems

    if args.action == "list":
        print_problems(list_problems())
    else:
        print_problem(resolve(args.problem, args.kernelbench))
    return 0
