"""Rules about versions: each against the Triton that is installed, the other's answer is the rule's own data."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import triton

from verifier.plan.triton_versions import COMPARED, RULES, Rule, version_findings

INSTALLED = ".".join(triton.__version__.split(".")[:2])

KERNEL = """
@triton.jit
def k(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + r, r < n)
{body}
    tl.store(o + r, v, r < n)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        k[(triton.cdiv(x.numel(), 256),)](x, o, x.numel(), B=256)
        return o
"""


def source_of(rule: Rule) -> str:
    helper = f"@triton.jit\n{rule.helper}\n" if rule.helper else ""
    return helper + KERNEL.format(body=textwrap.indent(rule.example, "    "))


@pytest.mark.skipif(INSTALLED not in COMPARED, reason="the rules speak of other versions")
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_the_installed_triton_does_what_the_rule_says(rule: Rule, trace: Callable[..., Any]) -> None:
    traced = trace(source_of(rule))
    assert (traced.status == "ok") == (rule.accepted == INSTALLED), traced.diagnostics


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_each_rule_finds_its_example_and_no_other(rule: Rule) -> None:
    source = source_of(rule)
    (found,) = version_findings(source, "3.9.0")
    other = COMPARED[1 - COMPARED.index(rule.accepted)]
    assert found.code == "triton-version"
    assert found.severity == "warning"
    assert f"Triton {rule.accepted} takes it, Triton {other} {rule.otherwise};" in found.message
    assert found.line is not None
    assert source.splitlines()[found.line - 1].strip() in f"{rule.example}\n{rule.helper}"


def test_host_code_and_plain_kernels_are_left_alone() -> None:
    plain = KERNEL.format(body="    v = tl.flip(v, 0)\n    v = tl.cat(v, v, can_reorder=True)")
    assert version_findings(plain, "3.9.0") == ()
    host = "def check(n, *a):\n    assert 0 < n < 5\n    return [i for i in a if (j := i)]\n"
    assert version_findings(host + plain, "3.9.0") == ()
    assert version_findings("def broken(:", "3.9.0") == ()


def test_a_version_between_is_named() -> None:
    chained = KERNEL.format(body="    v = tl.where(0 <= r < n, v, 0.0)")
    assert "(here: 3.7.1)" in version_findings(chained, "3.7.1")[0].message
