from __future__ import annotations

from agent.feedback import LIMIT, feedback, unparsable
from verifier.verdict import (
    CompileReport,
    Diagnostic,
    Estimate,
    KernelReport,
    LaunchEstimate,
    OutputCheck,
    ProfileReport,
    Stage,
    Status,
    TestReport,
    Traffic,
    Verdict,
)

KERNEL = KernelReport(
    name="attn",
    cubin="0" * 64,
    registers=168,
    spill_bytes=64,
    shared_bytes=98304,
    num_warps=8,
    num_stages=3,
    blocks_per_sm=2,
    occupancy=0.25,
    limiter="shared memory",
)


def check(workload: str = "small", passed: bool = True, error: float | None = 1e-3) -> OutputCheck:
    return OutputCheck(
        workload=workload,
        draw="heavy_tailed",
        output=0,
        error=error,
        row_error=2e-3,
        yardstick=5e-4,
        limit=2e-3,
        passed=passed,
        reason="" if passed else "relative error above its limit",
    )


def compiled(findings: tuple[Diagnostic, ...] = ()) -> CompileReport:
    return CompileReport(target="sm_90a", triton="3.9.0", kernels=(KERNEL,), findings=findings, seconds=1.5)


def test_a_compile_error_shows_the_line_with_its_caret() -> None:
    error = Diagnostic(
        severity="error",
        code="compile-error",
        message="`b` is not defined",
        line=12,
        column=5,
        excerpt="    a = b\n        ^",
    )
    text = feedback(
        Verdict(
            candidate="c",
            problem="p",
            status=Status.COMPILE_ERROR,
            stage=Stage.COMPILE,
            reason="A kernel does not compile.",
            diagnostics=(error,),
            compile=compiled((error,)),
        )
    )
    assert text.splitlines() == [
        "Status: compile_error. A kernel does not compile.",
        "- candidate.py:12: error [compile-error]: `b` is not defined",
        "        a = b",
        "            ^",
    ]


def wrong(*checks: OutputCheck) -> Verdict:
    report = TestReport(
        outcome="failed",
        basis="interpreter",
        checks=checks,
        findings=(
            Diagnostic(
                severity="advice",
                code="write-write-race",
                message="two programs store here",
                line=30,
                count=4,
            ),
        ),
        traffic=tuple(
            Traffic(line=n, kernel="attn", loaded=n, stored=0, atomic=0, masked_off=1) for n in (20, 21, 22, 23)
        ),
        seconds=0.2,
    )
    return Verdict(
        candidate="c",
        problem="p",
        status=Status.WRONG,
        stage=Stage.INTERPRET,
        reason="Output 0 is wrong.",
        basis="interpreter",
        compile=compiled(),
        test=report,
    )


def test_wrong_values_show_the_attained_errors_and_advice_with_its_line() -> None:
    text = feedback(wrong(check(passed=False, error=0.3), check()))
    assert "inputs heavy_tailed, output 0: relative error 3.00e-01, worst row 2.00e-03 (limit 2.00e-03" in text
    assert "relative error above its limit" in text
    assert "candidate.py:30: advice [write-write-race]: two programs store here (4 times)" in text
    assert "168 registers, 64 spilled bytes, 98304 bytes shared" in text
    assert "candidate.py:23: 23 bytes loaded" in text
    assert "candidate.py:20:" not in text


def test_a_shape_that_differs_has_no_error_to_show() -> None:
    assert "relative error none" in feedback(wrong(check(passed=False, error=None)))


def test_held_out_workloads_do_not_show() -> None:
    text = feedback(wrong(check("secret", passed=False)), hidden=frozenset({"secret"}))
    assert "secret" not in text


def test_a_correct_candidate_shows_where_its_time_goes() -> None:
    launches = tuple(
        LaunchEstimate(name=f"step{n}", seconds=n * 1e-6, bound="memory", bytes=10**6, flops=10**9) for n in range(1, 6)
    )
    estimates = tuple(Estimate(workload=w, seconds=2e-5, base_seconds=3e-5, launches=launches) for w in ("a", "secret"))
    diagnosis = (Diagnostic(severity="advice", code="low-occupancy", message="shared memory limits it", line=40),)
    verdict = wrong(check()).model_copy(
        update={
            "status": Status.CORRECT,
            "reason": "All checks pass.",
            "profile": ProfileReport(estimates=estimates, diagnosis=diagnosis),
        }
    )
    text = feedback(verdict, hidden=frozenset({"secret"}))
    assert "all 1 checks pass; closest to its limit: workload small" in text
    assert "workload a: estimate 20.0 us, reference 30.0 us, speed-up 1.50x" in text
    assert [line.split(":")[0].strip() for line in text.splitlines() if "bound by" in line] == [
        "step5",
        "step4",
        "step3",
    ]
    assert "candidate.py:40: advice [low-occupancy]" in text
    assert "secret" not in text


def test_a_flood_of_findings_stays_short_and_keeps_the_errors() -> None:
    advice = tuple(Diagnostic(severity="advice", code="x", message="é" * 5000, line=n) for n in range(500))
    error = Diagnostic(severity="error", code="out-of-bounds", message="load at 4096", line=7)
    verdict = wrong(*[check(passed=False)] * 300).model_copy(update={"diagnostics": (*advice, error)})
    text = feedback(verdict)
    assert len(text.encode()) <= LIMIT
    assert text.index("out-of-bounds") < text.index("[x]")
    assert text.endswith("(the rest is cut off)")


def test_equal_verdicts_give_equal_texts_whatever_they_took() -> None:
    slow = wrong(check()).model_copy(update={"seconds": {"compile": 9.0}})
    assert feedback(slow) == feedback(wrong(check()))


def test_an_unparsable_reply_is_told_what_to_do() -> None:
    assert "closed ```python block" in unparsable("No block.")
