"""Draws of inputs: one distribution each, made from the task's own `get_inputs` and a secret seed.

    task          what get_inputs returns
    normal        N(0, 1)
    heavy_tailed  Student's t with 3 degrees of freedom, clamped to +-64
    sparse        N(0, 1), nine of ten elements are zero; a 256th of that where the reference has no weights, so that a
                  wrong epsilon or an absolute threshold shows (beside a bias, such values would be lost in it)
    scaled        64 N(0, 1) for one tensor, 5 N(0, 1) where several are replaced: scores, products of two among them,
                  pass 100, so that exp overflows where no maximum is subtracted; larger ones would lose honest kernels
                  of fp16 whose scores are rounded
    integers      whole numbers from -3 to 3, with many ties, exact in every dtype; where the reference reduces, the
                  first tensor is from -7 to -1, so that a maximum which begins at zero shows; of three tensors or more
                  the first is negative and the second positive: beside scores that are all far under zero, a score of
                  zero where a mask of the tail is missing is the largest, not one in a thousand

Only floating tensors are replaced. Integer, bool and complex tensors, tensors whose values are all in {0, 1,
-1, +-inf} (masks, labels) and everything that is no tensor keep the task's own values, fresh by seed. Shape,
dtype and strides are kept, and so is what a kernel may rely on: zeros where the task's own tensor has many of them
(triangular, banded), symmetry where its last two dimensions have it, sorted rows, and rows in which each value comes
twice in a row or half a row apart (angles of rotary embeddings). The caller skips a distribution on which the float64
reference raises or is not finite.

`probe` makes integers for which a (multi)linear operator is exact in fp32 whatever the order of summation,
and not in anything narrower: odd integers of 18 bits against sparse {-1, 0, 1}.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from verifier.specs import encode, leaves, rebuild

DRAWS = ("task", "normal", "heavy_tailed", "sparse", "scaled", "integers")
PROBE_BITS = 18
PROBE_TERMS = 16
"""Nonzero terms per sum on average, so that sums stay below 2^24."""
SAMPLE = 4096
STRUCTURE = 0.05
"""Share of zeros above which they have a meaning."""
_LEAST_ROW, _GLIMPSE = 7, 64
"""Pairs of elements in a row from which on what they have in common is no accident, and those looked at first."""
_SIGNED = 3
"""Replaced tensors from which on the products of the first two of `integers` have one sign."""
LARGE, LARGE_TOGETHER, SMALL = 64.0, 5.0, 2.0**-8
"""Deviations of `scaled` for one tensor and for several, and of `sparse`."""


class _Place(NamedTuple):
    """Which of the replaced tensors one is."""

    number: int
    among: int
    reduced: bool
    bare: bool


def derive_seed(seed: int, *names: str) -> int:
    """A seed for one use, from the secret one: 63 bits of SHA-256, so that one says nothing about another."""
    text = "\0".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw(
    name: str, get_inputs: Callable[[], Any], seed: int, device: torch.device | str = "cpu", *, reduced: bool = False,
    bare: bool = True,
) -> list[Any]:  # fmt: skip
    """Arguments of `forward` under distribution `name`, made on `device`; `reduced`: its outputs are much smaller;
    `bare`: the reference has no weights.

    The same on every call with equal arguments on one kind of device; the kinds differ. Raises KeyError for a name that
    is not in DRAWS.
    """
    values = own(get_inputs, seed, device)
    if name == "task":
        return values
    make = _MAKERS[name]
    generator = torch.Generator(device).manual_seed(seed)
    given = list(leaves(values))
    chosen = [i for i, t in enumerate(given) if replaceable(t)]
    for place, i in enumerate(chosen):
        given[i] = _structured(make(given[i], generator, _Place(place, len(chosen), reduced, bare)), given[i])
    made: list[Any] = _replace(values, given)
    return made


def seed_streams(seed: int) -> None:
    """`torch.manual_seed` for the host and the GPUs. That one also leaves a note with a trace of the stack for every
    other kind of device: half a millisecond, and memory that nobody gives back.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def own(get_inputs: Callable[[], Any], seed: int, device: torch.device | str = "cpu") -> list[Any]:
    """What the task's `get_inputs` returns, on `device`. Made there where the file allows it, else on the host."""
    seed_streams(seed)
    if torch.device(device).type == "cpu":
        return list(get_inputs())
    try:
        with torch.device(device):
            values = list(get_inputs())
    except (RuntimeError, TypeError, ValueError):
        seed_streams(seed)
        values = list(get_inputs())
    moved: list[Any] = _replace(values, (t.to(device) for t in leaves(values)))
    return moved


