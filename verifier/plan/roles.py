"""Roles of aten operators by their names. Loads no torch, so that the reader of a plan decides roles itself
instead of believing the process that wrote it."""

from __future__ import annotations

from typing import Literal

Role = Literal["alloc", "fill", "move", "compute", "random"]

_ALLOC = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
_FILL = {
    "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full",
    "zero_", "fill_", "zero", "fill", "arange", "scalar_tensor", "eye", "linspace", "lift_fresh",
    "lift_fresh_copy",
}  # fmt: skip
_MOVE = {
    "clone", "copy_", "copy", "_to_copy", "cat", "stack", "constant_pad_nd", "repeat", "roll", "flip",
    "slice_scatter", "select_scatter", "as_strided_copy", "view_copy", "permute_copy",
    "expand_copy",
    "t_copy", "transpose_copy", "slice_copy", "select_copy", "split_copy", "split_with_sizes_copy",
    "unbind_copy",
    "_reshape_copy", "set_", "resize_", "as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_",
    "contiguous",
    "_pin_memory", "record_stream",
}  # fmt: skip


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


def may_have(op: str, role: str) -> bool:
    """Whether a recorder may say so: the name decides, but drawing random numbers depends on the arguments."""
    honest = role_of(op, False)
    return role == honest or (role == "random" and honest != "alloc")
