"""Makes a problem from a plain function and example inputs: the shortest way in from Python.

The function's source becomes a problem file in KernelBench's format. What it takes from its module travels
along: imports, helper functions and constants. Inputs are drawn anew, with the shapes, strides and dtypes of
the examples; integers stay within the range of the example.
"""

from __future__ import annotations

import ast
import dis
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from verifier.errors import UsageError
from verifier.loader import parse_problem
from verifier.problem import Problem

if TYPE_CHECKING:
    import torch

TEMPLATE = '''\
"""The function `{name}` and inputs like its examples."""

from __future__ import annotations

import torch
{context}

{source}

class Model(torch.nn.Module):
    def forward(self, {parameters}):
        return {name}({parameters})


def get_inputs():
    return [{inputs}]


def get_init_inputs():
    return []
'''


def problem_from_function(fn: Callable[..., Any], example_inputs: Sequence[Any], name: str | None = None) -> Problem:
    """A problem whose reference is `fn(*example_inputs)`; `name` is `function:NAME` when left out.

    Raises UsageError for what cannot be written down: a lambda, a decorated or bound function, a closure, a
    global that is no module, function, class or plain value, an example that is no tensor or plain value.
    """
    function = _plain_function(fn)
    try:
        bound = inspect.signature(function).bind(*example_inputs)
    except TypeError as error:
        raise UsageError(f"the example inputs do not fit `{function.__name__}`: {error}") from None
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in bound.signature.parameters.values()):
        raise UsageError(f"`{function.__name__}` takes *args or **kwargs; name its parameters one by one")
    context: dict[str, str] = {}
    source = _with_context(function, context)
    text = TEMPLATE.format(
        name=function.__name__,
        context="\n".join(context.values()),
        source=source,
        parameters=", ".join(bound.arguments),
        inputs=", ".join(_expression(value) for value in example_inputs),
    )
    name = name or f"function:{function.__name__}"
    return parse_problem(text, file=f"<function {function.__name__}>", name=name)


def _plain_function(fn: Callable[..., Any]) -> FunctionType:
    label = getattr(fn, "__name__", type(fn).__name__)
    if not isinstance(fn, FunctionType):
        raise UsageError(f"`{label}` is a {type(fn).__name__}; wrap it in a function defined with `def`")
    if fn.__name__ == "<lambda>":
        raise UsageError("a lambda has no source of its own; define the function with `def`")
    if hasattr(fn, "__wrapped__"):
        raise UsageError(f"`{label}` is decorated; pass the function without its decorator")
    if fn.__code__.co_freevars:
        names = ", ".join(f"`{n}`" for n in fn.__code__.co_freevars)
        raise UsageError(
            f"`{label}` uses {names} of an enclosing function",
            next_step="pass it as an input, or make it a constant of the module",
        )
    return fn


def _with_context(function: FunctionType, context: dict[str, str]) -> str:
    """Source of the function; adds to `context` one statement for each global that it needs."""
    source, tree = _source(function)
    for name in sorted(set(_globals(function.__code__)) | _names_in_defaults(tree)):
        if name in context or name == function.__name__ or name not in function.__globals__:
            continue  # there already, a recursion, or a builtin
        context[name] = ""  # stops at helpers that call each other
        statement = _statement(name, function.__globals__[name], function, context)
        del context[name]  # what the helper itself needs stands before it
        context[name] = statement
    return source


def _source(function: FunctionType) -> tuple[str, ast.FunctionDef]:
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        raise UsageError(
            f"the source of `{function.__name__}` cannot be found", next_step="define the function in a file"
        ) from None
    if not isinstance(tree, ast.FunctionDef) or tree.decorator_list or tree.name != function.__name__:
        raise UsageError(f"`{function.__name__}` is decorated, async or not defined with a plain `def`")
    return source, tree


def _statement(name: str, value: object, user: FunctionType, context: dict[str, str]) -> str:
    """One statement that binds `name` to `value` in another file."""
    import torch

    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    if isinstance(value, FunctionType) and value.__module__ == user.__module__:
        source = _with_context(_plain_function(value), context)
        return source if value.__name__ == name else f"{source}\n{name} = {value.__name__}"
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        home, label = str(value.__module__), str(value.__name__)
        if home != user.__module__ and getattr(sys.modules.get(home), label, None) is value:
            return f"from {home} import {label} as {name}"
    if isinstance(value, torch.dtype):
        return f"{name} = {value}"
    if _is_plain(value):
        return f"{name} = {_expression(value)}"
    raise UsageError(
        f"`{user.__name__}` uses `{name}`, a {type(value).__name__} that no problem file can hold",
        next_step="pass it as an input, or build it inside the function",
    )


def _globals(code: CodeType) -> Iterator[str]:
    """Names that the code, or code nested in it, looks up in its module."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)


def _names_in_defaults(tree: ast.FunctionDef) -> set[str]:
    defaults = [*tree.args.defaults, *(d for d in tree.args.kw_defaults if d is not None)]
    return {node.id for default in defaults for node in ast.walk(default) if isinstance(node, ast.Name)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _expression(value: object) -> str:
    """Python text that makes an argument like `value`."""
    import torch

    if isinstance(value, torch.Tensor):
        return _tensor_expression(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_expression, value))}]"
    if isinstance(value, tuple):
        return f"({''.join(f'{_expression(item)}, ' for item in value)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if _is_plain(value):
        return repr(value)
    raise UsageError(f"an example input is a {type(value).__name__}; use tensors, numbers, text, None or lists")


def _tensor_expression(tensor: torch.Tensor) -> str:
    import torch

    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    dense = tensor.is_contiguous()
    size = shape if dense else (1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)),)
    if tensor.dtype == torch.bool:
        text = f"torch.randint(0, 2, {size}).bool()"
    elif tensor.dtype.is_floating_point and tensor.element_size() == 1:
        text = f"torch.randn({size}).to({tensor.dtype})"
    elif tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        text = f"torch.randn({size}, dtype={tensor.dtype})"
    else:
        low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
        text = f"torch.randint({low}, {high + 1}, {size}, dtype={tensor.dtype})"
    return text if dense or not tensor.numel() else f"{text}.as_strided({shape}, {stride})"
