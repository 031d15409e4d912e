"""Baselines against eager, with estimates here and measured where a GPU is."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.api import fitting
from experiments.baselines import Baselines
from experiments.suites import resolve
from experiments.tables import print_baselines
from verifier.baseline import BaselineError, kept_tuned
from verifier.gpu.found import visible_gpus
from verifier.gpu.tune import tune
from verifier.interpreter.gate import Zygotes

ADDED = """

BASELINES = {"fast": "nobody wrote it"}
BASELINE = "compile"
"""


@pytest.fixture
def file(tmp_path: Path, problem_text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "sum.py"
    path.write_text(problem_text.replace("N = 4096", "N = 1 << 24").replace('"constants": {"N": 300}', "") + ADDED)
    return path


def test_estimates_without_a_gpu(file: Path, zygotes: Zygotes, capsys: pytest.CaptureFixture[str]) -> None:
    fit = fitting("h200", [])
    compiled, absent = Baselines(resolve(str(file)), zygotes, fit, None, tuning=True).rows()
    assert (compiled.baseline, compiled.kind, compiled.primary, compiled.tuned) == ("compile", "estimate", True, False)
    assert compiled.speedup is not None
    assert compiled.speedup > 1.3  # one kernel for two operators
    assert (absent.kind, absent.reason) == (None, "sum has no baseline fast: nobody wrote it")
    print_baselines([compiled, absent])
    shown = capsys.readouterr().out
    assert "estimate" in shown
    assert "fast has no time: sum has no baseline fast" in shown


@pytest.mark.skipif(bool(visible_gpus()), reason="a GPU is here")
def test_a_process_that_cannot_tune_says_why(file: Path) -> None:
    problem = resolve(str(file))
    with pytest.raises(BaselineError, match="the baseline compile cannot be tuned: AssertionError: Torch not compiled"):
        tune(problem, "compile", problem.timed, "")


@pytest.mark.gpu
@pytest.mark.skipif(not visible_gpus(), reason="needs an NVIDIA GPU")
def test_tuned_and_timed_on_a_gpu(file: Path, zygotes: Zygotes) -> None:
    problem, device = resolve(str(file)), visible_gpus()[0]
    fit = fitting("auto", [device])
    row, _ = Baselines(problem, zygotes, fit, device, tuning=True).rows()
    assert (row.baseline, row.kind, row.tuned) == ("compile", "measured", True), row
    assert row.lower is not None
    assert row.lower > 1.3
    assert row.graphs == (True, True)
    assert kept_tuned(problem, fit.target.name) is not None
