"""The command line; see the package for what it does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from verifier.errors import UsageError, WarpsmithError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, `trace` when none is named; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS[given.pop(0)] if given and given[0] in COMMANDS else _trace
    try:
        command(given)
    except WarpsmithError as error:
        print(f"error: {error}\n{error.next_step}".rstrip(), file=sys.stderr)
        return error.exit_code
    return 0


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    name = f"python -m experiments.fidelity {command}".rstrip()
    return argparse.ArgumentParser(prog=name, description=about)


def _trace(given: Sequence[str]) -> None:
    about = f"Traces folders of answers without a GPU. Further commands, each with --help: {', '.join(COMMANDS)}."
    parser = _parser("", about)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder of answers")
    parser.add_argument("--kernelbench", type=Path, required=True, metavar="PATH", help="your checkout of KernelBench")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results as JSON; rows in it are kept")
    chosen = parser.parse_args(given)
    from rich.console import Console

    from experiments.fidelity.table import trace_table
    from experiments.fidelity.trace import run

    Console().print(trace_table(run(chosen.folders, chosen.kernelbench, chosen.out)))


def _pack(given: Sequence[str]) -> None:
    parser = _parser("pack", "Packs answers and their problems for another machine.")
    add = parser.add_argument
    add("pairs", nargs="*", metavar="FOLDER=CHECKOUT", help="answers and the KernelBench that they answer")
    add("--to", type=Path, required=True, metavar="PACKED", help="the folder to make")
    add("--recorded", type=Path, metavar="FILE", help='JSON object: "folder/file" to {"ran": bool} or a bool')
    add("--plans", type=float, metavar="SECONDS", help="trace here for so long, and take the plans along")
    chosen = parser.parse_args(given)
    from experiments.fidelity.pack import add_plans, pack

    if chosen.pairs:
        entries = pack([_pair(p) for p in chosen.pairs], chosen.to, _recorded(chosen.recorded))
        print(f"{sum(len(e.names) for e in entries)} answers, {len(entries)} different ones")
    if chosen.plans:
        add_plans(chosen.to, chosen.plans)


def _pair(text: str) -> tuple[Path, Path]:
    folder, equals, checkout = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} names no checkout", next_step="write FOLDER=CHECKOUT")
    return Path(folder), Path(checkout)


def _recorded(file: Path | None) -> dict[str, bool]:
    said = json.loads(file.read_text()) if file else {}
    return {name: bool(value["ran"] if isinstance(value, dict) else value) for name, value in said.items()}


def _gpu(given: Sequence[str]) -> None:
    parser = _parser("gpu", "Traces, runs, replays and compares packed answers on a machine with a GPU.")
    add = parser.add_argument
    add("packed", type=Path, metavar="PACKED", help="a folder that `pack` made")
    add("--out", type=Path, required=True, metavar="DIR", help="rows.jsonl and table.md; rows in it are kept")
    add("--slots", type=int, default=4, metavar="N", help="answers on the GPU at once (4)")
    add("--tracers", type=int, default=11, metavar="N", help="traces at once (11)")
    add(
        "--seconds",
        type=float,
        default=450.0,
        metavar="S",
        help="stop after this; what is unfinished is left out (450)",
    )
    add("--device", default="cuda", help="cpu: for tests of plans without custom kernels")
    add("--only", nargs="*", default=[], metavar="ID", help="these answers only")
    chosen = parser.parse_args(given)
    from experiments.fidelity.gpu import Options, run
    from experiments.fidelity.table import report

    options = Options(slots=chosen.slots, tracers=chosen.tracers, seconds=chosen.seconds, device=chosen.device)
    text = report(run(chosen.packed, chosen.out, options, chosen.only))
    (chosen.out / "table.md").write_text(text)
    print(text)


def _table(given: Sequence[str]) -> None:
    parser = _parser("table", "Prints the table of a GPU run.")
    parser.add_argument("out", type=Path, metavar="DIR", help="the folder of `gpu --out`")
    from experiments.fidelity.gpu import read_cases
    from experiments.fidelity.table import report

    print(report(read_cases(parser.parse_args(given).out)))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"pack": _pack, "gpu": _gpu, "table": _table}

if __name__ == "__main__":
    sys.exit(main())
