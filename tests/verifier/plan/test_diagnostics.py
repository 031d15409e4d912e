"""Failures come back as data with the candidate's own line, column and the compiler's words."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.traced import parse

NEW = "class ModelNew(nn.Module):\n"
CALL = (
    NEW
    + "    def forward(self, x):\n        o = torch.empty_like(x)\n        bad[(1,)](x, o, B=128)\n        return o\n"
)
KERNEL = "@triton.jit\ndef bad(x, o, B: tl.constexpr):\n    r = tl.arange(0, B)\n"

CASES: dict[str, tuple[str, str, str, int | None, str]] = {
    "unknown name": (KERNEL + "    tl.store(o + r, tl.load(x + r) + missing)\n" + CALL, "compile_error", "compile-error", 15, "missing is not defined"),
    "in a device function": (
        "@triton.jit\ndef helper(v):\n    return v + tl.zeros([7], tl.float32)\n" + KERNEL + "    tl.store(o + r, helper(tl.load(x + r)))\n" + CALL,
        "compile_error", "compile-error", 14, "power of 2"),
    "dot shapes": (KERNEL + "    a = tl.zeros([64, 32], tl.float32)\n    tl.dot(a, a)\n" + CALL, "compile_error", "compile-error", 16, "reduction dimensions"),
    "static assert": (KERNEL + "    tl.static_assert(B > 1000, 'B is small')\n" + CALL, "compile_error", "compile-error", 15, "B is small"),
    "ptxas": (
        KERNEL + "    v = tl.inline_asm_elementwise('foo.bar $0, $1;', '=r,r', [r], dtype=tl.int32, is_pure=True, pack=1)\n    tl.store(o + r, v.to(tl.float32))\n" + CALL,
        "compile_error", "ptxas-error", 20, "Unknown modifier"),
    "wrong keyword": (NEW + "    def forward(self, x):\n        relu_k[(1,)](x, x, 4, BLOCK=4)\n", "runtime_error", "runtime-error", 14, "'B'"),
    "grid limit": (NEW + "    def forward(self, x):\n        relu_k[(1, 1, 70000)](x, x, 4, B=1024)\n        return x\n", "over_limits", "over-limits", 14, "65535"),
    "host pointer": (NEW + "    def forward(self, x):\n        relu_k[(1,)](x, torch.empty(4), 4, B=1024)\n        return x\n", "runtime_error", "runtime-error", 14, "cpu tensor"),
    "signature": (NEW + "    def forward(self, x, y): return x\n", "runtime_error", "runtime-error", 13, "'y'"),
    "syntax": ("class ModelNew(nn.Module:\n    pass\n", "unparsable", "syntax-error", 12, "syntax"),
    "no class": ("class Other: pass\n", "unparsable", "no-model", None, "ModelNew"),
    "not a module": ("class ModelNew:\n    def __call__(self, x): return x\n", "unparsable", "no-model", None, "nn.Module"),
    "recursion": ("def f(): return f()\n" + NEW + "    def forward(self, x): return f()\n", "runtime_error", "runtime-error", 12, "RecursionError"),
    "null bytes": ("x = '\0'\n", "unparsable", "syntax-error", None, "null"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_place_and_words(trace: Callable[..., Any], name: str) -> None:
    body, status, code, line, words = CASES[name]
    traced = trace(body)
    assert traced.status == status, (traced.diagnostics, traced.error)
    first = traced.diagnostics[0]
    assert (first["code"], first["line"]) == (code, line), first
    assert words in first["message"]
    assert first["severity"] == "error"
    if line is not None:
        assert first["excerpt"].splitlines()[-1].strip() == "^"


def test_column_points_at_the_name(trace: Callable[..., Any]) -> None:
    body = CASES["unknown name"][0]
    first = trace(body).diagnostics[0]
    text = first["excerpt"].splitlines()[0]
    assert text[first["column"] - 1 :].startswith("missing")


def test_a_comment_may_name_an_encoding_by_accident() -> None:
    found = parse("# Flash decoding: partial results\nclass ModelNew: ...\n")
    assert found is not None
    assert (found.code, found.line) == ("syntax-error", None)
    assert "unknown encoding: partial; `coding:` in a comment of the first two lines" in found.message
    assert parse("# One more line.\n# Flash attention.\n# decoding: partial\nclass ModelNew: ...\n") is None
