from __future__ import annotations

import random
from collections import Counter

import pytest

from tools.models.sampler import operators
from tools.models.sampler.brief import Attempt, Brief
from tools.models.sampler.genome import GENES, Genome, sensible, shared_bytes
from tools.models.sampler.mistakes import MISTAKES, add, effective, possible
from tools.models.sampler.task import FAMILIES, Task

TASK = Task("causal", head_dim=128)
REPEATS = 300


def many(operator: str, *attempts: tuple[Genome, str]) -> list[Genome]:
    shown = tuple(Attempt(genome, feedback) for genome, feedback in attempts)
    brief = Brief(operator, TASK, shown)  # type: ignore[arg-type]
    return [operators.apply(brief, TASK, random.Random(seed)) for seed in range(REPEATS)]


def test_about_half_of_the_drafts_carry_no_mistake() -> None:
    clean = sum(not g.mistakes for g in many("draft"))
    assert 0.36 <= clean / REPEATS <= 0.55


def test_every_mistake_is_drawn_somewhere() -> None:
    seen: Counter[str] = Counter()
    for family in FAMILIES:
        task = Task(family)
        for seed in range(400):
            seen.update(operators.draft(task, random.Random(seed)).mistakes)
    assert set(seen) == set(MISTAKES)


@pytest.mark.parametrize(
    ("mistake", "status"),
    [
        ("no_causal_mask", "wrong"),
        ("unguarded_store", "out_of_bounds"),
        ("undefined_name", "compile_error"),
        ("missing_import", "runtime_error"),
        ("library_call", "rejected"),
    ],
)
def test_feedback_that_points_at_a_mistake_mostly_removes_it(mistake: str, status: str) -> None:
    parent = Genome(mistakes=(mistake,))
    pointed = sum(mistake not in g.mistakes for g in many("repair", (parent, f"status: {status}. x")))
    blind = sum(mistake not in g.mistakes for g in many("repair", (parent, "status: timeout. x")))
    assert pointed / REPEATS > 0.75
    assert blind / REPEATS < 0.5


def test_a_repair_leaves_the_genes_alone() -> None:
    parent = Genome(variant="two_pass", block_m=128, mistakes=("no_scale",))
    assert {g.with_mistakes(()) for g in many("repair", (parent, "status: wrong."))} == {parent.with_mistakes(())}


def test_too_much_shared_memory_makes_the_kernel_smaller() -> None:
    parent = Genome(block_m=256, block_n=256, num_stages=5, num_warps=16)
    feedback = "status: over_limits. out of resource: shared memory, required: 655360, hardware limit: 232448"
    for child in many("repair", (parent, feedback)):
        assert shared_bytes(child, 128, 2) < shared_bytes(parent, 128, 2)
        assert sensible(child, 128, 2)


def test_whole_rows_that_do_not_fit_give_way_to_another_algorithm() -> None:
    children = many("repair", (Genome(variant="whole_row"), "status: over_limits. shared memory"))
    assert "whole_row" not in {g.variant for g in children}


def test_a_refinement_changes_one_to_three_genes_and_rarely_slips() -> None:
    parent = Genome()
    children = many("refine", (parent, "status: correct."))
    assert {parent.distance(c) for c in children} <= {1, 2, 3}
    assert sum(bool(c.mistakes) for c in children) / REPEATS < 0.15


def test_a_refinement_follows_the_profile() -> None:
    parent = Genome(block_m=128, block_n=128)
    spilling = many("refine", (parent, "status: correct.\n- kernel a: 255 registers, 400 spilled bytes"))
    calm = many("refine", (parent, "status: correct."))

    def eased(children: list[Genome]) -> int:
        return sum(c.num_warps > 4 or c.block_n < 128 or c.block_m < 128 for c in children)

    assert eased(spilling) > 1.5 * eased(calm)


def test_diversify_uses_another_algorithm() -> None:
    assert "flash" not in {g.variant for g in many("diversify", (Genome(), "status: correct."))}


def test_a_child_takes_its_genes_from_its_parents() -> None:
    a, b = Genome(block_m=32, num_warps=2), Genome(variant="two_pass", block_m=128, num_warps=8)
    for child in many("crossover", (a, "status: correct."), (b, "status: correct.")):
        assert all(getattr(child, n) in (getattr(a, n), getattr(b, n)) for n in GENES)


def test_an_operator_without_a_parent_is_a_draft() -> None:
    assert len(set(many("repair"))) > 50


def test_a_mistake_that_cannot_happen_is_dropped() -> None:
    genome = Genome(ranges="all", mistakes=("short_range", "no_scale", "not_a_mistake"))
    assert effective(genome, TASK).mistakes == ("no_scale",)
    assert "short_range" not in possible(genome, TASK)
    assert len(add(Genome(), TASK, random.Random(0), 2).mistakes) == 2
