"""Verdicts for people: one attempt of a run turn by turn, and two verdicts side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import indent
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from agent.record import Attempt, RunRecord, Turn, load_run
from agent.run_folder import RunFolder
from experiments.tables import file_words, interval, open_console, print_verdict, seconds, speedup, visible
from verifier.errors import UsageError
from verifier.verdict import Diagnostic, KernelReport, Stage, Verdict

# -- one attempt -----------------------------------------------------------------------------------


def print_attempt(folder: RunFolder, name: str) -> None:
    """Every turn of an attempt: its verdict and what the model was told. Raises UsageError for an unknown name."""
    record = load_run(folder.path)
    attempt = find_attempt(record, name)
    console = open_console()
    console.print(_headline(attempt))
    for number, turn in enumerate(attempt.turns, 1):
        console.print(f"\n[bold]turn {number} of {len(attempt.turns)}[/]  {escape(turn.request)}{_leased(turn)}")
        if turn.verdict is None:
            console.print("not judged yet" if turn.completion or turn.messages is None else "no answer yet")
            continue
        console.print(stages(turn.verdict))
        print_verdict(with_excerpts(turn.verdict, record.source(turn)))
        if turn.feedback:
            console.print("[bold]what the model was told next[/]")
            console.print(Text(indent(visible(turn.feedback), "  ")))


def _leased(turn: Turn) -> str:
    """GPU seconds of a turn by call, and whether it was judged anew."""
    calls = "  ".join(f"{call} {spent:.2f}" for call, spent in turn.gpu.items())
    return (f"  GPU seconds: {calls}" if calls else "") + ("  judged anew" if turn.anew else "")


def find_attempt(record: RunRecord, name: str) -> Attempt:
    """An attempt by its name, or `best`. Raises UsageError."""
    if name == "best":
        if record.best is None:
            raise UsageError("the run has no correct attempt", next_step="name an attempt")
        name = record.best
    try:
        return record.attempt(name)
    except LookupError as unknown:
        names = [a.id for a in record.attempts]
        some = f"{', '.join(names[:3])} to {names[-1]}" if len(names) > 4 else ", ".join(names) or "none"
        raise UsageError(str(unknown), next_step=f"attempts of this run: {some}") from None


def _headline(attempt: Attempt) -> str:
    parts = [f"[bold]{attempt.id}[/]", attempt.operator]
    parts += [f"from {', '.join(attempt.parents)}"] if attempt.parents else []
    parts += [str(attempt.status) if attempt.status else attempt.state.replace("_", " ")]
    parts += [f"speed-up {speedup(attempt.score, live=attempt.live)}"] if attempt.score is not None else []
    parts += [f"same source as {attempt.duplicate_of}"] if attempt.duplicate_of else []
    return "  ".join(parts) + (f"\n{escape(visible(attempt.note))}" if attempt.note else "")


def stages(verdict: Verdict) -> str:
    """One line: how far it came and where it ended."""
    every = list(Stage)
    decided = every.index(verdict.stage)
    here = "passed" if verdict.ok else str(verdict.status)
    words = [*["passed"] * decided, here, *["not reached"] * (len(every) - decided - 1)]
    return "stages  " + "  ".join(f"{stage} {word}" for stage, word in zip(every, words, strict=True))


def with_excerpts(verdict: Verdict, source: str | None) -> Verdict:
    """The verdict with the source line shown below every finding that names one."""
    lines = (source or "").splitlines()

    def shown(found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
        return tuple(
            d.model_copy(update={"excerpt": lines[d.line - 1].strip()})
            if d.line and not d.excerpt and d.line <= len(lines) else d
            for d in found
        )  # fmt: skip

    profile = verdict.profile
    if profile is not None:
        profile = profile.model_copy(update={"diagnosis": shown(profile.diagnosis)})
    return verdict.model_copy(update={"diagnostics": shown(verdict.diagnostics), "profile": profile})


# -- two verdicts ----------------------------------------------------------------------------------


class Row(NamedTuple):
    """One thing that differs."""

    what: str
    first: str
    second: str


def read_verdict(path: Path) -> Verdict:
    """A verdict from a JSON file, or the last one of an attempt as RUN/ATTEMPT. Raises UsageError, StorageError."""
    if (path.parent / "manifest.json").exists() and path.suffix != ".json":
        return _last_verdict(find_attempt(load_run(path.parent), path.name))
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", next_step="name a file or RUN/ATTEMPT") from None
    except ValidationError:
        raise UsageError(f"{path} holds no verdict", next_step="write one with: warpsmith verify ... --json") from None


def _last_verdict(attempt: Attempt) -> Verdict:
    def judged(turns: Iterable[Turn]) -> Iterator[Verdict]:
        yield from (turn.verdict for turn in turns if turn.verdict is not None)

    found = next(judged(reversed(attempt.turns)), None)
    if found is None:
        raise UsageError(f"{attempt.id} has no verdict yet")
    return found


def print_difference(first: Verdict, second: Verdict) -> None:
    """A table of what differs."""
    table = Table("what", "first", "second")
    for row in difference(first, second):
        table.add_row(*(escape(visible(text)) for text in row))
    console = open_console()
    console.print(table if table.row_count else "the verdicts say the same")


def difference(first: Verdict, second: Verdict) -> list[Row]:
    """What differs in what a person compares: status, checks, times, kernels, library steps, advice, versions."""
    one, two = facts(first), facts(second)
    return [Row(k, one.get(k, "-"), two.get(k, "-")) for k in {**one, **two} if one.get(k) != two.get(k)]


def facts(verdict: Verdict) -> dict[str, str]:
    """Name of a fact to its text, in the order in which people read."""
    found = {
        "candidate": verdict.candidate, "problem": verdict.problem, "status": str(verdict.status),
        "stage": str(verdict.stage), "reason": verdict.reason, "basis": verdict.basis, "path": verdict.path,
    }  # fmt: skip
    if verdict.score is not None:
        found[f"speed-up, {verdict.score_kind}"] = speedup(verdict.score, live=verdict.path == "live")
    if verdict.file is not None:
        found["file"] = file_words(verdict.file)
    parts = (_checks, _findings, _times, _kernels, _library, _advice)
    for part in parts:
        found |= dict(part(verdict))
    target = {"target": verdict.compile.target} if verdict.compile else {}
    return found | target | {f"version of {name}": text for name, text in verdict.versions.items()}


Facts = Iterator[tuple[str, str]]
T = TypeVar("T")


def _checks(verdict: Verdict) -> Facts:
    checks = verdict.test.checks if verdict.test else ()
    for workload in dict.fromkeys(c.workload for c in checks):
        of = [c for c in checks if c.workload == workload]
        yield f"checks passed, {workload}", f"{sum(c.passed for c in of)} of {len(of)}"
        known = [c.error / c.limit for c in of if c.error is not None and c.limit > 0]
        if known:
            yield f"largest error over its limit, {workload}", f"{max(known):.3g}"
    if verdict.test and verdict.test.precision:
        yield "arithmetic", verdict.test.precision


def _findings(verdict: Verdict) -> Facts:
    for found in verdict.diagnostics:
        yield f"{found.severity} {found.code}", f"line {found.line}" if found.line else "yes"


def _times(verdict: Verdict) -> Facts:
    if verdict.profile is None:
        return
    for estimate in verdict.profile.estimates:
        yield f"estimate, {estimate.workload}", seconds(estimate.seconds)
    for timing in verdict.profile.timings:
        shown = timing.confirmed or timing.decided
        how = "measured live" if timing.path == "live" else "measured"
        if shown.candidate_seconds is not None:
            yield f"{how}, {timing.workload}", seconds(shown.candidate_seconds)
        if shown.lower is not None:
            text = f"{speedup(shown.log_ratio, live=timing.path == 'live')}, {interval(timing)}, {shown.kind}"
            yield f"{how} speed-up, {timing.workload}", text
    for workload in verdict.profile.measured.workloads if verdict.profile.measured else ():
        yield f"share of starting kernels, {workload.workload}", f"{workload.gap_share:.0%}"
        for name, step in _numbered((s.name, s) for s in workload.steps):
            yield (
                f"step {name}, {workload.workload}",
                f"{seconds(step.seconds)}, {step.memory_share:.0%} of copy, {step.compute_share:.0%} of compute",
            )


def _kernels(verdict: Verdict) -> Facts:
    for name, kernel in _numbered((k.name, k) for k in verdict.compile.kernels) if verdict.compile else ():
        yield f"kernel {name}", _kernel(kernel)


def _kernel(kernel: KernelReport) -> str:
    spilled = f", {kernel.spill_bytes} B spilled" if kernel.spill_bytes else ""
    return (
        f"{kernel.registers} registers{spilled}, {kernel.shared_bytes} B shared, {kernel.num_warps} warps, "
        f"{kernel.num_stages} stages, occupancy {kernel.occupancy:.0%} ({kernel.limiter})"
    )


def _library(verdict: Verdict) -> Facts:
    for name, count in verdict.compile.library_steps.items() if verdict.compile else ():
        yield f"library {name}", str(count)


def _advice(verdict: Verdict) -> Facts:
    for rank, found in enumerate(verdict.profile.diagnosis if verdict.profile else (), 1):
        yield f"advice {found.code}", f"rank {rank}"


def _numbered(items: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Names made unique: the second `k` is `k #2`."""
    seen: dict[str, int] = {}
    for name, item in items:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} #{seen[name]}", item
