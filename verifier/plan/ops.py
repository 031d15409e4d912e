"""What aten operators do to their arguments, as far as the plan needs it: roles, hidden writes, whole
recording."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from verifier.plan.roles import base_name

_SHAPE_ONLY = {
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
}
_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}

WHOLE = (
    "linear", "scaled_dot_product_attention", "layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm",
    "lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input", "lstm_cell", "gru_cell", "rnn_tanh_cell",
    "rnn_relu_cell", "conv1d", "conv2d", "conv3d", "einsum", "matmul", "softmax.int", "log_softmax.int",
    "cross_entropy_loss", "grid_sampler", "ctc_loss.IntList", "ctc_loss.Tensor",
)  # fmt: skip
"""Composite operators kept in one piece: what they fall apart into depends on the device or on the build (cuDNN,
fused kernels)."""

MARKS = frozenset({
    "profiler::_record_function_enter", "profiler::_record_function_enter_new", "profiler::_record_function_exit",
})  # fmt: skip
"""Operators that name a stretch of time for a profiler (`torch.profiler.record_function`) and touch no tensor."""

# Schemas that do not say so: (first argument written, last, index of the flag that turns it on).
_HIDDEN_WRITES = {
    "aten::batch_norm": (3, 5, 5),
    "aten::instance_norm": (3, 5, 5),
    "aten::native_batch_norm": (3, 5, 5),
    "aten::cudnn_batch_norm": (3, 5, 5),
    "aten::_batch_norm_impl_index": (3, 5, 5),
}


_PHYSICAL = {"aten::_conj": "conj_physical", "aten::_neg_view": "neg"}
"""Views that only mark their numbers as conjugated or negated. A plan's values have no marks, so they are computed."""


def instead(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The call that is made and recorded in place of another."""
    name = func._schema.name
    if name in _PHYSICAL:
        return getattr(torch.ops.aten, _PHYSICAL[name]).default, args, kwargs
    if name == "aten::_pin_memory":  # no fake device has any
        return torch.ops.aten.clone.default, args[:1], {}
    if kwargs.get("pin_memory"):
        return func, args, {**kwargs, "pin_memory": False}
    return func, args, kwargs


def without_generator(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same for a fake device, which has no generators."""
    return {k: None if isinstance(v, torch._C.Generator) else v for k, v in kwargs.items()}


@cache
def falls_apart(func: Any) -> bool:
    """A composite operator that is not kept whole; it comes in one piece where autograd is off (inference mode)."""
    name = func.name()
    if name.removeprefix("aten::") in WHOLE:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"))


def shown(op: str) -> str:
    """An operator in the words of the file."""
    said = "`.item()`, a conversion to a number or a branch" if op == "aten::_local_scalar_dense" else ""
    return said or f"`{base_name(op)}`"


def reads_data(op: str, position: int) -> bool:
    """Whether the tensor at `position` (-1 for a keyword) matters beyond its shape."""
    name = base_name(op)
    if name in _SHAPE_ONLY or name.startswith("new_"):
        return False
    return not (position == 0 and name in _OVERWRITES)


def overwrites(op: str) -> bool:
    """Whether the operator writes every element of its first argument without reading it."""
    return base_name(op) in _OVERWRITES


def draws_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call depends on the random state: torch tags the operator, and its dropout is not zero."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
        if argument.name in ("p", "dropout", "dropout_p") and value == 0:
            return False
    return True


def written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Tensors that a call writes: those its schema marks, and those that a few schemas keep quiet about."""
    written: list[torch.Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written.extend(
            v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, torch.Tensor)
        )
    hidden = _HIDDEN_WRITES.get(func._schema.name)
    if hidden is not None and len(args) > hidden[2] and args[hidden[2]]:
        written.extend(a for a in args[hidden[0] : hidden[1]] if isinstance(a, torch.Tensor))
    return written
