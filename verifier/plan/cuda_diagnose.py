"""Where an error of CUDA C++ lies in the candidate's Python file."""

from __future__ import annotations

import re

from verifier.plan.nvrtc import CudaCompileError, CudaError

MAX_ERRORS = 4
_ASSEMBLER = re.compile(r"^ptxas.*?(?:error|fatal)\s*:\s*(.*)$", re.M)


def explain(error: CudaCompileError, source: str) -> tuple[str, int | None, int | None]:
    """(message, line, column) of the first error, the next ones in the message. Line is 1-based, column 0-based;
    None when the text is not in the file as it stands (it was built by an expression)."""
    errors = error.errors()
    if not errors:
        said = _ASSEMBLER.findall(error.log)
        return "; ".join(said[:MAX_ERRORS]) or error.log, None, None
    line, column = place(errors[0], error, source)
    return "\n".join(_sentence(e, error, source) for e in errors[:MAX_ERRORS]), line, column


def _sentence(error: CudaError, failure: CudaCompileError, source: str) -> str:
    """The compiler's words; the offending text as well where the file's line is not known."""
    if place(error, failure, source)[0] is not None:
        return error.message
    where = (
        f"line {error.line}" if error.file == failure.name else f"{error.file.rsplit('/', 1)[-1]}, line {error.line}"
    )
    return f"{error.message} ({where} of the CUDA source{f': `{error.text}`' if error.text else ''})"


def place(error: CudaError, failure: CudaCompileError, source: str) -> tuple[int | None, int | None]:
    """Line and column of one error in the file: by the whole program's text, else by its line where that is
    unique."""
    if error.file != failure.name:
        return None, None
    program = failure.program
    lines = program.splitlines()
    column = None if error.column is None else error.column - 1
    at = source.find(program) if program.strip() else -1
    if at >= 0:
        inset = at - (source.rfind("\n", 0, at) + 1) if error.line == 1 else 0
        return source.count("\n", 0, at) + error.line, None if column is None else column + inset
    text = (lines[error.line - 1] if 1 <= error.line <= len(lines) else error.text).strip()
    found = [i for i, line in enumerate(source.splitlines(), 1) if text and text in line]
    if len(found) != 1:
        return None, None
    line = source.splitlines()[found[0] - 1]
    indent = len(lines[error.line - 1]) - len(lines[error.line - 1].lstrip()) if error.line <= len(lines) else 0
    return found[0], None if column is None else line.index(text) + max(0, column - indent)
