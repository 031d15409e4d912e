"""Draws: distributions differ, seeds decide, and what is not a plain floating tensor stays the task's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from verifier import inputs


def task() -> list[Any]:
    return [
        torch.rand(64, 32),
        torch.randn(32, 64, dtype=torch.float16).t(),
        torch.randint(0, 9, (64,)),
        torch.rand(64) > 0.5,
        (torch.rand(8, 8) > 0.5).float(),
        {"scale": 0.5, "bias": torch.rand(32)},
        None,
    ]


@pytest.mark.parametrize("name", inputs.DRAWS)
def test_shape_dtype_stride_and_other_values_are_kept(name: str) -> None:
    made, own = inputs.draw(name, task, 3), inputs.draw("task", task, 3)
    for got, want in zip(inputs.leaves(made), inputs.leaves(own), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
    for i in (2, 3, 4):
        assert torch.equal(made[i], own[i])
    assert made[5]["scale"] == 0.5
    assert made[6] is None
    assert torch.equal(made[0], own[0]) is (name == "task")


@pytest.mark.parametrize("name", inputs.DRAWS)
def test_the_seed_decides(name: str) -> None:
    one, again, other = (inputs.draw(name, task, seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[2], other[2])


def test_distributions() -> None:
    made = {name: inputs.draw(name, lambda: [torch.rand(200, 200)], 5)[0] for name in inputs.DRAWS}
    assert 0.85 < (made["sparse"] == 0).double().mean() < 0.95
    assert torch.equal(made["integers"], made["integers"].round())
    assert made["integers"].abs().max() == 3
    assert made["heavy_tailed"].abs().max() > 10 > made["normal"].abs().max()
    assert made["heavy_tailed"].abs().max() <= 64
    assert all(bool(torch.isfinite(t).all()) for t in made.values())


def test_seeds_of_uses_differ() -> None:
    seeds = {inputs.derive_seed(s, *names) for s in (1, 2) for names in (("a", "b"), ("a",), ("ab",), ("a", "b", ""))}
    assert len(seeds) == 8
    assert all(0 <= s < 2**63 for s in seeds)


def test_unknown_distribution() -> None:
    with pytest.raises(KeyError):
        inputs.draw("uniform", task, 0)


def test_the_probe_is_exact_in_fp32_in_any_order() -> None:
    a, b = inputs.probe([torch.rand(64, 256), torch.rand(256, 64)], 7)
    exact = a.double() @ b.double()
    assert torch.equal((a @ b).double(), exact)
    backwards = sum(a[:, i : i + 16] @ b[i : i + 16] for i in reversed(range(0, 256, 16)))
    assert torch.equal(backwards.double(), exact)


def test_finite() -> None:
    assert inputs.finite([torch.ones(2), torch.ones(2, dtype=torch.int64), 3])
    assert not inputs.finite({"a": torch.tensor([1.0, float("inf")])})