def probe(values: Any, seed: int) -> Any:
    """`values` with its first replaceable tensor as odd integers of PROBE_BITS bits, the others in {-1, 0,
    1}.
    """
    given = list(leaves(values))
    generator = torch.Generator(given[0].device if given else "cpu").manual_seed(seed)
    return _replace(values, _probe_tensors(iter(given), generator))


def probe_state(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights in {-1, 0, 1}, sparse; vectors (biases) zero; integer buffers unchanged."""
    device = next(iter(state.values())).device if state else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.dtype.is_floating_point:
            made[name] = tensor
        elif tensor.dim() < 2:
            made[name] = torch.zeros_like(tensor)
        else:
            made[name] = _signs(tensor, generator)
    return made


def replaceable(tensor: Tensor) -> bool:
    """Whether a distribution may replace this tensor: floating, and neither a mask nor a label."""
    if not tensor.dtype.is_floating_point or not tensor.numel():
        return False
    return not _special(_sample(tensor)) or not _special(tensor.detach())


def _special(values: Tensor) -> bool:
    """Whether all are in {0, 1, -1, +-inf}."""
    values = values.float()
    return bool(((values == 0) | (values.abs() == 1) | values.isinf()).all())


def _sample(tensor: Tensor) -> Tensor:
    """At most SAMPLE elements, spread over the tensor by steps that no shape has."""
    count = min(tensor.numel(), SAMPLE)
    at = torch.arange(count, device=tensor.device) * 2_654_435_761 % tensor.numel()
    places, rest = [], at
    for n in reversed(tensor.shape):
        places.append(rest % n)
        rest = rest // n
    return tensor.detach()[tuple(reversed(places))]


def _structured(made: Tensor, own: Tensor) -> Tensor:
    """`made` with the zeros, the order, the repetitions and the symmetry of the task's own tensor."""
    if float((_sample(own).float() == 0).float().mean()) > STRUCTURE:
        made = _like(made.float() * (own.float() != 0), own)
    if _symmetric(own):
        made = _like(torch.triu(made.float()) + torch.triu(made.float(), 1).mT, own)
    for views, related, keep in _ROWS if own.dim() else ():
        if _all_rows(own, views, related):
            return _like(keep(made.float()), own)
    return made


def _symmetric(own: Tensor) -> bool:
    if own.dim() < 2 or own.shape[-1] != own.shape[-2] or own.shape[-1] == 1:
        return False
    return all(torch.equal(part, part.mT) for part in (own[..., :64, :64].float(), own.float()))


_Pair = tuple[Tensor, Tensor]


def _all_rows(own: Tensor, views: Callable[[Tensor], _Pair], related: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether elements are related to those beside them in every row, and not since each row has one value. A few of
    the first row and of the last show of most tensors that they are not; those at an angle of zero are all the same."""
    left, right = views(own)
    if left.shape != right.shape or left.shape[-1] < _LEAST_ROW:
        return False
    for end in (0, -1):
        if not related(*(t[(end,) * (t.dim() - 1)][:_GLIMPSE].float() for t in (left, right))).all():
            return False
    every = _comparable(own)
    before, after = _neighbours(every)
    return bool(related(*views(every)).all() & (before != after).any())


def _comparable(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize == 1 else values


def _halves(x: Tensor) -> _Pair:
    return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


def _twos(x: Tensor) -> _Pair:
    return x[..., ::2], x[..., 1::2]


def _neighbours(x: Tensor) -> _Pair:
    return x[..., :-1], x[..., 1:]


_ROWS: tuple[tuple[Callable[[Tensor], _Pair], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
    (_neighbours, torch.le, lambda x: x.sort(-1).values),
    (_neighbours, torch.ge, lambda x: x.sort(-1, descending=True).values),
    (_halves, torch.eq, lambda x: torch.cat([_halves(x)[0]] * 2, -1)),
    (_twos, torch.eq, lambda x: _twos(x)[0].repeat_interleave(2, -1)),
)
"""Sorted either way (boundaries, time steps); the second half like the first, and each value twice (angles of rotary
embeddings): which elements are beside each other, how they are related, and what makes them so."""


def _replace(values: Any, tensors: Iterable[Tensor]) -> Any:
    made = list(tensors)
    spec = encode(values)
    return rebuild(spec, iter(made))


def _like(values: Tensor, own: Tensor) -> Tensor:
    """float32 `values` in the dtype and strides of `own`."""
    if values.dtype == own.dtype and values.stride() == own.stride():
        return values
    once = tuple(slice(1) if step == 0 else slice(None) for step in own.stride())  # of expanded dimensions one element
    kept = own[once]
    result = torch.empty_strided(kept.shape, kept.stride(), dtype=own.dtype, device=own.device)
    return result.copy_(values[once]).expand(own.shape)


def _empty(own: Tensor, generator: torch.Generator) -> Tensor:
    """float32 of the shape of `own`, to be filled: large draws may cost one pass and one more tensor at most."""
    return torch.empty(own.shape, device=generator.device)


def _rand(own: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(own.shape, generator=generator, device=generator.device)


def _randint(low: int, high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, tuple(shape), generator=generator, device=generator.device)


def _normal(own: Tensor, generator: torch.Generator, place: _Place) -> Tensor:
    return _like(_empty(own, generator).normal_(generator=generator), own)


def _heavy_tailed(own: Tensor, generator: torch.Generator, place: _Place) -> Tensor:
    squares = _empty(own, generator).exponential_(0.5, generator=generator)  # chi-squared of two degrees
    made = _empty(own, generator).normal_(generator=generator)
    squares.addcmul_(made, made).div_(3).sqrt_()
    return _like(made.normal_(generator=generator).div_(squares).clamp_(-64, 64), own)


def _sparse(own: Tensor, generator: torch.Generator, place: _Place) -> Tensor:
    small = place.bare and own.dtype.itemsize > 1
    made = _empty(own, generator).normal_(0.0, SMALL if small else 1.0, generator=generator)
    return _like(made.mul_(_empty(own, generator).bernoulli_(0.1, generator=generator)), own)


def _scaled(own: Tensor, generator: torch.Generator, place: _Place) -> Tensor:
    deviation = LARGE if place.among == 1 else LARGE_TOGETHER
    return _like(_empty(own, generator).normal_(0.0, deviation, generator=generator), own)


def _integers(own: Tensor, generator: torch.Generator, place: _Place) -> Tensor:
    low, high = -3, 4
    if place.reduced:
        low, high = (-7, 0) if place.number == 0 else (low, high)
    elif place.among >= _SIGNED and place.number < 2:
        low, high = ((-3, 0), (1, 4))[place.number]
    return _like(_empty(own, generator).random_(low, high, generator=generator), own)


_MAKERS: dict[str, Callable[[Tensor, torch.Generator, _Place], Tensor]] = {
    "normal": _normal,
    "heavy_tailed": _heavy_tailed,
    "sparse": _sparse,
    "scaled": _scaled,
    "integers": _integers,
}


def _probe_tensors(tensors: Iterator[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
    first = True
    for tensor in tensors:
        if not replaceable(tensor):
            yield tensor
        elif first:
            first = False
            bits = min(PROBE_BITS, 11 if tensor.dtype == torch.float16 else PROBE_BITS)
            values = _randint(1 << (bits - 1), 1 << bits, tensor.shape, generator) | 1
            signs = 2 * _randint(0, 2, tensor.shape, generator) - 1
            yield _like((values * signs).float(), tensor)
        else:
            yield _signs(tensor, generator)


def _signs(own: Tensor, generator: torch.Generator) -> Tensor:
    """Sparse {-1, 0, 1}: about PROBE_TERMS nonzero per longest dimension."""
    share = min(1.0, PROBE_TERMS / max(own.shape, default=1))
    kept = _rand(own, generator) < share
    signs = 2 * _randint(0, 2, own.shape, generator) - 1
    return _like((signs * kept).float(), own)


def finite(values: Any) -> bool:
    """Whether every floating tensor of a result is finite."""
    floats = (t for t in leaves(values) if t.dtype.is_floating_point or t.dtype.is_complex)
    return all(bool(torch.isfinite(t).all()) for t in floats) and not (
        isinstance(values, float) and not math.isfinite(values)
    )
