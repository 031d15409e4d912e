"""compute-sanitizer over one replay of a plan: accesses that no value shows, and races in shared memory.

    findings, excuses = sanitize(folder, seconds=60.0)

memcheck runs without torch's cache of allocations, so that it sees where each buffer ends. racecheck knows shared
memory only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verifier.gpu.replay_folder import ToolFailed, run_tool
from verifier.verdict import Diagnostic

MEMORY_ERROR = "memory-error"
TOOLS = {"memcheck": MEMORY_ERROR, "racecheck": "shared-memory-race"}
"""Tool to the code of its findings."""
LEAST_SECONDS = 2.0
"""Less is not worth a start."""
_COMMON = ("--target-processes", "all", "--print-limit", "20")
_OPTIONS = {
    "memcheck": ("--tool", "memcheck", "--report-api-errors", "no", *_COMMON),
    "racecheck": ("--tool", "racecheck", "--racecheck-report", "analysis", *_COMMON),
}
_ENVIRON = {"memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}}
_START = re.compile(r"(?P<error>Invalid \S+ (?:read|write|atomic)\b|Program hit |Error: )|Warning: ")
_VARIES = re.compile(r"by thread|Address 0x|Access (?:to|at) 0x|and is ")
_CUT = re.compile(r"^(?:Error|Warning): |(?<![+\w])0x[0-9a-f]+ (?:in )?|\[\d+ hazards?\]")
_PLACE = re.compile(r"\bin (?:\S*/)?([^\s/:]+):(\d+)")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_NOISE = re.compile(r"Saved host backtrace|Host Frame|Device Frame")


def sanitize(
    folder: Path, *, seconds: float, environ: Mapping[str, str] | None = None
) -> tuple[tuple[Diagnostic, ...], tuple[str, ...]]:
    """Findings of both tools, which run side by side, and a sentence for each tool that gave nothing."""
    with ThreadPoolExecutor(len(TOOLS)) as threads:
        asked = [threads.submit(_run, tool, code, folder, seconds, environ or {}) for tool, code in TOOLS.items()]
        answers = [one.result() for one in asked]
    return tuple(f for found, _ in answers for f in found), tuple(excuse for _, excuse in answers if excuse)


def _run(
    tool: str, code: str, folder: Path, seconds: float, environ: Mapping[str, str]
) -> tuple[list[Diagnostic], str]:
    try:
        if seconds < LEAST_SECONDS:
            raise ToolFailed("no time was left for it")
        more = {**environ, **_ENVIRON.get(tool, {})}
        log = run_tool("compute-sanitizer", _OPTIONS[tool], folder, seconds=seconds, environ=more)
        made = parse(log.text, code)
        if log.failure and not made:
            raise ToolFailed(f"the replay failed: {log.failure}")
    except (ToolFailed, ValueError) as excuse:
        return [], f"{tool}: {excuse}"
    return made, ""


def parse(log: str, code: str) -> list[Diagnostic]:
    """Findings of one log, equal ones counted. Raises ValueError for a log that did not come to its summary."""
    lines = [line.removeprefix("=========").strip() for line in log.splitlines() if line.startswith("=========")]
    if not any(_SUMMARY.search(line) for line in lines):
        raise ValueError(f"the sanitizer did not finish: {(lines or ['it said nothing'])[-1][:300]}")
    records: list[tuple[str, list[str]]] = []
    for line in lines:
        if start := _START.match(line):
            records.append(("error" if start["error"] else "warning", [line]))
        elif not line or _SUMMARY.search(line) or _NOISE.match(line):
            records.append(("", []))
        elif records and records[-1][0]:
            records[-1][1].append(line)
    counted: dict[Diagnostic, int] = {}
    for severity, said in records:
        if severity:
            found = _finding(severity, said, code)
            counted[found] = counted.get(found, 0) + 1
    return [found.model_copy(update={"count": n}) for found, n in counted.items()]


def _finding(severity: str, said: list[str], code: str) -> Diagnostic:
    """The error without thread and address, so that the same place counts as one."""
    text = _CUT.sub("", " ".join(line for line in said if not _VARIES.match(line)))
    place = _PLACE.search(" ".join(said))
    return Diagnostic.model_validate({
        "severity": severity, "code": code, "message": " ".join(text.split())[:500],
        "line": int(place[2]) if place else None,
    })  # fmt: skip
