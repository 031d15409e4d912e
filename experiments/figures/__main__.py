"""The command line; see the package for what it does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.figures import FIGURES
from verifier.errors import WarpsmithError

if TYPE_CHECKING:
    from experiments.figures.base import Line


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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    chosen = vars(_parser().parse_args(arguments))
    wanted = chosen.pop("figures")
    from experiments.figures.base import Lab, Options
    from experiments.figures.run import run, show

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
