"""Whether the launches of a plan do as much as its outputs need, at the sizes that are timed.

The interpreter tests small sizes. A file that does the work there and little of it at the timed size (a
smaller grid, a mask that is never true, another constant) is found by counting what its compiled text stores.
What it cannot find: work of the right size that computes something else at that size only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from verifier.plan.effects import written_values
from verifier.plan.schema import AtenStep, Program
from verifier.profile.calls import view_bytes
from verifier.profile.rules import TimedLaunch, TimedLibrary
from verifier.verdict import Diagnostic

ENOUGH = 0.9
"""Share of an output's bytes that must be written; counts are sampled, so not all of it. Where the programs of a sample
differ, three standard errors are added."""
LEAST = 0.01
"""Share of the outputs' bytes that custom launches must at least ask for."""

Timed = TimedLaunch | TimedLibrary


def shortfalls(program: Program, timed: Sequence[Timed]) -> list[Diagnostic]:
    """Errors about outputs that are written in part only, and launches that hardly touch memory.

    `timed` follows the forward steps of `program`. Nothing is said where a count is unknown.
    """
    launches = [t for t in timed if isinstance(t, TimedLaunch)]
    if any(t.facts.work.truncated or t.facts.work.unknown_branches or t.facts.work.unknown_trips for t in launches):
        return []
    return [*_uncovered(program, launches), *_idle(program, launches)]


def _uncovered(program: Program, launches: Iterable[TimedLaunch]) -> list[Diagnostic]:
    written = dict.fromkeys((program.values[v].storage for v in program.output_values()), 0)
    slack: Counter[int] = Counter()
    for step in program.forward:
        if isinstance(step, AtenStep) and step.role != "alloc":
            for value in (*step.outputs, *step.mutates):
                _add(written, program.values[value].storage, view_bytes(program, value))
    for storage in {s for s, _ in _setup_writes(program)}:
        _add(written, storage, program.storages[storage].bytes)
    for launch in launches:
        for position, traffic in launch.facts.work.parameters.items():
            if position in launch.facts.buffers:
                _add(written, launch.facts.buffers[position][0], traffic.stored + traffic.atomic)
                slack[launch.facts.buffers[position][0]] += traffic.slack
            elif position < 0 and traffic.stored + traffic.atomic:  # an address that could not be followed
                return []
    found = []
    for i, value in enumerate(program.output_values()):
        size = view_bytes(program, value)
        got = written[program.values[value].storage]
        if got + slack[program.values[value].storage] < ENOUGH * size:
            message = (
                f"output {i} has {size} bytes and forward writes {got} of them at workload {program.workload}; "
                "write every element"
            )
            line = _line(program, program.values[value].storage)
            found.append(Diagnostic(severity="error", code="output-not-covered", message=message, line=line))
    return found


def _line(program: Program, storage: int) -> int | None:
    """Line of the last step of forward that is given a storage to write."""
    for step in reversed(program.forward):
        storages = {program.values[v].storage for v in written_values(step)}
        if storage in storages and step.line:
            return step.line
    return None


def _setup_writes(program: Program) -> Iterable[tuple[int, int]]:
    """Outputs in memory that set-up fills or the caller owns: not for this check."""
    for i, storage in enumerate(program.storages):
        if storage.origin in ("setup", "parameter", "constant", "input"):
            yield i, storage.bytes


def _add(written: dict[int, int], storage: int, amount: int) -> None:
    if storage in written:
        written[storage] += amount


def _idle(program: Program, launches: Sequence[TimedLaunch]) -> list[Diagnostic]:
    asked = sum(t.facts.work.requested for t in launches)
    size = sum(view_bytes(program, v) for v in program.output_values())
    if not launches or asked >= LEAST * size:
        return []
    message = (
        f"the custom kernels load and store {asked} bytes in all at workload {program.workload}, where the outputs "
        f"have {size}; they do none of the work"
    )
    line = next((step.line for step in program.launches()), None)
    return [Diagnostic(severity="error", code="idle-kernel", message=message, line=line)]
