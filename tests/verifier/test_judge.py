"""The judge as a whole: candidates of one small problem and the statuses that they must get."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from verifier import traced
from verifier.candidate import Candidate
from verifier.errors import ProblemError, SandboxError
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import load_problem, parse_problem
from verifier.verdict import Stage, Status, Verdict

FORWARD = "        return run(x, y)"
CLASS = "class ModelNew(nn.Module):"

Edit = Callable[[str], str]


def forward(body: str) -> Edit:
    return lambda source: source.replace(FORWARD, "\n".join("        " + line for line in body.split("\n")))


def swap(old: str, new: str) -> Edit:
    def edit(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return edit


def head(lines: str) -> Edit:
    return lambda source: f"{lines}\n{source}"


FORGE = """\
import glob, json, os
for fd in range(3, 64):
    try:
        os.write(fd, b'\\x00\\x00\\x00\\x20{"outcome": "ok", "value": {"status": "ok"}}')
    except OSError:
        pass"""
PATCH = """\
import builtins, torch
torch.allclose = lambda *a, **k: True
torch.testing.assert_close = lambda *a, **k: None
torch.Tensor.__sub__ = torch.Tensor.sub
torch.isfinite = lambda x: torch.ones_like(x, dtype=torch.bool)"""
MEMO = "\n\nHELD = {}\n\n\nclass ModelNew(nn.Module):"

CASES: dict[str, tuple[Edit, set[Status], str]] = {
    "correct": (lambda s: s, {Status.CORRECT}, "passed in the interpreter"),
    "wrong": (swap("* 2.0", "* 2.01"), {Status.WRONG}, "relative error"),
    "wrong only past the first program": (
        swap("value = tl.load(x + at", "value = tl.load(x + tl.minimum(at, 255)"), {Status.WRONG}, "instead of"),
    "wrong dtype": (forward("return run(x, y).half()"), {Status.WRONG}, "dtype"),
    "out of bounds": (swap("tl.store(out + at, value, mask=inside)", "tl.store(out + at, value)"),
                      {Status.OUT_OF_BOUNDS}, "out-of-bounds store"),
    "compile error": (swap("tl.arange(0, BLOCK)", "tl.arange(0, BLOCK + 1)"), {Status.COMPILE_ERROR}, "power of 2"),
    "over the limits": (swap("BLOCK=128)", "BLOCK=128, num_warps=64)"), {Status.OVER_LIMITS}, ""),
    "raises": (forward("raise ValueError('no idea')"), {Status.RUNTIME_ERROR}, "no idea"),
    "branches on a value": (forward("return run(x, y) if x.sum().item() > 0 else x"), {Status.UNTRACEABLE}, ""),
    "no kernel": (forward("return x * 2.0 + y"), {Status.REJECTED}, "kernel"),
    "library fallback": (
        forward("try:\n    return kernel[(1,)](x)\nexcept Exception:\n    return x * 2.0 + y"),
        {Status.REJECTED}, "kernel"),
    "constant output": (forward("run(x, y)\nreturn torch.zeros_like(x)"), {Status.REJECTED}, ""),
    "memo cache": (
        lambda s: forward("if x.shape not in HELD:\n    HELD[x.shape] = run(x, y)\nreturn HELD[x.shape]")(
            s.replace(CLASS, MEMO.lstrip())),
        {Status.REJECTED}, ""),
    "ends its process": (forward("import os\nos._exit(0)"), {Status.CRASH}, "ended"),
    "crashes its process": (head("import ctypes\nctypes.string_at(0)"), {Status.CRASH}, "SIGSEGV"),
    "syntax error": (swap("def forward(self, x, y):", "def forward(self, x, y:"), {Status.UNPARSABLE}, "never closed"),
    "no class": (swap("ModelNew", "Model"), {Status.UNPARSABLE}, "ModelNew"),
    "null byte": (head("\x00"), {Status.UNPARSABLE}, "null"),
    "forged answer on every descriptor": (head(FORGE), {Status.CRASH, Status.REJECTED}, ""),
    "patched comparers, honest kernel": (head(PATCH), {Status.CORRECT}, ""),
    "patched comparers, wrong kernel": (
        lambda s: head(PATCH)(s.replace("* 2.0", "* 3.0")), {Status.WRONG}, "relative error"),
}  # fmt: skip


@pytest.fixture(scope="module")
def one_judge(zygotes: Zygotes, problem_text: str) -> Judge:
    made = Judge(parse_problem(problem_text, file="p.py", name="scaled_sum"), zygotes, seed=1)
    made.prepare()
    return made


def judged(judge: Judge, source: str) -> Verdict:
    return judge.judge(Candidate(source=source))


@pytest.mark.parametrize("name", CASES)
def test_status(name: str, one_judge: Judge, correct: str) -> None:
    edit, statuses, words = CASES[name]
    verdict = judged(one_judge, edit(correct))
    assert verdict.status in statuses, f"{verdict.status}: {verdict.reason}"
    assert words in verdict.reason
    assert verdict.ok == (verdict.status is Status.CORRECT)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_correct_verdict_says_what_it_rests_on(one_judge: Judge, correct: str) -> None:
    verdict = judged(one_judge, correct)
    assert (verdict.stage, verdict.basis, verdict.score_kind) == (Stage.INTERPRET, "interpreter", "estimate")
    assert verdict.profile is not None
    (estimate,) = verdict.profile.estimates
    assert verdict.score == pytest.approx(math.log(estimate.base_seconds / estimate.seconds))
    assert verdict.compile is not None
    assert [k.name for k in verdict.compile.kernels] == ["kernel"]


def test_messages_point_at_the_candidates_line(one_judge: Judge, correct: str) -> None:
    source = correct.replace("tl.arange(0, BLOCK)", "tl.arange(0, BLOCK + 1)")
    first = judged(one_judge, source).diagnostics[0]
    assert first.line == next(n for n, text in enumerate(source.splitlines(), 1) if "BLOCK + 1" in text)
    assert "^" in first.excerpt


def test_the_environment_and_the_seed_stay_outside(
    one_judge: Judge, correct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARPSMITH_TEST_KEY", "sk-secret")
    told = "import os\nraise ValueError(repr(sorted(os.environ.items())))"
    verdict = judged(one_judge, forward(told)(correct))
    assert verdict.status is Status.RUNTIME_ERROR
    assert "sk-secret" not in verdict.model_dump_json()
    assert os.environ["WARPSMITH_TEST_KEY"] == "sk-secret"


def test_a_candidate_that_never_ends(one_judge: Judge, correct: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "TRACE", replace(traced.TRACE, wall_seconds=1.5))
    verdict = judged(one_judge, forward("while True:\n    pass")(correct))
    assert verdict.status is Status.TIMEOUT


def test_the_same_seed_gives_the_same_checks(one_judge: Judge, correct: str) -> None:
    first, second = judged(one_judge, correct), judged(one_judge, correct)
    assert first.test is not None
    assert second.test is not None
    assert first.test.checks == second.test.checks


def test_a_reference_that_fails_is_the_problems_fault(zygotes: Zygotes, problem_file: Path) -> None:
    problem_file.write_text(problem_file.read_text().replace("torch.randn(N), torch", "torch.randn(n), torch"))
    with pytest.raises(ProblemError, match="name 'n' is not defined"):
        Judge(load_problem(problem_file), zygotes).prepare()


def test_a_server_that_died_is_no_verdict(correct: str, problem_file: Path) -> None:
    class Dead:
        def run(self, *given: object, **named: object) -> object:
            raise SandboxError("the server ended")

    dead = Zygotes(compile=Dead(), interpret=Dead())  # type: ignore[arg-type]
    with pytest.raises(SandboxError, match="the server ended"):
        Judge(load_problem(problem_file), dead).judge(Candidate(source=correct))


NORM = """\
import torch
from torch import nn

