"""Advice from the static profile and the estimate, ranked by the time that each cause is estimated to cost.

Every sentence names the kernel, the numbers with their units and what to try. They are read by people and by
the language model that writes the next kernel. All times in them are estimates for the target, never
measurements; an absent piece of advice means only that this model saw no such cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from verifier.profile.rules import RULES, Finding, TimedLaunch, TimedLibrary, microseconds
from verifier.target import Target
from verifier.verdict import Diagnostic

MAX_ADVICE = 12


def diagnose(workloads: Sequence[Sequence[TimedLaunch | TimedLibrary]], target: Target) -> tuple[Diagnostic, ...]:
    """Advice over all workloads, most costly first, at most `MAX_ADVICE`. The share is of a workload's
    estimated time."""
    found: list[tuple[float, Finding]] = []
    for steps in workloads:
        total = sum(s.time.seconds for s in steps)
        found += [(f.cost / total if total else 0.0, f) for f in _findings(steps, total, target)]
    return ranked(found)


def ranked(found: Iterable[tuple[float, Finding]]) -> tuple[Diagnostic, ...]:
    """The findings by the share of time that each is about, equal ones merged, at most `MAX_ADVICE`."""
    best: dict[tuple[str, int | None, str], tuple[float, Finding, int]] = {}
    for share, finding in found:
        key = (finding.code, finding.line, finding.message.split(":", 1)[0])
        known = best.get(key)
        count = known[2] + 1 if known else 1
        best[key] = (share, finding, count) if known is None or share > known[0] else (known[0], known[1], count)
    chosen = sorted(best.values(), key=lambda entry: -entry[0])[:MAX_ADVICE]
    return tuple(
        Diagnostic(severity="advice", code=f.code, message=f.message, line=f.line, count=n) for _, f, n in chosen
    )


def _findings(steps: Sequence[TimedLaunch | TimedLibrary], total: float, target: Target) -> Iterator[Finding]:
    for step in steps:
        if isinstance(step, TimedLaunch) and step.time.seconds > 0.02 * total:
            for rule in RULES:
                yield from rule(step, target)
    yield from launch_bound(sum(s.time.launches for s in steps), target.launch_seconds, total)
    library = [s for s in steps if isinstance(s, TimedLibrary)]
    yield from library_share([(s.name, s.time.seconds, s.line) for s in library], total)


def launch_bound(count: int, launch_seconds: float, total: float) -> Iterator[Finding]:
    """Where launches of `count` kernels take much of the total."""
    overhead = count * launch_seconds
    if count < 2 or overhead < 0.3 * total:
        return
    yield Finding(
        overhead * (count - 1) / count,
        "launch-bound",
        f"the forward pass: {count} kernels at {microseconds(launch_seconds)} of launch time each are "
        f"{microseconds(overhead)} of "
        f"{microseconds(total)} ({overhead / total:.0%}); fuse them.",
        None,
    )


def library_share(steps: Sequence[tuple[str, float, int | None]], total: float) -> Iterator[Finding]:
    """Where library steps (name, seconds, line) take much of the total."""
    library = [s for s in steps if s[1] > 0]
    spent = sum(s[1] for s in library)
    if not library or spent < 0.15 * total:
        return
    name, longest, line = max(library, key=lambda s: s[1])
    yield Finding(
        spent / 2,
        "library-share",
        f"library steps: {len(library)} of them take about {microseconds(spent)} of {microseconds(total)} "
        f"({spent / total:.0%}); the longest is "
        f"aten::{name} with {microseconds(longest)}; fuse it into a kernel.",
        line,
    )
