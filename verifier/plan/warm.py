"""Preload of the trace server: importing this module does, once, what every trace would otherwise pay for.

An import with side effects on purpose, since a server preloads by module name. It gives Triton a short cache key
(its own is a hash over its 200 MB, half a second; the caches of a job end with the job), asks the assembler for its
version and imports what Triton imports late. NVRTC is loaded where it is installed.
Nothing is compiled here: the compiler's threads would not survive the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import cache

import verifier.plan.trace  # noqa: F401 - part of the preload
from verifier.plan import nvrtc
from verifier.target import ARCHITECTURES

_LATE = (
    "triton.experimental.gluon.nvidia.hopper",
    "triton.language.extra.cuda.libdevice",
    "triton.language.extra.libdevice",
)


def _warm() -> None:
    with contextlib.suppress(nvrtc.NvrtcMissingError):
        nvrtc.load()
    for name in _LATE:
        if importlib.util.find_spec(name.rpartition(".")[0]) is not None:
            importlib.import_module(name)
    cache.triton_key = lambda: triton.__version__
    for target in ARCHITECTURES.values():
        make_backend(GPUTarget("cuda", target.capability, target.warp_size)).hash()


_warm()
