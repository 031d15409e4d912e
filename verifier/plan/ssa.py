"""Names of values in MLIR text made unique: sibling regions reuse names, so one name may stand for several values.

Regions are known by indentation, as the printer writes them. The lines stay as they are but for such names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_RESULT = re.compile(r" *%([\w.$-]+)(?::\d+)? = ")
_LOOP = re.compile(r" *scf\.(?:for|while)\b")
_USED = re.compile(r"%([\w.$-]++)(?! = %)")
_CARRIED = re.compile(r"%([\w.$-]++)(?= = %)")
"""What a loop's header defines for its body: the counter and the names that it carries."""
_NAME = re.compile(r"%([\w.$-]++)")
_LABEL = re.compile(r" *\^bb\d+\(")
_ARGUMENT = re.compile(r"%([\w.$-]+):")


def unique(lines: Iterable[str]) -> Iterator[str]:
    """Lines of one function's body in which a name that is defined again gets another one: `v`, `v$$1`, ..."""
    scopes = _Scopes()
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if _LABEL.match(line):
            scopes.enter(indent + 2)
            scopes.define(_ARGUMENT.findall(line))
            yield _NAME.sub(scopes.known, line)
            continue
        scopes.enter(indent)
        head = _RESULT.match(line)
        rest = line[head.end() :] if head else line
        loop = _LOOP.match(rest)
        rest = (_USED if loop else _NAME).sub(scopes.known, rest)
        made = ""
        if head:
            scopes.define([head.group(1)])
            made = _NAME.sub(scopes.known, head.group(0))
        if loop:
            scopes.enter(indent + 2)
            scopes.define(_CARRIED.findall(rest))
            rest = _CARRIED.sub(scopes.known, rest)
        yield made + rest


class _Scopes:
    """Names by region, the innermost last."""

    def __init__(self) -> None:
        self._open: list[tuple[int, dict[str, str]]] = []
        self._seen: dict[str, int] = {}

    def enter(self, indent: int) -> None:
        """The region whose lines begin at `indent`; deeper ones have ended."""
        while self._open and self._open[-1][0] > indent:
            self._open.pop()
        if not self._open or self._open[-1][0] < indent:
            self._open.append((indent, {}))

    def define(self, names: Iterable[str]) -> None:
        for name in names:
            again = self._seen[name] = self._seen.get(name, -1) + 1
            self._open[-1][1][name] = f"{name}$${again}" if again else name

    def known(self, match: re.Match[str]) -> str:
        name = match.group(1)
        return "%" + next((names[name] for _, names in reversed(self._open) if name in names), name)
