"""Draws: distributions differ, seeds decide, and what is not a plain floating tensor stays the task's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from verifier import inputs, numerics
from verifier.problem import Precision


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
    assert 0 < made["sparse"].abs().max() < 0.05
    assert inputs.draw("sparse", lambda: [torch.rand(200, 200)], 5, bare=False)[0].abs().max() > 2
    assert made["heavy_tailed"].abs().max() > 10 > made["normal"].abs().max()
    assert made["heavy_tailed"].abs().max() <= 64
    assert made["scaled"].max() > 100
    assert made["scaled"].min() < -100
    assert set(made["integers"].unique().tolist()) == set(range(-3, 4))
    assert all(bool(torch.isfinite(t).all()) for t in made.values())


def test_of_several_tensors_the_products_are_large_and_of_reductions_the_first_is_negative() -> None:
    tensors = [torch.rand(64, 64), torch.rand(64, 64)]
    one, other = inputs.draw("scaled", lambda: tensors, 5)
    assert 100 < (one * other).abs().max() < 1500
    first, second = inputs.draw("integers", lambda: tensors, 5, reduced=True)
    assert first.max() == -1
    assert (second.min(), second.max()) == (-3, 3)


def test_a_tail_without_a_mask_shows_in_an_attention() -> None:
    shape = (1, 2, 1000, 64)
    q, k, v = inputs.draw("integers", lambda: [torch.rand(shape, dtype=torch.float16) for _ in range(3)], 5)
    padded = torch.cat([k, torch.zeros(1, 2, 8, 64, dtype=k.dtype)], 2), torch.nn.functional.pad(v, (0, 0, 0, 8))
    right, wrong = (
        torch.softmax(q.double() @ keys.double().mT / 8, -1) @ values.double() for keys, values in ((k, v), padded)
    )
    assert numerics.compare(right.half(), right, right.half(), Precision.FP16).passed
    assert not numerics.compare(wrong.half(), right, right.half(), Precision.FP16).passed


@pytest.mark.parametrize("name", inputs.DRAWS[1:])
def test_what_a_kernel_may_rely_on_is_kept(name: str) -> None:
    square = torch.rand(2, 65, 65)
    given = [square.tril(), square + square.mT, square.half().triu(), torch.eye(65) * 2, square]
    lower, symmetric, upper, diagonal, plain = inputs.draw(name, lambda: given, 5)
    assert torch.equal(lower, lower.tril())
    assert torch.equal(symmetric, symmetric.mT)
    assert torch.equal(upper, upper.triu())
    assert torch.equal(diagonal, diagonal.diag().diag())
    assert bool(diagonal.any()) or name == "sparse"
    assert not torch.equal(plain, plain.mT)


@pytest.mark.parametrize("name", inputs.DRAWS[1:])
def test_order_and_repetition_in_rows_are_kept(name: str) -> None:
    angles = torch.rand(3, 5, 32)
    rising, falling = torch.rand(4, 16).sort(-1).values, torch.linspace(1, 0, 50).half()
    constant, odd = torch.full((2, 16), 0.3), torch.cat([angles, angles[..., :31]], -1)
    table = torch.outer(torch.arange(40.0), 0.5 ** torch.arange(32.0))  # its first row is the same everywhere
    doubled = [torch.cat([table, table], -1).cos(), table.sin().repeat_interleave(2, -1)]
    given = [rising, falling, *doubled, constant, odd, angles, torch.tensor(0.7)]
    up, down, halves, pairs, *free = inputs.draw(name, lambda: given, 5)
    assert bool((up.diff() >= 0).all() and (down.diff() <= 0).all())
    assert down.dtype == torch.float16
    assert torch.equal(halves[..., :32], halves[..., 32:])
    assert torch.equal(pairs[..., ::2], pairs[..., 1::2])
    assert all(len(t.unique()) > 2 for t in (up, down, halves, pairs))
    assert free.pop().dim() == 0
    for tensor in free:
        assert not (tensor.diff() >= 0).all()
        half = tensor.shape[-1] // 2
        assert not torch.equal(tensor[..., :half], tensor[..., -half:])
        assert not torch.equal(tensor[..., : 2 * half : 2], tensor[..., 1 : 2 * half : 2])


def test_a_mask_with_one_value_that_is_none_is_no_mask() -> None:
    mask = torch.zeros(100_000)
    assert not inputs.replaceable(mask)
    mask[77_777] = 0.5
    assert inputs.replaceable(mask)


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
