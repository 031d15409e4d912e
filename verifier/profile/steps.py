"""Turns the steps of a checked plan into what the estimate works on: facts of a launch, or a library call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifier.plan.arguments import (
    ConstexprArg,
    DescriptorArg,
    PointerArg,
    ScalarFloatArg,
    ScalarIntArg,
)
from verifier.plan.schema import Alternative, KernelImage, Program
from verifier.profile.calls import view_bytes
from verifier.profile.cubin import Occupancy, Resources, Sass, occupancy
from verifier.profile.estimate import LaunchFacts
from verifier.profile.ttir import Module, TtirError
from verifier.profile.work import Scalar, Traffic, Work, count_work
from verifier.target import Target


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled kernel with what its files say. `module` is None when its TTIR could not be read."""

    image: KernelImage
    resources: Resources
    occupancy: Occupancy
    module: Module | None
    shared: int
    """Per block, bytes: dynamic and static, without the driver's share."""
    sass: Sass | None = None


def kernel_of(image: KernelImage, resources: Resources, module: Module | None, target: Target) -> Kernel:
    """Joins the parts; shared memory is the dynamic part plus what the cubin declares itself."""
    shared = image.shared + max(0, resources.shared - target.shared_counted)
    held = occupancy(target, registers=resources.registers, shared=shared, warps=image.num_warps)
    return Kernel(image, resources, held, module, shared)


@dataclass(slots=True)
class WorkCache:
    """Work by kernel, scalars and grid: repeated launches are counted once."""

    _known: dict[tuple[Any, ...], Work] = field(default_factory=dict)

    def count(self, kernel: Kernel, scalars: Sequence[Scalar], grid: tuple[int, int, int]) -> Work | None:
        """None when the text cannot be followed."""
        if kernel.module is None:
            return None
        key = (kernel.image.cubin, tuple(scalars), grid)
        if key not in self._known:
            try:
                self._known[key] = count_work(kernel.module, scalars, grid)
            except TtirError:
                return None
        return self._known[key]


def launch_facts(kernel: Kernel, launch: Alternative, program: Program, works: WorkCache) -> LaunchFacts:
    """Facts of one alternative of a launch. Work that cannot be counted is replaced by one pass over the
    buffers."""
    scalars, buffers = _arguments(launch, program)
    image = kernel.image
    work = works.count(kernel, scalars, launch.grid)
    return LaunchFacts(
        name=image.title,
        grid=launch.grid,
        warps=image.num_warps,
        stages=image.num_stages,
        blocks_per_sm=kernel.occupancy.blocks,
        work=work if work is not None else _one_pass(launch, image, buffers),
        buffers=buffers,
        sass=kernel.sass,
        spill_bytes=kernel.resources.stack,
    )


def _arguments(launch: Alternative, program: Program) -> tuple[list[Scalar], dict[int, tuple[int, int]]]:
    """Scalars in the order of the TTIR function's parameters, and the buffer behind each pointer parameter.

    A descriptor is followed by its shape and its strides, as Triton flattens it.
    """
    scalars: list[Scalar] = []
    buffers: dict[int, tuple[int, int]] = {}
    for arg in launch.args:
        if isinstance(arg, ConstexprArg):
            continue
        if isinstance(arg, PointerArg | DescriptorArg):
            buffers[len(scalars)] = (arg.storage, _bytes_behind(arg, program))
        if isinstance(arg, DescriptorArg):
            scalars += [tuple(arg.shape), *arg.shape, *arg.strides]
        elif isinstance(arg, ScalarIntArg):
            scalars.append(arg.v)
        elif isinstance(arg, ScalarFloatArg):
            scalars.append(float(arg.v))
        else:
            scalars.append(None)
    return scalars, buffers


def _bytes_behind(arg: PointerArg | DescriptorArg, program: Program) -> int:
    if arg.value is not None:
        return view_bytes(program, arg.value)
    return max(0, program.storages[arg.storage].bytes - arg.offset)


def _one_pass(launch: Alternative, image: KernelImage, buffers: Mapping[int, tuple[int, int]]) -> Work:
    traffic = {}
    position = 0
    access = {p.name: p.access for p in image.params}
    for arg in launch.args:
        if isinstance(arg, ConstexprArg):
            continue
        if position in buffers:
            size, kind = buffers[position][1], access.get(arg.name, "both")
            traffic[position] = Traffic(
                loaded=size if kind in ("load", "both") else 0,
                stored=size if kind in ("store", "both") else 0,
            )
        position += 1 + 2 * len(arg.shape) if isinstance(arg, DescriptorArg) else 1
    loaded, stored = sum(t.loaded for t in traffic.values()), sum(t.stored for t in traffic.values())
    return Work(
        programs=math.prod(launch.grid),
        sampled=0,
        loaded=loaded,
        stored=stored,
        sectors=loaded + stored,
        parameters=traffic,
        unknown_trips=True,
    )
