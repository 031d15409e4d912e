"""The command line. It parses flags with the standard library alone and imports a command's machinery when it runs.

Exit codes: 0 a correct candidate (or nothing to object to), 1 judged or searched and none correct, 2 usage or a
broken problem, 3 infrastructure, 4 a run waits for batch answers, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from experiments.commands import baseline, batch, diff, doctor, explain, problems, report, resume, solve, verify
from verifier.errors import ProblemError, StorageError, UsageError, WarpsmithError

COMMANDS = {
    "solve": solve,
    "verify": verify,
    "resume": resume,
    "report": report,
    "explain": explain,
    "diff": diff,
    "batch": batch,
    "problems": problems,
    "baseline": baseline,
    "doctor": doctor,
}


class _Parser(argparse.ArgumentParser):
    """Errors of usage: one sentence, one next step, exit 2. Flags are written out in full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses unknown flags here, so that the message is the command's own and names what is close."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            close = difflib.get_close_matches(rest[0].partition("=")[0], self._option_string_actions, n=1)
            self.error(f"unknown argument {rest[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
        return found, rest

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\nnext: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The whole grammar. Importing and building it takes well under 0.3 s."""
    top = _Parser(prog="warpsmith", description="Inference-time search for GPU kernels.")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = sub.add_parser(name, help=module.HELP, description=module.HELP)
        module.add(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a project error becomes one sentence and a next step."""
    args = parser().parse_args(argv)
    try:
        return int(COMMANDS[args.command].run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as fault:
        return _tell(_storage(fault), args)
    except WarpsmithError as fault:
        return _tell(fault, args)
    except Exception:  # noqa: BLE001  # a bug of ours: the code 1 would say that a candidate was judged
        traceback.print_exc()
        print("error: a bug of warpsmith, see above\nnext: report it with this text", file=sys.stderr)
        return 3


def _storage(fault: OSError) -> StorageError:
    return StorageError(
        f"{fault.strerror or fault}: {fault.filename or 'a file'}",
        next_step="free space or choose another folder; what was written before is kept, and `resume` goes on",
    )


def _tell(fault: WarpsmithError, args: argparse.Namespace) -> int:
    print(f"error: {fault}\nnext: {fault.next_step or _next_step(fault, args)}", file=sys.stderr)
    return fault.exit_code


def _next_step(fault: WarpsmithError, args: argparse.Namespace) -> str:
    """What to do about an error that does not say so itself."""
    if isinstance(fault, ProblemError):
        return f"mend the file; `warpsmith problems show {fault.file}` reads it without running it"
    if isinstance(fault, UsageError):
        return f"warpsmith {args.command} --help"
    return "see `warpsmith doctor`; a run that was begun goes on with `warpsmith resume RUN`"
