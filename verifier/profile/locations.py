"""Source lines of MLIR locations (`#loc12 = loc("x"(#loc3))`)."""

from __future__ import annotations

import re

_LOCATION = re.compile(r"^(#loc\d*) = loc\((.*)\)\s*$", re.M)
_FILE_LINE = re.compile(r'^"((?:[^"\\]|\\.)*)":(\d+)')


def resolve_locations(text: str) -> dict[str, int]:
    """Line of the user's file for every named location; helpers of Triton's own library give their
    caller's line."""
    definitions = dict(_LOCATION.findall(text))
    return {name: line for name in definitions if (line := _resolve(definitions[name], definitions, 0)) is not None}


def _resolve(value: str, definitions: dict[str, str], depth: int) -> int | None:
    if depth > 32:
        return None
    found = _FILE_LINE.match(value)
    if found is not None:
        return None if "triton/language/" in found.group(1) else int(found.group(2))
    for name in re.findall(r"#loc\d*", value):
        line = _resolve(definitions.get(name, ""), definitions, depth + 1)
        if line is not None:
            return line
    return None
