"""Skipping trips of a loop, and the sectors behind a tile: small pure helpers of the interpreter."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from verifier.profile.values import Array, Pointer

SECTOR_BYTES = 32


def touched_sectors(offset: Any, mask: Any, shape: tuple[int, ...], element: float) -> int | None:
    """Number of distinct 32-byte sectors behind a tile, None when the addresses are unknown. Bases count
    as aligned."""
    if offset is None or math.prod(shape) > 1 << 16:
        return None
    addresses = np.asarray(offset)
    if isinstance(mask, np.ndarray):
        full = np.broadcast_to(addresses, np.broadcast_shapes(addresses.shape, mask.shape))
        addresses = full[np.broadcast_to(mask, full.shape)]
    return int(np.unique((addresses * element).astype(np.int64) // SECTOR_BYTES).size)


def representatives(trips: int) -> list[tuple[int, int]]:
    """(trip, weight): first four and last four for themselves, eight between for the rest. Weights sum to
    `trips`."""
    edges = 4
    middle = trips - 2 * edges
    bounds = [edges + middle * i // 8 for i in range(9)]
    between = [((a + b) // 2, b - a) for a, b in pairwise(bounds) if b > a]
    return [*((i, 1) for i in range(edges)), *between, *((trips - edges + i, 1) for i in range(edges))]


def difference(after: Any, before: Any) -> Any:
    """Stride of a carried value, None when unknown."""
    if isinstance(after, Pointer) and isinstance(before, Pointer):
        return difference(after.offset, before.offset)
    numbers = (int, np.ndarray)
    if isinstance(after, numbers) and isinstance(before, numbers) and not isinstance(after, bool):
        return after - before
    return 0 if after is before else None


def advanced(value: Any, stride: Any, trips: int) -> Any:
    if isinstance(value, Pointer):
        known = value.offset is not None and stride is not None
        offset: int | Array | None = value.offset + stride * trips if known else None
        return Pointer(value.parameter, offset)
    if value is None or stride is None or isinstance(value, (float, bool)):
        return value if isinstance(stride, int) and stride == 0 else None
    return value + stride * trips
