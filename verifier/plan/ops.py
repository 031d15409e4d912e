"""What aten operators do to their arguments, as far as the plan needs it: roles, hidden writes, whole
recording."""

from __future__ import annotations

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
    "linear", "scaled_dot_product_attention", "layer_norm", "batch_norm", "group_norm", "instance_norm",
    "lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input", "conv1d", "conv2d", "conv3d", "einsum",
    "matmul", "softmax.int", "log_softmax.int", "cross_entropy_loss",
)  # fmt: skip
"""Composite operators kept in one piece: torch would take them apart for the CPU build, the GPU takes them
whole."""

# Schemas that do not say so: (first argument written, last, index of the flag that turns it on).
_HIDDEN_WRITES = {
    "aten::batch_norm": (3, 5, 5),
    "aten::instance_norm": (3, 5, 5),
    "aten::native_batch_norm": (3, 5, 5),
    "aten::cudnn_batch_norm": (3, 5, 5),
    "aten::_batch_norm_impl_index": (3, 5, 5),
}


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


def shape_result(op: str, args: tuple[Any, ...]) -> Any:
    """Fake result by shape alone, where the operator's own way to it costs seconds or asks for a GPU; else None."""
    if op == "aten::scaled_dot_product_attention":
        return _attention_result(*args[:3])
    if op in ("aten::lstm.input", "aten::gru.input", "aten::rnn_tanh.input", "aten::rnn_relu.input"):
        return _recurrent_result(op, args)
    return None


def _attention_result(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor | None:
    """A CUDA build would ask the device for a kernel. None where the shapes do not fit, so that torch says why."""
    same = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.dtype == key.dtype == value.dtype
    if not same or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _recurrent_result(op: str, args: tuple[Any, ...]) -> Any:
    """A padded LSTM, GRU or RNN: taking it apart step by step would take seconds."""
    data, hidden = args[0], args[1]
    states = list(hidden) if op == "aten::lstm.input" else [hidden]
    directions = 2 if args[7] else 1
    output = data.new_empty((*data.shape[:-1], directions * states[0].shape[-1]))
    return (output, *(torch.empty_like(state) for state in states))
