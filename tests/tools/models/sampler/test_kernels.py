"""The kernels compute what they should, and the mistakes show. One process runs all cases in Triton's interpreter."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools.models.sampler.genome import VARIANTS, Genome, draw
from tools.models.sampler.render import render
from tools.models.sampler.task import FAMILIES

SMALL = {"heads": 2, "sequence": 24, "head_dim": 16}
IMAGE = SMALL | {"height": 8, "width": 3, "window": 3, "dilation": 1}
DILATED = SMALL | {"height": 6, "width": 6, "window": 3, "dilation": 2}
TILES = {"block_m": 16, "block_n": 16, "splits": 2, "tuning": "fixed"}
MISTAKES = {
    "no_causal_mask": "causal",
    "causal_strict": "causal",
    "mask_zero": "causal",
    "no_scale": "full",
    "no_tail_mask": "full",
    "no_rescale": "full",
    "no_normalise": "full",
    "floor_grid": "full",
    "one_batch_grid": "full",
    "natural_bias": "relative",
    "bias_sign": "alibi",
    "slope_shift": "alibi",
    "cap_before_scale": "softcap",
    "no_shift": "neighbourhood",
    "no_dilation": "neighbourhood",
}


def right() -> dict[str, tuple[str, Genome]]:
    """Each family with each variant, other genes drawn."""
    rng, found = random.Random(11), {}
    for family in FAMILIES:
        for variant in VARIANTS:
            genome = replace(draw(rng), variant=variant, **TILES)
            found[f"{family}/{variant}"] = (family, genome)
        order = rng.choice(["forward", "reverse"])
        both = {"ranges": "skip", "loops": "split", "loads": "descriptors", "exponential": "exp2", "order": order}
        found[f"{family}/split"] = (family, Genome(**TILES, **both))
    return found


def slipped() -> dict[str, tuple[str, Genome]]:
    return {name: (family, Genome(**TILES, exponential="exp2", mistakes=(name,))) for name, family in MISTAKES.items()}


def sizes(family: str, name: str) -> dict[str, int]:
    batch = {"batch": 2 if name.endswith(("flash", "split_kv", "batch_grid")) else 1}
    image = IMAGE if name.endswith(("/split", "flash")) else DILATED
    return batch | (image if family == "neighbourhood" else SMALL)


@pytest.fixture(scope="module")
def errors(kit: Any) -> dict[str, float | str]:
    cases = {
        name: {
            "source": render(genome, kit.task(family)),
            "reference": kit.source(family),
            "constants": sizes(family, name),
        }
        for name, (family, genome) in (right() | slipped()).items()
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kernels_in_interpreter.py"))],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("case", sorted(right()))
def test_a_genome_without_mistakes_is_right(errors: dict[str, float | str], case: str) -> None:
    error = errors[case]
    assert isinstance(error, float), error
    assert error < 4e-3


@pytest.mark.parametrize("case", sorted(slipped()))
def test_a_mistake_shows(errors: dict[str, float | str], case: str) -> None:
    error = errors[case]
    assert isinstance(error, str) or math.isnan(error) or error > 2e-2
