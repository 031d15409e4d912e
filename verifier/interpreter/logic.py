"""What compiled kernels make of `and`, `or`, `not`, `min` and `max`, for Triton's interpreter (3.6 to 3.9).

The compiler combines tensors element by element, and stops at a constant that decides. In the interpreter these are
Python's own, to which every block is true: `rows < m and columns < n` is the second mask alone, which reads out of
bounds where the compiled kernel does not. A constant that was given a name is a tensor here: where it decides and what
follows cannot be evaluated, that is left out. Nor is a constant or a dtype wrapped here: `.value` is itself.

Source: `visit_BoolOp`, `visit_UnaryOp` and `builtin_namespace` of Triton's `compiler/code_generator.py`.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from typing import Any

import triton.language as tl
import triton.runtime.interpreter as ti

_METHODS: dict[type[ast.boolop], str] = {ast.And: "logical_and", ast.Or: "logical_or"}


def install() -> None:
    """For all kernels that this process interprets from now on."""
    executed = ti.FunctionRewriter._compile_and_exec

    def rewritten(self: Any, tree: ast.AST) -> Any:
        known = self.fn.__globals__
        own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        known |= _NAMES
        changed = _Logic(set(_BUILTINS) - own - set(known)).visit(tree)
        return executed(self, ast.fix_missing_locations(changed))

    ti.FunctionRewriter._compile_and_exec = rewritten


class _Logic(ast.NodeTransformer):
    """Puts calls of the functions below in the place of Python's own."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        lazy = not any(isinstance(part, ast.NamedExpr) for part in ast.walk(node))  # a lambda would keep such a name
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        operands = [ast.copy_location(ast.Lambda(nothing, v), v) if lazy else v for v in node.values]
        return _call(
            node, warpsmith_combine, ast.Constant(_METHODS[type(node.op)]), ast.Constant(lazy), *operands
        )  # fmt: skip

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return _call(node, warpsmith_negate, node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        unwraps = node.attr == "value" and isinstance(node.ctx, ast.Load)
        return _call(node, warpsmith_unwrap, node.value) if unwraps else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self._names and isinstance(node.ctx, ast.Load):
            return ast.copy_location(ast.Name(_BUILTINS[node.id].__name__, node.ctx), node)
        return node


def _call(node: ast.AST, function: Callable[..., Any], *args: ast.expr) -> ast.AST:
    return ast.copy_location(ast.Call(ast.Name(function.__name__, ast.Load()), list(args), []), node)


def warpsmith_combine(method: str, lazy: bool, *operands: Any) -> Any:
    tensors: list[Any] = []
    value: Any = None
    decided = False
    for operand in operands:
        try:
            value = operand() if lazy else operand
        except (AttributeError, TypeError, ValueError):
            if not decided:
                raise
            return tensors[-1]  # a constant for the compiler, which does not look at the rest
        if _is_truth(value):
            tensors.append(value)
            decided = decided or (not value.type.is_block() and bool(value) is (method == "logical_or"))
        elif bool(value) is (method == "logical_or"):
            return value
    if not tensors:
        return value
    result = tensors.pop()
    while tensors:
        result = getattr(tensors.pop(), method)(result)
    return result


def warpsmith_negate(value: Any) -> Any:
    return value.__not__() if _is_truth(value) else not value


def warpsmith_unwrap(constant: Any) -> Any:
    return getattr(constant, "value", constant)


def warpsmith_minimum(*values: Any, **more: Any) -> Any:
    return _extreme(tl.core.builtin_min, builtins.min, values, more)


def warpsmith_maximum(*values: Any, **more: Any) -> Any:
    return _extreme(tl.core.builtin_max, builtins.max, values, more)


def _extreme(ours: Callable[..., Any], plain: Callable[..., Any], values: tuple[Any, ...], more: dict[str, Any]) -> Any:
    if any(isinstance(value, tl.tensor) for value in values):
        return ours(*values, **more, _semantic=ti.interpreter_semantic)
    return plain(*values, **more)


def _is_truth(value: Any) -> bool:
    """Whether the compiler combines it. It refuses other scalars than truth values, so such a tensor is a constant that
    was given a name."""
    return isinstance(value, tl.tensor) and (value.type.is_block() or value.type.scalar == tl.int1)


_BUILTINS = {"min": warpsmith_minimum, "max": warpsmith_maximum}
_NAMES = {
    f.__name__: f for f in (warpsmith_combine, warpsmith_negate, warpsmith_unwrap, warpsmith_minimum, warpsmith_maximum)
}
