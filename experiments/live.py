"""The live view of a search: attempts, the best so far, the budget.

It reads journal events and decides nothing. A reader that goes away (`| head`) ends the view, never the search.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from agent.budget import Ledger, amounts
from agent.run_folder import Manifest, RunFolder
from agent.search import Reason, Summary
from experiments.tables import COLOURS, base_name, file_words, interval, speedup
from verifier.verdict import Verdict

ROWS = 14
"""Attempts shown at once, the newest last."""
_UNFINISHED = (Reason.WAITING, Reason.INTERRUPTED)


class Live:
    """A context manager whose `see` takes the events of `agent.search.search`.

    Plain lines where there is no terminal.
    """

    def __init__(self, manifest: Manifest, past: Iterable[Mapping[str, Any]] = ()) -> None:
        """`past` are the events of earlier sessions."""
        self._manifest = manifest
        self._console = Console()
        self._rows: dict[str, dict[str, Any]] = {}
        self._ledger = Ledger(manifest.budget)
        self._best: float | None = None
        self._best_live = False
        self._measured = manifest.measured
        self._started = time.monotonic()
        self._before = 0.0
        self._note = ""
        self._screen = Screen(console=self._console, refresh_per_second=4, get_renderable=self._render)
        for event in past:
            self._take(event)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._screen.__exit__(kind, error, trace)

    def see(self, event: Mapping[str, Any]) -> None:
        """Takes one event."""
        self._take(event)
        if event["t"] in ("outcome", "anew") and not self._console.is_terminal:
            name, status, row = event["attempt"], event["status"], self._rows[event["attempt"]]
            gain = speedup(event["score"], live=row["live"])
            say(f"{name}  {row['operator']:<9}  {status:<13}  {gain:>8}  {self._budget()}")

    def stopping(self, at_once: bool) -> None:
        """Says that a request to stop was heard."""
        self._note = "stopping now" if at_once else "stopping after the current stage; Ctrl-C again stops now"
        if not self._console.is_terminal:
            print(self._note, file=sys.stderr)

    def _take(self, event: Mapping[str, Any]) -> None:
        self._ledger.apply(event)
        match event["t"]:
            case "begin":
                self._before = event["wall"]
            case "ask":
                for made in event["proposals"]:
                    self._row(made["attempt"], operator=made["operator"], parents=" ".join(made["parents"]))
            case "init":
                self._row("a0000", operator="init", parents="", candidate=event["candidate"])
            case "answer":
                self._row(event["attempt"], candidate=event["candidate"])
            case "stage":
                self._row(event["attempt"], stage=event["stage"])
            case "wait":
                self._row(event["attempt"], stage="waits for an answer")
            case "verdict":
                self._judged(event, event["attempt"])
            case "measure":
                self._measure()
            case "anew":
                self._row(event["attempt"], stage="")
                self._judged(event, *(n for n, row in self._rows.items() if row["candidate"] == event["candidate"]))
                self._lead(event)
            case "outcome":
                self._ended(event)

    def _row(self, attempt: str, **values: Any) -> None:
        empty = {
            "operator": "",
            "parents": "",
            "stage": "",
            "status": "",
            "score": None,
            "candidate": None,
            "live": False,
        }
        self._rows.setdefault(attempt, empty)
        self._rows[attempt].update(values)

    def _judged(self, event: Mapping[str, Any], *attempts: str) -> None:
        for attempt in attempts:
            self._row(attempt, status=event["status"], score=event["score"], live=event.get("live", False))

    def _ended(self, event: Mapping[str, Any]) -> None:
        self._row(event["attempt"], stage="", status=event["status"], score=event["score"])
        self._lead(event)

    def _lead(self, event: Mapping[str, Any]) -> None:
        """Of a measured run only what was confirmed is best."""
        counts = event["score"] is not None and (event.get("confirmed", False) or not self._measured)
        if counts and (self._best is None or event["score"] > self._best):
            self._best, self._best_live = event["score"], self._rows[event["attempt"]]["live"]

    def _measure(self) -> None:
        """Estimates leave the table."""
        self._measured, self._best, self._best_live = True, None, False
        for row in self._rows.values():
            if row["status"] in ("correct", "untested"):
                row |= {"status": "waits to be judged anew", "score": None}

    def _budget(self) -> str:
        wall = self._before + time.monotonic() - self._started
        now = amounts(self._ledger.spent) | {"wall_seconds": wall}
        parts = []
        for axis, cap in self._manifest.budget.caps.items():
            unit, name = (60, "minutes") if axis == "wall_seconds" else (1, axis)
            parts.append(f"{now[axis] / unit:.4g} of {cap / unit:g} {name}")
        return ", ".join(parts)

    def _kind(self) -> str:
        return "measured" if self._measured else "estimate"

    def _render(self) -> Group:
        manifest = self._manifest
        head = Text(f"{manifest.problem.name}  {manifest.strategy}  {manifest.model.name}", style="bold")
        table = Table("attempt", "operator", "parents", "status", Column(f"speed-up, {self._kind()}", justify="right"))
        for name, row in list(self._rows.items())[-ROWS:]:
            status = row["stage"] or row["status"]
            colour = "cyan" if row["stage"] else COLOURS.get(row["status"], "red")
            table.add_row(
                name, row["operator"], row["parents"], f"[{colour}]{escape(status)}[/]",
                speedup(row["score"], live=row["live"]),
            )  # fmt: skip
        best = speedup(self._best, live=self._best_live)
        foot = Text(f"best {best} ({self._kind()})   {self._budget()}")
        return Group(head, table, foot, *([Text(self._note, style="yellow")] if self._note else []))


def announce(folder: RunFolder, summary: Summary, report: Path) -> None:
    """Says how a session ended and what to do next."""
    say(f"ended: {summary.reason}, {summary.detail}; {summary.ended} attempts, {summary.spent.calls} model calls")
    if summary.anew:
        say(f"judged anew on {summary.device}: {summary.anew} verdicts")
    if summary.best is not None:
        how = "measured on a GPU, confirmed" if summary.measured else "an estimate: no GPU"
        verdict = Verdict.model_validate_json((folder.best / "verdict.json").read_bytes())
        gain = speedup(summary.best.score, live=verdict.path == "live")
        say(f"best: {summary.best.attempt}, {gain} over {base_name(verdict)} ({how})")
        for timing in verdict.profile.timings if verdict.profile else ():
            shown = timing.confirmed or timing.decided
            gain = speedup(shown.log_ratio, live=timing.path == "live")
            say(f"      {timing.workload}: {gain}, {interval(timing)}, {shown.decision}")
        if verdict.file is not None:
            say(f"      {file_words(verdict.file)}")
        say(f"kernel: {summary.best_file}")
    else:
        what = "was confirmed" if summary.measured else "correct was found"
        say(f"best: nothing {what}" + (" yet" if summary.reason in _UNFINISHED else ""))
    if not folder.manifest.model.is_language_model:
        say("note: the sampler draws from hand-written templates; it is not a language model")
    say(f"report: {report}")
    if summary.reason is Reason.WAITING:
        from experiments.handwork import instructions

        say(instructions(folder))
    elif summary.reason is Reason.INTERRUPTED:
        say_next(folder)


def say(text: str) -> None:
    """Prints, and goes on in silence when nobody reads any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Says what is odd, and goes on."""
    print(f"warning: {text}", file=sys.stderr)


def say_next(folder: RunFolder) -> None:
    """How to go on with a run that was stopped."""
    print(f"go on with: warpsmith resume {folder.path}", file=sys.stderr)
