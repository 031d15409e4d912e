"""Work of one launch: bytes, FLOP and lane operations, counted from the kernel's TTIR, its scalar arguments
and its grid.

Nothing runs on tensors; `interpret.py` says how. The grid is sampled: an axis on which no trip count,
condition or mask depends is run at one place; the other axes are run in full up to 64 programs, else at 64
spread places, or at 16 where a program is long. Totals are scaled to the whole grid. Counts are what the program
text asks for; what the compiler removes or adds (common loads, spills, address arithmetic) is not in them.

Bytes of a load are its elements whose mask is on, times the element size; a load inside a loop counts on
every trip. Sector bytes replace the elements of a tile by the distinct 32-byte sectors that they lie in
(first executions of each site only), so uncoalesced or repeated addresses inside one tile show.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from verifier.profile.interpret import BudgetExhausted, Interpreter, Site, Tally
from verifier.profile.slices import deciding_axes
from verifier.profile.ttir import Module, TtirError, Type
from verifier.profile.values import Descriptor, Pointer
from verifier.verdict import Record

MAX_PROGRAMS = 64
_ENOUGH = 16
_LONG = 60_000
"""Operations after which `_ENOUGH` programs suffice; about 0.3 s."""

Scalar = int | float | tuple[int, ...] | None
"""Value of a kernel parameter: a number, the shape behind a descriptor, or unknown."""


class Traffic(Record):
    """Bytes requested through one kernel parameter, whole launch."""

    loaded: int = 0
    stored: int = 0
    atomic: int = 0
    slack: int = 0
    """Three standard errors of what is written, where programs differ and only some were run."""

    @property
    def total(self) -> int:
        return self.loaded + self.stored + self.atomic


class AccessSite(Record):
    """One load, store or atomic of the text."""

    line: int | None
    parameter: int
    """Position of the kernel parameter, -1 when unknown."""
    requested: int
    """Bytes over the sampled programs; compare sites with each other only."""
    sector_ratio: float
    """Bytes of sectors touched over bytes requested within one tile."""


class Work(Record):
    """Totals of one launch. FLOP and lane operations as in `costs.py`."""

    programs: int
    sampled: int
    """Programs that were interpreted."""
    loaded: int = 0
    stored: int = 0
    atomic: int = 0
    masked: int = 0
    """Bytes that masks switched off."""
    sectors: int = 0
    """Bytes of the sectors that loads, stores and atomics touch."""
    parameters: dict[int, Traffic] = Field(default_factory=dict)
    """By position of the kernel parameter; -1 for addresses that could not be followed."""
    dots: dict[str, int] = Field(default_factory=dict)
    """`<operands> <accumulator>`, for example `fp16 fp32`, to FLOP."""
    dot_shapes: dict[str, int] = Field(default_factory=dict)
    """`MxNxK` of a matrix product to how often the launch runs it."""
    fp32: int = 0
    fp16: int = 0
    fp64: int = 0
    sfu: int = 0
    integer: int = 0
    dot_count: int = 0
    reduction_count: int = 0
    load_steps: int = 0
    """Executions of straight-line pieces that load at least once; loads of one piece can be in flight
    together."""
    loops: dict[int, int] = Field(default_factory=dict)
    """Position of a loop in the text to its trips, all programs together."""
    imbalance: float = 1.0
    """Work of the heaviest sampled program over the mean."""
    sites: tuple[AccessSite, ...] = ()
    unknown_trips: bool = False
    """Some trip count depends on memory; that loop counts once."""
    unknown_branches: bool = False
    truncated: bool = False
    """The budget ended before all chosen programs ran."""

    @property
    def requested(self) -> int:
        """Bytes asked for: loads, stores, and atomics once."""
        return self.loaded + self.stored + self.atomic

    @property
    def flops(self) -> int:
        """Products of matrices, and lane operations as one FLOP each."""
        return sum(self.dots.values()) + self.fp32 + self.fp16 + self.fp64


def count_work(module: Module, scalars: Sequence[Scalar], grid: tuple[int, int, int], *, budget: int = 400_000) -> Work:
    """Count one launch. `scalars` follow the kernel's parameters; entries for pointers are ignored, None is
    unknown.

    Raises `TtirError` for text that the interpreter cannot follow.
    """
    try:
        return _count(module, scalars, grid, budget)
    except TtirError:
        raise
    except (IndexError, KeyError, AttributeError, TypeError, ValueError, ArithmeticError) as wrong:
        # Untrusted text: checking every operand before use would double the interpreter.
        raise TtirError(f"the kernel's text is inconsistent ({type(wrong).__name__}: {wrong})") from wrong


def _count(module: Module, scalars: Sequence[Scalar], grid: tuple[int, int, int], budget: int) -> Work:
    parameters = module.kernel.parameters
    arguments = {name: _argument(name, kind, _at(scalars, i)) for i, (name, kind) in enumerate(parameters)}
    interpreter = Interpreter(module, arguments, grid, budget)
    deciding = deciding_axes(module.kernel)
    places = sample_programs(grid, deciding)
    tallies: list[Tally] = []
    for place in places:
        if len(tallies) >= _ENOUGH and budget - interpreter.budget > _LONG:
            break
        try:
            tallies.append(interpreter.run(place))
        except BudgetExhausted:
            interpreter.flags.truncated = True
            if not tallies:
                tallies.append(interpreter.partial)
            break
    positions = {name: i for i, (name, _) in enumerate(parameters)}
    return _summarise(interpreter, tallies, grid, positions, deciding)


def sample_programs(grid: tuple[int, int, int], deciding: tuple[bool, bool, bool]) -> list[tuple[int, int, int]]:
    """Programs to interpret, in an order whose every prefix is spread. Axes that decide nothing stay at
    their middle."""
    sizes = [max(1, n) for n in grid]
    wanted = [n if d else 1 for n, d in zip(sizes, deciding, strict=True)]
    counts = [1, 1, 1]
    left, open_axes = MAX_PROGRAMS, sum(n > 1 for n in wanted)
    for axis in sorted(range(3), key=lambda a: wanted[a]):
        if wanted[axis] > 1:
            counts[axis] = min(wanted[axis], max(1, math.floor(left ** (1 / open_axes) + 1e-9)))
            left, open_axes = left // counts[axis], open_axes - 1
    along = [_spread(sizes[axis], counts[axis]) for axis in range(3)]
    places = [(x, y, z) for x in along[0] for y in along[1] for z in along[2]]
    random.Random(0).shuffle(places)
    return places


def _spread(size: int, count: int) -> list[int]:
    """`count` of `range(size)`: all, the middle one, or one of each equal part at a low-discrepancy place."""
    if count >= size:
        return list(range(size))
    if count == 1:
        return [size // 2]
    return [int((i + (0.5 + i * 0.6180339887) % 1) * size / count) for i in range(count)]


def _at(scalars: Sequence[Scalar], index: int) -> Scalar:
    return scalars[index] if index < len(scalars) else None


def _argument(name: str, kind: Type, scalar: Scalar) -> Any:
    if kind.pointer:
        return Pointer(name, 0)
    if kind.shape:
        return Descriptor(name, scalar if isinstance(scalar, tuple) else ())
    if isinstance(scalar, float) and not kind.floating:
        return None
    return scalar


def _summarise(
    interpreter: Interpreter,
    tallies: list[Tally],
    grid: tuple[int, int, int],
    positions: dict[str, int],
    deciding: tuple[bool, bool, bool],
) -> Work:
    programs = grid[0] * grid[1] * grid[2]
    unlike = math.prod(max(1, n) for n, d in zip(grid, deciding, strict=True) if d)
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)

    def scaled(key: str) -> int:
        return (total[key] * programs + len(tallies) // 2) // len(tallies)

    def prefixed(prefix: str) -> dict[str, int]:
        return {key.removeprefix(prefix): scaled(key) for key in sorted(total) if key.startswith(prefix)}

    names = {key.split(" ", 1)[1] for key in total if _PARAMETER_KEY.match(key)}
    traffic = {
        positions.get(name, -1): Traffic(
            loaded=scaled(f"load {name}"),
            stored=scaled(f"store {name}"),
            atomic=scaled(f"atomic {name}"),
            slack=_slack([t[f"store {name}"] + t[f"atomic {name}"] for t in tallies], unlike, programs),
        )
        for name in sorted(names)
    }
    flags = interpreter.flags
    return Work(
        programs=programs,
        sampled=len(tallies),
        loaded=scaled("load bytes"),
        stored=scaled("store bytes"),
        atomic=scaled("atomic bytes"),
        masked=scaled("masked bytes"),
        sectors=scaled("sector bytes"),
        parameters=traffic,
        dots=prefixed("dot "),
        dot_shapes=prefixed("shape "),
        fp32=scaled("fp32"),
        fp16=scaled("fp16"),
        fp64=scaled("fp64"),
        sfu=scaled("sfu"),
        integer=scaled("integer"),
        dot_count=scaled("dots"),
        reduction_count=scaled("reductions"),
        load_steps=scaled("load steps"),
        loops={int(key): n for key, n in prefixed("loop ").items()},
        imbalance=_imbalance(tallies),
        sites=tuple(_site(s, positions) for s in interpreter.sites.values()),
        unknown_trips=flags.unknown_trips,
        unknown_branches=flags.unknown_branches,
        truncated=flags.truncated,
    )


def _slack(written: list[int], unlike: int, programs: int) -> int:
    """Three standard errors of the bytes that all programs write, of which a sample of `unlike` ones wrote these."""
    count = len(written)
    if not 1 < count < unlike:
        return 0
    return round(3 * statistics.stdev(written) / math.sqrt(count) * programs)


_PARAMETER_KEY = re.compile(r"(load|store|atomic) [%?]")


def _imbalance(tallies: list[Tally]) -> float:
    costs = [sum(n * _WEIGHTS.get(key.split(" ")[0], 0.0) for key, n in t.items()) for t in tallies]
    mean = sum(costs) / len(costs)
    return max(costs) / mean if mean > 0 else 1.0


_WEIGHTS = {"load": 1.0, "store": 1.0, "dot": 0.02, "fp32": 0.1, "fp16": 0.05, "sfu": 0.5}
"""Rough cost per unit, only to compare programs of one launch."""


def _site(site: Site, positions: dict[str, int]) -> AccessSite:
    return AccessSite(
        line=site.line,
        parameter=positions.get(site.parameter, -1),
        requested=site.requested,
        sector_ratio=round(site.sector_ratio, 4),
    )
