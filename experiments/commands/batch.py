"""`warpsmith batch`: read the requests of a waiting run and answer them by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "show or answer the requests of a waiting run"


def add(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = sub.add_parser("list", help="the requests that wait")
    show = sub.add_parser("show", help="one request as readable text")
    show.add_argument("id", help="request id, for example a0001/0")
    answer = sub.add_parser("answer", help="record an answer from a file")
    answer.add_argument("id", help="request id")
    answer.add_argument("file", type=Path, help="text file with the answer; - reads standard input")
    for command in (listing, show, answer):
        command.add_argument("--run", type=Path, metavar="RUN", help="run folder; default the newest below runs/")


def run(args: argparse.Namespace) -> int:
    from experiments import handwork

    folder = handwork.waiting_run(args.run)
    if args.action == "list":
        print("\n".join(handwork.waiting(folder)))
    elif args.action == "show":
        print(handwork.show(folder, args.id))
    else:
        print(handwork.answer(folder, args.id, args.file))
    return 0
