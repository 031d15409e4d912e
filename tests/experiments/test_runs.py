"""Whole runs: a search with the sampler, batch by file and by hand, a run that is interrupted and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from agent.journal import read_events
from agent.record import load_run
from experiments import handwork, solve
from experiments.api import open_run, prepare
from experiments.session import INTERRUPTED, WAITING, run_search, run_session
from verifier.interpreter.gate import Zygotes


def candidates(folder: Path) -> list[str | None]:
    return [turn.candidate for attempt in load_run(folder).attempts for turn in attempt.turns]


def test_the_sampler_is_deterministic_by_seed(tiny_attention: Path, tmp_path: Path, zygotes: Zygotes) -> None:
    """Two copies of one run folder, and so the same secret inputs: feedback quotes errors on them."""
    first = prepare(tiny_attention, seed=6, out=tmp_path / "first", budget="calls=2", width=1)
    second = open_run(Path(shutil.copytree(first.path, tmp_path / "second")))
    ended = [run_search(folder, zygotes=zygotes) for folder in (first, second)]
    assert candidates(first.path) == candidates(second.path)
    assert len(candidates(first.path)) == 2
    assert [str(summary.reason) for summary in ended] == ["budget", "budget"]


def test_solve_gives_the_best_candidate(tiny_attention: Path, tmp_path: Path, zygotes: Zygotes) -> None:
    solution = solve(tiny_attention, seed=4, budget="calls=2", width=2, out=tmp_path / "run", zygotes=zygotes)
    assert (solution.reason, solution.attempts > 1) == ("budget", True)
    assert solution.verdict is not None
    assert solution.verdict.ok
    assert (solution.folder / "best" / "tiny_attention.py").read_text() == solution.source


def result(request: dict[str, object], text: str) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300}}
    return json.dumps({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}})


def test_batch_by_file_then_by_hand(problem_file: Path, correct: str, tmp_path: Path, zygotes: Zygotes) -> None:
    folder = prepare(problem_file, model="batch:hand", budget="calls=2", width=2, max_repairs=0, out=tmp_path / "run")
    assert run_session(folder, quiet=True, zygotes=zygotes) == WAITING
    requests = [json.loads(line) for line in (folder.path / "requests.jsonl").read_text().splitlines()]
    assert handwork.waiting(folder) == ["a0001/1", "a0002/1"]
    assert "class Model(nn.Module)" in handwork.show(folder, "a0002/1")

    answers = tmp_path / "results.jsonl"
    wrong = correct.replace("* 2.0", "* 2.5")
    answers.write_text(result(requests[0], f"```python\n{wrong}```") + '\n{"torn\n')
    assert run_session(open_run(folder.path), answers=answers, quiet=True, zygotes=zygotes) == WAITING
    assert handwork.waiting(folder) == ["a0002/1"]

    text = tmp_path / "answer.txt"
    text.write_text(f"By hand:\n```python\n{correct}```\n")
    assert "0 requests still wait" in handwork.answer(folder, "a0002/1", text)
    assert run_session(open_run(folder.path), quiet=True, zygotes=zygotes) == 0
    record = load_run(folder.path)
    assert [(a.id, str(a.status)) for a in record.attempts] == [("a0001", "wrong"), ("a0002", "correct")]
    assert record.spent.calls == 2
    assert record.spent.usage.uncached >= 1000
    assert (folder.path / "best" / "scaled_sum.py").read_text() == correct


def warpsmith(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *args], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(journal: Path, child: subprocess.Popen[str], kind: str, count: int) -> None:
    """Until the journal has `count` events of a kind."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        events = read_events(journal)[0] if journal.exists() else []
        if sum(event["t"] == kind for event in events) >= count:
            return
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no {count} events {kind!r}")


def test_interrupted_then_killed_then_resumed(tiny_attention: Path, tmp_path: Path, zygotes: Zygotes) -> None:
    run = tmp_path / "run"
    journal = run / "journal.jsonl"
    first = warpsmith(
        "solve", str(tiny_attention), "--budget", "calls=2", "--width", "1", "--seed", "4", "--out", str(run)
    )
    wait_for(journal, first, "answer", 1)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == INTERRUPTED, err
    assert "ended: interrupted" in out
    assert f"go on with: warpsmith resume {run}" in err
    assert (run / "report.html").exists()

    sessions = sum(event["t"] == "answer" for event in read_events(journal)[0])
    second = warpsmith("resume", str(run))
    wait_for(journal, second, "answer", sessions + 1)
    os.kill(second.pid, signal.SIGKILL)
    second.communicate(timeout=60)
    before = read_events(journal)[0]

    assert run_session(open_run(run), quiet=True, zygotes=zygotes) in (0, 1)
    after = read_events(journal)[0]
    assert after[: len(before)] == before
    answered = Counter((event["attempt"], event["turn"]) for event in after if event["t"] == "answer")
    assert max(answered.values()) == 1
    record = load_run(run)
    assert record.spent.calls <= 2
    assert record.stop_reason == "budget"
    assert all(attempt.state == "done" for attempt in record.attempts)
