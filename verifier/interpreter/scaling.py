"""Which sizes the interpreter runs: small workloads, the problem's own sizes, its constants made smaller, or
sampled programs at its own sizes.

Scaling is conservative. Only module-level integers of at least 64 (then 16; batch sizes: 4) are divided, all
by the same power of two, so that divisibility between them mostly survives; the reference must run on the
result; a failure at scaled sizes counts only if the candidate does not raise and names none of the sizes that
were changed (see gate.py). Where that says nothing, a sample of the programs runs at the problem's own sizes (see
sampling.py) if the reference is quick enough on a CPU.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from verifier.loader import constants
from verifier.problem import Constant, Problem, Role, Workload

OWN_BYTES = 2 << 20
"""Arguments of a workload without the role `small` that are run as they are, bytes."""
SCALED_BYTES = 256 << 10
SMALL_BYTES = 64 << 20
SAMPLED_BYTES = 256 << 20
"""Arguments, weights and outputs at the problem's own sizes when only a sample of the programs runs."""
SAMPLED_DRAWS = ("task", "normal")
FEW_DRAWS = ("task", "heavy_tailed")
"""Where a GPU tries all distributions on what passes; what fails is tried on all of them here."""
MIN_SIZE = 32
MIN_BATCH = 2
STEPS = 16
PROGRAMS = 24
"""Most programs that run of one launch at the problem's own sizes."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Versions of one workload, largest first; the first that fits in its number of `max_bytes` and that the
    reference takes.
    """

    versions: tuple[Workload, ...]
    max_bytes: tuple[int, ...]
    scaling: str
    changed: frozenset[int] = frozenset()
    """Values of the file that a version replaced; a candidate that names one may depend on it."""
    sampled: bool = False
    """Whether only a sample of each launch's programs runs."""
    few: bool = False

    @property
    def draws(self) -> tuple[str, ...] | None:
        """Names of the distributions to try, None for all."""
        return SAMPLED_DRAWS if self.sampled else FEW_DRAWS if self.few else None


def choose(problem: Problem) -> tuple[Sizes, ...]:
    """What to run, all of it if the problem has small workloads, else the first that works."""
    small = problem.having(Role.SMALL)
    if small:
        return tuple(Sizes((w,), (SMALL_BYTES,), "small workload") for w in small)
    main = problem.having(Role.CHECK) or problem.having(Role.TIMED) or problem.workloads
    own = Sizes(tuple(main[:1]), (OWN_BYTES,), "the problem's own sizes")
    sampled = Sizes(tuple(main[:1]), (SAMPLED_BYTES,), "own sizes", sampled=True)
    return (own, *_scaled(problem, main[0]), sampled)


def has_small(problem: Problem) -> bool:
    return bool(problem.having(Role.SMALL))


def _scaled(problem: Problem, workload: Workload) -> tuple[Sizes, ...]:
    values = {**constants(problem), **workload.constants}
    sizes = {k: v for k, v in values.items() if isinstance(v, int) and not isinstance(v, bool)}
    made: dict[tuple[int, ...], Workload] = {}
    for least in (MIN_SIZE, MIN_SIZE // 4):
        for step in range(1, STEPS + 1):
            smaller = {k: _shrink(k, v, 1 << step, least) for k, v in sizes.items()}
            if smaller != sizes:
                new = {k: v for k, v in smaller.items() if v != sizes[k]}
                chosen: dict[str, Constant] = {**workload.constants, **new}
                made.setdefault(tuple(smaller.values()), workload.model_copy(update={"constants": chosen}))
    if not made:
        return ()
    last = list(made)[-1]
    changed = frozenset(old for old, new in zip(sizes.values(), last, strict=True) if old != new)
    versions = tuple(made.values())
    limits = (*[SCALED_BYTES] * len(versions), OWN_BYTES)  # the smallest version may be larger than liked
    return (Sizes((*versions, versions[-1]), limits, "scaled constants", changed),)


def _shrink(name: str, value: int, factor: int, least: int) -> int:
    """`value` over `factor`, at least `least`, unchanged if it is not twice that.

    A size that is no multiple of 32 becomes no multiple of 8, so that tails are still met.
    """
    least = MIN_BATCH if "batch" in name.lower() else least
    if value < 2 * least:
        return value
    small = max(value // factor, least)
    return small + 1 if value % 32 != 0 and least != MIN_BATCH and small % 8 == 0 else small


def describe_sample(sampled: int, programs: int) -> str:
    """`own sizes, 24 of 4096 programs sampled`."""
    return f"own sizes, {sampled} of {programs} programs sampled"


def describe(scaling: str, changed: Mapping[str, Constant]) -> str:
    """`scaled constants: N=256, M=64`."""
    listed = ", ".join(f"{k}={v}" for k, v in sorted(changed.items()))
    return f"{scaling}: {listed}" if listed else scaling


def names_a_size(source: str, sizes: frozenset[int]) -> bool:
    """Whether one of `sizes` is written in the candidate's source, so that other sizes may break an honest
    one.
    """
    try:
        nodes = ast.walk(ast.parse(source))
        return any(isinstance(n, ast.Constant) and type(n.value) is int and n.value in sizes for n in nodes)
    except SyntaxError:
        return False
