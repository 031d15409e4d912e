from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.journal import read_events
from agent.record import load_run
from agent.run_folder import Manifest, RunFolder, best_name
from agent.search import search
from agent.session import Deps
from agent.testing import ScriptedBench, ScriptedModel, Wander, make_run
from tools.fleet.local import LocalFleet
from verifier.errors import StorageError, UsageError

ROOT = Path(__file__).parents[2]


async def finished(path: Path) -> RunFolder:
    folder = make_run(path)
    with LocalFleet(ScriptedBench(), 2) as fleet:
        await search(folder, Deps(Wander(4), ScriptedModel(), fleet))
    return folder


async def test_a_finished_run_reads_back(tmp_path: Path) -> None:
    run = load_run((await finished(tmp_path / "run")).path)
    assert [a.state for a in run.attempts] == ["done"] * 4
    assert [a.order for a in run.attempts] == [0, 1, 2, 3]
    assert run.stop_reason == "strategy"
    assert sum(t.charge.calls for a in run.attempts for t in a.turns) == run.spent.calls
    assert run.attempts[-1].spent == run.spent
    for attempt in run.attempts:
        for turn in attempt.turns:
            request, completion = run.request(turn), run.completion(turn)
            assert request is not None
            assert completion is not None
            assert request.id == completion.request == turn.request
            assert (run.source(turn) is None) == (turn.candidate is None)
            assert turn.verdict is not None
            assert turn.feedback.startswith("Status: ")
    best = run.attempt(str(run.best))
    assert best.score == max(a.score for a in run.attempts if a.score is not None)
    with pytest.raises(LookupError, match="a0099"):
        run.attempt("a0099")


async def test_any_prefix_of_a_run_reads(tmp_path: Path) -> None:
    folder = await finished(tmp_path / "run")
    data = folder.journal.read_bytes()
    ended = []
    for cut in range(0, len(data), 97):
        folder.journal.write_bytes(data[:cut])
        run = load_run(folder.path)
        ended.append(sum(1 for a in run.attempts if a.state == "done"))
        assert run.spent.calls + run.reserved.calls <= 8
    assert ended == sorted(ended)
    folder.journal.unlink()
    assert load_run(folder.path).attempts == ()


async def test_reading_changes_nothing(tmp_path: Path) -> None:
    folder = await finished(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    load_run(folder.path)
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


async def test_a_journal_that_does_not_follow_is_named(tmp_path: Path) -> None:
    folder = await finished(tmp_path / "run")
    events, _ = read_events(folder.journal)
    line = next(e["seq"] for e in events if e["t"] == "verdict")
    text = folder.journal.read_text().replace('"status":"', '"status":"very ', 1)
    folder.journal.write_text(text)
    with pytest.raises(StorageError, match=rf"journal.jsonl:{line + 1} does not follow"):
        load_run(folder.path)


def test_a_folder_without_a_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(UsageError, match="holds no run"):
        load_run(tmp_path / "nothing")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder.path / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match=r"manifest.json is damaged"):
        load_run(folder.path)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already") as caught:
        make_run(tmp_path / "run")
    assert "resume" in caught.value.next_step


def test_the_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", budget="minutes=1.5,dollars=0.1", init="class ModelNew: ...\n")
    again = RunFolder.open(folder.path).manifest
    assert again == folder.manifest
    assert Manifest.model_validate_json(again.model_dump_json()) == again
    assert folder.blobs.text(str(again.init)) == "class ModelNew: ...\n"


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        ("attention/relative_position", "relative_position"),
        ("kernelbench:level1/19", "kernel_19"),
        ("./my-problem.py", "my_problem"),
        ("../..", "kernel"),
    ],
)
def test_best_files_have_plain_names(problem: str, name: str) -> None:
    assert best_name(problem) == name


def test_reading_a_run_loads_nothing_heavy() -> None:
    heavy = ("torch", "triton", "langgraph", "openai")
    program = f"import sys, agent.record, agent.budget; print([m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
