"""Folders of published answers: which file answers which problem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from verifier.errors import UsageError
from verifier.verdict import Record

_NAME = re.compile(r"level_?(\d+)_problem_(\d+)(?:_sample_(\d+))?.*\.py")


class Answer(Record):
    """One file of a folder."""

    path: Path
    folder: str
    problem: str
    """For example `kernelbench:level2/12`."""


def find_answers(folder: Path) -> Iterator[Answer]:
    """Answers of a folder by level, problem and sample. Raises UsageError when there are none."""
    found = [(match, path) for path in folder.glob("*.py") if (match := _NAME.fullmatch(path.name))]
    if not found:
        raise UsageError(
            f"{folder} holds no answers",
            next_step="name them like level_2_problem_12_sample_0_kernel.py, one folder per model",
        )
    for match, path in sorted(found, key=lambda f: [int(n or 0) for n in f[0].groups()]):
        yield Answer(path=path, folder=folder.name, problem=f"kernelbench:level{match[1]}/{match[2]}")
