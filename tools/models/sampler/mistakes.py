"""Plausible mistakes, where each can happen, and by which feedback it shows.

A mistake is a name in `Genome.mistakes`; `pieces.py` writes it. `Mistake.symptoms` are words of the
verdict's status or text that point at it: the sampler repairs what the feedback points at, so vague
feedback repairs slowly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tools.models.sampler.genome import LOOPED, Genome
from tools.models.sampler.task import Task


def _always(genome: Genome, task: Task) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake: how often it is drawn against the others, its symptoms, and where it has an effect."""

    weight: float
    symptoms: frozenset[str]
    applies: Callable[[Genome, Task], bool] = _always


def _in(*variants: str) -> Callable[[Genome, Task], bool]:
    return lambda g, t: g.variant in variants


def _of(*families: str) -> Callable[[Genome, Task], bool]:
    return lambda g, t: t.family in families


def _skips(g: Genome, t: Task) -> bool:
    return t.causal and g.ranges == "skip" and g.variant in LOOPED


def _tail(g: Genome, t: Task) -> bool:
    """Keys past the end would count: no other mask hides them, and no falling bias makes them vanish."""
    return t.family in ("full", "alibi", "softcap") and g.variant != "three_kernel"


def _many_tiles(g: Genome, t: Task) -> bool:
    """Even a short sequence takes several steps of the loop."""
    return g.variant in LOOPED and g.block_n * (g.splits if g.variant == "split_kv" else 1) <= 64


def _rescales(g: Genome, t: Task) -> bool:
    """The largest score is not always in the first of several tiles."""
    return _many_tiles(g, t) and t.family != "relative"


def _pointers(g: Genome, t: Task) -> bool:
    return g.variant != "flash" or g.loads == "pointers"


VALUE = frozenset({"wrong"})
BOUNDS = frozenset({"out_of_bounds", "wrong"})
COMPILE = frozenset({"compile_error"})

MISTAKES: Mapping[str, Mistake] = {
    # masks
    "no_tail_mask": Mistake(2, VALUE | {"odd"}, _tail),
    "no_causal_mask": Mistake(3, VALUE, _of("causal")),
    "causal_strict": Mistake(2, VALUE, _of("causal")),
    "short_range": Mistake(2, VALUE, _skips),
    "mask_zero": Mistake(2, VALUE, lambda g, t: t.masked),
    "window_short": Mistake(2, VALUE, _of("neighbourhood")),
    "no_dilation": Mistake(2, VALUE, _of("neighbourhood")),
    "no_shift": Mistake(3, VALUE, _of("neighbourhood")),
    # scores
    "no_scale": Mistake(2, VALUE),
    "scale_twice": Mistake(1, VALUE),
    "natural_bias": Mistake(3, VALUE, lambda g, t: g.exponential == "exp2" and t.family in ("relative", "alibi")),
    "bias_sign": Mistake(2, VALUE, _of("relative", "alibi")),
    "slope_shift": Mistake(2, VALUE, _of("alibi")),
    "cap_before_scale": Mistake(3, VALUE, _of("softcap")),
    # accumulation
    "no_rescale": Mistake(3, VALUE, _rescales),
    "no_normalise": Mistake(1, VALUE),
    "narrow_accumulator": Mistake(2, VALUE, _rescales),
    # addresses and launch
    "unguarded_load": Mistake(2, BOUNDS | {"load"}, _pointers),
    "unguarded_store": Mistake(2, BOUNDS | {"store"}),
    "swapped_strides": Mistake(2, BOUNDS | {"load"}),
    "floor_grid": Mistake(1.5, VALUE | {"odd"}),
    "one_batch_grid": Mistake(1, VALUE),
    "output_dtype": Mistake(1.5, VALUE | {"dtype"}),
    # what the compiler or Python refuses
    "undefined_name": Mistake(1.5, COMPILE | {"runtime_error", "name"}),
    "dot_shape": Mistake(1.5, COMPILE | {"runtime_error", "wrong", "shape"}),
    "runtime_arange": Mistake(1, COMPILE | {"arange"}),
    "missing_tanh": Mistake(3, COMPILE | {"tanh"}, _of("softcap")),
    "missing_import": Mistake(1.5, frozenset({"runtime_error", "compile_error", "name"})),
    # the answer as a whole
    "library_call": Mistake(1, frozenset({"rejected", "wrong", "library"}), _of("full", "causal")),
    "truncated": Mistake(0.7, frozenset({"unparsable"})),
}

COUNT_WEIGHTS = (45, 41, 14)
"""Weights of 0, 1 and 2 mistakes in a draft."""


def possible(genome: Genome, task: Task) -> tuple[str, ...]:
    """Mistakes that change the source of this genome for this task."""
    return tuple(n for n, m in MISTAKES.items() if n not in genome.mistakes and m.applies(genome, task))


def add(genome: Genome, task: Task, rng: random.Random, count: int) -> Genome:
    """`genome` with `count` more mistakes, drawn by weight."""
    for _ in range(count):
        names = possible(genome, task)
        chosen = rng.choices(names, [MISTAKES[n].weight for n in names])[0]
        genome = genome.with_mistakes([*genome.mistakes, chosen])
    return genome


def effective(genome: Genome, task: Task) -> Genome:
    """`genome` without mistakes that are unknown or cannot happen in it, as after a change of its genes."""
    return genome.with_mistakes(n for n in genome.mistakes if n in MISTAKES and MISTAKES[n].applies(genome, task))
