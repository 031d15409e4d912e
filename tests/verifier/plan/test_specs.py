"""Argument specs: encode, build, leaves and rebuild agree; malformed specs are refused."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

import json
import math

import pytest
import torch

from verifier.specs import SpecError, build, empty, encode, leaves, rebuild


def test_round_trip() -> None:
    value = [
        torch.empty(2, 3).t(),
        (1, 2.5, True, None, "s"),
        {"k": torch.empty(0, dtype=torch.int64)},
        torch.bfloat16,
        -math.inf,
    ]
    spec = json.loads(json.dumps(encode(value), allow_nan=False))
    made = empty(spec)
    assert encode(made) == spec
    assert made[1] == (1, 2.5, True, None, "s")
    assert made[3] is torch.bfloat16
    assert made[4] == -math.inf
    assert made[0].stride() == (1, 3)


def test_rebuild_uses_the_order_of_leaves() -> None:
    value = {"a": torch.ones(2), "b": [torch.zeros(3), 1]}
    tensors = list(leaves(value))
    again = rebuild(encode(value), iter(tensors))
    assert again["a"] is tensors[0]
    assert again["b"][0] is tensors[1]
    with pytest.raises(SpecError, match="missing"):
        rebuild(encode(value), iter(tensors[:1]))


@pytest.mark.parametrize("spec", [
    None, {}, {"kind": "x"}, {"kind": "tensor"}, {"kind": "tensor", "shape": [-1], "dtype": "float32"},
    {"kind": "tensor", "shape": [1], "dtype": "float31"}, {"kind": "tensor", "shape": [2], "dtype": "float32", "stride": []},
    {"kind": "tensor", "shape": [1 << 39, 1 << 39], "dtype": "float32"}, {"kind": "value", "value": []},
    {"kind": "value", "value": "x", "float": True}, {"kind": "list", "items": {}}, {"kind": "tensor", "shape": ["1"], "dtype": "float32"},
])  # fmt: skip
def test_malformed_specs(spec: object) -> None:
    with pytest.raises(SpecError):
        build(spec, lambda shape, dtype, stride: torch.empty_strided(shape, stride, dtype=dtype))


def test_what_no_spec_describes() -> None:
    with pytest.raises(SpecError):
        encode(object())
