"""What compiled device code may not do, read from its PTX: remember, look at the clock, count launches, lose data.

Pure text in, findings out. Like all rules over a candidate's claims these are labels and no wall: they say plainly and
early what is wrong. What holds whatever the code does: fresh inputs, poisoned outputs, and expected values in another
process. Loads neither torch nor Triton.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from verifier.plan import ptx, ptx_text
from verifier.verdict import Diagnostic

_DECLARED = re.compile(r"\.extern\b[^;]*;")


@dataclass(frozen=True, slots=True)
class _Rule:
    """`pattern` anywhere in the code, unless `unless` is there too, with headers of CUDA."""

    code: str
    severity: Literal["error", "warning", "advice"]
    pattern: re.Pattern[str]
    message: str
    unless: re.Pattern[str] | None = None


_SLEEP = re.compile(r"\bnanosleep\b")
_RULES = (
    _Rule(
        "reads-clock", "error", re.compile(r"%(?:clock(?:64|_hi)?|pm\d\w*)(?!\w)"),
        "reads the clock or a counter of the multiprocessor; a result must not depend on it",
    ),
    _Rule(
        "reads-clock", "error", re.compile(r"%globaltimer(?:_lo|_hi)?\b"),
        "reads the clock; a result must not depend on it", unless=_SLEEP,
    ),
    _Rule(
        "reads-launch-number", "error", re.compile(r"%(?:gridid|current_graph_exec)\b"),
        "reads the number of its launch or which graph it is in",
    ),
    _Rule(
        "device-heap", "error", re.compile(r"(?<![\w$%.])(?:malloc|free)(?![\w$])"),
        "takes memory from the device's heap, which outlives a launch; allocate with torch.empty",
    ),
    _Rule(
        "device-launch", "error", re.compile(r"\bcuda(?:LaunchDevice|GraphLaunch|GetParameterBuffer)"),
        "launches kernels from the device; they are not in the plan",
    ),
    _Rule(
        "discards-memory", "error", re.compile(r"\bdiscard\b[^;\[]*\.\s*L2\b"),
        "discards cache lines, which loses what memory holds without a store",
    ),
    _Rule("sleeps", "advice", _SLEEP, "sleeps; a kernel that waits for another wastes its place"),
    _Rule(
        "reads-place", "advice", re.compile(r"%(?:n?smid|n?warpid)\b"),
        "reads on which multiprocessor it runs; a result must not depend on it",
    ),
    _Rule(
        "keeps-in-cache", "advice", re.compile(r"\bL2::evict_last\b"),
        "asks the L2 cache to keep lines; nothing is left of that between timed calls",
    ),
)  # fmt: skip
"""`%globaltimer` with `nanosleep` is how the waits of CUDA's own headers (cuda::barrier) back off."""


def check_device_code(
    text: str,
    kernel: str,
    *,
    title: str = "",
    line: int | None = None,
    dependent: bool = False,
    headers: bool = True,
) -> list[Diagnostic]:
    """Findings about one kernel of a PTX text, errors first.

    `kernel` is its symbol, `title` its name for people, `line` where the candidate defines it, `dependent` whether it
    is launched as a programmatic dependent, `headers` whether CUDA's headers may be in it. The first rules look at the
    whole text, which may hold other kernels.
    """
    found: dict[str, Diagnostic] = {}

    def say(severity: str, code: str, message: str) -> None:
        what = {"severity": severity, "code": code, "message": f"kernel `{title or kernel}` {message}", "line": line}
        found.setdefault(code, Diagnostic.model_validate(what))

    kept = ", ".join(name for name, access in ptx.variables(text, kernel).items() if access in ("store", "both"))
    if kept:
        say("error", "writable-globals", f"writes memory of its module that outlives a launch: {kept[:200]}")
    code = _DECLARED.sub(" ", ptx_text.plain(text))
    for rule in _RULES:
        if rule.pattern.search(code) and not (headers and rule.unless and rule.unless.search(code)):
            say(rule.severity, rule.code, rule.message)
    if dependent and "griddepcontrol.wait" not in code:
        say("warning", "does-not-wait", "starts before the kernel ahead of it has ended and never waits for it")
    return list(found.values())
