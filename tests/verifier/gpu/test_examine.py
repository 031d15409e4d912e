"""The closer look with tools that are scripts: what each says reaches the findings, and none is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verifier.candidate import Candidate
from verifier.gpu.counters import METRICS
from verifier.gpu.examine import examine, least_bytes
from verifier.gpu.replay_folder import find_tool
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import parse_problem
from verifier.problem import Problem

N = 300
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


def test_all_that_was_found(kept: Any, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table").write_text(table("kernel"))
    (tmp_path / "races").write_text(RACES)
    scripts = {
        "ncu": f'cat {tmp_path}/table > "$2"',
        "compute-sanitizer": f'case "$@" in *racecheck*) cat {tmp_path}/races > "$2";; esac',
    }
    for name, body in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    race, counted, excuse = examine(kept, problem, "small", seed=3)
    assert (race.severity, race.code, race.line) == ("error", "shared-memory-race", 8)
    assert counted.code == "re-reading"
    assert "10.0x the distinct bytes" in counted.message
    assert counted.line == next(iter(kept.plan.kernels.values())).line
    assert (excuse.severity, excuse.message) == ("warning", "memcheck: compute-sanitizer said nothing; it ended well")


def test_without_tools_there_are_only_warnings(
    kept: Any, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if find_tool("ncu") or find_tool("compute-sanitizer"):
        pytest.skip("the tools are where the toolkit puts them")
    found = examine(kept, problem, "small", seed=3)
    assert [f.severity for f in found] == ["warning"] * 3
    assert "ncu is not installed here" in found[-1].message


def test_least_bytes_are_of_one_workload(kept: Any) -> None:
    estimates = kept.profiled.estimates
    assert least_bytes(kept.plan, estimates, "small") == {"kernel": 3 * 4 * N}
    assert least_bytes(kept.plan, estimates, "other") == {}
