"""The errors of one output against its reference, in float64 and in parts that fit.

The formulas are in `numerics`. Nothing here decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROW_LENGTH = 16
NEARLY_CONSTANT = 1e-3
ABSOLUTE = 1e-2
ROUNDING = 2.0**-19
"""Relative error that is forgiven: what fp32's fast exponential, division and summation leave."""
PART = 1 << 26
"""Elements that are looked at together; a longer row is not divided."""


@dataclass(frozen=True, slots=True)
class Errors:
    """E, R, S and the flat index of the worst element."""

    error: float
    row: float
    spot: float
    worst: int
    centred: bool


def measure(output: Tensor, reference: Tensor, compared: Tensor | None = None, mean: float | None = None) -> Errors:
    """Errors of `output` against `reference` (both any float dtype, computed in float64) where `compared` is
    True. `mean`: of the whole reference, when these are parts of it.
    """
    keep = None if compared is None or bool(compared.all()) else compared
    count = reference.numel() if keep is None else int(keep.sum())
    if not count:
        return Errors(0.0, 0.0, 0.0, 0, True)
    columns, eps = columns_of(reference), max(torch.finfo(output.dtype).eps, ROUNDING)
    if mean is None:
        mean = sum(float(r.sum()) for _, r, _ in _wide(output, reference, keep)) / count
    rows = [_Rows.of(o, r, k, columns, eps, mean) for o, r, k in _wide(output, reference, keep)]
    wrong, size, spread = (math.sqrt(sum(getattr(r, name) for r in rows)) for name in ("wrong", "size", "spread"))
    scale, centred = _scale(spread, size, count)
    row, spot, worst = _row_errors(rows, columns, scale / math.sqrt(count), centred=centred)
    return Errors(max(wrong - ROUNDING * size, 0.0) / scale, row, spot, worst, centred)


def relative_error(output: Tensor, reference: Tensor) -> tuple[float, bool]:
    """E alone, of tensors of any dtype and one size, and whether it is centred; infinite where the elements that are
    not finite differ. In float64, a part at a time.
    """
    o, r = (_real(t.detach().reshape(-1)) for t in (output, reference))
    if not r.numel():
        return 0.0, True
    found = [_sums(o[i : i + PART].double(), r[i : i + PART].double()) for i in range(0, r.numel(), PART)]
    if not all(same for same, *_ in found):
        return math.inf, True
    count, total, square, wrong = (sum(column) for column in zip(*(numbers for _, numbers in found), strict=True))
    spread = math.sqrt(max(square - total * total / max(count, 1), 0.0))
    scale, centred = _scale(spread, math.sqrt(square), int(count))
    return math.sqrt(wrong) / max(scale, 1e-30), centred


def _sums(o: Tensor, r: Tensor) -> tuple[bool, tuple[float, float, float, float]]:
    """Whether the elements that are not finite agree; count, sum and squares of finite ones, squares of differences."""
    finite = torch.isfinite(r)
    same = torch.equal(torch.isfinite(o), finite) and torch.equal(o[~finite].nan_to_num(), r[~finite].nan_to_num())
    o, r = _zero_out(o, finite), _zero_out(r, finite)
    return same, (float(finite.sum()), float(r.sum()), float((r * r).sum()), float(((o - r) ** 2).sum()))


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t).reshape(-1) if t.is_complex() else t


def _scale(spread: float, size: float, count: int) -> tuple[float, bool]:
    """What errors are divided by, and whether that is the size around the mean."""
    centred = count > 1 and spread > NEARLY_CONSTANT * size
    return (spread if centred else max(size, ABSOLUTE * math.sqrt(count))), centred


def _wide(output: Tensor, reference: Tensor, keep: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Parts in float64, zero where nothing is compared, and the parts of the mask."""
    masks = itertools.repeat(None) if keep is None else parts_of(keep)
    for o, r, k in zip(parts_of(output), parts_of(reference), masks, strict=False):
        o, r = o.double(), r.double()
        yield (o, r, k) if k is None else (_zero_out(o, k), _zero_out(r, k), k)


def _zero_out(t: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, t, torch.zeros((), dtype=t.dtype, device=t.device))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sums of squares of one part, and per row: norm, spread, error, largest error and where it is."""

    wrong: float
    size: float
    spread: float
    own: Tensor
    norm: Tensor
    error: Tensor
    largest: Tensor
    place: Tensor

    @classmethod
    def of(cls, o: Tensor, r: Tensor, keep: Tensor | None, columns: int, eps: float, mean: float) -> _Rows:
        difference = (o - r).abs_()
        wrong = _squares(difference)
        beyond = difference.sub_(eps * r.abs()).clamp_min_(0).reshape(-1, columns)
        rows = r.reshape(-1, columns)
        centred = r - mean if keep is None else _zero_out(r - mean, keep)
        own = _centre_rows(rows, None if keep is None else keep.reshape(-1, columns)).norm(dim=1)
        largest, place = beyond.max(dim=1)
        return cls(wrong, _squares(r), _squares(centred), own, rows.norm(dim=1), beyond.norm(dim=1), largest, place)


def _squares(t: Tensor) -> float:
    return float(t.reshape(-1).norm()) ** 2


def _centre_rows(rows: Tensor, keep: Tensor | None) -> Tensor:
    """Each row less its mean over the kept elements, 0 elsewhere."""
    if keep is None:
        return rows - rows.mean(1, keepdim=True)
    average = rows.sum(1, keepdim=True) / keep.sum(1, keepdim=True).clamp_min(1)
    return _zero_out(rows - average, keep)


def _row_errors(parts: list[_Rows], columns: int, typical: float, *, centred: bool) -> tuple[float, float, int]:
    """(row error, spot error, flat index of the worst element). `typical`: RMS of the output's scale."""
    own, size, error, largest, place = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("own", "norm", "error", "largest", "place")
    )
    median = own.median()
    root = math.sqrt(columns)
    scale = torch.maximum(own, 0.1 * size).clamp_min(max(0.1 * median.item(), 1e-3 * typical * root, 1e-300))
    if not centred:
        scale = size.clamp_min(typical * root)
    spots = largest * (root / scale)
    worst = int(spots.argmax())
    return (error / scale).max().item(), spots[worst].item(), worst * columns + int(place[worst])


def columns_of(r: Tensor) -> int:
    """Length of a row: the fewest last dimensions that hold at least ROW_LENGTH elements."""
    columns = 1
    for n in reversed(r.shape):
        columns *= n
        if columns >= ROW_LENGTH:
            break
    return columns


def norm_of(t: Tensor) -> float:
    return float(t.reshape(-1).norm())


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """Runs of whole rows, flat and in order: about PART elements each, so that float64 copies of large outputs fit."""
    flat, columns = tensor.reshape(-1), max(columns_of(tensor), 1)
    step = max(PART // columns, 1) * columns
    for start in range(0, max(flat.numel(), 1), step):
        yield flat[start : start + step]
