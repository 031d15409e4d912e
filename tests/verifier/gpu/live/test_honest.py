"""Honest candidates that no trace takes, and honest mistakes, run live on the host's memory."""

from __future__ import annotations

import pytest

from tests.verifier.gpu.live.conftest import HONEST, QUICK, Live, forward
from verifier.gpu.live import HIDDEN_SECONDS, too_short
from verifier.loader import parse_problem
from verifier.timing import Block, Decision, Rules, decide
from verifier.verdict import Status

RIGHT = {
    "plain": HONEST,
    "branches on a value": forward("if x.sum().item() > 0:\n    return x * 2.0 + y\nreturn y + 2.0 * x"),
    "indexes by a mask": forward("out = y.clone()\nfor at in (x > 0, x <= 0):\n    out[at] += 2 * x[at]\nreturn out"),
    "caches by shape": forward(
        "if x.shape not in MADE:\n    MADE[x.shape] = torch.empty_like(x)\n"
        "return torch.add(y, x, alpha=2.0, out=MADE[x.shape])", "MADE = {}"),
    "counts its calls in a buffer": (
        "import torch\nfrom torch import nn\n\nclass ModelNew(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('calls', torch.zeros(()))\n"
        "    def forward(self, x, y):\n        self.calls += 1\n        return (x * 2.0 + y) * self.calls\n"),
}  # fmt: skip


def test_what_the_reference_changes_a_candidate_may_change_in_every_run(live: Live, problem_text: str) -> None:
    changed = problem_text.replace("x * 2.0 + y", "x.mul_(2.0).add_(y)")
    problem = parse_problem(changed, file="changes.py", name="changes")
    visit = live(forward("return x.mul_(2.0).add_(y)"), problem=problem)
    assert (visit.status, visit.test.outcome) == (None, "passed"), visit.reason
    assert live(forward("return x.mul_(2.0).add_(y).mul_(1.01)"), problem=problem).status is Status.WRONG


@pytest.mark.parametrize("name", RIGHT)
def test_what_cannot_be_traced_is_judged_live(live: Live, name: str) -> None:
    visit = live(RIGHT[name])
    assert (visit.status, visit.test.outcome, visit.test.path) == (None, "passed", "live"), visit.reason
    assert len(visit.test.checks) >= 6
    assert any("driver" in gap for gap in visit.isolation)


def test_its_time_is_the_judges_clock(live: Live) -> None:
    slow = live(forward("time.sleep(0.05)\nreturn x * 2.0 + y", "import time"), timed=("small",), **QUICK)
    assert slow.status is None, slow.reason
    (timing,) = slow.timings
    assert (timing.path, timing.graphs, timing.host_bound_seconds) == ("live", (False, False), None)
    assert timing.decided.candidate_seconds is not None
    assert timing.decided.candidate_seconds > 0.02  # of 0.05, less what this machine is busy with
    assert timing.decided.base_seconds is not None
    assert timing.decided.base_seconds < timing.decided.candidate_seconds / 2  # a busy machine


WRONG = {
    "wrong value": (forward("return x * 2.01 + y"), Status.WRONG, "relative error", None),
    "other shape": (forward("return (x * 2.0 + y)[:5]"), Status.WRONG, "output 0 is (5,) float32", None),
    "other dtype": (forward("return (x * 2.0 + y).half()"), Status.WRONG, "float16", None),
    "two outputs": (forward("return x, y"), Status.WRONG, "returns 2 tensors", None),
    "mutates an input": (forward("return x.mul_(2.0).add_(y)"), Status.WRONG, "changed in place", None),
    "raises": (forward("raise ValueError('no idea')"), Status.RUNTIME_ERROR, "ValueError: no idea", 8),
    "raises on import": ("import torch\n1 / 0\nModelNew = 1\n", Status.RUNTIME_ERROR, "ZeroDivisionError", 2),
    "no model": ("import torch\nModelNew = None\n", Status.UNPARSABLE, "no class `ModelNew`", None),
    "writes outside": (
        forward("torch.as_strided(x, (1,), (1,), 0).untyped_storage()\n"
                "ctypes.memset(x.data_ptr() - 8, 0, 4)\nreturn x * 2.0 + y", "import ctypes"),
        Status.OUT_OF_BOUNDS, "before input 0", None),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_with_its_line(live: Live, name: str) -> None:
    source, status, text, line = WRONG[name]
    visit = live(source)
    assert visit.status is status, visit.reason
    assert text in visit.reason
    assert next(f.line for f in visit.test.findings if f.severity == "error") == line


@pytest.mark.parametrize(("taken", "said"), [(0.9, "54 us, and 600 us"), (1.1, "")])
def test_a_time_too_short_for_the_judges_clock_is_no_speed_up(taken: float, said: str) -> None:
    pairs = ((taken * HIDDEN_SECONDS, 10 * HIDDEN_SECONDS),) * 2
    timing = decide(lambda _: Block(pairs), Rules(max_blocks=6))
    assert timing.decision is Decision.FASTER
    assert said in too_short(timing)
    assert bool(too_short(timing)) is bool(said)


def test_what_is_too_short_is_right_and_has_no_time(live: Live) -> None:
    visit = live(HONEST, timed=("small",), **QUICK)
    assert (visit.status, visit.test.outcome) == (None, "passed"), visit.reason
    if visit.timings:  # a busy machine is slow
        assert (visit.timings[0].decided.candidate_seconds or 0.0) >= HIDDEN_SECONDS
    else:
        assert "too short for the judge's clock" in visit.test.findings[0].message
