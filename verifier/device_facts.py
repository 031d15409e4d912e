"""What `torch.cuda` and Triton's driver answer when a file asks about its device. Loads neither."""

from __future__ import annotations

from types import SimpleNamespace

from verifier.target import Target


def torch_properties(target: Target) -> SimpleNamespace:
    """Stands for torch.cuda.get_device_properties."""
    return SimpleNamespace(
        name=target.device_name, major=target.capability // 10, minor=target.capability % 10,
        multi_processor_count=target.sms, total_memory=target.total_memory,
        max_threads_per_multi_processor=target.threads_per_sm, max_threads_per_block=target.threads_per_block,
        regs_per_multiprocessor=target.registers_per_sm, shared_memory_per_multiprocessor=target.shared_per_sm,
        shared_memory_per_block=49152, shared_memory_per_block_optin=target.shared_per_block,
        L2_cache_size=target.l2_bytes, warp_size=target.warp_size, is_integrated=False,
        is_multi_gpu_board=False, gcnArchName="", uuid="", clock_rate=int(target.clock / 1e3),
        memory_clock_rate=int(target.memory_clock / 1e3), memory_bus_width=target.memory_bus,
    )  # fmt: skip


def triton_properties(target: Target) -> dict[str, int]:
    """Stands for get_device_properties of Triton's driver."""
    return {
        "max_shared_mem": target.shared_per_block,
        "multiprocessor_count": target.sms,
        "max_num_regs": target.registers_per_sm,
        "warpSize": target.warp_size,
        "sm_clock_rate": int(target.clock / 1e3),
        "mem_clock_rate": int(target.memory_clock / 1e3),
        "mem_bus_width": target.memory_bus,
    }
