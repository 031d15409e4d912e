"""Puts the doors for CUDA C++ into a traced process: fakes of cuda.core and CuPy, and torch's extensions checked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch.utils.cpp_extension

from verifier.plan import cuda_core, cupy_raw, nvrtc
from verifier.plan.cuda_launch import CudaHost
from verifier.plan.driver import Kernels
from verifier.plan.load_inline import Extensions
from verifier.plan.record import Recorder
from verifier.target import Target


def versions(images: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Version of the compiler where one of the plan's kernels came from it."""
    return {"nvrtc": nvrtc.load().version} if any(i["language"] == "cuda" for i in images) else {}


def install(target: Target, recorder: Recorder, kernels: Kernels) -> None:
    """Replaces the modules for good, in this process. The real packages need not be installed."""
    host = CudaHost(target, recorder, kernels)
    sys.modules.update(cuda_core.modules(host))
    sys.modules.update(cupy_raw.modules(host))
    extensions = Extensions(target, recorder)
    torch.utils.cpp_extension.load_inline = extensions.load_inline
    torch.utils.cpp_extension.load = extensions.load
