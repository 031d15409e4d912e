"""References as candidates, on invented problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import references
from experiments.references import Reference
from verifier.candidate import Candidate
from verifier.errors import UsageError
from verifier.interpreter.gate import Zygotes
from verifier.problem import LibraryPolicy, Problem

HEAD = """import torch
from torch import nn
class Model(nn.Module):
"""
TAIL = """
def get_inputs(): return [torch.rand({shape})]
def get_init_inputs(): return []
"""
FORWARD = {
    "1_Double": ("        return x * 2 + 1", "8, 64"),
    "2_Dropout": ("        return nn.functional.dropout(x)", "8, 64"),
    "3_Reads": ("        return x if x.sum().item() > 0 else -x", "8, 64"),
    "4_Large": ("        return x * 2", "1 << 35"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "KernelBench" / "level1"
    folder.mkdir(parents=True)
    for name, (body, shape) in FORWARD.items():
        (folder / f"{name}.py").write_text(f"{HEAD}    def forward(self, x):\n{body}\n{TAIL.format(shape=shape)}")
    (folder / "5_Broken.py").write_text("def get_inputs(:\n")
    (folder / "6_Raises.py").write_text(
        f"{HEAD}    def forward(self, x):\n        return x\n"
        "def get_inputs(): raise OSError('no data here')\ndef get_init_inputs(): return []\n"
    )
    return tmp_path


@pytest.fixture
def rows(checkout: Path, zygotes: Zygotes) -> list[Reference]:
    return list(references.measure(zygotes.compile, references.named(checkout, [1], []), checkout, {}))


def test_each_reference_gets_a_row_with_its_reason(rows: list[Reference]) -> None:
    assert [r.outcome for r in rows] == ["traced", "stochastic", "refused", "too large", "format", "format"]
    double, dropout, reads, large, broken, raises = rows
    assert (double.steps, double.peak_bytes, double.plan_bytes > 0) == (2, 3 * 8 * 64 * 4, True)
    assert "native_dropout" in dropout.reason
    assert reads.reason.startswith("untraceable:")
    assert large.peak_bytes == 2 << 37
    assert "5_Broken.py" in broken.reason
    assert "no data here" in raises.reason


def test_a_judge_is_asked_about_what_is_traced_and_only_once(checkout: Path, zygotes: Zygotes) -> None:
    asked: list[str] = []

    def judge(problem: Problem, candidate: Candidate) -> tuple[str, str]:
        asked.append(problem.name)
        assert problem.library is LibraryPolicy.ALLOWED
        assert candidate.source.endswith("ModelNew = Model\n")
        return "wrong", "it is wrong"

    names = references.named(checkout, [1], ["level1/1", "level1/2"])
    first = {row.problem: row for row in references.measure(zygotes.compile, names, checkout, {}, judge)}
    assert [(r.status, r.verdict) for r in first.values()] == [("wrong", "it is wrong"), (None, "")]
    again = list(references.measure(zygotes.compile, names[:1], checkout, first, judge))
    assert (asked, again) == (["kernelbench:level1/1"], [first["kernelbench:level1/1"]])


def test_a_stopped_run_goes_on(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    known = Reference(problem="kernelbench:level1/1", outcome="traced", steps=77)
    references.write_rows(out, {known.problem: known})
    assert references.main([str(checkout), "--only", "level1/1", "level1/5", "--out", str(out)]) == 0
    assert [(r.outcome, r.steps) for r in references.read_rows(out).values()] == [("traced", 77), ("format", 0)]
    assert "1 traced, 1 format" in capsys.readouterr().out


def test_an_unknown_checkout_or_level_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert references.main([str(tmp_path)]) == 2
    assert "level1" in capsys.readouterr().err
    with pytest.raises(UsageError):
        references.named(tmp_path, [1], [])


def test_the_table_names_verdict_or_reason(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Reference(problem="kernelbench:level1/1", outcome="traced", status="correct", verdict="6 checks passed"),
        Reference(problem="kernelbench:level1/2", outcome="refused", reason="untraceable: it reads"),
    ]
    references.show(rows)
    shown = capsys.readouterr().out
    assert "6 checks passed" in shown
    assert "it reads" in shown
