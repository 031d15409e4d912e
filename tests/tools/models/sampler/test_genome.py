from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.models.sampler.genome import (
    GENES,
    MARK,
    Genome,
    active,
    affordable,
    draw,
    mix,
    mutate,
    parse_genome,
    register_pressure,
    sensible,
    shared_bytes,
)


@given(st.integers(0, 10_000))
def test_a_genome_survives_its_comment(seed: int) -> None:
    genome = draw(random.Random(seed)).with_mistakes(["no_scale", "floor_grid"])
    assert parse_genome(genome.comment()) == genome


@given(st.text(max_size=60) | st.sampled_from(["null", "[]", "1", "{}x", "[" * 9000, '{"mistakes":3}']))
def test_any_other_line_is_no_genome_and_never_raises(text: str) -> None:
    found = parse_genome(MARK + text)
    assert found is None or isinstance(found, Genome)


def test_a_genome_with_a_value_outside_its_gene_is_refused() -> None:
    data = json.loads(Genome().comment()[len(MARK) :]) | {"block_m": 48}
    assert parse_genome(MARK + json.dumps(data)) is None
    with pytest.raises(ValueError, match="block_m"):
        Genome(block_m=48)


@given(st.integers(0, 10_000), st.sampled_from(sorted(GENES)), st.sampled_from([-1, 0, 1]))
def test_a_mutation_changes_exactly_the_gene_it_names(seed: int, name: str, direction: int) -> None:
    rng = random.Random(seed)
    before = draw(rng)
    after = mutate(before, name, rng, direction)
    assert before.distance(after) == 1
    assert getattr(before, name) != getattr(after, name)


def test_a_step_up_is_one_place() -> None:
    assert mutate(Genome(block_m=64), "block_m", random.Random(0), 1).block_m == 128
    assert mutate(Genome(block_m=256), "block_m", random.Random(0), 1).block_m == 128


@given(st.integers(0, 10_000))
def test_every_gene_of_a_child_is_a_parents(seed: int) -> None:
    rng = random.Random(seed)
    a, b = draw(rng), draw(rng)
    child = mix(a, b, rng)
    assert all(getattr(child, n) in (getattr(a, n), getattr(b, n)) for n in GENES)


def test_genes_of_other_variants_are_not_active() -> None:
    assert "splits" in active(Genome(variant="split_kv"))
    assert not {"splits", "loops", "ranges"} & set(active(Genome(variant="three_kernel")))


def test_big_tiles_are_not_sensible() -> None:
    big = Genome(block_m=256, block_n=256, num_stages=5, num_warps=8)
    assert shared_bytes(big, 64, 2) > 232_448
    assert not sensible(big, 64, 2)
    assert sensible(Genome(), 128, 2)


def test_full_fp32_products_are_affordable_only_on_small_tiles() -> None:
    assert affordable(Genome(operands="ieee", block_m=32, block_n=32), 64)
    assert not affordable(Genome(operands="ieee", block_m=64, block_n=64), 64)
    assert register_pressure(Genome(num_warps=8), 64) < register_pressure(Genome(num_warps=4), 64)
