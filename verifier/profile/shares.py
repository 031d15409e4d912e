"""How much of a problem's arithmetic library operators do: FLOP of aten steps against those of the reference.

A multiply-add counts two; an operator without a formula counts one for each element of its largest tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from verifier.plan.schema import Flags, Plan, Program
from verifier.profile.calls import library_call
from verifier.profile.library import LibraryCall, TensorView, flops

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def by_operator(program: Program, flags: Sequence[Flags]) -> Counter[str]:
    """Operator (`aten::mm`) to the FLOP of its steps in forward."""
    found = Counter[str]()
    for step in program.library():
        if step.role in ("compute", "random"):
            found[step.op] += flop(library_call(step, program, flags))
    return found


def totals(plan: Plan) -> dict[str, int]:
    """FLOP of forward by workload, for a plan that only library operators compute."""
    return {program.workload: by_operator(program, plan.flags).total() for program in plan.programs}


def share(flop: int, total: int) -> str:
    """`, 94% of the reference's FLOP`, or empty where nothing is known of the reference."""
    return f", {100 * min(1.0, flop / total):.3g}% of the reference's FLOP" if total else ""


def flop(call: LibraryCall) -> int:
    """FLOP of one step; at least one for each element that it reads or makes."""
    if call.name in _RECURRENT and call.inputs:
        weights = [math.prod(t.shape) for t in call.inputs if len(t.shape) == 2]
        return 2 * math.prod(call.inputs[0].shape[:-1]) * sum(weights)
    return flops(call) or max(map(_elements, (*call.inputs, *call.outputs)), default=0)


def _elements(view: TensorView) -> int:
    return math.prod(view.shape)
