"""The corpus test without a GPU, on an invented problem and invented answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.fidelity import table, trace
from experiments.fidelity.__main__ import main
from experiments.fidelity.answers import find_answers

PROBLEM = """\
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        return x * 2
def get_inputs():
    return [torch.rand(8, 64)]
def get_init_inputs():
    return []
"""
HEAD = """\
import torch, triton, triton.language as tl
@triton.jit
def double(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + r, tl.{function}(tl.load(x + r, r < n)) * 2, r < n)
class ModelNew(torch.nn.Module):
    def forward(self, x):
"""
LAUNCH = """\
        o = torch.empty_like(x)
        double[(1,)](x, o, x.numel(), B=512)
        return o
"""
ANSWERS = {
    0: HEAD.format(function="abs") + LAUNCH,
    1: HEAD.format(function="absolute") + LAUNCH,
    2: HEAD.format(function="abs") + "        return x if x.sum().item() > 0 else -x\n",
    3: HEAD.format(function="abs") + "        return x * 2\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "KernelBench" / "level1"
    folder.mkdir(parents=True)
    (folder / "7_Double.py").write_text(PROBLEM)
    return tmp_path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    folder = tmp_path / "some-model"
    folder.mkdir()
    for sample, text in ANSWERS.items():
        (folder / f"level_1_problem_7_sample_{sample}_kernel.py").write_text(text)
    (folder / "notes.py").write_text("not an answer")
    return folder


def row(sample: int, **more: object) -> trace.Row:
    file = f"level_1_problem_7_sample_{sample}_kernel.py"
    known = {"folder": "some-model", "file": file, "problem": "kernelbench:level1/7", "seconds": sample}
    return trace.Row.model_validate({**known, "status": "ok", "kind": "traced", **more})


def test_each_answer_gets_a_row_with_its_reason(
    checkout: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    assert main([str(answers), "--kernelbench", str(checkout), "--out", str(out)]) == 0
    good, typo, reads, decoy = trace.read_rows(out)
    assert (good.kind, good.status, good.launches, good.library_steps) == ("traced", "ok", 1, 0)
    assert (typo.kind, typo.status, typo.line) == ("candidate", "compile_error", 5)
    assert "absolute" in typo.message
    assert (reads.kind, reads.code, reads.line) == ("untraceable", "value-read", 8)
    assert (decoy.kind, decoy.status, decoy.code) == ("traced", "rejected", "no-custom-kernel")
    assert {"torch", "triton"} <= json.loads(out.read_text())["versions"].keys()
    assert "some-model" in capsys.readouterr().out


def test_rows_that_are_there_are_not_traced_again(checkout: Path, answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    other = row(0, folder="another-model")
    kept = [row(sample, message="kept") for sample in ANSWERS]
    trace.write_rows(out, [other, *kept])
    assert trace.run([answers], checkout, out) == kept
    assert trace.read_rows(out) == [other, *kept]


@pytest.mark.parametrize(
    ("status", "line", "message", "kind"),
    [
        ("compile_error", None, "fake tensor", "candidate"),
        ("runtime_error", 3, "TypeError: a FakeTensor(..., size=()) is no number", "candidate"),
        ("runtime_error", 3, "RuntimeError: a fake CUDA tensor reached a real kernel", "ours"),
        ("runtime_error", None, "KeyError: 'x'", "ours"),
        ("untraceable", 3, "", "untraceable"),
    ],
)
def test_a_refusal_is_somebodys(status: str, line: int | None, message: str, kind: str) -> None:
    assert trace.kind_of(status, {"line": line, "message": message}) == kind


def test_a_folder_without_answers_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel.py").write_text("")
    chosen = [str(tmp_path), "--kernelbench", str(tmp_path), "--out", str(tmp_path / "out.json")]
    assert main(chosen) == 2
    assert "level_2_problem_12_sample_0_kernel.py" in capsys.readouterr().err


def test_answers_come_by_level_problem_and_sample(tmp_path: Path) -> None:
    for name in ("level_2_problem_1", "level_1_problem_10_sample_0_kernel", "level_1_problem_9_sample_2_kernel"):
        (tmp_path / f"{name}.py").write_text("")
    found = [a.problem for a in find_answers(tmp_path)]
    assert found == ["kernelbench:level1/9", "kernelbench:level1/10", "kernelbench:level2/1"]


def test_the_table_counts_and_takes_quantiles() -> None:
    rows = [row(n) for n in range(10)] + [row(10, status="timeout", kind="ours", code="timeout")]
    cells = [list(column.cells) for column in table.trace_table(rows).columns]
    assert list(zip(*cells, strict=True)) == [
        ("some-model", "all", "", "11", "5.00", "9.00"),
        ("", "traced: ok", "", "10", "4.50", "8.00"),
        ("", "ours: timeout", "timeout", "1", "10.00", "10.00"),
    ]
