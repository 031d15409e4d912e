"""Does a file make the same plan under another disguise? A branch on who traces it shows as a difference.

Two plans are compared without their names: file, module, debug information, order of configurations, texts of
compile-time arguments (what they do is in the machine code). A file may differ from itself without looking at anything:
numbers drawn without a seed, sets in the order of addresses. So a difference is tried against further traces in the
first disguise, and what they disagree on as well is a warning, not an error.

What it cannot find: a branch on what all disguises share (`disguise.py`), and chance that never showed in the traces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verifier.plan import elf
from verifier.plan.disguise import NAME
from verifier.plan.textutil import clip, excerpt, shown
from verifier.verdict import Diagnostic

CONTROLS = 3
"""Further traces in the first disguise before a difference counts as a branch."""
MAX_DIFFERENCES = 2000
NOT_REPEATABLE = "not-repeatable"
"""Code of the warning that a file makes one of several plans."""
_CODE = (".text", ".nv.info", ".nv.constant", ".nv.global", ".nv.shared", ".rel.text", ".rela.text")
"""Sections of a cubin that say what a kernel does."""
_IN_BLOBS = ("cubin", "ttir", "ptx", "source", "line", "num_stages")
_TABLES = ("output", "inputs", "mutated", "mutated_inputs", "restore", "generators", "parameters", "storages", "values",
           "constants")  # fmt: skip

_STRUCTURE = ("length", "keys", "kind", "op", "kernel")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trace: a checked plan's JSON and its blobs, or how it ended instead."""

    plan: Mapping[str, Any] | None
    blobs: Mapping[str, bytes]
    name: str = NAME
    """Of the file and its module in this trace."""
    ended: str = ""
    """`status: message` where there is no plan."""
    line: int | None = None


def compare(first: Outcome, second: Outcome, again: Callable[[], Outcome], source: str) -> Diagnostic | None:
    """A finding where the traces differ, else None. `again` makes one more trace in the first disguise."""
    one = _normal(first)
    found = _differences(one, _normal(second))
    if not found:
        return None
    by_chance: list[Path] = []
    for _ in range(CONTROLS):
        by_chance += _differences(one, _normal(again()))
        if all(_explained(path, by_chance) for path in found):
            line, what = _told(first, second, found[0])
            return _finding("warning", NOT_REPEATABLE, f"{_CHANCE}: {what}", line, source)
    line, what = _told(first, second, next(path for path in found if not _explained(path, by_chance)))
    return _finding("error", "differs-between-traces", f"{_BRANCH}: {what}", line, source)


_CHANCE = (
    "two traces of the file differ by chance (numbers drawn without a seed, or an order of addresses), so the plan is "
    "one of several"
)
_BRANCH = (
    "the file does something else where its name, folder, user, clock and the layout of memory are others; a candidate "
    "may not depend on who runs it"
)


def _finding(
    severity: Literal["error", "warning"], code: str, message: str, line: int | None, source: str
) -> Diagnostic:
    shown_line = excerpt(source, line, None)
    return Diagnostic(severity=severity, code=code, message=clip(message), line=line, excerpt=shown_line)


# -- plans without names ---------------------------------------------------------------------------


def _normal(trace: Outcome) -> dict[str, Any]:
    if trace.plan is None:
        return {"ended": trace.ended.replace(trace.name, NAME)}
    plan = json.loads(json.dumps(trace.plan).replace(trace.name, NAME))
    kernels = {key: _identity(image, trace) for key, image in plan["kernels"].items()}
    programs = []
    for program in plan["programs"]:
        steps = {part: [_step(s, plan, kernels) for s in program[part]] for part in ("setup", "forward")}
        programs.append({**steps, **{table: program.get(table) for table in _TABLES}})
    cut_short = any(f["code"] == "many-configs" for f in plan["findings"])
    return {"programs": programs, "cut_short": cut_short}


def _identity(image: Mapping[str, Any], trace: Outcome) -> str:
    """Hash of what a kernel does and how it is launched, whatever its file is called."""
    cubin = trace.blobs[f"{image['cubin']}.cubin"].replace(trace.name.encode(), NAME.encode())
    code = [(name, size, hashlib.sha256(content).hexdigest())
            for name, size, content in elf.sections(cubin) if name.startswith(_CODE)]  # fmt: skip
    said = {k: v for k, v in image.items() if k not in _IN_BLOBS}
    return hashlib.sha256(json.dumps([said, sorted(code)], sort_keys=True).encode()).hexdigest()


