"""Two traces of one file: a branch on the disguise is an error, chance is a warning, and names are nothing."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan.disguise import NAME, Disguise
from verifier.plan.twice import CONTROLS, Outcome, compare
from verifier.verdict import Diagnostic

INIT = "class ModelNew(nn.Module):\n    def __init__(self):\n        super().__init__()\n"


@pytest.fixture(scope="module")
def twice(trace: Callable[..., Any]) -> Callable[[str], tuple[Diagnostic | None, int]]:
    """The finding about a candidate, and how many traces it took beside the two."""

    def traced(body: str, disguise: int) -> Outcome:
        made = trace(body, disguise=disguise)
        name = Disguise.of(disguise).name
        if made.value is None:
            first = made.diagnostics[0]
            return Outcome(None, {}, name, f"{made.status}: {first['message']}", first["line"])
        return Outcome(made.value, made.blobs, name)

    def look(body: str) -> tuple[Diagnostic | None, int]:
        controls: list[Outcome] = []

        def again() -> Outcome:
            controls.append(traced(body, 0))
            return controls[-1]

        return compare(traced(body, 0), traced(body, 20_261_126), again, body), len(controls)

    return look


def test_disguises_differ_in_all_that_they_change() -> None:
    one, other = Disguise.of(1), Disguise.of(2)
    assert Disguise.of(0) == Disguise()
    assert one == Disguise.of(1)
    assert len(one.name) == len(NAME)
    for field in Disguise.__slots__:
        assert len({getattr(d, field) for d in (Disguise(), one, other)}) == 3, field
    drawn = [Disguise(), Disguise()]
    assert all(len({getattr(d, field) for d in drawn}) == 2 for field in ("first", "seed"))


@pytest.mark.parametrize(
    "body",
    [
        "class ModelNew(nn.Module):\n    def forward(self, x): return relu(x) + len(__name__) + x.data_ptr() % 16\n",
        # a set in the order of addresses decides in which order the configurations come
        "class Block:\n    def __init__(self, n): self.n = n\n"
        "@triton.autotune([triton.Config({'B': b.n}) for b in {Block(n) for n in (64, 128, 256, 512, 1024)}], key=['n'])\n"
        "@triton.jit\ndef k(x, o, n, B: tl.constexpr):\n    r = tl.program_id(0) * B + tl.arange(0, B)\n    tl.store(o + r, tl.load(x + r, r < n), r < n)\n"
        "class ModelNew(nn.Module):\n    def forward(self, x):\n        o = torch.empty_like(x)\n        k[lambda m: (triton.cdiv(x.numel(), m['B']),)](x, o, x.numel())\n        return o\n",
    ],
    ids=["names", "order of configurations"],
)
def test_equal_up_to_names_and_order(twice: Callable[..., Any], body: str) -> None:
    assert twice(body) == (None, 0)


@pytest.mark.parametrize(
    "body",
    [
        INIT
        + "        import random\n        self.c = random.random()\n    def forward(self, x): return relu(x) * self.c\n",
        INIT
        + "        import numpy as np\n        self.c = torch.tensor(np.random.rand(4, 4)).cuda()\n    def forward(self, x): return relu(x) + self.c.sum()\n",
        INIT
        + "        self.c = torch.initial_seed()\n    def forward(self, x): return relu(x) + self.c + x.data_ptr() % 268435399\n",
        INIT
        + "        torch.manual_seed(torch.seed())\n        self.c = torch.rand(1024).cuda()\n    def forward(self, x): return relu(x) + self.c\n",
        INIT
        + "        import random\n        self.n = random.getrandbits(60)\n    def forward(self, x):\n        for i in range(60): x = relu(x) if i == 30 else x + 1 if self.n >> i & 1 else x * 2\n        return x\n",
    ],
    ids=["random", "numpy", "seed and address of a tensor", "seed", "operators"],
)
def test_chance_is_a_warning(twice: Callable[..., Any], body: str) -> None:
    found, controls = twice(body)
    assert (found.severity, found.code, controls) == ("warning", "not-repeatable", 1)


ASKS = INIT + "        self.traced = __name__ == 'candidate'\n    def forward(self, x):\n"
BRANCHES = {
    "kernel": ("        if self.traced:\n            return relu(x)\n        return torch.relu(x)\n", 7),
    "behind chance": (
        "        import random\n        x = x * random.random()\n        return relu(x) if self.traced else x + 1\n",
        7,
    ),
    "exception": ("        if not self.traced: raise ValueError('no')\n        return relu(x)\n", 17),
}
"""Body of forward, and the line: that of the first step that differs (in `relu` of the prelude) or of the exception."""


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_is_an_error(twice: Callable[..., Any], name: str) -> None:
    body, line = BRANCHES[name]
    found, controls = twice(ASKS + body)
    assert (found.severity, found.code, controls) == ("error", "differs-between-traces", CONTROLS)
    assert "may not depend on who runs it" in found.message
    assert found.line == line
