"""The command line; see the package for what it does."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from experiments.figures.base import Book, Clock, Figure, Lab, Line, Options, say
from verifier.errors import UsageError, WarpsmithError
from verifier.gpu.supervisor import CUDA_DEVICE

FIGURES = ("relu", "stock", "throughput", "end_to_end", "spread", "aa", "hang", "growth", "published")
"""Modules of this package."""


def figure(name: str) -> Figure:
    """Raises UsageError for an unknown name."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure {name!r}", next_step=f"choose from {', '.join(FIGURES)}")
    return cast(Figure, importlib.import_module(f"experiments.figures.{name}"))


def run(wanted: Sequence[str], lab: Lab) -> list[Line]:
    """Measures figures one after the other; `wanted` are names, each perhaps with `=SECONDS`. A figure that cannot be
    measured is a line that says why. Raises UsageError for the names."""
    asked = [(name, figure(name), _seconds(text)) for name, _, text in (w.partition("=") for w in wanted)]
    lab.options.out.mkdir(parents=True, exist_ok=True)
    return [line for name, module, seconds in asked for line in _run(lab, name, module, seconds or module.SECONDS)]


def _run(lab: Lab, name: str, module: Figure, seconds: float) -> list[Line]:
    say(f"-- {name}")
    book, clock, failed = Book(lab.options.out / f"{name}.jsonl"), Clock(seconds), []
    try:
        module.measure(lab, book, clock)
    except WarpsmithError as error:
        failed = [Line("not finished", str(error))]
    say(f"-- {name}: {clock.spent:.1f} s")
    return _named(name, [*failed, *module.lines(book.rows)])


def _named(name: str, found: Sequence[Line]) -> list[Line]:
    return [replace(line, what=f"{name}: {line.what}") for line in found]


def show(folder: Path) -> list[Line]:
    """The lines of a folder's rows, nothing measured."""
    found: list[Line] = []
    for name in FIGURES:
        if rows := Book(folder / f"{name}.jsonl").rows:
            found += _named(name, figure(name).lines(rows))
    return found


def _seconds(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise UsageError(f"{text!r} is no number of seconds", next_step="write for example relu=60") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.figures", description="The judge's figures on a GPU.")
    add = parser.add_argument
    add("figures", nargs="+", metavar="NAME[=SECONDS]", help=f"{', '.join(FIGURES)}; or show")
    add("--out", type=Path, required=True, metavar="DIR", help="NAME.jsonl for each; rows in it are kept")
    add("--kernelbench", type=Path, metavar="PATH", help="relu: your checkout of KernelBench")
    add("--candidate", type=Path, metavar="FILE", help="relu: a candidate in place of the built-in one")
    add("--harness", type=Path, metavar="PATH", help="relu: a checkout of KernelBench whose harness is timed too")
    add("--packed", type=Path, metavar="DIR", help="published: what `experiments.fidelity pack` made")
    add("--truth", type=Path, metavar="FILE", help="published: JSON with what direct runs gave")
    add("--stock", type=Path, metavar="DIR", help="throughput, end_to_end: traced candidates (DIR/stock)")
    add("--problems", nargs="+", default=[], metavar="NAME", help="stock: these problems only")
    add("--count", type=int, metavar="N", help="measurements, in place of each figure's own number")
    add("--cores", type=int, default=16, metavar="N", help="traces at once (16)")
    add("--small", action="store_true", help="tiny sizes, to try the scripts")
    add("--device", default=CUDA_DEVICE, help="for tests: what opens the device in judge and runner")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    chosen = vars(_parser().parse_args(arguments))
    wanted = chosen.pop("figures")
    try:
        options = Options(**{**chosen, "problems": tuple(chosen["problems"])})
        with Lab(options) as lab:
            found = show(options.out) if wanted == ["show"] else run(wanted, lab)
    except WarpsmithError as error:
        print(f"error: {error}\n{error.next_step}".rstrip(), file=sys.stderr)
        return error.exit_code
    print_lines(found)
    return 0


def print_lines(found: Sequence[Line]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "measured", "wanted")
    for line in found:
        table.add_row(line.what, line.value, line.wanted)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
