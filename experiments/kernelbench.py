"""KernelBench problems by level and number, from the user's own checkout. None of its files is ours to ship.

A reference is `kernelbench:level1/19`. The checkout may be the root of the repository or its folder
`KernelBench`.
"""

from __future__ import annotations

import re
from pathlib import Path

from verifier.errors import UsageError
from verifier.loader import load_problem
from verifier.problem import Problem

PREFIX = "kernelbench:"
FETCH = "git clone https://github.com/ScalingIntelligence/KernelBench"


def load_kernelbench(reference: str, checkout: Path | None) -> Problem:
    """The problem of `kernelbench:levelN/M`. Raises UsageError when checkout or problem is missing."""
    match = re.fullmatch(rf"{PREFIX}(?:level)?(\d+)/(\d+)", reference)
    if match is None:
        raise UsageError(
            f"{reference!r} does not name a KernelBench problem",
            next_step=f"write level and number, for example {PREFIX}level1/19",
        )
    level, number = int(match[1]), int(match[2])
    files = problem_files(level_folders(checkout), level)
    if number not in files:
        raise UsageError(
            f"level {level} of KernelBench has no problem {number}; it has {_ranges(sorted(files))}",
            next_step="choose one of these numbers, or update the checkout",
        )
    return load_problem(files[number], f"{PREFIX}level{level}/{number}")


def level_folders(checkout: Path | None) -> dict[int, Path]:
    """Level to folder. Raises UsageError with the command that fetches KernelBench when there is none."""
    if checkout is None:
        raise UsageError(
            "a KernelBench problem needs your checkout of KernelBench",
            next_step=f"run `{FETCH}` and pass --kernelbench KernelBench",
        )
    root = checkout.expanduser()
    for folder in (root, root / "KernelBench"):
        found = {int(p.name[5:]): p for p in folder.glob("level*") if p.is_dir() and p.name[5:].isdecimal()}
        if found:
            return dict(sorted(found.items()))
    what = "has no folders level1, level2, ..." if root.is_dir() else "is not a folder"
    raise UsageError(f"{checkout} {what}", next_step=f"pass the folder that `{FETCH}` made")


def problem_files(folders: dict[int, Path], level: int) -> dict[int, Path]:
    """Number to file of one level: the number is what stands before the first underscore."""
    if level not in folders:
        raise UsageError(
            f"KernelBench has no level {level}; this checkout has {', '.join(map(str, folders))}",
            next_step="choose one of these levels",
        )
    named = ((path.name.partition("_")[0], path) for path in sorted(folders[level].glob("*.py")))
    return {int(number): path for number, path in named if number.isdecimal()}


def _ranges(numbers: list[int]) -> str:
    """`[1, 2, 3, 7]` -> `1-3, 7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans) or "none"
