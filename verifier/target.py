"""What kernels are made for: an architecture (what is compiled for, and what a launch may ask) and, on top of it, a
device (how many multiprocessors, how fast).

A target is named by its device (`h200`, `h100-sxm`, `h100-pcie`, `a100`, `b200`); the name of an architecture stands
for its default device. Loads neither torch nor Triton.

Sources. Limits: CUDA C++ Programming Guide, "Technical specifications per compute capability"; NVIDIA Blackwell
Tuning Guide (228 KB of shared memory per multiprocessor, 227 KB per block, 126 MB of L2). Peak rates are dense figures
without sparsity: datasheets of A100 80GB, H100 (SXM, PCIe) and H200, and of HGX B200 divided by eight. Memory rates
agree with 2 x memory clock x bus width / 8 but for the H200, whose datasheet says 4.8 TB/s (the formula gives 4.92).
B200: multiprocessors, L2, bus width, memory clock and memory size as a driver reports them (pytorch/ao, pull request
4002). Memory sizes of the H200 and B200 are what PyTorch sees; those of the A100 and H100 are 79.1 GiB, rounded.

`*_sustained` is the share of a peak that a good kernel reaches. For the H200 the two shares were measured: 4.3 of 4.8
TB/s (copy) and about 790 of 989 TFLOP/s (bf16 matmul, power limited). Published matmuls give 789 TFLOP/s for an H100
SXM and 493 of 756 TFLOP/s for an H100 PCIe (zzc0721/torch-performance-test-data, issues 21 and 95). The other shares
are taken over unchecked. L2 rates and latencies are round figures, chosen so that published matmul throughputs are
possible; nobody has measured them here. `mma_fallback` of sm_100 is a guess.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from verifier.errors import UsageError
from verifier.verdict import Record

_TERA = 1e12
_GIB = 1 << 30


class Architecture(Record):
    """What a compiler makes code for, with the limits of a launch. Sizes in bytes."""

    arch: str
    """For example `sm_90a`; a plan's `target`."""
    compiler_arch: str
    """The name that gives CUDA C++ all of its instructions."""
    capability: int
    """10 x major + minor, as Triton wants it."""
    warp_size: int = 32
    max_warps: int = 64
    """Resident warps per multiprocessor."""
    max_blocks: int = 32
    """Resident blocks per multiprocessor."""
    registers_per_sm: int = 65536
    """32-bit registers."""
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
    shared_counted: int = 1024
    """Of that, what a cubin's own figure of static shared memory holds."""
    threads_per_block: int = 1024
    grid_max: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    cluster_max: int
    """Largest cluster, blocks (non-portable size); 1 where there are none."""
    fp32_lanes: int = 128
    """FMA units per multiprocessor; one FMA a clock each."""
    fp64_lanes: int = 64
    sfu_lanes: int = 16
    """Special function units (exp2, log2, rcp, rsqrt, sin) per multiprocessor."""
    issue_slots: int = 4
    """Warp instructions per clock and multiprocessor."""
    wide_mma: str = ""
    """Machine instruction of the widest matrix product, empty where there is only `mma.sync`."""
    mma_fallback: float = Field(gt=0, le=1)
    """Share of the tensor rate that `mma.sync` reaches: all of it where nothing newer exists."""

    @property
    def threads_per_sm(self) -> int:
        return self.max_warps * self.warp_size


class Target(Architecture):
    """One device. Rates are per second, sizes in bytes, clocks in Hz."""

    name: str
    device_name: str
    """As the driver names it."""
    sms: int
    """Multiprocessors."""
    clock: float
    """Boost clock of the multiprocessors."""
    total_memory: int
    memory_clock: float
    memory_bus: int
    """Bits."""
    dram_rate: float
    dram_sustained: float = Field(default=0.9, gt=0, le=1)
    dram_latency: float = 650e-9
    l2_bytes: int
    l2_rate: float
    l2_latency: float = 260e-9
    tensor_rates: dict[str, float]
    """Operand class (bf16, fp16, tf32, fp8, int8, fp64) to FLOP per second."""
    tensor_sustained: float = Field(default=0.8, gt=0, le=1)
    launch_seconds: float = 2.5e-6
    """One kernel inside a CUDA graph: start, drain and gap."""

    @property
    def fp32_rate(self) -> float:
        """fp32 instructions per second over all lanes (an FMA is one)."""
        return self.sms * self.fp32_lanes * self.clock

    @property
    def sfu_rate(self) -> float:
        return self.sms * self.sfu_lanes * self.clock


