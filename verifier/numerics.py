"""Is an output right? Pure functions on tensors; no device, no I/O.

Per output tensor o, with the float64 reference r and PyTorch's own result y in the contract's precision:

1. Structure, shape and dtype are equal, and so is the pattern of NaN, +inf and -inf. r is cast to o's dtype
   first, so an overflow in fp16 is the same in both; where y overflows on the way and r does not, either is
   accepted.
2. Error      E(o) = ||o - r|| / ||r - mean(r)||                   one number per output
   Row error  R(o) = max_i ||o_i - r_i|| / d_i                     rows: last dimensions, at least 16 long
   Spot error S(o) = max_ij |o_ij - r_ij| * sqrt(columns) / d_i    so that one wrong element shows
   d_i = max(||r_i - mean(r_i)||, 0.1 ||r_i||, 0.1 median_k ||r_k - mean(r_k)||), so that a row that is
   constant or much smaller than its neighbours does not divide by nothing. E forgives 2^-19 ||r||, which is what
   fp32's fast exponential and division leave: a softmax over equal values is centred away to nothing. R and S forgive
   that too, and one unit in the last place of o's dtype: a nearly constant row in bf16 may round to either neighbour.
   Accepted: E <= max(4 E(y), floor), R <= max(4 R(y), floor), S <= max(8 S(y), 32 floor); a second yardstick may
   have another margin than 4.
3. A single element or a nearly constant output (||r - mean(r)|| <= 1e-3 ||r||) is not centred:
   E(o) = ||o - r|| / max(||r||, 1e-2 sqrt(n)), with the floors of UNCENTRED_FLOORS.
4. Integers and booleans are exact. An index of an arg-reduction or of top-k may differ where the values tie. Where
   values are rounded before they are compared or made whole, results may differ in at most 4 times as many places as
   PyTorch's own result in the contract's precision does.

Why centred: with inputs in [0, 1) a constant equal to the mean passes allclose at 1e-2 for half of a GEMM's
elements, and fp8 for all of them; the centred error is 1.0 and 4e-2, nearly independent of the inner
dimension. The factor 4 and floors per class follow TorchInductor's `same()` (RMSE against float64, a multiple
of the reference's own error) and measurements of GEMM: fp32 7e-6, TF32 and fp16 operands 4e-4, bf16 3e-3, fp8
e4m3 5e-2. `allclose` at KernelBench's tolerances (`eval.py`: 1e-4 for fp32, 1e-2 for half) is reported beside
and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.measure import ROW_LENGTH, columns_of, measure, norm_of, parts_of
from verifier.problem import Precision
from verifier.specs import dtype_name
from verifier.ties import ties

FLOORS = {
    Precision.FP32: 1e-5,
    Precision.TF32: 1e-3,
    Precision.FP16: 1e-2,
    Precision.BF16: 1e-2,
    Precision.FP8: 6e-2,
}
"""Least limit per class of the contract. fp8: e4m3 operands alone give 5e-2 on a GEMM."""

UNCENTRED_FLOORS = {
    Precision.FP32: 1e-5,
    Precision.TF32: 1e-4,
    Precision.FP16: 2e-3,
    Precision.BF16: 8e-3,
    Precision.FP8: 3e-2,
}
"""Averages cancel the rounding of operands; what remains is mostly the rounding of the output."""

WITHIN = "within the floor"
MARGIN = 4.0
SPOTS = 2.0
"""Times the margin, for one element."""
SPOT_FLOOR = 32.0
COARSE = 0.125
"""A draw on which PyTorch's own error exceeds this cannot tell right from wrong."""
OVERFLOW_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output. `error` and `row_error` are None when shape, dtype or the non-finite pattern differ; where an output
    is PyTorch's own result or near it (`near.py`), they are its distance from that."""

    passed: bool
    reason: str = ""
    error: float | None = None
    row_error: float | None = None
    yardstick: float = 0.0
    limit: float = 0.0
    allclose: bool | None = None


