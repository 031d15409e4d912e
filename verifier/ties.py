"""Arg-reductions: may two indices differ because the values tie?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(output: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether `output` and `expected` index equal extremes of one of the inputs along one of its dimensions.

    True only if `expected` is the arg-maximum or arg-minimum of that input, everywhere.
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
    if list(output.shape) not in (kept, removed):
        return False
    mine, theirs = (t.reshape(kept).long() for t in (output, expected))
    if not all(bool(((t >= 0) & (t < source.shape[dim])).all()) for t in (mine, theirs)):
        return False
    values = source.double()
    chosen, wanted = values.gather(dim, mine), values.gather(dim, theirs)
    extreme = any(torch.equal(wanted, f(dim=dim, keepdim=True)) for f in (values.amax, values.amin))
    return extreme and torch.equal(chosen, wanted)
