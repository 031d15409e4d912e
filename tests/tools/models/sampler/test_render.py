from __future__ import annotations

import ast
import random
from typing import Any

import pytest

from tools.models.sampler.build import fill
from tools.models.sampler.genome import VARIANTS, Genome, draw, parse_genome
from tools.models.sampler.mistakes import MISTAKES
from tools.models.sampler.render import render
from tools.models.sampler.task import Task
from tools.models.sampler.variants import WRITERS


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_is_python_and_carries_its_genome(kit: Any, family: str, variant: str) -> None:
    genome = Genome(variant=variant, ranges="skip", loops="split", exponential="exp2")
    text = render(genome, kit.task(family))
    tree = ast.parse(text)
    assert [parse_genome(line) for line in text.splitlines() if line.startswith("# genome")] == [genome]
    model = next(n for n in tree.body if isinstance(n, ast.ClassDef))
    assert model.name == "ModelNew"
    assert "$" not in text
    assert "\n\n\n\n" not in text
    assert max(map(len, (line for line in text.splitlines() if "genome" not in line))) <= 130


def test_every_mistake_changes_the_file(kit: Any, family: str) -> None:
    task, rng = kit.task(family), random.Random(5)
    for name, mistake in MISTAKES.items():
        if name == "truncated":  # of the answer, not of the file
            continue
        genome = draw(rng)
        for _ in range(200):
            if mistake.applies(genome, task):
                break
            genome = draw(rng)
        else:
            continue
        right, slipped = render(genome, task), render(genome.with_mistakes([name]), task)
        assert right.replace(genome.comment(), "") != slipped.replace(genome.with_mistakes([name]).comment(), ""), name


def test_every_variant_has_a_writer() -> None:
    assert set(WRITERS) == set(VARIANTS)


def test_configurations_start_with_the_genome_itself() -> None:
    text = render(Genome(tuning="autotune", block_m=64, block_n=32), Task("full"))
    first = next(line for line in text.splitlines() if "triton.Config(" in line)
    assert '"BLOCK_M": 64, "BLOCK_N": 32' in first
    assert "num_warps=4, num_stages=2" in first


def test_filling_keeps_indentation_and_drops_empty_lines() -> None:
    assert fill("a\n    $b\n    $c\nd $e", {"b": "x\n\n  y", "c": "", "e": "z"}) == "a\n    x\n\n      y\nd z"
    with pytest.raises(KeyError):
        fill("$missing", {})