def _step(step: Mapping[str, Any], plan: Mapping[str, Any], kernels: Mapping[str, str]) -> dict[str, Any]:
    if step["kind"] == "aten":
        return {**step, "flags": plan["flags"][step["flags"]]}
    ways = [
        {
            "kernel": kernels[way["kernel"]],
            "grid": way["grid"],
            "args": [arg for arg in way["args"] if arg["t"] != "constexpr"],
            "before": [_step(s, plan, kernels) for s in way["before"]],
        }
        for way in step["alternatives"]
    ]
    return {**step, "alternatives": sorted(ways, key=_without_numbers)}


def _without_numbers(way: Mapping[str, Any]) -> str:
    """A key that numbers drawn by chance leave alone."""
    args = [{k: v for k, v in arg.items() if k != "v"} for arg in way["args"]]
    return json.dumps([way["kernel"], way["grid"], args], sort_keys=True)


# -- differences -----------------------------------------------------------------------------------


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[Path]:
    if one.keys() != other.keys() or "ended" in one:
        return [] if one == other else [("ended",)]
    short = one["cut_short"] or other["cut_short"]
    found = _walk(one["programs"], other["programs"], ("programs",), short)
    return [path for _, path in zip(range(MAX_DIFFERENCES), found, strict=False)]


def _walk(one: Any, other: Any, at: Path, short: bool) -> Iterator[Path]:
    """Paths of the leaves that differ, in order; `length` for lists and `keys` for objects that differ in size.

    `short`: the clock cut tuning short in a trace, so one may hold fewer configurations of a launch.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            yield (*at, "keys")
        for key in one:
            if key in other:
                yield from _walk(one[key], other[key], (*at, key), short)
    elif isinstance(one, list) and isinstance(other, list):
        if short and at[-1] == "alternatives" and _nested(one, other):
            return
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _walk(a, b, (*at, i), short)
        if len(one) != len(other):
            yield (*at, "length")
    elif one != other or type(one) is not type(other):
        yield at


def _nested(one: list[Any], other: list[Any]) -> bool:
    a, b = ({json.dumps(way, sort_keys=True) for way in ways} for ways in (one, other))
    return a <= b or b <= a


def _explained(path: Path, by_chance: list[Path]) -> bool:
    """Whether chance alone changes the same place; where it changes what the steps are, any place of the program."""
    return any(p in (path, ("ended",)) or (p[-1] in _STRUCTURE and p[:2] == path[:2]) for p in by_chance)


def _told(first: Outcome, second: Outcome, path: Path) -> tuple[int | None, str]:
    """Line and words for a difference."""
    if path[0] == "ended":
        if first.plan is None or second.plan is None:
            failed = second if second.plan is None else first
            return failed.line, f"it ends as {failed.ended}"
        return None, "the traces differ"
    if len(path) < 4 or path[2] not in ("setup", "forward"):
        return None, f"the {path[2] if len(path) > 2 else 'programs'} of the plan differ"
    part = str(path[2])
    plans = [trace.plan for trace in (first, second) if trace.plan is not None]
    steps = [plan["programs"][path[1]][part] for plan in plans]
    at = path[3] if isinstance(path[3], int) else min(map(len, steps))
    pair = [made[at] if at < len(made) else None for made in steps]
    line = next((step["line"] for step in pair if step is not None and step["line"]), None)
    a, b = (_name(step, plan) for step, plan in zip(pair, plans, strict=True))
    where = f"step {at + 1} of {'forward' if part == 'forward' else 'set-up'}"
    return line, f"{where} is {a} in one trace and {b} in the other" if a != b else f"{where}, {a}, has other arguments"


def _name(step: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> str:
    if step is None:
        return "missing"
    if step["kind"] == "aten":
        return f"`{step['op']}`"
    return f"a launch of `{shown(plan['kernels'][step['alternatives'][0]['kernel']]['name'])}`"
