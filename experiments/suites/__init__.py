"""Where problems come from: suites by name, KernelBench by level and number, files by path.

A suite is a package whose folder holds problem files; a file that starts with an underscore is not one. Third
parties add a suite by an entry point in the group `warpsmith.suites`: `mine = "my_package.problems"`.
A suite of SUITES keeps its name whatever others register.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from experiments.kernelbench import PREFIX, load_kernelbench
from verifier.errors import UsageError
from verifier.loader import load_problem
from verifier.problem import Problem
from verifier.problem_file import close

GROUP = "warpsmith.suites"
SUITES = {"attention": "experiments.suites.attention"}


def resolve(reference: str, kernelbench: Path | None = None) -> Problem:
    """The problem that a person named: `attention/causal`, `kernelbench:level1/19` or a path to a file.

    `kernelbench` is the user's checkout. Raises UsageError for an unknown name, ProblemError for a broken
    file.
    """
    if reference.startswith(PREFIX):
        return load_kernelbench(reference, kernelbench)
    suite = reference.partition("/")[0]
    if suite in suites() and reference in (files := problem_paths(suite)):
        return load_problem(files[reference], reference)
    path = Path(reference).expanduser()
    if path.suffix == ".py" or path.is_file():
        return load_problem(path, path.stem)
    raise UsageError(
        f"unknown problem {reference!r}{close(reference, _all_paths())}",
        next_step="see `warpsmith problems list`, or give a path to a .py file or kernelbench:level1/19",
    )


def list_problems() -> list[tuple[str, str]]:
    """Name and title of every problem of every suite, in the order of the names."""
    return [(name, load_problem(path, name).title) for name, path in sorted(_all_paths().items())]


def problem_paths(suite: str) -> dict[str, Path]:
    """`suite/name` to the file of every problem of one suite. The suite is found, not imported."""
    folders = _folders(suite, suites()[suite])
    return {f"{suite}/{file.stem}": file for folder in folders for file in sorted(folder.glob("[!_]*.py"))}


def suites() -> dict[str, str]:
    """Suite name to package: those of other installed packages, and SUITES."""
    found = {point.name: point.value for point in entry_points(group=GROUP)}
    return found | SUITES


def _all_paths() -> dict[str, Path]:
    return {name: path for suite in suites() for name, path in problem_paths(suite).items()}


def _folders(suite: str, package: str) -> list[Path]:
    try:
        spec = find_spec(package)
    except ImportError:
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError(
            f"suite {suite!r} is declared as {package!r}, which is not an importable package",
            next_step=f"reinstall or remove the package that declares it in the entry-point group {GROUP}",
        )
    return [Path(location) for location in spec.submodule_search_locations]
