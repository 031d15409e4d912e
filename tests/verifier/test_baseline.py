"""Which baseline a problem is timed against, and what happens where it cannot be had."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from verifier.baseline import (
    BASELINE_JOB,
    TRACE_JOB,
    Base,
    BaselineError,
    Bases,
    find_base,
    keep_base,
    kept_tuned,
    names,
    source_of,
)
from verifier.errors import UsageError
from verifier.interpreter.gate import Zygotes
from verifier.loader import parse_problem
from verifier.sandbox.zygote import JobResult

ADDED = """

class Quick(Model):
    pass


BASELINES = {"quick": Quick, "quicker": "nobody wrote it"}
BASELINE = "quick"
"""
GIVEN = [{"name": "small"}]


class Server:
    """Answers every job with one real plan; but `refused` ones end as it says."""

    def __init__(self, plan: dict[str, Any], refused: Mapping[str, str] | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._plan, self._refused = plan, refused or {}

    def __call__(self, job: str, payload: dict[str, Any]) -> JobResult:
        self.asked.append((job, payload))
        if job in self._refused:
            value = {"status": "untraceable", "diagnostics": [{"message": self._refused[job]}], "plan": None}
        else:
            value = {"status": "ok", "diagnostics": [], "plan": copy.deepcopy(self._plan)}
        return JobResult(outcome="ok", value=value)


@pytest.fixture(scope="module")
def plan(zygotes: Zygotes, problem_text: str) -> dict[str, Any]:
    """Of the reference."""
    tensor = {"kind": "tensor", "shape": [300], "dtype": "float32", "stride": None}
    workload = {"name": "small", "init": [], "init_kwargs": {}, "inputs": [tensor, tensor]}
    payload = {"source": problem_text, "filename": "f.py", "class": "Model", "target": "h200", "workloads": [workload]}
    traced = zygotes.compile.run(TRACE_JOB, payload).value["plan"]
    assert isinstance(traced, dict)
    return traced


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "warpsmith" / "baselines"


def problem(text: str) -> Any:
    return parse_problem(text + ADDED, file="p.py", name="p")


def test_each_baseline_is_a_class_of_the_file(problem_text: str) -> None:
    made = problem(problem_text)
    assert names(made) == ("eager", "compile", "quick")
    for name, owner in {"eager": "Model", "compile": "Compiled__", "quick": "Quick"}.items():
        text, found = source_of(made, made.timed[0], name)
        assert found == owner
        assert owner in {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
        assert "N = 4096; N = 300" in text
    with pytest.raises(BaselineError, match="p has no baseline quicker: nobody wrote it"):
        source_of(made, made.timed[0], "quicker")
    with pytest.raises(BaselineError, match="no baseline flex: it has eager, compile, quick"):
        source_of(made, made.timed[0], "flex")


def test_the_primary_one_is_traced_once_and_kept(problem_text: str, plan: dict[str, Any]) -> None:
    first, second = Server(plan), Server(plan)
    base = Bases(problem(problem_text), "h200", first).primary(GIVEN)
    again = Bases(problem(problem_text), "h200", second).primary(GIVEN)
    assert base is not None
    assert base == again
    assert (base.report.name, base.report.instead, base.workloads) == ("quick", "", {"small"})
    assert [(job, p["class"]) for job, p in first.asked] == [(BASELINE_JOB, "Quick")]
    assert second.asked == []
    other = Server(plan)
    Bases(problem(problem_text), "h100-sxm", other).primary(GIVEN)
    assert len(other.asked) == 1


def test_eager_stands_in_and_says_why(problem_text: str, plan: dict[str, Any]) -> None:
    server = Server(plan, {BASELINE_JOB: "it draws\nrandom numbers"})
    base = Bases(problem(problem_text), "h200", server).primary(GIVEN)
    assert base is not None
    assert base.name == "eager"
    assert base.report.instead == "quick cannot be traced on small: it draws random numbers"


def test_a_tuned_base_is_the_one_that_was_pinned(problem_text: str, plan: dict[str, Any], cache: Path) -> None:
    made = problem(problem_text)
    assert kept_tuned(made, "h200") is None
    tuned = {"small": {"modules": ["text"], "choices": {}}}
    server = Server(plan)
    bases = Bases(made, "h200", server)
    base = bases.get("quick", GIVEN, tuned)
    assert server.asked[0][1]["tuned"] == tuned["small"]
    digest = kept_tuned(made, "h200")
    assert digest == base.report.plan
    assert bases.primary(GIVEN, digest) == base
    with pytest.raises(UsageError, match=r"tuned baseline quick .* is not kept"):
        bases.primary(GIVEN, "0" * 64)
    for kept in cache.iterdir():
        kept.write_bytes(b"half of a file")
    assert kept_tuned(made, "h200") is None


def test_a_folder_that_cannot_be_written_costs_a_trace(problem_text: str, cache: Path) -> None:
    made = problem(problem_text)
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    keep_base(Base("quick", {"programs": []}, {}), made, "h200")
    assert find_base(made, "quick", "h200", tuned=False) is None
