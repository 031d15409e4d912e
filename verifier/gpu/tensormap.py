"""Host-side TMA descriptors: a CUtensorMap from a plan's descriptor argument and the compiler's metadata."""

from __future__ import annotations

import ctypes

from verifier.gpu.cuda import check, driver
from verifier.plan.arguments import DescriptorArg
from verifier.plan.schema import DescriptorMeta

SIZE = 128
"""Bytes of a CUtensorMap."""
_HOST_TYPE = {8: 10, 9: 8, 10: 9}
"""Device element types that the driver numbers differently (Triton's TMA_DTYPE_DEVICE_TO_HOST)."""
_TF32 = 11


def encode_tiled(arg: DescriptorArg, address: int, meta: DescriptorMeta) -> bytes:
    """The 128 bytes of a tiled map. `address` is a multiple of 16. Raises ValueError or CudaError."""
    if meta.fp4_padded or meta.is_im2col:
        raise ValueError(f"descriptor {arg.name!r}: fp4 and im2col layouts cannot be replayed")
    api = driver()
    rank = len(meta.block_size)
    shape, strides = arg.shape[::-1], arg.strides[::-1]
    if rank != len(shape):
        raise ValueError(f"descriptor {arg.name!r}: rank {len(shape)}, the kernel expects {rank}")
    kind = _TF32 if arg.round_f32_to_tf32 else _HOST_TYPE.get(meta.elem_type, meta.elem_type)
    nan = arg.padding == "nan"
    fill = api.CUtensorMapFloatOOBfill
    tensor_map = check(
        f"descriptor {arg.name!r}",
        api.cuTensorMapEncodeTiled(
            api.CUtensorMapDataType(kind),
            rank,
            address,
            [api.cuuint64_t(n) for n in shape],
            [api.cuuint64_t(n * meta.elem_size) for n in strides[1:]],
            [api.cuuint32_t(n) for n in meta.block_size[::-1]],
            [api.cuuint32_t(1)] * rank,
            api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            api.CUtensorMapSwizzle(meta.swizzle),
            api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            fill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA if nan else fill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
    )
    return ctypes.string_at(tensor_map.getPtr(), SIZE)
