"""Parameters of strategies: their text form and the checks that constructors share."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from verifier.errors import UsageError

_SPEC = re.compile(r"\s*([\w.:-]+)\s*(?:\((.*)\)|(\{.*\}))?\s*", re.DOTALL)


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`beam(width=4, branching=3)` or `beam{"width": 4}` -> name and parameters. Raises UsageError."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise _malformed(spec)
    name, arguments, parameters = match.groups()
    try:
        if parameters is not None:
            return name, dict(json.loads(parameters))
        return name, _keywords(arguments or "")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise _malformed(spec) from None


def at_least(minimum: int, **values: int) -> None:
    """Raises UsageError for a value that is no integer or is below `minimum`; the keyword names it."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UsageError(f"{name} must be an integer of at least {minimum}, not {value!r}")


def _keywords(arguments: str) -> dict[str, Any]:
    call = ast.parse(f"_({arguments})", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("only keyword arguments")
    return {_name(keyword): ast.literal_eval(keyword.value) for keyword in call.keywords}


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("** is not a name")
    return keyword.arg


def _malformed(spec: str) -> UsageError:
    return UsageError(
        f"cannot read the strategy {spec!r}",
        next_step='write a name with parameters, such as beam(width=4,branching=3) or beam{"width": 4}',
    )
