"""Small helpers for text that comes from a candidate or its compiler: caps and excerpts."""

from __future__ import annotations

import re

MAX_IR_BYTES = 4 << 20
MAX_MESSAGE = 2000


def clip(text: str, limit: int = MAX_MESSAGE) -> str:
    """At most `limit` characters, the middle left out."""
    text = text.strip()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[...]\n{text[-limit // 2 :]}"


def excerpt(source: str, line: int | None, column: int | None) -> str:
    """The source line with a caret under `column` (0-based), or empty."""
    lines = source.splitlines()
    if line is None or not 1 <= line <= len(lines):
        return ""
    text = lines[line - 1].rstrip()[:300]
    if column is None or not 0 <= column <= len(text):
        column = len(text) - len(text.lstrip())
    pad = "".join("\t" if c == "\t" else " " for c in text[:column])
    return f"{text}\n{pad}^"


def shown(symbol: str) -> str:
    """A symbol's own name without its mangling, as far as that is simple: `_Z5scaleIfLi8EEvPT_i` is `scale`."""
    found = re.match(r"_Z(?:N\D*?)?(?:\d+_GLOBAL__N__\w*?)?(\d+)", symbol)
    if not found:
        return symbol
    length = int(found.group(1))
    return symbol[found.end() : found.end() + length] or symbol
