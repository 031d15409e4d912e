"""What a step of a checked plan reads, writes and overwrites, as storages. Loads neither torch nor Triton."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from verifier.plan.arguments import DescriptorArg, PointerArg, values_in
from verifier.plan.reader import ITEM_BYTES
from verifier.plan.schema import AtenStep, LaunchStep, Plan, Program


def written_values(step: AtenStep | LaunchStep) -> Iterable[int]:
    """Values that a step makes or is given to write."""
    if isinstance(step, AtenStep):
        return (*step.outputs, *step.mutates)
    return tuple(a.value for a in step.args if isinstance(a, PointerArg | DescriptorArg) and a.value is not None)


def effects(plan: Plan, program: Program, step: AtenStep | LaunchStep) -> tuple[set[int], set[int], set[int]]:
    """Storages that a step reads, writes and fully overwrites (its first alternative, for a launch)."""
    if isinstance(step, AtenStep):
        return _of_library(program, step)
    reads: set[int] = set()
    writes: set[int] = set()
    passed = [a for a in step.args if a.t != "constexpr"]
    for arg, param in zip(passed, plan.kernels[step.kernel].params, strict=True):
        if isinstance(arg, PointerArg | DescriptorArg):
            if param.access in ("load", "both"):
                reads.add(arg.storage)
            if param.access in ("store", "both"):
                writes.add(arg.storage)
    for before in step.alternatives[0].before:
        more = _of_library(program, before)
        reads |= more[0]
        writes |= more[1]
    return reads, writes, set()


_NO_DATA = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_")
_OVERWRITE = ("copy_", "fill_", "zero_")


def _of_library(program: Program, step: AtenStep) -> tuple[set[int], set[int], set[int]]:
    name = step.op.removeprefix("aten::").split(".")[0]

    def storage(value: int) -> int:
        return program.values[value].storage

    reads: set[int] = set()
    if not name.startswith(_NO_DATA):
        args = step.args[1:] if name in _OVERWRITE else step.args
        reads = {storage(v) for a in (*args, *step.kwargs.values()) for v in values_in(a)}
    writes = {storage(v) for v in (*step.outputs, *step.mutates)}
    kills: set[int] = set()
    if name in _OVERWRITE and step.mutates:
        v = program.values[step.mutates[0]]
        covered = 1
        for n in v.shape:
            covered *= n
        if covered * ITEM_BYTES[v.dtype] >= program.storages[v.storage].bytes:
            kills = {v.storage}
    return reads, writes, kills


_SAME_ORDER = ("clone", "copy_", "_to_copy", "contiguous")


def reorders(program: Program) -> int:
    """Library steps of forward that bring data into another order and do nothing else: copies between two layouts,
    joins, flips and selections.
    """
    return sum(_reorders(program, step) for step in program.library())


def _reorders(program: Program, step: AtenStep) -> bool:
    made = (*step.outputs, *step.mutates)
    if step.role != "move" or not made:
        return False
    if step.op.removeprefix("aten::").split(".")[0] not in _SAME_ORDER:
        return True
    read = [program.values[v] for arg in step.args for v in values_in(arg)]
    return any(v.stride != program.values[made[0]].stride for v in read)


def line_of(plan: Plan, program: Program, storage: int, source: str) -> int | None:
    """Line of the last step that writes a storage, in forward or before; else where `forward` begins."""
    for step in (*reversed(program.forward), *reversed(program.setup)):
        if step.line and storage in effects(plan, program, step)[1]:
            return step.line
    return forward_line(source)


def forward_line(source: str) -> int | None:
    """Line of the `def forward` of `ModelNew`, else of the file's last one; None where the text has none."""
    try:
        classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found = {
        made.name: function.lineno
        for made in classes
        for function in made.body
        if isinstance(function, ast.FunctionDef) and function.name == "forward"
    }
    return found.get("ModelNew", next(reversed(found.values()), None))
