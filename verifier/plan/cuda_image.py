"""The image of a CUDA kernel in a plan: its key, its launch geometry, and what a target refuses.

Used by the recorder, so that a candidate hears of it, and by the plan's reader, which believes nobody. Loads
neither torch nor Triton.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from verifier.plan import cuda_abi, elf
from verifier.plan.cuda_abi import KernelFacts
from verifier.plan.schema import KernelImage
from verifier.profile.cubin import occupancy
from verifier.target import Target

DEFAULT_SHARED = 48 << 10
"""Shared memory of a block without opting in to more, bytes."""
MAX_BLOCK = (1024, 1024, 64)
PORTABLE_CLUSTER = 8

Three = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel is launched. `grid` and `cluster` count blocks, `block` threads; `shared` is dynamic, bytes."""

    grid: Three
    block: Three
    cluster: Three = (1, 1, 1)
    shared: int = 0
    cooperative: bool = False
    dependent: bool = False
    """Programmatic dependent launch."""

    def key(self, cubin: str, name: str) -> str:
        """Key of the image of kernel `name` of a cubin (its SHA-256) with this geometry."""
        parts = (cubin, name, self.block, self.cluster, self.shared, self.cooperative, self.dependent)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


# -- what the target refuses: one sentence, None where it agrees ------------------------------------


def refusal(target: Target, facts: KernelFacts, geometry: Geometry, name: str) -> str | None:
    """Why the target cannot launch such blocks at all."""
    threads, static = math.prod(geometry.block), facts.shared
    warps = -(-threads // target.warp_size)
    per_warp = -(-facts.registers * target.warp_size // target.register_unit) * target.register_unit
    per_block = per_warp * (-(-warps // 4) * 4)  # each of four schedulers has its own quarter
    for axis, count, limit in zip("xyz", geometry.block, MAX_BLOCK, strict=True):
        if not 1 <= count <= limit:
            return f"{name}: block {geometry.block}: {axis} = {count} is outside 1 to {limit}"
    if threads > target.threads_per_block:
        return f"{name}: {threads} threads in a block; {target.threads_per_block} at most"
    if facts.max_threads is not None and threads > facts.max_threads:
        return f"{name}: {threads} threads in a block; its __launch_bounds__ allow {facts.max_threads}"
    if geometry.shared < 0 or static + geometry.shared > target.shared_per_block:
        return f"{name}: {_sizes(facts, geometry)}; {target.shared_per_block} at most"
    if per_block > target.registers_per_sm:
        return (
            f"{name}: {facts.registers} registers x {threads} threads need {per_block} registers; a block has "
            f"{target.registers_per_sm}: too many resources requested for launch"
        )
    if not 1 <= math.prod(geometry.cluster) <= target.cluster_max:
        return f"{name}: a cluster of {math.prod(geometry.cluster)} blocks; {target.cluster_max} at most"
    return None


def refusal_of_grid(target: Target, facts: KernelFacts, geometry: Geometry, name: str) -> str | None:
    """Why the target cannot launch that many of them."""
    for axis, count, limit in zip("xyz", geometry.grid, target.grid_max, strict=True):
        if not 1 <= count <= limit:
            return f"{name}: grid {geometry.grid}: {axis} = {count} is outside 1 to {limit}"
    if any(g % c for g, c in zip(geometry.grid, geometry.cluster, strict=True)):
        return f"{name}: grid {geometry.grid} is no multiple of cluster {geometry.cluster}"
    blocks = math.prod(geometry.grid)
    resident = resident_blocks(target, facts, math.prod(geometry.block), geometry.shared)
    if geometry.cooperative and blocks > resident * target.sms:
        return (
            f"{name}: a cooperative grid of {blocks} blocks; {resident * target.sms} fit at once "
            f"({resident} on each of {target.sms} multiprocessors)"
        )
    return None


def not_opted_in(
    facts: KernelFacts, geometry: Geometry, name: str, shared_limit: int, wide_cluster: bool
) -> str | None:
    """What the kernel's attributes do not allow yet."""
    if geometry.shared and facts.shared + geometry.shared > max(DEFAULT_SHARED, facts.shared + shared_limit):
        return (
            f"{name}: {_sizes(facts, geometry)} are over {DEFAULT_SHARED}; opt in first, by cuKernelSetAttribute of "
            "cuda.bindings.driver with CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, or by "
            "max_dynamic_shared_size_bytes of a CuPy kernel"
        )
    if math.prod(geometry.cluster) > PORTABLE_CLUSTER and not wide_cluster:
        return f"{name}: a cluster of {math.prod(geometry.cluster)} blocks; {PORTABLE_CLUSTER} without opting in"
    return None


def _sizes(facts: KernelFacts, geometry: Geometry) -> str:
    return f"{geometry.shared} bytes of dynamic and {facts.shared} of static shared memory"


def resident_blocks(target: Target, facts: KernelFacts, threads: int, shared: int) -> int:
    """Blocks that one multiprocessor holds at once."""
    warps = -(-threads // target.warp_size)
    return occupancy(target, registers=facts.registers, shared=facts.shared + shared, warps=warps).blocks


# -- for the plan's reader -------------------------------------------------------------------------


def geometry_of(image: KernelImage, grid: Three = (1, 1, 1)) -> Geometry:
    """Geometry of an image of a plan. Raises ValueError without a block and a cluster."""
    if image.block is None or image.cluster is None:
        raise ValueError("a CUDA kernel without block and cluster")
    return Geometry(grid, image.block, image.cluster, image.shared, image.cooperative, image.pdl)


def check(key: str, image: KernelImage, cubin: bytes, ptx: bytes, target: Target) -> None:
    """Compares an image with its files and the target. Raises ValueError with one sentence."""
    geometry = geometry_of(image)
    facts = cuda_abi.read_facts(cubin, image.name)
    found = cuda_abi.parameters(cubin, ptx.decode(errors="replace"), image.name)
    problems = {
        "its key does not match": key != geometry.key(image.cubin, image.name),
        "it has TTIR": image.ttir is not None,
        "num_warps and block differ": image.num_warps != -(-math.prod(geometry.block) // target.warp_size),
        "it has clusters of Triton's kind or scratch memory": image.num_ctas != 1
        or bool(image.global_scratch.size or image.profile_scratch.size or image.tensor_descriptors),
        "global_bytes differs from its cubin": elf.global_bytes(cubin) != image.global_bytes,
        "its parameters differ from its cubin and PTX": [(p.type, p.size, p.access) for p in image.params]
        != [(p.type, p.size, p.access) for p in found],
    }
    for problem, present in problems.items():
        if present:
            raise ValueError(problem)
    if refused := refusal(target, facts, geometry, image.name):
        raise ValueError(refused)


def check_grid(image: KernelImage, grid: Three) -> None:
    """Whether whole clusters fill the grid. Raises ValueError."""
    if image.cluster is not None and any(g % c for g, c in zip(grid, image.cluster, strict=True)):
        raise ValueError(f"grid {grid} is no multiple of cluster {image.cluster}")
