"""The autotuning decorator: the genome's own tiles first, then a few neighbours that fit."""

from __future__ import annotations

from dataclasses import replace

from tools.models.sampler.build import Build
from tools.models.sampler.genome import Genome, sensible

NEIGHBOURS: tuple[dict[str, float], ...] = ({}, {"num_warps": 2.0}, {"block_n": 0.5}, {"block_m": 0.5})
"""Factors on genes; the first is the genome itself."""


def configurations(b: Build) -> tuple[Genome, ...]:
    """Up to four genomes that differ in tiles and warps. The genome itself is always the first."""
    found: list[Genome] = []
    for factors in NEIGHBOURS:
        values = {name: int(getattr(b.genome, name) * factor) for name, factor in factors.items()}
        try:
            near = replace(b.genome, **values)  # type: ignore[arg-type]
        except ValueError:
            continue
        if not factors or sensible(near, b.task.head_dim, b.task.item):
            found.append(near)
    return tuple(found)


def decorator(b: Build) -> str:
    """Lines above `@triton.jit`, empty for a kernel with fixed sizes."""
    if not b.tuned:
        return ""
    lines = [
        f'        triton.Config({{"BLOCK_M": {g.block_m}, "BLOCK_N": {g.block_n}}}, '
        f"num_warps={g.num_warps}, num_stages={g.num_stages}),"
        for g in configurations(b)
    ]
    return "\n".join(["@triton.autotune(", "    configs=[", *lines, "    ],", '    key=["S", "D"],', ")"])
