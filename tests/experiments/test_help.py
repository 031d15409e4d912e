"""Every command explains itself quickly: nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMANDS = (
    (), ("solve",), ("verify",), ("resume",), ("report",), ("explain",), ("diff",), ("batch",), ("batch", "show"),
    ("batch", "answer"), ("problems",), ("problems", "show"), ("doctor",),
)  # fmt: skip
HEAVY = ("torch", "triton", "numpy", "langgraph", "openai", "pydantic", "rich", "jinja2", "pygments")
LIMIT = 0.3


def cpu_seconds(*args: str) -> float:
    """CPU time of the command: unlike wall time it says little about the neighbours' load."""
    before = os.times()
    shown = subprocess.run([sys.executable, "-m", "experiments", *args], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: warpsmith")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_quick(command: tuple[str, ...]) -> None:
    assert any(cpu_seconds(*command, "--help") <= LIMIT for _ in range(3))


def imported(code: list[str]) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", *code], capture_output=True, text=True, check=True
    ).stderr
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}


def test_help_imports_nothing_heavy() -> None:
    seen = imported(["-m", "experiments", "solve", "--help"])
    assert "argparse" in seen
    assert not seen & set(HEAVY)


def test_the_package_imports_nothing_heavy() -> None:
    seen = imported(["-c", "import experiments"])
    assert "experiments" in seen
    assert not seen & set(HEAVY)


def test_problems_are_listed_without_torch() -> None:
    seen = imported(["-m", "experiments", "problems", "list"])
    assert not seen & {"torch", "triton", "langgraph", "openai"}
