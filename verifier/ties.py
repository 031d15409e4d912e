"""Arg-reductions and top-k: may two indices differ because the values tie?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(output: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether `output` and `expected` index equal extremes of one of the inputs along one of its dimensions.

    True only if `expected` is the arg-maximum or arg-minimum of that input everywhere, or its k largest or smallest in
    order, and if `output` takes no element twice.
    """
    if output.dtype not in (torch.int64, torch.int32):
        return False
    for source in inputs:
        if source.dtype.is_complex or source.dtype == torch.bool:
            continue
        for dim in range(source.dim()):
            if _ties_along(output, expected, source, dim):
                return True
    return False


def _ties_along(output: Tensor, expected: Tensor, source: Tensor, dim: int) -> bool:
    kept = [*source.shape[:dim], 1, *source.shape[dim + 1 :]]
    removed = [*source.shape[:dim], *source.shape[dim + 1 :]]
    several = output.shape[dim] if output.dim() == source.dim() else 1
    if list(output.shape) == [*source.shape[:dim], several, *source.shape[dim + 1 :]]:
        kept[dim] = several
    elif list(output.shape) != removed:
        return False
    mine, theirs = (t.reshape(kept).long() for t in (output, expected))
    if not 0 < several <= source.shape[dim]:
        return False
    if not all(bool(((t >= 0) & (t < source.shape[dim])).all()) for t in (mine, theirs)):
        return False
    values = source.double()
    chosen, wanted = values.gather(dim, mine), values.gather(dim, theirs)
    extreme = any(torch.equal(wanted, values.topk(several, dim, largest=up).values) for up in (True, False))
    ordered = mine.sort(dim).values
    once = several == 1 or not bool((ordered.diff(dim=dim) == 0).any())
    return extreme and once and torch.equal(chosen, wanted)
