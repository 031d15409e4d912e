"""The words of a PTX text as ptxas reads them: statements, functions, and the module's own variables.

Inline assembly puts any spelling that the assembler takes into a kernel: no line ends matter, a string has no escapes,
blanks may stand before a dot or a bracket, directives of line tables have no semicolon. What is no statement that is
known here comes out as the opcode `?`, so that its reader can fear the worst. Loads neither torch nor Triton.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

UNKNOWN = "?"
"""The opcode of a statement that cannot be read."""

_IGNORED = re.compile(r'"[^"]*"|//[^\n]*|/\*.*?\*/', re.S)
_NAME = r"[%$\w]+"
_BEFORE = re.compile(
    rf"[\s{{}}]+|{_NAME}\s*:(?!:)|\.(?:version|address_size)\s+[\d.]+(?!\w)|\.target\s+\w+(?:\s*,\s*\w+)*"
    rf'|\.file\s+\d+\s*""(?:\s*,\s*\d+\s*,\s*\d+)?'
    rf"|\.loc\s+\d+\s+\d+\s+\d+(?:\s*,\s*function_name\s+{_NAME}(?:\s*\+\s*\d+)?\s*,\s*inlined_at\s+\d+\s+\d+\s+\d+)?"
)
"""What may stand before a statement without a semicolon."""
_STATEMENT = re.compile(rf"(?:@\s*!?\s*{_NAME}\s*)?([a-z]\w*(?:\s*(?:\.|::)\s*\w+)*)(.*)", re.S)
_HARMLESS = re.compile(
    r"\.(?:reg|shared|local|param|global|const|pragma|branchtargets|calltargets|callprototype|alias|extern|visible|weak"
    r"|common|noreturn|align)\b(?!.*\.loc\b)",
    re.S,
)
_CHUNK = re.compile(r"[^;{}]+")
_SPACE = re.compile(r"\.(?:global|const)\b")
_BESIDES = re.compile(r"\{[^{}]*\}|\[[^\]]*\]|\.attribute\s*\([^)]*\)")
_FUNCTION = re.compile(r"\.(entry|func)\b")
_FUNCTION_NAME = re.compile(rf"\s*(?:\([^)]*\)\s*)?({_NAME})")


def plain(text: str) -> str:
    """The text without comments, with all strings empty."""
    return _IGNORED.sub(lambda m: '""' if m[0].startswith('"') else " ", text)


def statements(text: str, start: int) -> Iterator[tuple[str, str]]:
    """(opcode, operands) of the body in a plain text that starts at `start` and ends with its brace."""
    for chunk in text[start : _end(text, start)].split(";"):
        chunk = chunk[_skip(chunk, 0) :]
        found = _STATEMENT.fullmatch(chunk)
        if found is not None:
            yield re.sub(r"\s+", "", found[1]), found[2]
        elif chunk and not _HARMLESS.match(chunk):
            yield UNKNOWN, chunk


def functions(text: str) -> Iterator[tuple[str, bool, int]]:
    """(name, whether it is an entry, start of its body) of the functions of a plain text that have a body."""
    for match in _FUNCTION.finditer(text):
        named = _FUNCTION_NAME.match(text, match.end())
        brace = text.find("{", match.end())
        if named is not None and brace >= 0 and ";" not in text[match.end() : brace]:
            yield named[1], match[1] == "entry", brace + 1


def variables(text: str) -> Iterator[str]:
    """Names of the module's own variables in memory or constant memory that a plain text declares, anywhere and several
    at once.
    """
    for chunk in _CHUNK.finditer(text):
        start = _skip(text, chunk.start())
        match = _SPACE.search(text, start, chunk.end())
        if match is None or text[start] != "." or _FUNCTION.search(text, start, chunk.end()):
            continue  # an instruction, or parameters of a function
        declaration = text[match.start() : _semicolon(text, match.end())]
        while (short := _BESIDES.sub(" ", declaration)) != declaration:
            declaration = short
        if ")" in declaration.split("=")[0]:
            continue  # a prototype
        names = [re.findall(rf"(?<![.\w]){_NAME}", part.partition("=")[0]) for part in declaration.split(",")]
        yield from (found[-1] for found in names if found)


def _skip(text: str, at: int) -> int:
    while (match := _BEFORE.match(text, at)) is not None:
        at = match.end()
    return at


def _semicolon(text: str, at: int) -> int:
    found = text.find(";", at)
    return found if found >= 0 else len(text)


def _end(text: str, start: int) -> int:
    """Where the brace lies that closes what was opened just before `start`; `start` where none does."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return start + brace.start()
    return start
