"""`warpsmith baseline`: baselines against eager, with estimates here and measured where a GPU is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.api import fitting
from experiments.baselines import BaselineRow, Baselines
from experiments.cli import main
from experiments.suites import resolve
from experiments.tables import print_baselines
from verifier.gpu.found import visible_gpus
from verifier.interpreter.gate import Zygotes

ADDED = """

class Loop(Model):
    def forward(self, x, y):
        return torch.compile(super().forward)(x, y)


BASELINES = {"loop": Loop, "fast": "nobody wrote it"}
BASELINE = "compile"
"""


@pytest.fixture
def file(tmp_path: Path, problem_text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "sum.py"
    path.write_text(problem_text.replace("N = 4096", "N = 1 << 20").replace('"constants": {"N": 300}', "") + ADDED)
    return path


def test_estimates_without_a_gpu(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", str(file), "--gpus", "none", "--json"]) == 0
    rows = [BaselineRow(**row) for row in json.loads(capsys.readouterr().out)]
    assert [(r.baseline, r.kind, r.primary, r.tuned) for r in rows] == [
        ("compile", "estimate", True, False),
        ("loop", "estimate", False, False),
        ("fast", None, False, False),
    ]
    assert rows[2].reason == "sum has no baseline fast: nobody wrote it"
    assert rows[0].speedup is not None
    assert rows[0].speedup > 1.3  # one kernel for two operators
    print_baselines(rows)
    shown = capsys.readouterr().out
    assert "estimate" in shown
    assert "fast has no time: sum has no baseline fast" in shown


@pytest.mark.gpu
@pytest.mark.skipif(not visible_gpus(), reason="needs an NVIDIA GPU")
def test_tuned_and_timed_on_a_gpu(file: Path, zygotes: Zygotes) -> None:
    problem, device = resolve(str(file)), visible_gpus()[0]
    fit = fitting("auto", [device])
    rows = list(Baselines(problem, zygotes, fit, device, tuning=True).rows())
    assert [(r.baseline, r.kind, r.tuned) for r in rows[:2]] == [
        ("compile", "measured", True),
        ("loop", "measured", True),
    ], rows
    for row in rows[:2]:
        assert row.lower is not None
        assert row.lower > 1.1
        assert row.graphs == (True, True)
