"""From a verdict to the feedback in the next prompt: what decided, where in the source, and about a dozen
numbers, ranked.

The text is the same for equal verdicts: no wall times, so that a recorded run can be replayed answer for
answer. Workloads in `hidden` (the held-out ones) never show, and nothing that only our machinery could not do. Codes of
findings stand in square brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from verifier.timing import WorkloadTiming
from verifier.verdict import Diagnostic, Estimate, KernelReport, OutputCheck, Status, Verdict

LIMIT = 4000
"""Bytes of a feedback text, at most."""
_FILE = "candidate.py"
_OURS = frozenset({"not-examined", "file-not-run", "not-confirmed", "not-on-gpu"})
"""Codes of findings that say what a tool or a device could not do."""


def feedback(verdict: Verdict, *, hidden: frozenset[str] = frozenset()) -> str:
    """The feedback text, at most `LIMIT` bytes."""
    lines = [f"Status: {verdict.status}. {_masked(verdict.reason, hidden)}".rstrip()]
    lines += _findings((d for d in verdict.diagnostics if not _names(d, hidden) and d.code not in _OURS), 6)
    if verdict.test is not None:
        checks = [c for c in verdict.test.checks if c.workload not in hidden]
        lines += _errors(checks)
        told = (d for d in verdict.test.findings if d not in verdict.diagnostics and d.code not in _OURS)
        lines += _findings(told, 3)
    if verdict.profile is not None:
        measured = [t for t in verdict.profile.timings if t.workload not in hidden]
        lines += (
            _measured(measured)
            if measured
            else _times([e for e in verdict.profile.estimates if e.workload not in hidden])
        )
        told = (d for d in verdict.profile.diagnosis if d not in verdict.diagnostics and d.code not in _OURS)
        lines += _findings(told, 5)
    if verdict.compile is not None and verdict.status is not Status.COMPILE_ERROR:
        lines += [_kernel(k) for k in verdict.compile.kernels[:3]]
        lines += _traffic(verdict)
    return _cut("\n".join(lines))


def _masked(text: str, hidden: frozenset[str]) -> str:
    """The text without the names of workloads that the model does not know."""
    for name in hidden:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "another workload", text)
    return text


def _names(finding: Diagnostic, hidden: frozenset[str]) -> bool:
    """Whether a finding tells of a workload that the model does not know."""
    return any(f"workload {name}" in finding.message for name in hidden)


def unparsable(reason: str) -> str:
    """Feedback to a reply without a candidate."""
    return f"Status: {Status.UNPARSABLE}. {reason} Answer with the whole file in one closed ```python block."


def _findings(found: Iterable[Diagnostic], most: int) -> Iterator[str]:
    order = {"error": 0, "warning": 1, "advice": 2}
    ranked = sorted(found, key=lambda d: order[d.severity])
    for item in ranked[:most]:
        where = f"{_FILE}:{item.line}: " if item.line is not None else ""
        times = f" ({item.count} times)" if item.count > 1 else ""
        yield f"- {where}{item.severity} [{item.code}]: {_short(item.message, 700)}{times}"
        if item.excerpt:
            yield "\n".join(f"    {line}" for line in _short(item.excerpt, 300).split("\n"))
    if len(ranked) > most:
        yield f"- and {len(ranked) - most} more findings"


def _errors(checks: list[OutputCheck]) -> Iterator[str]:
    """The failed checks, or the one that came closest to its limit."""
    failed = [c for c in checks if not c.passed]
    for check in failed[:4]:
        yield f"- wrong: {_check(check)}{'; ' + check.reason if check.reason else ''}"
    if len(failed) > 4:
        yield f"- and {len(failed) - 4} more of {len(checks)} checks fail"
    passed = [c for c in checks if c.passed and c.error is not None]
    if passed and not failed:
        worst = max(passed, key=lambda c: (c.error or 0.0) / (c.limit or 1.0))
        yield f"- all {len(checks)} checks pass; closest to its limit: {_check(worst)}"


def _check(check: OutputCheck) -> str:
    error = "none" if check.error is None else f"{check.error:.2e}"
    row = "" if check.row_error is None else f", worst row {check.row_error:.2e}"
    where = f"workload {check.workload}, inputs {check.draw}, output {check.output}"
    limits = f"limit {check.limit:.2e}, PyTorch itself {check.yardstick:.2e}"
    return f"{where}: relative error {error}{row} ({limits})"


def _measured(timings: list[WorkloadTiming]) -> Iterator[str]:
    for item in timings[:3]:
        seen = item.confirmed or item.decided
        if seen.candidate_seconds is None or seen.base_seconds is None:
            continue
        base = "reference" if item.base == "eager" else f"the baseline {item.base}"
        live = " live, launch overhead included," if item.path == "live" else ""
        yield (
            f"- workload {item.workload}: measured{live} {seen.candidate_seconds * 1e6:.1f} us, "
            f"{base} {seen.base_seconds * 1e6:.1f} us, speed-up {seen.speedup or 0.0:.2f}x ({seen.decision})"
        )


def _times(estimates: list[Estimate]) -> Iterator[str]:
    for item in estimates[:3]:
        ratio = item.base_seconds / item.seconds if item.seconds > 0 else 0.0
        yield (
            f"- workload {item.workload}: estimate {item.seconds * 1e6:.1f} us, "
            f"reference {item.base_seconds * 1e6:.1f} us, speed-up {ratio:.2f}x"
        )
    for launch in sorted((la for e in estimates[:1] for la in e.launches), key=lambda la: -la.seconds)[:3]:
        yield (
            f"  {launch.name}: {launch.seconds * 1e6:.1f} us, bound by {launch.bound}, "
            f"{launch.bytes / 1e6:.1f} MB, {launch.flops / 1e9:.2f} GFLOP"
        )


def _kernel(kernel: KernelReport) -> str:
    return (
        f"- kernel {kernel.name}: {kernel.registers} registers, {kernel.spill_bytes} spilled bytes, "
        f"{kernel.shared_bytes} bytes shared, {kernel.num_warps} warps, {kernel.num_stages} stages, "
        f"occupancy {kernel.occupancy:.0%} limited by {kernel.limiter}"
    )


def _traffic(verdict: Verdict) -> Iterator[str]:
    traffic = verdict.test.traffic if verdict.test is not None else ()
    for item in sorted(traffic, key=lambda t: -(t.loaded + t.stored + t.atomic))[:3]:
        moved = f"{item.loaded} bytes loaded, {item.stored} stored, {item.masked_off} lanes masked off"
        yield f"- {_FILE}:{item.line}: {moved}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 4] + " ..."


def _cut(text: str) -> str:
    data = text.encode()
    if len(data) <= LIMIT:
        return text
    return data[: LIMIT - 40].decode(errors="ignore").rsplit("\n", 1)[0] + "\n(the rest is cut off)"
