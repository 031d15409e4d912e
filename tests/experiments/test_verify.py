"""`verify` as a command and as a function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments import verify
from experiments.cli import main, parser
from experiments.commands import verify as command
from experiments.tables import print_verdict
from verifier.errors import UsageError
from verifier.interpreter.gate import Zygotes
from verifier.verdict import Status, Verdict


@pytest.fixture
def file(tmp_path: Path, correct: str) -> Path:
    path = tmp_path / "candidate.py"
    path.write_text(correct)
    return path


def test_correct_is_exit_0_and_json(
    problem_file: Path, file: Path, zygotes: Zygotes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parser().parse_args(["verify", str(problem_file), str(file), "--json", "--seed", "1"])
    assert command.run(args, zygotes) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["status"] == "correct"
    assert Verdict.model_validate(verdict).ok


def test_wrong_is_exit_1_and_a_table(
    problem_file: Path, file: Path, correct: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole, with servers of its own."""
    file.write_text(correct.replace("* 2.0", "* 2.5"))
    assert main(["verify", str(problem_file), str(file)]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("wrong at stage interpret: output 0 is wrong on 6 of 6 input distributions")
    assert shown.count("output 0 is wrong") == 1
    assert "heavy_tailed" in shown


CAUSAL: dict[str, tuple[str, str, Status]] = {
    "correct": ("", "", Status.CORRECT),
    "a mask that forgets": ("cols[None, :] <= rows[:, None]", "cols[None, :] < S", Status.WRONG),
    "rows without a mask": (", mask=rows[:, None] < S)", ")", Status.OUT_OF_BOUNDS),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_attention(name: str, causal_kernel: str, tiny_attention: Path, zygotes: Zygotes) -> None:
    old, new, status = CAUSAL[name]
    if status is Status.OUT_OF_BOUNDS:
        tiny_attention.write_text(tiny_attention.read_text().replace('"sequence": 32', '"sequence": 40'))
    assert old in causal_kernel
    verdict = verify(tiny_attention, causal_kernel.replace(old, new), zygotes=zygotes, seed=1)
    assert verdict.status is status, verdict.reason


def scaled_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x * 2.0 + y


def test_a_function_is_enough(correct: str, zygotes: Zygotes) -> None:
    examples = [torch.randn(300), torch.randn(300)]
    assert verify(scaled_sum, correct, inputs=examples, zygotes=zygotes).ok
    assert verify(scaled_sum, correct.replace("* 2.0", "* 3.0"), inputs=examples, zygotes=zygotes).status == "wrong"


def test_a_function_without_examples(correct: str) -> None:
    with pytest.raises(UsageError, match="example inputs"):
        verify(scaled_sum, correct)


def test_a_table_shows_text_as_it_is(
    problem_file: Path, correct: str, zygotes: Zygotes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup in a candidate's message does not colour or break the terminal."""
    source = correct.replace("return run(x, y)", 'raise ValueError("[red]x[/] [/nonsense] \\x1b[31m")')
    print_verdict(verify(problem_file, source, zygotes=zygotes))
    shown = capsys.readouterr().out
    assert "[red]x[/] [/nonsense]" in shown
    assert "\x1b" not in shown
