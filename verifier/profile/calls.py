"""The aten steps of a checked plan with views in place of ids, as the formulas of `library.py` want them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from verifier.plan.arguments import (
    Arg,
    BoolArg,
    DictArg,
    DTypeArg,
    EnumArg,
    FloatArg,
    IntArg,
    ListArg,
    StrArg,
    TensorArg,
)
from verifier.plan.reader import ITEM_BYTES
from verifier.plan.schema import AtenStep, Flags, Program
from verifier.profile.library import LibraryCall, TensorView


def view_bytes(program: Program, value: int) -> int:
    """Distinct bytes of a view: axes with stride 0 count once, never more than the storage."""
    view = program.values[value]
    count = math.prod(n for n, s in zip(view.shape, view.stride, strict=True) if s != 0 or n == 0)
    return min(count * ITEM_BYTES[view.dtype], program.storages[view.storage].bytes)


def library_call(step: AtenStep, program: Program, flags: Sequence[Flags]) -> LibraryCall:
    """The aten step with views instead of ids."""
    state = flags[step.flags]
    return LibraryCall(
        op=step.op,
        role=step.role,
        args=tuple(_plain(a, program) for a in step.args),
        kwargs={k: _plain(a, program) for k, a in step.kwargs.items()},
        outputs=tuple(_view(v, program) for v in step.outputs),
        matmul_tf32=state.allow_tf32 or state.matmul_precision != "highest",
        conv_tf32=state.cudnn_allow_tf32,
    )


def _view(value: int, program: Program) -> TensorView:
    view = program.values[value]
    return TensorView(tuple(view.shape), view.dtype, view.storage, view_bytes(program, value))


def _plain(arg: Arg, program: Program) -> Any:
    if isinstance(arg, TensorArg):
        return _view(arg.value, program)
    if isinstance(arg, ListArg):
        return [_plain(item, program) for item in arg.items]
    if isinstance(arg, DictArg):
        return {k: _plain(item, program) for k, item in arg.items.items()}
    if isinstance(arg, BoolArg | IntArg | FloatArg | StrArg | DTypeArg | EnumArg):
        return arg.v
    return None