ARCHITECTURES: dict[str, Architecture] = {
    "sm_80": Architecture(
        arch="sm_80",
        compiler_arch="sm_80",
        capability=80,
        shared_per_sm=164 << 10,
        shared_per_block=163 << 10,
        shared_counted=0,
        cluster_max=1,
        fp32_lanes=64,
        fp64_lanes=32,
        mma_fallback=1.0,
    ),
    "sm_90a": Architecture(
        arch="sm_90a",
        compiler_arch="sm_90a",
        capability=90,
        shared_per_sm=228 << 10,
        shared_per_block=227 << 10,
        cluster_max=16,
        wide_mma="HGMMA",
        mma_fallback=0.62,
    ),
    "sm_100": Architecture(
        arch="sm_100",
        compiler_arch="sm_100a",
        capability=100,
        shared_per_sm=228 << 10,
        shared_per_block=227 << 10,
        cluster_max=16,
        wide_mma="UTCHMMA",
        mma_fallback=0.3,
    ),
}


def _device(arch: str, **figures: Any) -> Target:
    return Target(**ARCHITECTURES[arch].model_dump(), **figures)


def _rates(half: float, **others: float) -> dict[str, float]:
    """Tensor rates from the 16-bit one in TFLOP/s: tf32 at half, int8 at twice of it."""
    rates = {"bf16": half, "fp16": half, "tf32": half / 2, "int8": half * 2, **others}
    return {k: v * _TERA for k, v in rates.items()}


_DEVICES = (
    _device(
        "sm_80",
        name="a100",
        device_name="NVIDIA A100-SXM4-80GB",
        sms=108,
        clock=1.41e9,
        total_memory=int(79.1 * _GIB),
        memory_clock=1.593e9,
        memory_bus=5120,
        dram_rate=2.039e12,
        l2_bytes=40 << 20,
        l2_rate=5.0e12,
        tensor_rates=_rates(312, fp64=19.5),
    ),
    _device(
        "sm_90a",
        name="h200",
        device_name="NVIDIA H200",
        sms=132,
        clock=1.98e9,
        total_memory=150_754_820_096,
        memory_clock=3.201e9,
        memory_bus=6144,
        dram_rate=4.8e12,
        dram_sustained=4.3 / 4.8,
        l2_bytes=60 << 20,
        l2_rate=9.0e12,
        tensor_rates=_rates(989.4, fp8=1978.9, fp64=66.9),
        tensor_sustained=790 / 989.4,
    ),
    _device(
        "sm_90a",
        name="h100-sxm",
        device_name="NVIDIA H100 80GB HBM3",
        sms=132,
        clock=1.98e9,
        total_memory=int(79.1 * _GIB),
        memory_clock=2.619e9,
        memory_bus=5120,
        dram_rate=3.35e12,
        l2_bytes=50 << 20,
        l2_rate=9.0e12,
        tensor_rates=_rates(989.4, fp8=1978.9, fp64=66.9),
        tensor_sustained=789 / 989.4,
    ),
    _device(
        "sm_90a",
        name="h100-pcie",
        device_name="NVIDIA H100 PCIe",
        sms=114,
        clock=1.755e9,
        total_memory=int(79.1 * _GIB),
        memory_clock=1.593e9,
        memory_bus=5120,
        dram_rate=2.0e12,
        l2_bytes=50 << 20,
        l2_rate=7.0e12,
        tensor_rates=_rates(756.5, fp8=1513, fp64=51),
        tensor_sustained=493 / 756.5,
    ),
    _device(
        "sm_100",
        name="b200",
        device_name="NVIDIA B200",
        sms=148,
        clock=1.965e9,
        total_memory=int(178.35 * _GIB),
        memory_clock=3.996e9,
        memory_bus=7680,
        dram_rate=7.67e12,
        l2_bytes=126 << 20,
        l2_rate=12.0e12,
        tensor_rates=_rates(2250, fp8=4500, fp64=37),
    ),
)
TARGETS: dict[str, Target] = {device.name: device for device in _DEVICES}
"""The first device of an architecture is its default."""


def get_target(name: str) -> Target:
    """The target of a device, or of an architecture's default device. Raises `UsageError` that lists the names."""
    found = TARGETS.get(name) or next((t for t in TARGETS.values() if t.arch == name), None)
    if found is None:
        raise UsageError(
            f"unknown target {name!r}", next_step=f"Choose one of: {', '.join((*TARGETS, *ARCHITECTURES))}."
        )
    return found
