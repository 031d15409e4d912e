"""The name of an operator decides its role; a recorder that says otherwise is not believed."""

from __future__ import annotations

import pytest

from verifier.plan.roles import may_have


@pytest.mark.parametrize(
    ("op", "role", "allowed"),
    [
        ("aten::gelu", "compute", True),
        ("aten::gelu", "move", False),
        ("aten::mm", "alloc", False),
        ("aten::add.Tensor", "fill", False),
        ("aten::empty_like", "alloc", True),
        ("aten::empty_like", "random", False),
        ("aten::native_dropout", "random", True),
        ("aten::clone", "move", True),
        ("aten::clone", "compute", False),
    ],
)
def test_roles(op: str, role: str, allowed: bool) -> None:
    assert may_have(op, role) is allowed
