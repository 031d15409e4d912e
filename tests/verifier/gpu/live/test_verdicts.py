"""From a file that no trace takes to its verdict: the CPU's judge, and a live visit on the host's memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.explain import facts
from experiments.tables import gained
from tests.verifier.gpu.live.conftest import NATIVE, forward
from verifier.candidate import Candidate
from verifier.gpu.bench import GpuBench
from verifier.gpu.supervisor import GpuWorker
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge, isolation_gaps
from verifier.loader import parse_problem
from verifier.verdict import Stage, Status, Verdict

BRANCH = forward("return x * 2.0 + y if x.sum().item() != 0 else y")
Judged = Callable[[str, str], Verdict]


@pytest.fixture(scope="module")
def judged(zygotes: Zygotes, worker: GpuWorker, problem_text: str) -> Judged:
    """The verdict of a source under a library policy, on a machine whose GPU is the host's memory."""

    def verdict(source: str, policy: str) -> Verdict:
        text = problem_text.replace('"forbidden"', repr(policy))
        problem = parse_problem(text, file="scaled_sum.py", name="scaled_sum")
        judge = Judge(problem, zygotes, seed=5, measured=True)
        return judge.judge(Candidate(source=source), GpuBench(problem, 5, worker=worker).visit)

    return verdict


def test_a_live_verdict_says_what_it_is(judged: Judged) -> None:
    verdict = judged(BRANCH, "allowed")
    assert (verdict.status, verdict.path, verdict.basis) == (Status.CORRECT, "live", "gpu"), verdict.reason
    assert "live on the GPU" in verdict.reason
    assert set(verdict.isolation) > set(isolation_gaps())
    assert "driver" in verdict.isolation[-1]
    assert verdict.compile is not None
    assert not [f for f in verdict.compile.findings if f.severity == "error"]
    assert verdict.profile is not None
    assert verdict.profile.estimates == ()
    if verdict.profile.timings:  # a busy machine has none
        assert {t.path for t in verdict.profile.timings} == {"live"}
        assert "x live, measured" in gained(verdict)
    assert facts(verdict)["path"] == "live"


def test_a_wrong_file_is_wrong_live(judged: Judged) -> None:
    verdict = judged(BRANCH.replace("2.0", "2.01"), "allowed")
    assert (verdict.status, verdict.stage, verdict.path) == (Status.WRONG, Stage.CORRECTNESS, "live")


def test_a_problem_that_forbids_library_compute_has_no_live_verdict(judged: Judged) -> None:
    verdict = judged(BRANCH, "forbidden")
    assert (verdict.status, verdict.stage) == (Status.UNTRACEABLE, Stage.COMPILE)
    assert "only a plan can prove" in verdict.diagnostics[-1].message


def test_a_file_without_a_kernel_is_no_help(judged: Judged) -> None:
    verdict = judged(BRANCH, "assist")
    assert (verdict.status, verdict.stage) == (Status.REJECTED, Stage.AUDIT)
    assert "no kernel of its own" in verdict.reason


def test_rules_over_the_text_hold_for_live_files(judged: Judged) -> None:
    verdict = judged(BRANCH.replace("import torch", "import torch, sys\nsys._getframe()", 1), "allowed")
    assert (verdict.status, verdict.stage) == (Status.REJECTED, Stage.AUDIT)


def test_what_a_live_file_cannot_show_is_said(judged: Judged) -> None:
    source = BRANCH.replace("import torch", "import torch, triton\n\n@triton.jit\ndef kernel(x):\n    pass\n", 1)
    verdict = judged(source, "assist")
    assert verdict.status is Status.CORRECT, verdict.reason
    assert verdict.compile is not None
    assert "policy-unchecked" in {f.code for f in verdict.compile.findings}


def test_native_code_is_built_before_the_visit_and_not_again(judged: Judged) -> None:
    verdict = judged(NATIVE, "allowed")
    assert (verdict.status, verdict.path) == (Status.CORRECT, "live"), verdict.reason
    assert verdict.seconds["build"] > 0.1


def test_native_code_that_does_not_build_ends_before_a_visit(judged: Judged) -> None:
    verdict = judged(NATIVE.replace("(2 *", "(missing *"), "allowed")
    assert (verdict.status, verdict.stage) == (Status.COMPILE_ERROR, Stage.COMPILE), verdict.reason
    assert "does not build" in verdict.reason
    assert "missing" in verdict.reason
