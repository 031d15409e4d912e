"""What makes a plan folder run without this project: `kernel.py`, and copies of the modules that it needs. No torch."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_MODULES = ("verifier.gpu.plan_module", "verifier.gpu.replay_once")
"""The plan as a module, and one run of it on the problem's inputs."""
_KERNEL = '''\
"""The plan beside this file as a PyTorch module; `lib/verifier/gpu/plan_module.py` says what it needs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))

from verifier.gpu.plan_module import PlanModule  # noqa: E402


class ModelNew(PlanModule):
    def __init__(self, *init, **options):
        super().__init__(Path(__file__).resolve().parent / "plan", **options)
'''


def write_launcher(folder: Path) -> None:
    """Writes `kernel.py` and the modules that it needs beside the folder `plan` in `folder`."""
    library = folder / "lib"
    shutil.rmtree(library, ignore_errors=True)
    for path in _needed(_MODULES):
        target = library / path.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "kernel.py").write_text(_KERNEL)


def _needed(names: Sequence[str]) -> set[Path]:
    """Files of these modules, of those of this package that they import, and so on."""
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imported(path)]
    return set(found.values())


def _file(module: str) -> Path | None:
    base = _ROOT / module.replace(".", "/")
    places = (base.with_suffix(".py"), base / "__init__.py") if module else ()
    return next((place for place in places if place.exists()), None)


def _imported(path: Path) -> list[str]:
    """Names that may be modules, of this package only."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.partition(".")[0] == "verifier"]
