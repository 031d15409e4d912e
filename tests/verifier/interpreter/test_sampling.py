"""Sampled programs at full sizes: what they may say, and when they may not say anything."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from verifier.interpreter import blobs, scaling
from verifier.interpreter.gate import Zygotes, run_gate
from verifier.interpreter.limits import NotSampled
from verifier.interpreter.sampling import Coverage, choose
from verifier.loader import parse_problem
from verifier.specs import SpecError
from verifier.verdict import TestReport

PROBLEM = """
import torch, torch.nn as nn
class Model(nn.Module):
    def forward(self, x): return torch.relu(x) + 1
def get_inputs(): return [torch.randn(1024, 640)]
def get_init_inputs(): return []
"""

SCALABLE = PROBLEM.replace("class", "M, N = 1024, 640\nclass", 1).replace("1024, 640)", "M, N)")

CANDIDATE = """
import torch, torch.nn as nn, triton, triton.language as tl
@triton.jit
def k(x, o, N: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)[:, None]
    at = i * N + tl.program_id(1) * B + tl.arange(0, B)[None]
    v = tl.maximum(tl.load(x + at), 0.0) + 1
    tl.store(o + at, v)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        k[(x.shape[0] // 32, x.shape[1] // 32)](x, o, 640, B=32)
        return o
"""


def gate(zygotes: Zygotes, candidate: str, reference: str = PROBLEM) -> TestReport:
    return run_gate(parse_problem(reference, file="problem.py", name="test"), candidate, zygotes, seed=5)


def test_a_candidate_made_for_the_full_size_passes(zygotes: Zygotes) -> None:
    """Scaled constants come first; the candidate fails there and is not blamed."""
    report = gate(zygotes, CANDIDATE, SCALABLE)
    assert report.outcome == "passed", report.reason
    assert report.scaling == "own sizes, 24 of 640 programs sampled"
    assert [c.draw for c in report.checks] == list(scaling.SAMPLED_DRAWS)
    assert sum(t.stored for t in report.traffic) == 24 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("    tl.store(o", "    v = tl.where(i == 1023, 0.5, v)\n    tl.store(o", "wrong-value"),
        ("    tl.store(o", "    v = tl.where(tl.program_id(1) == 19, -v, v)\n    tl.store(o", "wrong-value"),
        (", v)", ", v * 1.1)", "wrong-value"),
        ("+ tl.arange(0, B)[None]", "+ tl.arange(0, B)[None] + 1", "out-of-bounds"),
        ("return o", "return o.view(-1)", "wrong-value"),
        ("return o", "raise ValueError(x.shape)", "runtime-error"),
    ],
    ids=["last row", "last column of programs", "everywhere", "out of bounds", "shape", "raises"],
)
def test_a_mistake_that_is_sampled_fails(zygotes: Zygotes, old: str, new: str, code: str) -> None:
    assert CANDIDATE.count(old) == 1
    report = gate(zygotes, CANDIDATE.replace(old, new))
    assert report.outcome == "failed", report
    assert code in {f.code for f in report.findings if f.severity == "error"}


MORE = "\n@triton.jit\ndef k2(x, o, N: tl.constexpr, B: tl.constexpr):\n"
COPY = MORE + "    i = tl.program_id(0) * B + tl.arange(0, B)\n    tl.store(o + i, tl.load(x + i))\nclass "


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class ": COPY, "return o": "p = torch.empty_like(o); k2[(x.numel() // 4096,)](o, p, 640, B=4096); return p"},
         "kernel `k2` reads what kernel `k` stores"),
        ({"class ": COPY, "return o": "k2[(x.numel() // 4096,)](x, o, 640, B=4096); return o"},
         "kernels `k` and `k2` store in the same tensor"),
        ({"    tl.store(o + at, v)": "    tl.atomic_add(o + at, v)"}, "atomics"),
        ({"return o": "return o * 1"}, "`mul` takes what kernel `k` stores"),
        ({"return o": "try: o.add_(0)\n        except BaseException: pass\n        return o"}, "`add_` takes"),
        ({"return o": "p = torch.empty_like(o); p.copy_(o); return p"}, "`copy_` takes"),
        ({"return o": "return o.cpu()"}, "`cpu` takes"),
        ({"    tl.store(o + at, v)": "    tl.store(o + at, v, mask=(tl.program_id(0) == 17) & (at >= 0))"},
         "the sampled programs stored nothing of output 0"),
    ],
    ids=["dependent launch", "two launches, one output", "atomics", "library call", "in place", "copy", "to the host",
         "nothing stored"],
)  # fmt: skip
def test_what_a_sample_cannot_tell_is_not_applicable(zygotes: Zygotes, change: dict[str, str], reason: str) -> None:
    source = CANDIDATE
    for old, new in change.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    report = gate(zygotes, source)
    assert report.outcome == "not_applicable", report
    assert reason in report.reason


def test_an_earlier_launch_that_ran_whole_may_be_read(zygotes: Zygotes) -> None:
    """Weights prepared by a small launch, and a library step before; views of the output after."""
    prepare = "        p = torch.empty_like(x); k2[(20,)](x * 1, p, 1, B=32768); x = p\n        o = torch"
    source = CANDIDATE.replace("class ", COPY).replace("        o = torch", prepare)
    report = gate(zygotes, source.replace("return o", "return o.view(-1).reshape(x.shape).contiguous()"))
    assert report.outcome == "passed", report.reason
    assert report.scaling == "own sizes, 44 of 660 programs sampled"


def test_out_of_bounds_before_a_refusal_still_fails(zygotes: Zygotes) -> None:
    source = CANDIDATE.replace("tl.load(x + at)", "tl.load(x + at + 1)").replace("return o", "return o * 1")
    report = gate(zygotes, source)
    assert report.outcome == "failed"
    assert report.findings[0].code == "out-of-bounds"


def test_a_reference_that_is_too_large_is_named(zygotes: Zygotes) -> None:
    reference = PROBLEM.replace("+ 1\n", "+ 1 if x.shape[0] < 1024 else x.expand(128, -1, -1)\n")
    report = gate(zygotes, CANDIDATE, reference)
    assert report.outcome == "not_applicable"
    assert "own sizes: the outputs take 320.0 MiB" in report.reason


# the choice of programs


@pytest.mark.parametrize("grid", [(4096, 1, 1), (64, 32, 1), (7, 3, 5), (2, 2, 1000), (1, 1, 25)])
def test_first_last_and_corners_always_run(grid: tuple[int, int, int]) -> None:
    x, y, z = grid
    chosen = choose(grid, 24, "a")
    assert len(chosen) <= 24
    assert list(chosen) == sorted(set(chosen))
    corners = {i + x * (j + y * k) for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)}
    assert corners <= set(chosen)
    assert max(chosen) == x * y * z - 1
    assert choose(grid, 24, "a") == chosen != choose(grid, 24, "b")


def test_every_share_of_the_grid_is_met_and_seeds_differ() -> None:
    seen = Counter(p * 8 // 4096 for s in range(50) for p in choose((4096, 1, 1), 24, str(s)))
    assert min(seen.values()) > 100
    assert len({tuple(choose((4096, 1, 1), 24, str(s))) for s in range(50)}) == 50
    assert list(choose((24, 1, 1), 24, "")) == list(range(24))


# the mask


def test_an_element_counts_when_all_of_its_bytes_were_stored() -> None:
    coverage, tensor = Coverage(8, "s"), torch.zeros(4, 3)
    coverage.begin("k", (9, 1, 1))
    coverage.argument(tensor)
    address = tensor.untyped_storage().data_ptr()
    coverage.access("store", address, 48, np.array([0, 4, 40]), 4)
    coverage.access("store", address, 48, np.array([8, 10]), 1)
    coverage.end()
    assert coverage.elements(tensor).nonzero()[0].tolist() == [0, 1, 10]
    assert coverage.elements(tensor.t()).nonzero()[0].tolist() == [0, 4, 7]
    assert coverage.elements(tensor[3, 1:]).tolist() == [True, False]
    assert coverage.elements(torch.zeros(2)).all()
    coverage.begin("later", (1, 1, 1))
    coverage.access("load", address, 48, np.array([0, 40]), 4)
    with pytest.raises(NotSampled, match="`later` reads what kernel `k`"):
        coverage.access("load", address, 48, np.array([8]), 4)


def test_chosen_elements_travel_and_lies_are_refused() -> None:
    tensor = torch.arange(10, dtype=torch.float16).reshape(2, 5)
    mask = np.arange(10) % 3 == 0
    spec = {"kind": "tensor", "shape": [2, 5], "dtype": "float16", "stride": [5, 1]}
    sent = {"d/out/0": blobs.chosen_bytes(tensor, mask), "d/mask/0": np.packbits(mask).tobytes()}
    got, masks = blobs.unpack_chosen(spec, sent, "d")
    assert got.reshape(-1)[mask].tolist() == [0, 3, 6, 9]
    assert masks[0].reshape(-1).tolist() == mask.tolist()
    lies: list[dict[str, Any]] = [{"d/out/0": b"1234"}, {"d/mask/0": b""}, {"d/mask/0": b"\xff\xff"}]
    for lie in lies:
        with pytest.raises(SpecError):
            blobs.unpack_chosen(spec, {**sent, **lie}, "d")
    with pytest.raises(SpecError):
        blobs.unpack_chosen({**spec, "shape": [1 << 38]}, sent, "d")
