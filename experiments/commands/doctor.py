"""`warpsmith doctor`: what this machine can do, what it cannot, and what the judge does not protect against."""

from __future__ import annotations

import argparse

HELP = "say what this machine can and cannot do"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from experiments.doctor import examine
    from experiments.tables import print_doctor

    facts = examine()
    if args.json:
        print(json.dumps([fact.model_dump() for fact in facts], indent=2))
    else:
        print_doctor(facts)
    return 0 if all(fact.state != "missing" for fact in facts) else 3
