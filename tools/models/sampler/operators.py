"""The five operators on genomes. Each is a function of the brief and a generator; the numbers are the
sampler's temperament.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from tools.models.sampler.brief import Attempt, Brief, Operator
from tools.models.sampler.genome import (
    GENES,
    VARIANTS,
    Genome,
    active,
    affordable,
    draw,
    mix,
    mutate,
    sensible,
)
from tools.models.sampler.mistakes import COUNT_WEIGHTS, MISTAKES, add, effective
from tools.models.sampler.task import Task

CAREFUL_SIZES = 0.85
"""Chance that a draft's tiles are checked against shared memory and registers before it is written."""
FIND = 0.85
"""Chance that a repair removes a mistake to which the feedback points."""
BLIND = 0.35
"""Chance that a repair removes a mistake to which the feedback does not point."""
SLIP: Mapping[Operator, float] = {"repair": 0.05, "refine": 0.08, "diversify": 0.25, "crossover": 0.10}
"""Chance of a new mistake, by operator."""
FOLLOW = 0.7
"""Chance that a refinement follows the feedback's diagnosis and not a guess."""

HINTS: tuple[tuple[tuple[str, ...], tuple[tuple[str, int], ...]], ...] = (
    (("spill", "limited by registers"), (("num_warps", 1), ("block_n", -1), ("block_m", -1))),
    (("limited by shared",), (("num_stages", -1), ("block_n", -1))),
    (("occupancy",), (("num_warps", -1), ("block_m", -1), ("num_stages", -1))),
    (
        ("bound by memory", "bound by l2", "re-read", "re-load"),
        (("block_m", 1), ("variant", 0), ("ranges", 0)),
    ),
    (("bound by tensor", "tensor core"), (("num_stages", 1), ("operands", 0), ("ranges", 0), ("block_n", 1))),
    (("bound by fp32", "bound by sfu", "transcendental"), (("exponential", 0), ("loops", 0), ("ranges", 0))),
    (("bound by latency", "stall", "tail", "wave"), (("block_m", -1), ("num_stages", 1), ("programs", 0))),
    (("bound by launch",), (("variant", 0),)),
)
"""Words in a profile's text, and the (gene, direction) moves that an experienced author would try."""

OVERSIZE: tuple[str, ...] = ("num_stages", "block_n", "block_m")
"""Genes that shrink when a launch asks for too much."""


def apply(brief: Brief, task: Task, rng: random.Random) -> Genome:
    """The genome of the next candidate."""
    parents = brief.parents
    if brief.operator == "draft" or not parents:
        return draft(task, rng)
    genome = MOVES[brief.operator](parents, task, rng)
    if rng.random() < SLIP[brief.operator]:
        genome = add(genome, task, rng, 1)
    return effective(genome, task)


def draft(task: Task, rng: random.Random) -> Genome:
    """A fresh genome: sizes mostly checked, then no, one or two mistakes."""
    genome = _sized(task, rng, careful=rng.random() < CAREFUL_SIZES)
    return add(genome, task, rng, rng.choices((0, 1, 2), COUNT_WEIGHTS)[0])


def repair(parents: tuple[Attempt, ...], task: Task, rng: random.Random) -> Genome:
    """The last parent without the mistakes that its feedback points at; smaller if it asks for too much."""
    parent, genome = parents[-1], _genome(parents[-1])
    if not genome.mistakes or parent.status == "over_limits":
        return _smaller(genome, task, rng) if _too_big(parent) else _step(genome, task, rng)
    kept = [n for n in genome.mistakes if rng.random() >= (FIND if points_at(parent, n) else BLIND)]
    return genome.with_mistakes(kept)


