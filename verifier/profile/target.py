"""Figures of the GPUs that kernels are compiled for.

Peak rates are the vendor's dense figures without sparsity: NVIDIA H100 and H200 Tensor Core GPU datasheets
(SXM), A100 80GB SXM datasheet, HGX B200 datasheet divided by eight. Limits per multiprocessor are from the
CUDA C++ Programming Guide, "Technical specifications per compute capability".

`*_sustained` is the share of a peak that a good kernel reaches. For the H200 the two shares were measured:
4.3 of 4.8 TB/s (copy) and about 790 of 989 TFLOP/s (bf16 matmul, power limited). Other targets reuse these
shares unchecked. L2 rates and latencies are round figures, chosen so that published matmul throughputs are
possible; nobody has measured them here.
"""

from __future__ import annotations

from pydantic import Field

from verifier.errors import UsageError
from verifier.verdict import Record


class Target(Record):
    """One GPU. Rates are per second, sizes in bytes, clocks in Hz."""

    name: str
    """What kernels are compiled for, for example `sm_90a`."""
    device: str
    """The GPU that the figures describe."""
    capability: int
    """10 x major + minor, as Triton wants it."""
    multiprocessors: int
    clock: float
    """Boost clock of the multiprocessors."""
    max_warps: int = 64
    """Resident warps per multiprocessor."""
    max_blocks: int = 32
    """Resident blocks per multiprocessor."""
    registers: int = 65536
    """32-bit registers per multiprocessor."""
    register_unit: int = 256
    """Registers are given to a warp in units of this many."""
    max_registers: int = 255
    """Per thread."""
    shared_per_sm: int
    shared_per_block: int
    """The most that one block may ask for (opt-in)."""
    shared_unit: int = 128
    """Shared memory is given to a block in units of this many bytes."""
    shared_reserved: int = 1024
    """The driver keeps this much per block."""
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    max_threads: int = 1024
    """Per block."""
    dram_rate: float
    dram_sustained: float = Field(default=0.9, gt=0, le=1)
    dram_latency: float = 650e-9
    l2_bytes: int
    l2_rate: float
    l2_latency: float = 260e-9
    tensor_rates: dict[str, float]
    """Operand class (bf16, fp16, tf32, fp8, int8, fp64) to FLOP per second."""
    tensor_sustained: float = Field(default=0.8, gt=0, le=1)
    mma_fallback: float = Field(default=1.0, gt=0, le=1)
    """Share of the tensor rate that the previous generation's instruction (`mma.sync`) reaches here."""
    fp32_lanes: int = 128
    """FMA units per multiprocessor; one FMA a clock each."""
    fp64_lanes: int = 64
    sfu_lanes: int = 16
    """Special function units (exp2, log2, rcp, rsqrt, sin) per multiprocessor."""
    issue_slots: int = 4
    """Warp instructions per clock and multiprocessor."""
    launch_seconds: float = 2.5e-6
    """One kernel inside a CUDA graph: start, drain and gap."""

    @property
    def threads_per_sm(self) -> int:
        return self.max_warps * 32

    @property
    def fp32_rate(self) -> float:
        """fp32 instructions per second over all lanes (an FMA is one)."""
        return self.multiprocessors * self.fp32_lanes * self.clock

    @property
    def sfu_rate(self) -> float:
        return self.multiprocessors * self.sfu_lanes * self.clock


_TERA = 1e12

TARGETS: dict[str, Target] = {
    "sm_90a": Target(
        name="sm_90a",
        device="NVIDIA H200 SXM",
        capability=90,
        multiprocessors=132,
        clock=1.98e9,
        shared_per_sm=233472,
        shared_per_block=232448,
        dram_rate=4.8e12,
        dram_sustained=4.3 / 4.8,
        l2_bytes=60 << 20,
        l2_rate=9.0e12,
        tensor_rates={
            "bf16": 989.4 * _TERA,
            "fp16": 989.4 * _TERA,
            "tf32": 494.7 * _TERA,
            "fp8": 1978.9 * _TERA,
            "int8": 1978.9 * _TERA,
            "fp64": 66.9 * _TERA,
        },
        tensor_sustained=790 / 989.4,
        mma_fallback=0.62,
    ),
    "sm_80": Target(
        name="sm_80",
        device="NVIDIA A100 80GB SXM",
        capability=80,
        multiprocessors=108,
        clock=1.41e9,
        shared_per_sm=167936,
        shared_per_block=166912,
        dram_rate=2.039e12,
        l2_bytes=40 << 20,
        l2_rate=5.0e12,
        tensor_rates={
            "bf16": 312 * _TERA,
            "fp16": 312 * _TERA,
            "tf32": 156 * _TERA,
            "int8": 624 * _TERA,
            "fp64": 19.5 * _TERA,
        },
        fp32_lanes=64,
        fp64_lanes=32,
    ),
    "sm_100": Target(
        name="sm_100",
        device="NVIDIA B200 SXM",
        capability=100,
        multiprocessors=148,
        clock=1.965e9,
        shared_per_sm=233472,
        shared_per_block=232448,
        dram_rate=7.7e12,
        l2_bytes=126 << 20,
        l2_rate=12.0e12,
        tensor_rates={
            "bf16": 2250 * _TERA,
            "fp16": 2250 * _TERA,
            "tf32": 1125 * _TERA,
            "fp8": 4500 * _TERA,
            "int8": 4500 * _TERA,
            "fp64": 37 * _TERA,
        },
        mma_fallback=0.3,
    ),
}
"""H200 stands for sm_90a; an H100 SXM differs in DRAM only (3.35 TB/s)."""


def get_target(name: str) -> Target:
    """The target called `name`. Raises `UsageError` that lists the known names."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UsageError(f"unknown target {name!r}", next_step=f"Choose one of: {', '.join(TARGETS)}.") from None
