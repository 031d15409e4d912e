"""What the sampler understands of a problem: the family of attention, its parameters and the calling
convention.

It reads the reference's source as text, the way a language model would. It knows one family of problems:
softmax attention over `q, k, v` of shape (B, H, S, D) with an optional mask, bias or soft cap. Everything
else is None, and the sampler says so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal["full", "causal", "relative", "alibi", "softcap", "neighbourhood"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A run-time argument of the kernel: its name there and the host expression that fills it."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Task:
    """One recognised problem."""

    family: Family
    init: tuple[str, ...] = ()
    """Parameters of `Model.__init__` as source, annotations and defaults included, `self` left out."""
    inputs: tuple[str, ...] = ("q", "k", "v")
    """Names of the parameters of `forward`."""
    parameters: tuple[Parameter, ...] = ()
    """Extra kernel arguments of the family."""
    half: bool = True
    """Inputs are 16-bit floats."""
    head_dim: int = 64
    """Of the module-level constants; used only to judge sizes."""

    @property
    def causal(self) -> bool:
        return self.family == "causal"

    @property
    def masked(self) -> bool:
        """Some pairs of a query and a key are hidden."""
        return self.family in ("causal", "neighbourhood")

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return 2 if self.half else 4

    @property
    def init_names(self) -> tuple[str, ...]:
        return tuple(re.split(r"[:=]", p)[0].strip() for p in self.init)


FAMILY_WORDS: Mapping[Family, tuple[str, ...]] = {
    "neighbourhood": ("neighbourhood", "neighborhood", "natten", "dilation"),
    "softcap": ("softcap", "soft cap", "soft-cap", "tanh"),
    "alibi": ("alibi", "slope"),
    "relative": ("relative position", "relative_position", "rel_pos"),
    "causal": ("causal", "tril", "triu"),
}
"""Words that give a family away, the more special families first."""

NEEDS: Mapping[Family, tuple[str, ...]] = {
    "neighbourhood": ("height", "width", "window", "dilation"),
    "softcap": ("cap",),
}
"""Numbers that a family takes from `Model.__init__`."""


def read_task(source: str) -> Task | None:
    """The task in a problem file's source, or None when it is not attention as known here, or not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    model = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Model"), None)
    forward = _method(model, "forward")
    if forward is None or len(forward.args.args) != 4 or not _attends(source):
        return None
    family = _family(source.lower())
    init = _init(model)
    parameters = _parameters(family, init)
    if parameters is None:
        return None
    constants = _constants(tree)
    dim, dtype = constants.get("head_dim", constants.get("d", 64)), str(constants.get("dtype", source))
    names = tuple(a.arg for a in forward.args.args[1:])
    half = bool(re.search(r"float16|\.half\(", dtype))
    return Task(family, init, names, parameters, half, dim if isinstance(dim, int) else 64)


def _family(text: str) -> Family:
    for family, words in FAMILY_WORDS.items():
        if any(w in text for w in words):
            return family
    return "full"


def _attends(source: str) -> bool:
    return "softmax" in source or "scaled_dot_product_attention" in source


def _method(model: ast.ClassDef | None, name: str) -> ast.FunctionDef | None:
    body = model.body if model is not None else []
    return next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _init(model: ast.ClassDef | None) -> tuple[str, ...]:
    init = _method(model, "__init__")
    if init is None:
        return ()
    plain = ast.arguments([], init.args.args[1:], None, [], [], None, init.args.defaults)
    return tuple(p.strip() for p in ast.unparse(plain).split(",")) if plain.args else ()


def _parameters(family: Family, init: tuple[str, ...]) -> tuple[Parameter, ...] | None:
    """Kernel arguments of the family, found by name in the constructor; None when one is missing there."""
    names = [re.split(r"[:=]", p)[0].strip() for p in init]
    found = {need: next((n for n in names if need in n.lower()), None) for need in NEEDS.get(family, ())}
    if any(n is None for n in found.values()):
        return None
    return tuple(Parameter(need, f"self.{name}") for need, name in found.items())


def _constants(tree: ast.Module) -> dict[str, object]:
    """Module-level constants by lower-case name."""
    found: dict[str, object] = {}
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        ):
            found[node.targets[0].id.lower()] = node.value.value
    return found
