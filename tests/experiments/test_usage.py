"""What a wrong command line gets: exit code 2, one sentence, one next step, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import main
from verifier.errors import StorageError

SOLVE = ("solve", "attention/causal")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The message of a command that ends with exit code 2."""
    try:
        code = main(args)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else -1
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 2, shown.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("next: ")
    return shown.err


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "invalid choice"),
        (("solve",), "problem"),
        (("problems",), "ACTION"),
        ((*SOLVE, "--bugdet", "calls=3"), "did you mean --budget?"),
        ((*SOLVE, "--budg", "calls=3"), "did you mean --budget?"),
        ((*SOLVE, "--width", "0"), "'0' is no whole number from 1"),
        ((*SOLVE, "--width", "x"), "'x' is no whole number"),
        ((*SOLVE, "--workers", "-3"), "whole number from 1"),
        ((*SOLVE, "--max-repairs", "-1"), "whole number from 0"),
        ((*SOLVE, "--seed", "1.5"), "whole number"),
        (("solve", "attention/cusal"), "did you mean attention/causal"),
        (("solve", "."), "unknown problem"),
        (("solve", "missing.py"), "missing.py"),
        (("solve", "kernelbench:level1/19"), "checkout of KernelBench"),
        ((*SOLVE, "--strategy", "bem"), "known: beam"),
        ((*SOLVE, "--strategy", "beam(widht=3)"), "no parameter 'widht'"),
        ((*SOLVE, "--model", "samplr"), "known: "),
        ((*SOLVE, "--model", "replay:nope"), "nope"),
        ((*SOLVE, "--models", "nope.toml", "--model", "x"), "nope.toml"),
        ((*SOLVE, "--budget", "calls=0"), "positive"),
        ((*SOLVE, "--budget", "frog"), "NAME=NUMBER"),
        ((*SOLVE, "--budget", "gpu_seconds=3"), "never end"),
        ((*SOLVE, "--target", "sm_1"), "unknown target"),
        ((*SOLVE, "--init", "nope.py"), "nope.py cannot be read"),
        (("verify", "attention/causal", "nope.py"), "nope.py cannot be read"),
        (("verify", "attention/causal", "."), "directory"),
        (("resume", "nope"), "holds no run"),
        (("report", "nope"), "holds no run"),
        (("batch", "list"), "no batch run"),
        (("batch", "show", "a0001/1", "--run", "nope"), "holds no run"),
        (("problems", "show", "nope"), "unknown problem"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_refused(args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert words in refused(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_key_is_named_and_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY" in refused(capsys, *SOLVE, "--model", "openai")


def test_a_broken_problem_names_file_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("import torch\nclass Model(torch.nn.Module):\n    pass\n")
    assert "broken.py:2: class `Model` has no method `forward`" in refused(capsys, "verify", "broken.py", "x.py")


@pytest.mark.parametrize("out", ["file.txt", "folder"])
def test_other_files_are_never_mixed_with_a_run(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("mine")
    Path("file.txt").write_text("mine")
    refused(capsys, *SOLVE, "--out", out, "--overwrite")
    assert Path("folder/mine.txt").read_text() == Path("file.txt").read_text() == "mine"


def test_a_candidate_that_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("binary.py").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(capsys, "verify", "attention/causal", "binary.py")


def test_a_fault_of_the_machine_is_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SOLVE, "--out", "/proc/nowhere"]) == StorageError.exit_code == 3
    assert "cannot be written" in capsys.readouterr().err


def test_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["problems", "list"]) == 0
    assert "attention/relative_position" in capsys.readouterr().out
    assert main(["problems", "show", "attention/causal"]) == 0
    shown = capsys.readouterr().out
    assert "small_odd" in shown
    assert "class Model" in shown


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == (3 if any(fact["state"] == "missing" for fact in facts) else 0)
    assert {"platform", "triton", "assembler", "gpu", "isolation", "not protected"} <= {f["name"] for f in facts}
