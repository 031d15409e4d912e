"""What aten operators do to their arguments, as far as the plan needs it: roles, hidden writes, whole
recording."""

from __future__ import annotations

from typing import Any, Literal

import torch

Role = Literal["alloc", "fill", "move", "compute", "random"]

_ALLOC = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
_FILL = {
    "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full",
    "zero_", "fill_", "zero", "fill", "arange", "scalar_tensor", "eye", "linspace", "lift_fresh",
    "lift_fresh_copy",
}  # fmt: skip
_MOVE = {
    "clone", "copy_", "copy", "_to_copy", "cat", "stack", "constant_pad_nd", "repeat", "roll", "flip",
    "index_select", "slice_scatter", "select_scatter", "as_strided_copy", "view_copy", "permute_copy",
    "expand_copy",
    "t_copy", "transpose_copy", "slice_copy", "select_copy", "split_copy", "split_with_sizes_copy",
    "unbind_copy",
    "_reshape_copy", "set_", "resize_", "as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_",
    "contiguous",
    "_pin_memory", "record_stream",
}  # fmt: skip
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


def base_name(op: str) -> str:
    """`aten::add.Tensor` -> `add`."""
    return op.split("::", 1)[-1].split(".", 1)[0]


def role_of(op: str, seeded: bool) -> Role:
    """Role of an operator by its name; `seeded` says that it draws random numbers."""
    name = base_name(op)
    if name in _ALLOC:
        return "alloc"
    if seeded:
        return "random"
    if name in _FILL:
        return "fill"
    return "move" if name in _MOVE else "compute"


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


def recurrent_result(op: str, args: tuple[Any, ...]) -> Any:
    """Fake result of a padded LSTM, GRU or RNN by shape alone; taking it apart step by step would take seconds.

    None for every other operator.
    """
    if op not in ("aten::lstm.input", "aten::gru.input", "aten::rnn_tanh.input", "aten::rnn_relu.input"):
        return None
    data, hidden = args[0], args[1]
    states = list(hidden) if op == "aten::lstm.input" else [hidden]
    directions = 2 if args[7] else 1
    output = data.new_empty((*data.shape[:-1], directions * states[0].shape[-1]))
    return (output, *(torch.empty_like(state) for state in states))
