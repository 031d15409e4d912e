"""What one supported Triton compiles and another does not, found in the text of a file's kernels.

A plan holds the compiler that made it; a file whose outcome depends on the compiler is told so. Each rule was found by
compiling the same kernels with both versions, and its example is compiled by the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from verifier.plan.textutil import excerpt
from verifier.verdict import Diagnostic

COMPARED = ("3.6", "3.9")
"""The versions that the rules speak of: the oldest and the newest that this project runs with."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One difference. `accepted` is the version of `COMPARED` that takes the example."""

    name: str
    what: str
    accepted: str
    otherwise: str
    """What the other version does."""
    instead: str
    """What both take."""
    example: str
    """Statements of a kernel with the arguments x, o, n, B, where r is a range of B and v a loaded block."""
    matches: Callable[[ast.AST], bool]
    helper: str = ""
    """A device function that the example calls."""


def _calls(*names: str, keyword: str | None = None, without: str | None = None) -> Callable[[ast.AST], bool]:
    """Calls of `tl.NAME`, with or without a keyword."""

    def matches(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or _language(node.func) not in names:
            return False
        keywords = {k.arg for k in node.keywords}
        return (keyword is None or keyword in keywords) and (without is None or without not in keywords)

    return matches


def _language(node: ast.expr) -> str:
    """NAME of `tl.NAME` or `triton.language.NAME`, empty for anything else."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("tl", "triton.language", "language"):
        return node.attr
    return ""


def _nested_targets(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(e, ast.Tuple) for t in targets if isinstance(t, ast.Tuple) for e in t.elts)


def _unknown_name(name: str) -> str:
    return f"has no tl.{name}"


RULES = (
    Rule(
        "block-pointer",
        "block pointers (tl.make_block_ptr, tl.advance)",
        "3.6",
        "has removed them",
        "use tl.make_tensor_descriptor, or pointers with masks",
        "p = tl.make_block_ptr(x, (n,), (1,), (0,), (B,), (0,))\nv = tl.load(p)",
        _calls("make_block_ptr", "advance"),
    ),
    Rule(
        "chained-comparison",
        "a chained comparison (a < b < c)",
        "3.9",
        "refuses it",
        "write (a < b) & (b < c)",
        "v = tl.where(0 <= r < n, v, 0.0)",
        lambda node: isinstance(node, ast.Compare) and len(node.ops) > 1,
    ),
    Rule(
        "walrus",
        "an assignment expression (:=)",
        "3.9",
        "refuses it",
        "assign in a statement of its own",
        "v = (w := v * 2) + w",
        lambda node: isinstance(node, ast.NamedExpr),
    ),
    Rule(
        "tuple-comprehension",
        "a comprehension over tuples",
        "3.9",
        "fails on it",
        "index the tuple in the comprehension",
        "t = [v * i + j for i, j in ((1, 2), (2, 3))]\nv = t[0]",
        lambda node: isinstance(node, ast.comprehension) and isinstance(node.target, ast.Tuple),
    ),
    Rule(
        "comprehension-filter",
        "a comprehension with `if`",
        "3.9",
        "ignores the condition",
        "leave unwanted items out of the sequence",
        "t = [v * i for i in (1, 2) if i > 1]\ntl.static_assert(len(t) == 1)",
        lambda node: isinstance(node, ast.comprehension) and bool(node.ifs),
    ),
    Rule(
        "nested-targets",
        "an assignment to nested tuples",
        "3.9",
        "fails on it",
        "unpack in two statements",
        "(c, d), e = (v, v), v\nv = c + d + e",
        _nested_targets,
    ),
    Rule(
        "keyword-only",
        "a kernel or device function with keyword-only parameters",
        "3.9",
        "does not see them",
        "make the parameters ordinary ones",
        "v = device(v, s=2.0)",
        lambda node: isinstance(node, ast.arguments) and bool(node.kwonlyargs),
        "def device(v, *, s):\n    return v * s",
    ),
    Rule(
        "starred-parameters",
        "a kernel or device function with *args",
        "3.9",
        "fails on it",
        "name the parameters",
        "v = device(v, v)",
        lambda node: isinstance(node, ast.arguments) and node.vararg is not None,
        "def device(*a):\n    return a[0] + a[1]",
    ),
    Rule(
        "squeeze",
        "tl.squeeze and tl.unsqueeze",
        "3.9",
        _unknown_name("squeeze"),
        "use tl.reshape or tl.expand_dims",
        "v = tl.squeeze(tl.expand_dims(v, 0), 0)",
        _calls("squeeze", "unsqueeze"),
    ),
    Rule(
        "atomic-load",
        "tl.atomic_load, tl.atomic_store and tl.atomic_poll",
        "3.9",
        _unknown_name("atomic_load"),
        "use tl.atomic_add or tl.atomic_xchg",
        "v = v + tl.atomic_load(x)",
        _calls("atomic_load", "atomic_store", "atomic_poll"),
    ),
    Rule(
        "cat-in-order",
        "tl.cat without can_reorder=True",
        "3.9",
        "refuses it",
        "use tl.join and tl.reshape, or can_reorder=True where the order does not matter",
        "v = tl.sum(tl.reshape(tl.cat(v, v), (2, B)), 0)",
        _calls("cat", without="can_reorder"),
    ),
    Rule(
        "flip-without-dim",
        "tl.flip without a dimension",
        "3.9",
        "fails on it",
        "name the dimension",
        "v = tl.flip(v)",
        lambda node: _calls("flip", without="dim")(node) and isinstance(node, ast.Call) and len(node.args) < 2,
    ),
    *(
        Rule(
            f"{name}-{keyword}",
            f"tl.{name} with {keyword}=",
            "3.9",
            "has no such argument",
            instead,
            example,
            _calls(name, keyword=keyword),
        )
        for name, keyword, instead, example in (
            ("cumprod", "dtype", "cast the input", "v = tl.cumprod(v, 0, dtype=tl.float32)"),
            ("topk", "descending", "negate for the smallest", "v = v + tl.sum(tl.topk(v, 4, descending=False))"),
            ("fdiv", "approx", "leave it out", "v = tl.fdiv(v, 2.0, approx=True)"),
        )
    ),
)


def version_findings(source: str, installed: str) -> tuple[Diagnostic, ...]:
    """A warning for the first place where each rule matches; nothing for a text that does not parse.

    `installed` is the version that traces here, for example "3.9.0".
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    found: dict[str, Diagnostic] = {}
    for node, line in _kernel_nodes(tree):
        for rule in RULES:
            if rule.name not in found and rule.matches(node):
                found[rule.name] = _told(rule, source, line, installed)
    return tuple(found.values())


def _told(rule: Rule, source: str, line: int, installed: str) -> Diagnostic:
    (other,) = (v for v in COMPARED if v != rule.accepted)
    here = f" (here: {installed})" if not installed.startswith(COMPARED) else ""
    message = (
        f"{rule.what}: Triton {rule.accepted} takes it, Triton {other} {rule.otherwise}{here}; "
        f"the outcome depends on the version; {rule.instead}"
    )
    shown = excerpt(source, line, None)
    return Diagnostic(severity="warning", code="triton-version", message=message, line=line, excerpt=shown)


def _kernel_nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Nodes of the functions that Triton compiles, each with its line or the function's."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and any(_is_jit(d) for d in function.decorator_list):
            for part in (function.args, *function.body):
                for node in ast.walk(part):
                    placed = node.target if isinstance(node, ast.comprehension) else node
                    yield node, getattr(placed, "lineno", function.lineno)


def _is_jit(decorator: ast.expr) -> bool:
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).rpartition(".")[2] == "jit"
