"""The plan's argument records: tagged JSON of what an aten call or a launch was given, with caps on every
size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MAX_STORAGE_BYTES = 1 << 40
MAX_DIM = 1 << 40

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[int, Field(ge=0, lt=1 << 20)]
Size = Annotated[int, Field(ge=0, le=MAX_STORAGE_BYTES)]
Dim = Annotated[int, Field(ge=0, le=MAX_DIM)]
Dims = Annotated[tuple[Dim, ...], Field(max_length=64)]
Line = Annotated[int, Field(ge=1, lt=1 << 31)] | None
Name = Annotated[str, Field(max_length=256)]
DType = Literal[
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "int64", "int32", "int16", "int8", "bool", "uint8", "uint16", "uint32", "uint64", "complex64",
    "complex128",
]  # fmt: skip
Int64 = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Number = Annotated[float, Field(allow_inf_nan=False)] | Literal["inf", "-inf", "nan"]


class Part(BaseModel):
    """Base of the plan's records."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# -- arguments of aten steps and outputs -----------------------------------------------------------


class TensorArg(Part):
    t: Literal["tensor"]
    value: Id


class NoneArg(Part):
    t: Literal["none"]


class BoolArg(Part):
    t: Literal["bool"]
    v: bool


class IntArg(Part):
    t: Literal["int"]
    v: Int64


class FloatArg(Part):
    t: Literal["float"]
    v: Number


class ComplexArg(Part):
    t: Literal["complex"]
    re: Annotated[float, Field(allow_inf_nan=False)]
    im: Annotated[float, Field(allow_inf_nan=False)]


class StrArg(Part):
    t: Literal["str"]
    v: Name


class DTypeArg(Part):
    t: Literal["dtype"]
    v: DType


class DeviceArg(Part):
    t: Literal["device"]
    v: Literal["cuda", "cpu"]


class EnumArg(Part):
    """A layout or memory format, as an attribute of torch."""

    t: Literal["enum"]
    v: Literal["strided", "contiguous_format", "preserve_format", "channels_last", "channels_last_3d"]


class ListArg(Part):
    t: Literal["list", "tuple"]
    items: Annotated[tuple[Arg, ...], Field(max_length=4096)]


class DictArg(Part):
    t: Literal["dict"]
    items: Annotated[dict[Name, Arg], Field(max_length=4096)]


Arg: TypeAlias = Annotated[
    TensorArg | NoneArg | BoolArg | IntArg | FloatArg | ComplexArg | StrArg | DTypeArg | DeviceArg | EnumArg
    | ListArg | DictArg,
    Field(discriminator="t"),
]  # fmt: skip


# -- arguments of launches -------------------------------------------------------------------------


class PointerArg(Part):
    """A device address: a storage and a byte offset. `value` is the view that was passed, None for a raw
    address."""

    t: Literal["pointer"]
    name: Name
    type: Name
    storage: Id
    offset: Size
    value: Id | None


class NullArg(Part):
    t: Literal["null"]
    name: Name
    type: Name


class ScalarIntArg(Part):
    t: Literal["int"]
    name: Name
    type: Literal["i1", "u1", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"]
    v: Int64


class ScalarFloatArg(Part):
    t: Literal["float"]
    name: Name
    type: Literal["fp16", "bf16", "fp32", "f32", "fp64"]
    v: Number


class ConstexprArg(Part):
    """Compiled into the kernel; takes no room in the launch. `v` is its text, for messages and cost
    models."""

    t: Literal["constexpr"]
    name: Name
    v: Name


class DescriptorArg(Part):
    """A host-side TMA descriptor. In the launch: a 128-byte CUtensorMap, then shape (i32) and strides (i64,
    elements)."""

    t: Literal["descriptor"]
    name: Name
    type: Name
    storage: Id
    offset: Size
    value: Id | None
    shape: Annotated[tuple[Dim, ...], Field(min_length=1, max_length=5)]
    strides: Annotated[tuple[Dim, ...], Field(min_length=1, max_length=5)]
    block: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 16)], ...], Field(min_length=1, max_length=5)]
    dtype: DType
    padding: Literal["zero", "nan"]
    round_f32_to_tf32: bool


LaunchArg: TypeAlias = Annotated[
    PointerArg | NullArg | ScalarIntArg | ScalarFloatArg | ConstexprArg | DescriptorArg,
    Field(discriminator="t"),
]


def values_in(arg: Arg) -> Iterator[int]:
    """Values named in an argument or output tree, depth first."""
    if isinstance(arg, TensorArg):
        yield arg.value
    elif isinstance(arg, ListArg):
        for item in arg.items:
            yield from values_in(item)
    elif isinstance(arg, DictArg):
        for item in arg.items.values():
            yield from values_in(item)


ListArg.model_rebuild()
DictArg.model_rebuild()
