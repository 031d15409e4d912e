"""Facts of the compile target that the trace itself needs: what the fake device answers and what a launch may
ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceTarget:
    """One GPU architecture as Triton and CUDA name it, with the limits of a launch."""

    name: str
    """For example `sm_90a`."""
    capability: int
    """Compute capability times ten."""
    device_name: str
    sms: int
    total_memory: int
    """Bytes."""
    l2_bytes: int
    shared_per_block: int
    """Largest dynamic shared memory of a block, bytes (opt-in)."""
    shared_per_sm: int
    registers_per_sm: int
    threads_per_sm: int
    threads_per_block: int = 1024
    warp_size: int = 32
    grid_max: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    cluster_max: int = 16
    """Largest cluster, blocks (non-portable size)."""


TARGETS: dict[str, TraceTarget] = {
    "sm_90a": TraceTarget(
        name="sm_90a", capability=90, device_name="NVIDIA H200", sms=132, total_memory=150_754_820_096,
        l2_bytes=62_914_560, shared_per_block=232_448, shared_per_sm=233_472, registers_per_sm=65_536,
        threads_per_sm=2048,
    ),
}  # fmt: skip
