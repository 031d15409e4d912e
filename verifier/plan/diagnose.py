"""Turns what a candidate raised into diagnostics: its own line, a caret, and the compiler's words without the
noise."""

from __future__ import annotations

import re
import traceback
from types import TracebackType
from typing import Any

from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from verifier.plan import cuda_diagnose
from verifier.plan.driver import LaunchLimitError
from verifier.plan.nvrtc import CudaCompileError
from verifier.plan.textutil import clip, excerpt

_NO_CLUSTERS = re.compile(r"num_ctas > 1 requires NVIDIA SM90")
"""How Triton refuses clusters."""
_MLIR = re.compile(r"^(?:.*?\.py|<[^>]*>):(\d+):(\d+): error: (.*)$", re.M)


def diagnostic(code: str, message: str, source: str, line: int | None = None, column: int | None = None,
               severity: str = "error") -> dict[str, Any]:  # fmt: skip
    """JSON of verdict.Diagnostic. `column` is 0-based here and 1-based in the record."""
    return {
        "severity": severity, "code": code, "message": clip(message), "line": line,
        "column": None if column is None else column + 1, "excerpt": excerpt(source, line, column),
        "count": 1,
    }  # fmt: skip


def explain(error: BaseException, source: str, filename: str, stderr: str) -> tuple[str, dict[str, Any]]:
    """(status, diagnostic) of the exception that ended a trace. `stderr` is what the compiler printed
    meanwhile."""
    if isinstance(error, SyntaxError) and error.filename in (filename, None):
        column = error.offset - 1 if error.offset else None
        return "unparsable", diagnostic("syntax-error", error.msg, source, error.lineno, column)
    if cuda := _cuda_error(error):
        message, line, column = cuda_diagnose.explain(cuda, source)
        if line is None:
            line, column = _candidate_place(error.__traceback__, filename)
        return "compile_error", diagnostic("compile-error", message, source, line, column)
    if errors := _compile_errors(error):
        return "compile_error", _from_compiler(errors, source, filename, error)
    where = _candidate_place(error.__traceback__, filename)
    if where[0] is None and isinstance(error, TypeError) and ".forward()" in str(error):
        where = _definition(source, "forward")
    elif where[0] is None and isinstance(error, TypeError) and ".__init__()" in str(error):
        where = _definition(source, "__init__")
    if isinstance(error, OutOfResources | LaunchLimitError) or _NO_CLUSTERS.match(str(error)):
        return "over_limits", diagnostic("over-limits", _words(error), source, *where)
    if isinstance(error, PTXASError) or "PTXAS" in str(error)[:200] or "ptxas" in str(error)[:200]:
        return "compile_error", diagnostic("ptxas-error", _ptxas(str(error)), source, *where)
    in_compiler = any(word in str(error) for word in ("PassManager", "MLIR", "Translate"))
    if in_compiler and (mlir := _MLIR.search(stderr)):
        return "compile_error", diagnostic(
            "compile-error", mlir.group(3), source, int(mlir.group(1)), int(mlir.group(2)) - 1
        )
    if "PassManager::run failed" in str(error):
        return "compile_error", diagnostic("compile-error", f"{error}. {_tail(stderr)}", source, *where)
    return "runtime_error", diagnostic("runtime-error", _words(error), source, *where)


def _words(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"the candidate calls exit({error.code!r})"
    return clip(f"{name}: {error}" if str(error) else name)


def _cuda_error(error: BaseException) -> CudaCompileError | None:
    """The CUDA compiler's error along the chain of causes and contexts."""
    at: BaseException | None = error
    for _ in range(32):
        if at is None or isinstance(at, CudaCompileError):
            return at
        at = at.__cause__ or at.__context__
    return None


def _compile_errors(error: BaseException) -> list[CompilationError]:
    """Compile errors along the chain of causes, the outermost first."""
    found: list[CompilationError] = []
    at: BaseException | None = error
    for _ in range(32):
        if at is None:
            break
        if isinstance(at, CompilationError):
            found.append(at)
        at = at.__cause__
    return found


def _from_compiler(errors: list[CompilationError], source: str, filename: str, outer: BaseException) -> dict[str, Any]:
    """Message of the innermost error at the innermost place that lies in the candidate's file."""
    line, column = _candidate_place(outer.__traceback__, filename)
    for error in errors:
        place = _kernel_place(error, source)
        if place[0] is not None:
            line, column = place
    last = errors[-1]
    message = last.error_message or ""
    if not message and last.__cause__ is not None:
        message = _words(last.__cause__)
    message = re.sub(r"^(\w+(?:Error|Exception))\((['\"])(.*)\2,?\)$", r"\1: \3", message.strip(), flags=re.S)
    return diagnostic("compile-error", message or "the kernel does not compile", source, line, column)


def _kernel_place(error: CompilationError, source: str) -> tuple[int | None, int | None]:
    """Line and column in the candidate's file of a node of a kernel whose text the error carries."""
    line, column = getattr(error.node, "lineno", None), getattr(error.node, "col_offset", None)
    if line is None or not error.src:
        return None, None
    at = source.find(error.src.strip("\n"))
    if at >= 0:
        return source[:at].count("\n") + line, column
    head = error.src.lstrip().splitlines()[0].strip()
    for number, text in enumerate(source.splitlines(), 1):
        if text.strip() == head:
            return number + line - 1, None if column is None else column + len(text) - len(text.lstrip())
    return None, None


def _candidate_place(trace: TracebackType | None, filename: str) -> tuple[int | None, int | None]:
    """Line and column of the innermost frame in the candidate's file."""
    place: tuple[int | None, int | None] = (None, None)
    for frame in traceback.extract_tb(trace):
        if frame.filename == filename:
            place = (frame.lineno, frame.colno)
    return place


def _definition(source: str, method: str) -> tuple[int | None, int | None]:
    """Place of the last `def` of a method, which is ModelNew's in nearly every file."""
    found: tuple[int | None, int | None] = (None, None)
    for number, text in enumerate(source.splitlines(), 1):
        if text.lstrip().startswith(f"def {method}("):
            found = (number, len(text) - len(text.lstrip()))
    return found


def _ptxas(text: str) -> str:
    """The assembler's own complaints, without temporary paths."""
    lines = re.findall(r"line (\d+); error\s*: (.*)", text)
    return clip("\n".join(f"ptxas: PTX line {n}: {what}" for n, what in lines) or text, 800)


def _tail(stderr: str) -> str:
    lines = [x for x in stderr.splitlines() if "error" in x.lower()]
    return clip("\n".join(lines[:5]), 600)
