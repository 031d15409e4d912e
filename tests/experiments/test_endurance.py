"""The endurance run, on two small answers and five traces."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from experiments import endurance
from experiments.fidelity.__main__ import main as fidelity

PROBLEM = """\
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        return x * 2
def get_inputs():
    return [torch.rand(8, 16)]
def get_init_inputs():
    return []
"""


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    (tmp_path / "level1").mkdir()
    (tmp_path / "level1" / "7_Double.py").write_text(PROBLEM)
    folder = tmp_path / "some-model"
    folder.mkdir()
    answer = PROBLEM.replace("class Model", "class ModelNew")
    (folder / "level_1_problem_7_sample_0_kernel.py").write_text(answer)
    (folder / "level_1_problem_7_sample_1_kernel.py").write_text(answer.replace("* 2", "* oops"))
    assert fidelity(["pack", f"{folder}={tmp_path}", "--to", str(tmp_path / "packed")]) == 0
    return tmp_path / "packed"


def test_five_traces_leave_nothing(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    code = endurance.main([str(packed), "--traces", "5", "--at-once", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    left = [what for what in found["left"] if "/dev/shm" not in what]  # which belongs to all
    assert left == []
    assert code == (1 if found["left"] else 0)
    assert found["traces"] == 3
    assert found["outcomes"] == {"ok": 3, "runtime_error": 2}
    assert 0 < found["median_seconds"] <= found["p90_seconds"]
    assert "left behind" in capsys.readouterr().out


def test_what_is_left_is_told() -> None:
    with endurance.own_temporary_folder():
        before = endurance.held()
        reader, writer = os.pipe()
        sleeper = subprocess.Popen(["sleep", "30"])
        Path(tempfile.gettempdir(), "forgotten").touch()
        try:
            told = endurance.leftovers(before, endurance.held())
        finally:
            sleeper.kill()
            sleeper.wait()
            os.close(reader)
            os.close(writer)
    assert "1 processes more than before" in told
    assert any("descriptors more" in what for what in told)
    assert any("forgotten" in what for what in told)


def test_growth_is_told() -> None:
    before = endurance.held()
    after = before.model_copy(update={"server_bytes": before.server_bytes + (40 << 20)})
    assert endurance.leftovers(before, after) == ["the server has grown by 40 MiB"]


def test_a_folder_that_is_not_packed_is_a_usage_error(tmp_path: Path) -> None:
    assert endurance.main([str(tmp_path)]) == 2
