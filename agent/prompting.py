"""Prompts: Jinja2 templates, one per operator, the same for every strategy. An undefined name is refused, not
printed as nothing.

The reference is shown without the declarations that are for the judge (workloads, contract, opening prompt),
because they name the held-out workloads, and without the baselines that it is timed against.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from strategies.base import Operator
from tools.models.base import Message
from verifier.problem import LibraryPolicy, Precision, Problem, Role, Workload

FOLDER = Path(__file__).parent / "prompts"
DECLARATIONS = frozenset({"WORKLOADS", "PRECISION", "BASELINES", "BASELINE", "PROMPT", "LIBRARY", "FLOPS", "TITLE"})
_OPENING = "Write a Triton kernel for the PyTorch module below."
_PRECISIONS = {
    Precision.FP32: "float32 arithmetic throughout; TF32 products are not allowed.",
    Precision.TF32: "float32 results; TF32 products with float32 accumulation are allowed.",
    Precision.FP16: "float16 products with float32 accumulation are allowed.",
    Precision.BF16: "bfloat16 products with float32 accumulation are allowed.",
    Precision.FP8: "8-bit floating point products with float32 accumulation are allowed.",
}
_LIBRARIES = {
    LibraryPolicy.FORBIDDEN: "PyTorch may allocate and move data; all arithmetic is in your kernels.",
    LibraryPolicy.ASSIST: "PyTorch may compute beside your kernels, but every output must pass through one.",
    LibraryPolicy.ALLOWED: "PyTorch operators may be used freely.",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """An earlier attempt as a prompt shows it. `source` is None when its reply held no candidate."""

    name: str
    summary: str
    source: str | None
    feedback: str


class Prompts:
    """The templates of one folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._environment = Environment(
            loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all templates, hex, first 16 digits; goes into the manifest."""
        total = hashlib.sha256()
        for path in sorted(self._folder.glob("*.j2")):
            total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return total.hexdigest()[:16]

    def system(self, problem: Problem, target: Mapping[str, Any], triton: str) -> Message:
        """The contract. `target` has `name` and `facts`, a mapping of limit to value."""
        text = self._render(
            "system",
            target=target,
            triton=triton,
            precision=_PRECISIONS[problem.precision],
            library=_LIBRARIES[problem.library],
        )
        return Message(role="system", content=text)

    def user(
        self,
        operator: Operator,
        problem: Problem,
        parents: Sequence[Shown] = (),
        context: Sequence[Shown] = (),
    ) -> Message:
        """The task of one operator."""
        shown = {
            "opening": problem.prompt or _OPENING,
            "reference": shown_reference(problem.source),
            "workloads": [_describe(w) for w in problem.workloads if Role.HELD_OUT not in w.roles],
        }
        text = self._render(operator.value, problem=shown, parents=parents, context=context)
        return Message(role="user", content=text)

    def _render(self, name: str, **values: Any) -> str:
        return self._environment.get_template(f"{name}.j2").render(**values).strip() + "\n"


def shown_reference(source: str) -> str:
    """The problem file without the judge's declarations and the classes of baselines."""
    lines, body = source.splitlines(), ast.parse(source).body
    baselines = {
        value.id for node in body if "BASELINES" in _assigned(node) for value in ast.walk(node)
        if isinstance(value, ast.Name) and isinstance(value.ctx, ast.Load) and value.id != "Model"
    }  # fmt: skip
    for node in body:
        declared = isinstance(node, ast.ClassDef) and node.name in baselines
        if declared or DECLARATIONS.intersection(_assigned(node)):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = "\0"
    shown = "\n".join(line for line in lines if line != "\0").strip("\n")
    return re.sub(r"\n{4,}", "\n\n\n", shown)


def _assigned(node: ast.stmt) -> Iterable[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return (target.id for target in targets if isinstance(target, ast.Name))


def _describe(workload: Workload) -> str:
    sizes = ", ".join(f"{name} = {value!r}" for name, value in workload.constants.items())
    roles = ", ".join(sorted(role.value for role in workload.roles))
    return f"{workload.name} ({roles}): {sizes or 'as in the file'}"
