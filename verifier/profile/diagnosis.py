"""Advice from the static profile and the estimate, ranked by the time that each cause is estimated to cost.

Every sentence names the kernel, the numbers with their units and what to try. They are read by people and by
the language model that writes the next kernel. All times in them are estimates for the target, never
measurements; an absent piece of advice means only that this model saw no such cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from verifier.profile.rules import RULES, Finding, TimedLaunch, TimedLibrary, microseconds
from verifier.profile.target import Target
from verifier.verdict import Diagnostic

MAX_ADVICE = 12


def diagnose(workloads: Sequence[Sequence[TimedLaunch | TimedLibrary]], target: Target) -> tuple[Diagnostic, ...]:
    """Advice over all workloads, most costly first, at most `MAX_ADVICE`. The share is of a workload's
    estimated time."""
    best: dict[tuple[str, int | None, str], tuple[float, Finding, int]] = {}
    for steps in workloads:
        total = sum(s.time.seconds for s in steps)
        for found in _findings(steps, total, target):
            key = (found.code, found.line, found.message.split(":", 1)[0])
            share = found.cost / total if total else 0.0
            known = best.get(key)
            count = known[2] + 1 if known else 1
            best[key] = (share, found, count) if known is None or share > known[0] else (known[0], known[1], count)
    ranked = sorted(best.values(), key=lambda entry: -entry[0])[:MAX_ADVICE]
    return tuple(
        Diagnostic(severity="advice", code=f.code, message=f.message, line=f.line, count=n) for _, f, n in ranked
    )


def _findings(steps: Sequence[TimedLaunch | TimedLibrary], total: float, target: Target) -> Iterator[Finding]:
    for step in steps:
        if isinstance(step, TimedLaunch) and step.time.seconds > 0.02 * total:
            for rule in RULES:
                yield from rule(step, target)
    yield from _launch_bound(steps, total, target)
    yield from _library_share(steps, total)


def _launch_bound(steps: Sequence[TimedLaunch | TimedLibrary], total: float, target: Target) -> Iterator[Finding]:
    count = sum(s.time.launches for s in steps)
    overhead = count * target.launch_seconds
    if count < 2 or overhead < 0.3 * total:
        return
    yield Finding(
        overhead * (count - 1) / count,
        "launch-bound",
        f"the forward pass: {count} kernels at {microseconds(target.launch_seconds)} of launch time each are "
        f"{microseconds(overhead)} of "
        f"{microseconds(total)} ({overhead / total:.0%}); fuse them.",
        None,
    )


def _library_share(steps: Sequence[TimedLaunch | TimedLibrary], total: float) -> Iterator[Finding]:
    library = [s for s in steps if isinstance(s, TimedLibrary) and s.time.seconds > 0]
    seconds = sum(s.time.seconds for s in library)
    if not library or seconds < 0.15 * total:
        return
    longest = max(library, key=lambda s: s.time.seconds)
    yield Finding(
        seconds / 2,
        "library-share",
        f"library steps: {len(library)} of them take about {microseconds(seconds)} of {microseconds(total)} "
        f"({seconds / total:.0%}); the longest is "
        f"aten::{longest.name} with {microseconds(longest.time.seconds)}; fuse it into a kernel.",
        longest.line,
    )
