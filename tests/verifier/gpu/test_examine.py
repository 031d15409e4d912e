"""The closer look with tools that are scripts: what each says reaches the findings, and none is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verifier.bench import TestStage
from verifier.candidate import Candidate
from verifier.gpu.bench import examined
from verifier.gpu.counters import METRICS
from verifier.gpu.examine import Examination, least_bytes
from verifier.gpu.replay_folder import find_tool
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.verdict import Diagnostic, Status, TestReport

N = 300
NOTHING = TestReport(outcome="not_applicable", basis="gpu", seconds=0.0)
FIELDS = {"nanoseconds": "2000", "dram_bytes": "36000", "dram_percent": "90"}
UNITS = {"nanoseconds": "ns", "dram_bytes": "byte"}
RACES = "========= Error: Race reported between Write access at k+9 in f.py:8\n========= RACECHECK SUMMARY: 1\n"


@pytest.fixture
def problem(problem_text: str) -> Problem:
    return parse_problem(problem_text, file="scaled_sum.py", name="scaled_sum")


@pytest.fixture
def kept(zygotes: Zygotes, problem: Problem, correct: str) -> Any:
    stage = Judge(problem, zygotes, target="h200", seed=3).compile(Candidate(source=correct))
    assert stage.status is None, stage.reason
    return stage.handle


def table(kernel: str) -> str:
    rows = [
        ["ID", "Kernel Name", *METRICS.values()],
        ["", "", *(UNITS.get(k, "%") for k in METRICS)],
        ["0", kernel, *(FIELDS.get(k, "n/a") for k in METRICS)],
    ]
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows) + "\n"


MEMORY = """\
========= Invalid __global__ read of size 4 bytes
=========     at {}+0x380 in /tmp/x/f.py:9
=========     Access to 0x7bd889c03041 is out of bounds
=========
========= ERROR SUMMARY: 1 error
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts scripts in the place of both tools: what ncu, memcheck and racecheck write."""

    def install(counted: str, memory: str = "", races: str = "") -> None:
        said = {"table": counted, "memory": memory, "races": races}
        for name, text in said.items():
            (tmp_path / name).write_text(text)
        scripts = {
            "ncu": f'echo x >> {tmp_path}/asked; cat {tmp_path}/table > "$2"',
            "compute-sanitizer": f'case "$@" in *memcheck*) f=memory;; *) f=races;; esac; cat {tmp_path}/$f > "$2"',
        }
        for name, body in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def look(kept: Any, problem: Problem, examination: Examination | None = None) -> tuple[Diagnostic, ...]:
    return (examination or Examination({})).run(kept, problem, (), seed=3, seconds=60)


def test_all_that_was_found(kept: Any, problem: Problem, tools: Callable[..., None]) -> None:
    tools(table("kernel"), races=RACES)
    race, counted, excuse = look(kept, problem)
    assert (race.severity, race.code, race.line) == ("warning", "shared-memory-race", 8)
    assert counted.code == "re-reading"
    assert "10.0x the distinct bytes" in counted.message
    assert counted.line == next(iter(kept.plan.kernels.values())).line
    assert (excuse.severity, excuse.message) == ("warning", "memcheck: compute-sanitizer said nothing; it ended well")


def test_a_plan_of_library_steps_is_not_looked_at(
    kept: Any, problem: Problem, tools: Callable[..., None], tmp_path: Path
) -> None:
    tools(table("kernel"))
    library = replace(kept, plan=kept.plan.model_copy(update={"kernels": {}}))
    assert [f.code for f in look(library, problem)] == ["not-examined"]
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("culprit", "severity"), [("kernel", "error"), ("cutlass_kernel", "warning")])
def test_only_a_kernel_of_the_candidate_is_blamed(
    kept: Any, problem: Problem, tools: Callable[..., None], culprit: str, severity: str
) -> None:
    tools(table("kernel"), memory=MEMORY.format(culprit), races=RACES)
    found = look(kept, problem)
    assert (found[0].code, found[0].severity) == ("memory-error", severity)
    stage = TestStage(report=NOTHING)
    assert examined(stage, found).status is (Status.OUT_OF_BOUNDS if severity == "error" else None)
    assert examined(stage, found).examined == found


def test_who_may_not_count_is_asked_once(
    kept: Any, problem: Problem, tools: Callable[..., None], tmp_path: Path
) -> None:
    tools("==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    examination = Examination({})
    for _ in range(2):
        assert "may not read counters" in look(kept, problem, examination)[-1].message
    assert (tmp_path / "asked").read_text() == "x\n"


def test_without_tools_there_are_only_warnings(
    kept: Any, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if find_tool("ncu") or find_tool("compute-sanitizer"):
        pytest.skip("the tools are where the toolkit puts them")
    found = look(kept, problem)
    assert [f.severity for f in found] == ["warning"] * 3
    assert "ncu is not installed here" in found[-1].message


def test_least_bytes_are_of_one_workload(kept: Any) -> None:
    estimates = kept.profiled.estimates
    assert least_bytes(kept.plan, estimates, "small") == {"kernel": 3 * 4 * N}
    assert least_bytes(kept.plan, estimates, "other") == {}
