"""Does a file do the same when it is traced as when it is tested?

The plan comes from a process with fake tensors, the numbers from one with Triton's interpreter. A file that tells them
apart could show an honest kernel to one and another to the other. So the tested workload is traced as well, and both
lists of what `forward` did must agree: the same torch functions, the same kernels by text and globals, the same grids,
constants, and inputs and weights behind pointers (`calllog.py`). What the timed plan launches must be what was tested.

What it cannot find: a file that forges a list inside its own process, work that is on neither list, and Python that
Triton runs while it compiles a kernel. So the plan of the tested workload is replayed too
(`interpreter/replay_gate.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from verifier.plan.schema import Plan
from verifier.plan.textutil import MAX_IR_BYTES, clip

Text = Annotated[str, Field(max_length=256)]
_KINDS = re.compile(r"\b(?:math\.\w+|tt\.(?:dot\w*|reduce|scan|extern_elementwise|atomic_rmw))\b")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Way(_Part):
    """One launch of a kernel: grid, and by parameter name scalars, constants and what pointers point to."""

    grid: Annotated[list[int], Field(min_length=3, max_length=3)]
    scalars: Annotated[dict[Text, Text], Field(max_length=1024)]


class Op(_Part):
    op: Text


class Launch(_Part):
    """`ways` has one entry per autotune configuration that fits; `free` names settings of those that do not."""

    launch: Text
    code: Text
    ways: Annotated[list[Way], Field(min_length=1, max_length=256)]
    free: Annotated[list[Text], Field(max_length=256)]


Calls = Annotated[list[Annotated[list[Op | Launch], Field(max_length=4000)]], Field(max_length=2)]
_CALLS: TypeAdapter[list[list[Op | Launch]]] = TypeAdapter(Calls)


def read_calls(value: Any) -> list[list[Op | Launch]]:
    """Checked lists from a candidate's process. Raises ValueError."""
    try:
        return _CALLS.validate_python(value)
    except ValidationError as wrong:
        raise ValueError(f"the list of calls is malformed: {wrong.errors()[0]['msg']}") from None


def difference(traced: Iterable[list[Op | Launch]], tested: Iterable[list[Op | Launch]]) -> str | None:
    """One sentence on the first difference, None when both do the same."""
    for number, (plan, test) in enumerate(zip(traced, tested, strict=False), 1):
        for a, b in zip(plan, test, strict=False):
            if (said := _differ(a, b)) is not None:
                return f"call {number} of forward {said}"
        if len(plan) != len(test):
            longer, where = (plan, "traced") if len(plan) > len(test) else (test, "tested")
            return f"call {number} of forward also does {_name(longer[min(len(plan), len(test))])} when it is {where}"
    return None


def _differ(plan: Op | Launch, test: Op | Launch) -> str | None:
    if isinstance(plan, Launch) and isinstance(test, Launch):
        if plan.launch != test.launch:
            return f"launches `{plan.launch}` when it is traced and `{test.launch}` when it is tested"
        if plan.code != test.code:
            return f"launches `{plan.launch}` with another text or other globals when it is traced than when tested"
        if not any(_fits(way, plan) for way in test.ways):
            traced, tested = _way(plan, test), _way(test, plan)
            return f"launches `{plan.launch}` with {traced} when it is traced and {tested} when it is tested"
        return None
    if plan == test:
        return None
    return f"does {_name(plan)} when it is traced and {_name(test)} when it is tested"


def _fits(way: Way, plan: Launch) -> bool:
    if way in plan.ways:
        return True
    if not plan.free:
        return False
    bound = {k: v for k, v in plan.ways[0].scalars.items() if k not in plan.free}
    return bound.items() <= way.scalars.items()


def _name(event: Op | Launch) -> str:
    return f"a launch of `{event.launch}`" if isinstance(event, Launch) else f"`torch.{event.op}`"


def _way(event: Launch, other: Launch) -> str:
    """Grid and the arguments that differ."""
    way, against = event.ways[0], other.ways[0].scalars
    unlike = ", ".join(f"{k}={v}" for k, v in way.scalars.items() if against.get(k) != v)
    return clip(f"grid {tuple(way.grid)} ({unlike})", 200)


def untested(
    timed: Plan, timed_blobs: Mapping[str, bytes], small: Plan, small_blobs: Mapping[str, bytes]
) -> str | None:
    """Why the test says nothing about the timed plan, None when it does: a kernel that was never tested, or
    arithmetic of the test that the timed kernels lack."""
    tested = _launched(small)
    for key in _launched(timed) - tested:
        return f"kernel `{key}` of the timed workload did not run in the test, which launches {sorted(tested)}"
    missing = _kinds(small, small_blobs) - _kinds(timed, timed_blobs)
    if missing:
        return f"the kernels of the timed workload lack `{min(missing)}`, which the tested ones have"
    return None


def _launched(plan: Plan) -> set[str]:
    return {plan.kernels[s.kernel].title for p in plan.programs for s in p.launches()}


def _kinds(plan: Plan, blobs: Mapping[str, bytes]) -> set[str]:
    keys = {s.kernel for p in plan.programs for s in p.launches()}
    texts = (blobs.get(f"{plan.kernels[key].ttir}.ttir", b"")[:MAX_IR_BYTES] for key in keys)
    return {kind for text in texts for kind in _KINDS.findall(text.decode(errors="replace"))}