def compare(
    output: object,
    reference: Tensor,
    native: Tensor,
    precision: Precision,
    *,
    yardstick: Tensor | None = None,
    inputs: Sequence[Tensor] = (),
    stored: Tensor | None = None,
    margin: float = MARGIN,
) -> Comparison:
    """Compares one output leaf with the reference.

    reference: float64 for a floating output, else the exact values. native: PyTorch's result in its own
    dtype, which gives the expected dtype. yardstick: the result in the contract's precision, `native` when
    left out; up to `margin` times its error is right where outputs are floating. inputs: the tensors of the
    draw, for ties of arg-reductions. stored: bool, where the output counts, at least one element unless it is
    empty; everywhere when left out. Then rows are what is left of rows, and only the mean is that of the whole
    reference.
    """
    if not isinstance(output, Tensor):
        return Comparison(False, f"is a {type(output).__name__}, not a tensor")
    if tuple(output.shape) != tuple(native.shape):
        return Comparison(False, f"shape {list(output.shape)} instead of {list(native.shape)}")
    if output.dtype != native.dtype:
        return Comparison(False, f"dtype {dtype_name(output.dtype)} instead of {dtype_name(native.dtype)}")
    if output.dtype.is_complex:
        parts = [torch.view_as_real(t) for t in (output, reference, native)]
        ruler = None if yardstick is None else torch.view_as_real(yardstick)
        twice = None if stored is None else stored.unsqueeze(-1).expand(parts[0].shape)
        return compare(parts[0], parts[1], parts[2], precision, yardstick=ruler, stored=twice, margin=margin)
    ruler = native if yardstick is None else yardstick
    if not output.dtype.is_floating_point:
        if stored is not None:
            expected = reference.to(output.dtype)
            output, ruler = (torch.where(stored, t.to(output.dtype), expected) for t in (output, ruler))
        return _compare_exact(output, reference, ruler, inputs)
    if stored is None or bool(stored.all()):
        close = allclose(output, native)
        return replace(_compare_floats(output, reference, ruler, precision, margin), allclose=close)
    rows = _stored_rows(stored)
    place = _Place(tuple(output.shape), rows.reshape(-1))
    mean = _finite_mean(reference)
    output, reference, native, ruler = (t.reshape(-1)[rows] for t in (output, reference, native, ruler))
    close = allclose(output, native)
    return replace(_compare_floats(output, reference, ruler, precision, margin, place, mean), allclose=close)


def coarse(reference: Tensor, yardstick: Tensor) -> str:
    """Why this draw cannot tell right from wrong, or an empty string: PyTorch's own error is too large."""
    if not yardstick.dtype.is_floating_point or not reference.numel():
        return ""
    compared = _comparable(reference, yardstick, yardstick)
    held = sum(
        int(torch.isfinite(_cast(r, y)).sum()) for r, y in zip(parts_of(reference), parts_of(yardstick), strict=True)
    )
    lost = (held - int(compared.sum())) / reference.numel()
    if lost > OVERFLOW_SHARE:
        return f"PyTorch's own result overflows in {100 * lost:.0f}% of the elements"
    errors = measure(yardstick, reference, compared)
    if errors.error > COARSE or errors.row > COARSE:
        return f"PyTorch's own error in this precision is {max(errors.error, errors.row):.2g}"
    return ""


def allclose(output: Tensor, native: Tensor) -> bool:
    """`torch.allclose` at KernelBench's tolerances: rtol = atol = 1e-4 for fp32 and fp64, 1e-2 below."""
    tolerance = tolerance_of(native.dtype)
    wide = native.dtype if native.dtype in (torch.float32, torch.float64) else torch.float32
    parts = zip(parts_of(output), parts_of(native), strict=True)
    return all(torch.allclose(o.to(wide), n.to(wide), rtol=tolerance, atol=tolerance, equal_nan=True) for o, n in parts)


