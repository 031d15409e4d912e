"""The torch settings that a library step runs under, as the plan's Flags. A candidate may change them at any time."""

from __future__ import annotations

from typing import Any

import torch

_ATTENTION = ("math", "flash", "efficient", "cudnn", "overrideable")
"""Names by the number of torch.nn.attention.SDPBackend."""


def snapshot() -> dict[str, Any]:
    """JSON of schema.Flags for this moment."""
    c: Any = torch._C
    return {
        "allow_tf32": _tf32("matmul"), "cudnn_allow_tf32": _tf32("conv"), "rnn_allow_tf32": _tf32("rnn"),
        "matmul_precision": _matmul_precision(),
        "fp16_reduction": _first(c._get_cublas_allow_fp16_reduced_precision_reduction()),
        "bf16_reduction": _first(c._get_cublas_allow_bf16_reduced_precision_reduction()),
        "fp16_accumulation": bool(c._get_cublas_allow_fp16_accumulation()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_enabled": bool(c._get_cudnn_enabled()), "cudnn_benchmark": bool(c._get_cudnn_benchmark()),
        "cudnn_deterministic": bool(c._get_cudnn_deterministic()),
        "attention": [name for name in _ATTENTION if _attention_enabled(name)], "attention_order": _attention_order(),
        "math_attention_reduction": bool(c._get_math_sdp_allow_fp16_bf16_reduction()),
    }  # fmt: skip


_untouched = tuple(torch._C._get_sdp_priority_order())


def _tf32(operation: str) -> bool:
    """Asked of the newer interface: the older one raises once the newer was used to set something."""
    asked = (("cuda", operation), ("cuda", "all"), ("generic", "all"))
    said = (torch._C._get_fp32_precision_getter(*a) for a in asked)
    return next((p for p in said if p != "none"), "ieee") == "tf32"


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer interface
        return "high" if _tf32("matmul") else "highest"


def _first(setting: Any) -> bool:
    """Newer versions answer (reduction, split-K)."""
    return bool(setting[0] if isinstance(setting, tuple) else setting)


def _attention_enabled(name: str) -> bool:
    getter = {"efficient": "mem_efficient"}.get(name, name)
    return bool(getattr(torch._C, f"_get_{getter}_sdp_enabled")())


def _attention_order() -> list[str] | None:
    order = tuple(torch._C._get_sdp_priority_order())
    return None if order == _untouched else [_ATTENTION[i] for i in order]