def refine(parents: tuple[Attempt, ...], task: Task, rng: random.Random) -> Genome:
    """One to three genes of the last parent changed, most of them where the profile hints."""
    genome = _genome(parents[-1])
    for _ in range(20):
        changed = genome
        for _ in range(rng.choices((1, 2, 3), (5, 3, 1))[0]):
            name, direction = _move(parents[-1].feedback, genome, task, rng)
            changed = mutate(changed, name, rng, direction)
        if changed != genome and sensible(changed, task.head_dim, task.item):
            return changed
    return _step(genome, task, rng)


def diversify(parents: tuple[Attempt, ...], task: Task, rng: random.Random) -> Genome:
    """A fresh genome of an algorithm that no parent uses."""
    used = {_genome(p).variant for p in parents}
    fresh = [v for v in VARIANTS if v not in used] or list(VARIANTS)
    weights = dict(zip(VARIANTS, GENES["variant"].weights, strict=True))
    variant = rng.choices(fresh, [weights[v] for v in fresh])[0]
    return replace(_sized(task, rng, careful=True), variant=variant)


def crossover(parents: tuple[Attempt, ...], task: Task, rng: random.Random) -> Genome:
    """Genes of two parents; a mistake of either is kept as often as its gene would be."""
    a, b = (_genome(p) for p in (parents * 2)[-2:])
    child = mix(a, b, rng)
    for _ in range(20):
        if sensible(child, task.head_dim, task.item):
            break
        child = mix(a, b, rng)
    return child.with_mistakes(n for n in {*a.mistakes, *b.mistakes} if rng.random() < 0.5)


MOVES: Mapping[Operator, Callable[[tuple[Attempt, ...], Task, random.Random], Genome]] = {
    "repair": repair,
    "refine": refine,
    "diversify": diversify,
    "crossover": crossover,
}


def points_at(attempt: Attempt, mistake: str) -> bool:
    """Whether the feedback names a symptom of the mistake."""
    known = MISTAKES.get(mistake)
    return known is None or attempt.status in known.symptoms


def _genome(attempt: Attempt) -> Genome:
    assert attempt.genome is not None
    return attempt.genome


def _too_big(attempt: Attempt) -> bool:
    return attempt.status in ("over_limits", "timeout") or "out of resource" in attempt.feedback


def _sized(task: Task, rng: random.Random, *, careful: bool) -> Genome:
    """A draw; a careful one is drawn again until its sizes look sensible."""
    genome = draw(rng)
    while not (sensible(genome, task.head_dim, task.item) if careful else affordable(genome, task.head_dim)):
        genome = draw(rng)
    return genome


def _smaller(genome: Genome, task: Task, rng: random.Random) -> Genome:
    """Tiles and stages one place down until it looks sensible; whole rows give way to another algorithm."""
    if genome.variant == "whole_row":
        return replace(genome, variant=rng.choice(("flash", "two_pass")))
    name = rng.choice([n for n in OVERSIZE if getattr(genome, n) != GENES[n].values[0]] or ["variant"])
    smaller = mutate(genome, name, rng, -1)
    while not sensible(smaller, task.head_dim, task.item):
        names = [n for n in OVERSIZE if getattr(smaller, n) != GENES[n].values[0]]
        smaller = mutate(smaller, rng.choice(names), rng, -1)
    return smaller


def _step(genome: Genome, task: Task, rng: random.Random) -> Genome:
    """One random gene changed, sizes still sensible."""
    for _ in range(50):
        changed = mutate(genome, rng.choice(("variant", *active(genome))), rng)
        if sensible(changed, task.head_dim, task.item):
            return changed
    return draw(rng)


def _move(feedback: str, genome: Genome, task: Task, rng: random.Random) -> tuple[str, int]:
    """A gene and a direction: from a hint that the feedback gives, or any gene that matters."""
    names = ("variant", *active(genome))
    hinted = [m for words, moves in HINTS if any(w in feedback for w in words) for m in moves if m[0] in names]
    if hinted and rng.random() < FOLLOW:
        return rng.choice(hinted)
    return rng.choice(names), 0
