"""Facts of the compile target that the trace itself needs: what the fake device answers and what a launch may
ask for."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.profile.target import get_target


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
    threads_per_block: int
    grid_max: tuple[int, int, int]
    warp_size: int = 32
    cluster_max: int = 16
    """Largest cluster, blocks (non-portable size)."""


def _traced(name: str, device_name: str, total_memory: int) -> TraceTarget:
    """The target whose figures `verifier.profile.target` holds, as the trace sees it."""
    target = get_target(name)
    return TraceTarget(
        name=name,
        capability=target.capability,
        device_name=device_name,
        sms=target.multiprocessors,
        total_memory=total_memory,
        l2_bytes=target.l2_bytes,
        shared_per_block=target.shared_per_block,
        shared_per_sm=target.shared_per_sm,
        registers_per_sm=target.registers,
        threads_per_sm=target.threads_per_sm,
        threads_per_block=target.max_threads,
        grid_max=target.max_grid,
    )


TARGETS: dict[str, TraceTarget] = {"sm_90a": _traced("sm_90a", "NVIDIA H200", 150_754_820_096)}
"""What can be traced; the estimate knows more targets."""
