"""`explain` and `diff`: a run made by the scripted bench, and verdicts made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.record import load_run
from agent.run_folder import RunFolder
from agent.search import search
from agent.session import Deps
from agent.testing import ScriptedBench, ScriptedModel, Wander, make_run, reply, source
from experiments.cli import main
from experiments.explain import difference, stages, with_excerpts
from experiments.tables import file_words, print_verdict
from tools.fleet.local import LocalFleet
from verifier.verdict import (
    Ceilings,
    CompileReport,
    Diagnostic,
    FileRun,
    FileTiming,
    KernelReport,
    MeasuredProfile,
    MeasuredStep,
    MeasuredWorkload,
    OutputCheck,
    ProfileReport,
    Stage,
    Status,
    TestReport,
    Verdict,
)

HOSTILE = "\x1b[2J[red]boo[/red]"


async def searched(path: Path, model: ScriptedModel, attempts: int = 4) -> RunFolder:
    folder = make_run(path, seed=3)
    with LocalFleet(ScriptedBench(), 1) as fleet:
        await search(folder, Deps(Wander(attempts), model, fleet))
    return folder


def verdict(*, registers: int = 64, seconds: float = 2e-4, status: Status = Status.CORRECT) -> Verdict:
    kernel = KernelReport(
        name="k", cubin="0" * 64, registers=registers, spill_bytes=0, shared_bytes=1024, num_warps=4, num_stages=3,
        blocks_per_sm=4, occupancy=0.25, limiter="registers",
    )  # fmt: skip
    step = MeasuredStep(
        position=0, name="k", line=3, custom=True, seconds=seconds, share=1.0, bytes_rate=3e12, flops_rate=1e12,
        memory_share=0.7, compute_share=0.1,
    )  # fmt: skip
    measured = MeasuredProfile(
        ceilings=Ceilings(device="H200", uuid="u", driver="1", copy_rate=4e12, flops={"fp32": 5e13}),
        workloads=(MeasuredWorkload(workload="w", seconds=seconds, launch_seconds=2e-6, gap_share=0.1, steps=(step,)),),
    )
    right = status is Status.CORRECT
    check = OutputCheck(workload="w", draw="task", output=0, error=1e-4, row_error=1e-4, yardstick=1e-3, limit=4e-3,
                        passed=right)  # fmt: skip
    advice = Diagnostic(severity="advice", code="re-reading", message="kernel `k`: reads twice", line=2)
    return Verdict(
        candidate="c", problem="p", status=status, stage=Stage.TIMING if right else Stage.CORRECTNESS,
        reason="as made", basis="gpu",
        compile=CompileReport(target="h200", triton="3", kernels=(kernel,), library_steps={"mm": 1}, seconds=1.0),
        test=TestReport(outcome="passed" if right else "failed", basis="gpu", checks=(check,), seconds=1.0),
        profile=ProfileReport(measured=measured, diagnosis=(advice,)), versions={"torch": "2"},
    )  # fmt: skip


async def test_an_attempt_is_explained_turn_by_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([source("wrong"), source("correct", 2.0, HOSTILE)])
    folder = await searched(tmp_path / "run", ScriptedModel(lambda _: reply(next(answers))), attempts=1)
    (attempt,) = load_run(folder.path).attempts
    assert main(["explain", str(folder.path), attempt.id]) == 0
    said = capsys.readouterr().out
    assert f"{attempt.id}  draft  correct  speed-up 2.00x" in said
    assert "turn 1 of 2" in said
    assert "interpret wrong  correctness not reached" in said
    assert "interpret passed  correctness not reached" in said
    for turn in attempt.turns:
        assert all(line.strip() in said for line in turn.feedback.splitlines())
    assert main(["explain", str(folder.path), "best"]) == 0
    assert capsys.readouterr().out == said


async def test_unknown_attempts_are_told_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = await searched(tmp_path / "run", ScriptedModel(lambda _: reply(source("wrong"))), attempts=2)
    assert main(["explain", str(folder.path), "a9"]) == 2
    assert "next: attempts of this run: a0001, a0002" in capsys.readouterr().err
    assert main(["explain", str(folder.path), "best"]) == 2
    assert "no correct attempt" in capsys.readouterr().err


def test_findings_get_their_line_of_the_source() -> None:
    found = Diagnostic(severity="error", code="x", message="m", line=2)
    own = found.model_copy(update={"excerpt": "mine"})
    beyond = found.model_copy(update={"line": 99})
    shown = with_excerpts(verdict().model_copy(update={"diagnostics": (found, own, beyond)}), "a = 1\n  b = 2\n")
    assert [d.excerpt for d in shown.diagnostics] == ["b = 2", "mine", ""]
    assert shown.profile is not None
    assert shown.profile.diagnosis[0].excerpt == "b = 2"
    assert with_excerpts(verdict(), None) == verdict()


def test_stages_say_where_it_ended() -> None:
    assert stages(verdict()).endswith("timing passed  confirmation not reached")
    assert stages(verdict(status=Status.WRONG)).endswith(
        "interpret passed  correctness wrong  timing not reached  confirmation not reached"
    )


def test_times_by_step_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(verdict())
    said = capsys.readouterr().out
    assert "measured on w" in said
    assert "200.0 us" in said
    assert "starting kernels takes 10% (2.0 us each)" in said


def test_equal_verdicts_do_not_differ() -> None:
    assert difference(verdict(), verdict()) == []


def test_a_difference_names_what_a_person_compares() -> None:
    other = verdict(registers=255, seconds=4e-4, status=Status.WRONG)
    rows = {row.what: row[1:] for row in difference(verdict(), other)}
    assert rows["status"] == ("correct", "wrong")
    assert rows["checks passed, w"] == ("1 of 1", "0 of 1")
    assert rows["step k, w"][0].startswith("200 us, 70% of copy")
    assert rows["kernel k"][1].startswith("255 registers, 1024 B shared")
    assert "library mm" not in rows
    assert "reason" not in rows


def test_verdicts_are_read_from_files_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(verdict().model_dump_json())
    second.write_text(verdict(registers=80).model_copy(update={"reason": HOSTILE}).model_dump_json())
    assert main(["diff", str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert "80 registers" in said
    assert "\x1b" not in said
    assert main(["diff", str(first), str(first)]) == 0
    assert "say the same" in capsys.readouterr().out
    second.write_text("{}")
    assert main(["diff", str(first), str(second)]) == 2
    assert main(["diff", str(first), str(tmp_path / "none")]) == 2


async def test_attempts_of_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([source("correct", 2.0), source("correct", 3.0)])
    folder = await searched(tmp_path / "run", ScriptedModel(lambda _: reply(next(answers))), attempts=2)
    one, two = load_run(folder.path).attempts
    assert main(["diff", str(folder.path / one.id), str(folder.path / two.id)]) == 0
    said = capsys.readouterr().out
    assert "2.00x" in said
    assert "3.00x" in said


def test_how_a_file_ran_beside_its_plan_says_what_its_time_is() -> None:
    timing = FileTiming(
        workload="w", file_seconds=1e-3, plan_seconds=1e-3, log_ratio=0.0, half_width=0.001, graphs=True
    )
    run = FileRun(outputs="bitwise", timings=(timing,), seconds=1.0)
    assert file_words(run).endswith(
        "in the plan's time, both as CUDA graphs: what the file's Python takes is not in it"
    )
    eager = run.model_copy(update={"timings": (timing.model_copy(update={"graphs": False}),)})
    assert file_words(eager).endswith("bit by bit, in the plan's time")
    slow = run.model_copy(update={"timings": (timing.model_copy(update={"file_seconds": 2e-3, "log_ratio": -0.7}),)})
    assert "(w takes +100.0%): the plan is what was judged, and what ships" in file_words(slow)
