"""Blobs, small floats, references in other precisions, scaled sizes and the strict answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verifier.interpreter import answer, scaling
from verifier.interpreter.arithmetic import (
    bf16_to_float,
    float_to_bf16,
    float_to_fp8,
    fp8_to_float,
    round_to_tf32,
)
from verifier.interpreter.blobs import pack, to_bytes, unpack
from verifier.interpreter.precise import Float64, RoundedOperands
from verifier.loader import parse_problem
from verifier.problem import Precision
from verifier.specs import SpecError

SPECIAL = np.array(
    [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        3.4e38,
        -3.4e38,
        1.00390625,
        1.01171875,
        65520.0,
        449.0,
        -500.0,
    ],
    dtype=np.float32,
)
VALUES = np.concatenate([SPECIAL, np.random.default_rng(0).standard_normal(4096, dtype=np.float32)])


def test_bf16_rounds_as_pytorch() -> None:
    expected = torch.from_numpy(VALUES).bfloat16()
    got = bf16_to_float(float_to_bf16(VALUES))
    np.testing.assert_array_equal(got, expected.float().numpy())


@pytest.mark.parametrize(("name", "largest"), [("fp8e4nv", 448.0), ("fp8e5", 57344.0)])
def test_fp8_saturates_and_rounds_to_even(name: str, largest: float) -> None:
    got = fp8_to_float(float_to_fp8(VALUES, name), name)
    finite = VALUES[np.isfinite(VALUES)]
    assert np.nanmax(np.abs(got)) == largest
    assert np.isnan(got[4])
    small = np.abs(finite) < 4
    error = np.abs(got[np.isfinite(VALUES)][small] - finite[small])
    assert (error <= np.maximum(np.abs(finite[small]) * 2.0**-3, 2.0**-9)).all()


def test_tf32_keeps_eleven_bits_and_special_values() -> None:
    whole = np.array([2047.0, 2049.0, -2049.0, 4098.0], dtype=np.float32)
    assert round_to_tf32(whole).tolist() == [2047.0, 2050.0, -2050.0, 4100.0]
    got = round_to_tf32(SPECIAL)
    assert np.isnan(got[4])
    assert got[2] == np.inf
    assert got[6] <= np.inf


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4), torch.randn(3, 4).t(), torch.randn(2, 6)[:, ::2], torch.tensor(True),
        torch.empty(0, 3),
        torch.randn(1, 3).expand(5, 3), torch.randn(2, dtype=torch.complex64).conj(),
        torch.randn(9).to(torch.float8_e4m3fn), torch.arange(5),
    ],
)  # fmt: skip
def test_tensors_survive_the_way_through_bytes(tensor: torch.Tensor) -> None:
    spec, blobs = pack({"a": [tensor, 2.5, float("-inf")], "b": None}, "x")
    back = unpack(spec, blobs, "x")
    got = back["a"][0]
    assert (got.shape, got.dtype, to_bytes(got)) == (tensor.shape, tensor.dtype, to_bytes(tensor))
    assert back["a"][1:] == [2.5, float("-inf")]


def test_an_expanded_tensor_becomes_dense_and_a_transposed_one_keeps_its_strides() -> None:
    spec, blobs = pack([torch.randn(3, 4).t(), torch.randn(1, 3).expand(5, 3)], "x")
    transposed, expanded = unpack(spec, blobs, "x")
    assert transposed.stride() == (1, 4)
    assert expanded.stride() == (3, 1)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "tensor", "shape": [3], "dtype": "float32"},
        {"kind": "tensor", "shape": [2, 2], "dtype": "float64"},
        {"kind": "tensor", "shape": [1 << 40], "dtype": "float64"},
        {"kind": "tensor", "shape": [-4], "dtype": "float32"},
        {"kind": "tensor", "shape": [4], "dtype": "object"},
        {"kind": "tensor", "shape": [4], "dtype": "float32", "stride": [1 << 30]},
        {"kind": "list", "items": [{"kind": "tensor", "shape": [4], "dtype": "float32"}] * 2},
        {"kind": "pickle"},
        7,
    ],
)
def test_lies_about_a_blob_are_refused(spec: object) -> None:
    blobs = {"x/0": b"\0" * 16}
    try:
        got = unpack(spec, blobs, "x")
    except SpecError:
        return
    assert got.numel() * got.element_size() == 16
    assert got.untyped_storage().nbytes() <= 8 * 16


def test_float64_reaches_into_casts() -> None:
    x = torch.rand(64, dtype=torch.float64)
    with Float64():
        got = torch.softmax(x.half().float(), -1, dtype=torch.float32) + torch.zeros(64, dtype=torch.float16)
    assert torch.equal(got, torch.softmax(x, -1))


@pytest.mark.parametrize(("precision", "bits"), [(Precision.TF32, 11), (Precision.BF16, 8), (Precision.FP32, 24)])
def test_rounded_operands(precision: Precision, bits: int) -> None:
    linear = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.eye_(linear.weight)
    exact, lost = float(2**bits - 1), float(2 ** (bits + 1) - 1)  # lost: fp32 holds 24 bits
    with torch.no_grad(), RoundedOperands(precision) as mode:
        got = linear(torch.tensor([[exact, lost, 0.0, 1.0]]))
    assert mode.products == 1
    assert got[0, 0] == exact
    assert got[0, 1] == lost + 1


PROBLEM = """
import torch
batch_size, heads, DIM, N, RAGGED, EPS = 128, 8, 1024, 4096, 1000, 1e-5
class Model(torch.nn.Module):
    def forward(self, x): return x
def get_inputs(): return [torch.rand(batch_size, N)]
def get_init_inputs(): return []
"""


def test_scaled_constants_shrink_together() -> None:
    own, scaled, sampled = scaling.choose(parse_problem(PROBLEM, file="p.py", name="p"))
    assert own.scaling == "the problem's own sizes"
    first, last = scaled.versions[0].constants, scaled.versions[-1].constants
    assert first == {"batch_size": 64, "DIM": 512, "N": 2048, "RAGGED": 500}
    assert scaled.versions[-1] == scaled.versions[-2]
    assert scaled.max_bytes[-1] > scaled.max_bytes[-2]
    assert (sampled.versions, sampled.sampled) == (own.versions, True)
    assert last["batch_size"] == 2
    assert "heads" not in last
    assert isinstance(last["RAGGED"], int)
    assert last["RAGGED"] % 8
    assert scaled.changed == {128, 1024, 4096, 1000}


def test_sizes_in_a_source() -> None:
    assert scaling.names_a_size("x = [1, (4096, 2)]", frozenset({4096}))
    assert not scaling.names_a_size("x = '4096'  # 4096", frozenset({4096}))
    assert not scaling.names_a_size("x = (", frozenset({4096}))


GOOD = {
    "status": "ok", "code": "", "reason": "", "line": None, "outputs": {}, "mutated": {}, "findings": [],
    "traffic": [], "dots": [], "launches": 1, "calls": [], "without_effect": False, "only_copies": False,
    "configurations": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"status": "passed"}, {"launches": -1}, {"launches": "1"}, {"line": 0}, {"reason": "x" * 5000},
        {"extra": 1},
        {"findings": [{"severity": "error"}]}, {"outputs": {"d0": []}}, {"traffic": [{}] * 5000},
    ],
)  # fmt: skip
def test_a_malformed_answer_is_one_sentence(change: dict[str, object]) -> None:
    assert isinstance(answer.parse(GOOD), answer.Answer)
    assert "malformed" in str(answer.parse({**GOOD, **change}))
    assert "malformed" in str(answer.parse(None))