def tolerance_of(dtype: torch.dtype) -> float:
    """Relative and absolute tolerance of KernelBench."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2


def within_floor(output: Tensor, reference: Tensor, native: Tensor, precision: Precision) -> Comparison | None:
    """That an output is right by the floors alone, whatever the yardstick is; None where that does not show, or where
    something is not finite. `reference` in float64."""
    if not output.dtype.is_floating_point or not output.numel() or output.shape != reference.shape:
        return None
    most = 0.98 * torch.finfo(output.dtype).max
    finite = all(bool(torch.isfinite(o.float()).all()) for o in parts_of(output))
    if not finite or not all(bool((r.abs() < most).all()) for r in parts_of(reference)):
        return None
    found = measure(output, reference)
    floor = (FLOORS if found.centred else UNCENTRED_FLOORS)[precision]
    if not (found.error <= floor and found.row <= floor and found.spot <= SPOT_FLOOR * floor):
        return None
    return Comparison(True, WITHIN, found.error, found.row, 0.0, floor, allclose(output, native))


# floating point


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an element of gathered rows is in the output."""

    shape: tuple[int, ...]
    flat: Tensor | None = None

    def __call__(self, number: int) -> str:
        number, index = number if self.flat is None else int(self.flat[number]), list[int]()
        for n in reversed(self.shape):
            index.append(number % n)
            number //= n
        return str(index[::-1])


def _stored_rows(stored: Tensor) -> Tensor:
    """Flat indices of the stored elements as [rows, length]. A row is what is stored of an output's row where
    most rows have the same share of at least ROW_LENGTH, else a run of ROW_LENGTH stored elements. The last row
    repeats elements of the one before to be full.
    """
    flat = stored.reshape(-1).nonzero().reshape(-1)
    counts = stored.reshape(-1, columns_of(stored)).sum(1)
    length = int(counts[counts > 0].mode().values)
    length = min(length if length >= ROW_LENGTH else ROW_LENGTH, flat.numel())
    whole = flat.numel() // length * length
    rows = flat[:whole].reshape(-1, length)
    return rows if whole == flat.numel() else torch.cat([rows, flat[None, -length:]])


def _finite_mean(reference: Tensor) -> float:
    finite = reference[torch.isfinite(reference)]
    return float(finite.double().mean()) if finite.numel() else 0.0


def _compare_floats(
    output: Tensor, reference: Tensor, ruler: Tensor, precision: Precision, margin: float, place: _Place | None = None,
    mean: float | None = None,
) -> Comparison:  # fmt: skip
    """`place` and `mean` of the whole output when the tensors are rows of it."""
    place = place or _Place(tuple(output.shape))
    if not output.numel():
        return Comparison(True, error=0.0, row_error=0.0, limit=FLOORS[precision])
    if problem := pattern_difference(output, reference, ruler, place):
        return Comparison(False, problem)
    compared = _comparable(reference, ruler, output)
    found, own = (measure(t, reference, compared, mean) for t in (output, ruler))
    floor = FLOORS[precision] if found.centred else UNCENTRED_FLOORS[precision]
    limit, row_limit = max(margin * own.error, floor), max(margin * own.row, floor)
    spot_limit = max(SPOTS * margin * own.spot, SPOT_FLOOR * floor)
    reason = ""
    if not found.error <= limit:
        reason = f"relative error {found.error:.2e} is over the limit {limit:.2e}"
    elif not found.row <= row_limit:
        reason = f"relative error of the worst row {found.row:.2e} is over the limit {row_limit:.2e}"
    elif not found.spot <= spot_limit:
        reason = f"one element is off by {found.spot:.2e} of its row's size, the limit is {spot_limit:.2e}"
    if reason:
        reason += _example(output, reference, found.worst, place)
    return Comparison(not reason, reason, found.error, found.row, own.error, limit)


# NaN and infinity


def pattern_difference(output: Tensor, reference: Tensor, ruler: Tensor, place: _Place) -> str:
    """Where NaN, +inf and -inf differ from what is allowed, in words; empty when they do not."""
    count, at, text = 0, 0, ""
    for o, r, y in zip(parts_of(output), parts_of(reference), parts_of(ruler), strict=True):
        bad, found, wanted = _pattern(o, r, y)
        if here := int(bad.sum()):
            if not count:
                first = int(bad.int().argmax())
                got, want = (_KINDS[int(k[first])] for k in (found, wanted))
                text = f"first at {place(at + first)}"
            count += here
        at += o.numel()
    if not count:
        return ""
    text = f"{got} instead of {want} in {count} of {output.numel()} elements, {text}"
    return f"{text} (memory from torch.empty holds NaN until it is written)" if got == "NaN" else text