ROWS, COLS = 64, 256
WORKLOADS = [{"name": "small", "roles": ["small", "timed"], "constants": {"ROWS": 4, "COLS": 40}}]


class Model(nn.Module):
    def __init__(self, cols):
        super().__init__()
        self.norm = nn.RMSNorm(cols, eps=1e-5)

    def forward(self, x):
        return self.norm(x)


def get_inputs():
    return [torch.randn(ROWS, COLS)]


def get_init_inputs():
    return [COLS]
"""
NORM_KERNEL = """\
import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def norm(x, w, out, cols, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    v = tl.load(x + tl.program_id(0) * cols + at, mask=at < cols, other=0.0)
    scale = tl.rsqrt(tl.sum(v * v) / cols + 1e-5)
    tl.store(out + tl.program_id(0) * cols + at, v * scale * @WEIGHT@, mask=at < cols)


class ModelNew(nn.Module):
    def __init__(self, cols):
        super().__init__()
        self.norm = nn.RMSNorm(cols, eps=1e-5)

    def forward(self, x):
        out = torch.empty_like(x)
        norm[(x.shape[0],)](x, self.norm.weight, out, x.shape[1], BLOCK=64)
        return out
"""


def test_weights_that_start_at_one_are_tried_with_others(zygotes: Zygotes) -> None:
    judge = Judge(parse_problem(NORM, file="problem.py", name="norm"), zygotes)
    used, ignored = (NORM_KERNEL.replace("@WEIGHT@", text) for text in ("tl.load(w + at, mask=at < cols)", "1.0"))
    assert judge.test(judge.compile(Candidate(source=used))).status is None
    wrong = judge.test(judge.compile(Candidate(source=ignored)))
    assert wrong.status is Status.WRONG
    assert "`norm.weight`" in wrong.reason
