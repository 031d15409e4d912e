"""An output so near PyTorch's own result that it is right whatever the float64 reference says.

With o an output, y PyTorch's own result in its own precision and r the float64 reference, the errors of `numerics` obey
E(o) <= ||o - y|| / ||r - mean(r)|| + E(y), and so do R and S, row by row. So with D = ||o - y|| / ||y - mean(y)||

    D <= 3/4 floor   implies   E(o) <= max(4 E(y), floor):

where E(y) is under a quarter of the floor, E(o) stays under the floor; above it three times E(y) is more than D. Two
thirds, in place of three quarters, pay for a size that was taken from y in place of r: a row of y may be larger than
that of r by its error, and by ten units in the last place where its mean is ten times its spread. y stands for the
contract's yardstick too: PyTorch in full precision is not worse than PyTorch in less.

This saves the float64 reference, the yardstick and most of the comparison for nearly every right output; what is not
near is compared in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.measure import NEARLY_CONSTANT, PART, columns_of, parts_of
from verifier.numerics import FLOORS, SPOT_FLOOR, Comparison, allclose, tolerance_of
from verifier.problem import Precision

SHARE = 2 / 3
"""Of each floor that an output may be away from PyTorch's own result."""
_GLANCE = 4096
"""Bytes that tell most outputs apart."""
LEAST = 1 << 16
"""Elements; smaller outputs are compared in full, which costs nothing."""
NEAR = "within two thirds of the floor of PyTorch's own result"
_SAFE = 4.0
"""Times NEARLY_CONSTANT: an output that may count as constant is compared in full."""


@dataclass(frozen=True, slots=True)
class Near:
    """PyTorch's own result of one output with what its rows are measured by."""

    native: Tensor
    spread: float
    """||y - mean(y)||"""
    scale: Tensor
    """d_i of each row, fp32 [rows]."""

    @classmethod
    def of(cls, native: object) -> Near | None:
        """None where nothing can be near: not floating, small, nearly constant or not finite."""
        if not isinstance(native, Tensor) or not native.dtype.is_floating_point or native.numel() < LEAST:
            return None
        columns = columns_of(native)
        parts = [_row_sizes(part.reshape(-1, columns)) for part in parts_of(native)]
        mean, square, own, size = (torch.cat([p[i] for p in parts]).double() for i in range(4))
        total = float(square.sum())
        spread = math.sqrt(max(total - float(mean.mean()) ** 2 * native.numel(), 0.0))
        if not math.isfinite(total) or spread <= _SAFE * NEARLY_CONSTANT * math.sqrt(total):
            return None
        typical = spread / math.sqrt(native.numel())
        least = max(0.1 * float(own.median()), 1e-3 * typical * math.sqrt(columns), 1e-300)
        return cls(native, spread, torch.maximum(own, 0.1 * size).clamp_min(least).float())

    def compare(self, output: object, precision: Precision) -> Comparison | None:
        """That an output is right, with its distance from PyTorch's own result as its error; None if it is not near."""
        y = self.native
        if not isinstance(output, Tensor) or output.shape != y.shape or output.dtype != y.dtype:
            return None
        columns, floor = columns_of(y), FLOORS[precision]
        rows, largest, wrong = [], [], []
        for o, n in zip(parts_of(output), parts_of(y), strict=True):
            difference = _wide(o).reshape(-1, columns) - _wide(n).reshape(-1, columns)
            rows.append(torch.linalg.vector_norm(difference, dim=1))
            largest.append(torch.linalg.vector_norm(difference, ord=math.inf, dim=1))
            wrong.append(rows[-1].double().square().sum())
        row, spot = torch.cat(rows) / self.scale, torch.cat(largest) / self.scale
        found = torch.stack([torch.stack(wrong).sum().sqrt(), row.max(), spot.max(), torch.cat(largest).max()])
        total, worst_row, worst_spot, most = found.tolist()  # NaN where anything is
        error = total / self.spread
        near = error <= SHARE * floor and worst_row <= SHARE * floor
        if not near or not worst_spot * math.sqrt(columns) <= SHARE * SPOT_FLOOR * floor:
            return None
        tolerated = most <= tolerance_of(y.dtype) or allclose(output, y)
        return Comparison(True, NEAR, error, worst_row, 0.0, floor, tolerated)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have equal bytes in row-major order."""
    one, two = (t.reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one[:_GLANCE], two[:_GLANCE]) and all_same([(a, b)])[0]


def all_same(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """`same_bytes` of each pair, for those that are equal as a rule: the device is waited for once."""
    flags = [_differ(*(t.reshape(-1).view(torch.uint8) for t in pair)) for pair in pairs]
    return [not differ for differ in torch.stack(flags).tolist()] if flags else []


def _differ(one: Tensor, two: Tensor) -> Tensor:
    """Whether any byte does, a bool where the tensors are."""
    if any(t.data_ptr() % 8 or t.storage_offset() % 8 for t in (one, two)):
        return (one != two).any()
    words = one.numel() // 8 * 8
    wide = [t[:words].view(torch.int64) for t in (one, two)]
    found = [(wide[0][s : s + PART] != wide[1][s : s + PART]).any() for s in range(0, words // 8, PART)]
    if words < one.numel() or not found:
        found.append((one[words:] != two[words:]).any())
    return found[0] if len(found) == 1 else torch.stack(found).any()


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def _row_sizes(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, sum of squares, norm without the mean, norm of each row."""
    wide = _wide(rows)
    mean, norm = wide.mean(1), torch.linalg.vector_norm(wide, dim=1)
    own = torch.linalg.vector_norm(wide - mean[:, None], dim=1)
    return mean, norm.double().square(), own, norm