def _pattern(output: Tensor, reference: Tensor, ruler: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mask of elements whose kind is wrong, kinds found, kinds wanted)."""
    found, wanted, own = _kind(output), _kind(_cast(reference, output)), _kind(ruler)
    near = _near_overflow(reference, output.dtype) & (found != _NAN)
    signs_agree = (found == _FINITE) | (found == torch.where(reference > 0, _POSITIVE, _NEGATIVE))
    return (found != wanted) & (found != own) & ~(near & signs_agree), found, wanted


_FINITE, _NAN, _POSITIVE, _NEGATIVE = 0, 1, 2, 3
_KINDS = {_FINITE: "a finite value", _NAN: "NaN", _POSITIVE: "+inf", _NEGATIVE: "-inf"}


def _kind(t: Tensor) -> Tensor:
    kind = torch.zeros(t.shape, dtype=torch.uint8, device=t.device)
    wide = t.double()
    kind[wide.isnan()] = _NAN
    kind[wide == math.inf] = _POSITIVE
    kind[wide == -math.inf] = _NEGATIVE
    return kind


def _comparable(reference: Tensor, ruler: Tensor, output: Tensor) -> Tensor:
    """Mask of the elements whose values are compared: finite in all three."""
    parts = zip(parts_of(reference), parts_of(ruler), parts_of(output), strict=True)
    finite = [
        torch.isfinite(_cast(r, o)) & torch.isfinite(y.double()) & torch.isfinite(o.double()) for r, y, o in parts
    ]
    return torch.cat(finite).reshape(output.shape)


def _cast(reference: Tensor, output: Tensor) -> Tensor:
    """The reference as the output's dtype holds it, in float64."""
    return reference.to(output.dtype).double() if output.dtype.itemsize > 1 else reference.double()


def _near_overflow(reference: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return (reference.abs() > 0.98 * largest) & (reference.abs() < 1.02 * largest)


# integers and booleans


def _compare_exact(output: Tensor, reference: Tensor, ruler: Tensor, inputs: Sequence[Tensor]) -> Comparison:
    expected, whole = reference.to(output.dtype), output.dtype != torch.bool
    if not whole:  # a byte that is neither 0 nor 1 is memory that nothing wrote
        output, expected, ruler = (t.to(torch.bool).view(torch.uint8) for t in (output, expected, ruler))
    wrong = output != expected
    count = int(wrong.sum())
    if count and whole and ties(output, expected, inputs):
        return Comparison(True, f"{count} indices differ where the values tie", 0.0, 0.0)
    if count and count <= MARGIN * (doubtful := int((ruler != expected).sum())):
        return Comparison(True, f"{count} elements differ, as PyTorch's own do in {doubtful} places")
    if not count:
        return Comparison(True, error=0.0, row_error=0.0)
    first = int(wrong.reshape(-1).int().argmax())
    got, want = (t.reshape(-1)[first].item() for t in (output, expected))
    place = _Place(tuple(output.shape))(first)
    return Comparison(False, f"{count} of {output.numel()} elements differ, first at {place}: {got} instead of {want}")


# the integer probe


def precision_class(output: Tensor, exact: Tensor) -> str:
    """Class of arithmetic that a (multi)linear operator used on the integer probe (see `inputs.probe`).

    output, exact: a floating result and the exact one, finite. fp32 is bit-exact; otherwise the error tells
    how many bits of an operand survived: 11 (tf32, fp16), 8 (bf16), 4 or less (fp8). fp16 overflows on the
    probe.
    """
    wide = output.double()
    if torch.equal(wide, exact.double()):
        return "fp32"
    if not bool(torch.isfinite(wide).all()):
        return "fp16"
    error = norm_of(wide - exact.double()) / max(norm_of(exact.double()), 1e-300)
    if error < 2.0**-16:
        return "fp32"
    if error < 2.0**-11:
        return "tf32"
    return "bf16" if error < 2.0**-7 else "fp8"


# words


def _example(output: Tensor, reference: Tensor, flat: int, place: _Place) -> str:
    got, want = (t.reshape(-1)[flat].item() for t in (output.double(), reference.double()))
    return f"; at {place(flat)} {got:.6g} instead of {want:.6g}"
