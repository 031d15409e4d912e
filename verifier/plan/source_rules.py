"""What a candidate's text may not ask for: the judge's own objects, other frames, raw memory, and who is looking.

Rules over names are labels, not a wall: a name can be put together at run time. They come before the
structural checks because they say plainly what is wrong, and because an honest kernel needs none of this.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verifier.plan.textutil import excerpt
from verifier.verdict import Diagnostic

_JUDGE = "reaches for the judge's own code"
_FRAMES = "looks at other frames or objects of the process"
_MEMORY = "reaches into raw memory or native code"
_TRACED = "asks whether it is being traced or interpreted"

_MODULES = {
    "verifier": _JUDGE, "cffi": _MEMORY, "torch._subclasses": _TRACED,
    "torch.utils._python_dispatch": _TRACED, "torch.fx.experimental.proxy_tensor": _TRACED,
    "triton.runtime.interpreter": _TRACED, "linecache": _FRAMES, "tracemalloc": _FRAMES,
}  # fmt: skip
"""Modules that no candidate may import, by prefix."""

_SCALARS = re.compile(r"ctypes(?:\.c_(?!char|wchar)\w+)?")
"""What is left of ctypes: the typed arguments of a CUDA launch."""

_NAMES = {
    "FakeTensor": _TRACED, "FakeTensorMode": _TRACED, "is_fake": _TRACED, "InterpretedFunction": _TRACED,
    "_get_current_dispatch_mode": _TRACED, "_get_current_dispatch_mode_stack": _TRACED, "_subclasses": _TRACED,
    "_getframe": _FRAMES, "_current_frames": _FRAMES, "currentframe": _FRAMES, "f_back": _FRAMES,
    "f_locals": _FRAMES, "tb_frame": _FRAMES, "get_objects": _FRAMES, "get_referrers": _FRAMES,
    "get_referents": _FRAMES, "__subclasses__": _FRAMES, "__closure__": _FRAMES, "cell_contents": _FRAMES,
    "setprofile": _FRAMES, "settrace": _FRAMES, "meta_path": _FRAMES,
    "CDLL": _MEMORY, "PyDLL": _MEMORY, "cdll": _MEMORY, "pydll": _MEMORY, "pythonapi": _MEMORY,
    "LoadLibrary": _MEMORY, "CFUNCTYPE": _MEMORY, "PYFUNCTYPE": _MEMORY, "py_object": _MEMORY, "memset": _MEMORY,
    "memmove": _MEMORY, "string_at": _MEMORY, "from_address": _MEMORY, "from_buffer": _MEMORY, "in_dll": _MEMORY,
}  # fmt: skip
"""Names and attributes that no candidate may use."""

_TEXTS = {
    "verifier.": _JUDGE, "TRITON_INTERPRET": _TRACED, "FakeTensor": _TRACED, "InterpretedFunction": _TRACED,
    "warpsmith_problem": _JUDGE,
}  # fmt: skip
"""Parts of string constants (docstrings left out) that no candidate may hold."""

_CHAINS = {"sys.modules": _FRAMES, "runtime.interpret": _TRACED, "stack.frame": _FRAMES}
"""Last two parts of an attribute access."""


def check_source(source: str) -> tuple[Diagnostic, ...]:
    """One error per line that breaks a rule; nothing for a text that does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    found: dict[int, Diagnostic] = {}
    for line, what, reason in _matches(tree):
        code = "asks-who-is-looking" if reason is _TRACED else "reaches-out"
        message = f"`{what}`: the file {reason}; a kernel needs none of it"
        shown = excerpt(source, line, None)
        found.setdefault(line, Diagnostic(severity="error", code=code, message=message, line=line, excerpt=shown))
    return tuple(found.values())


def _matches(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [f"{a.name}.{a.asname}" if a.asname else a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            names = []
        yield from ((line, name, reason) for name in names if (reason := _module(name)))
        if isinstance(node, ast.Attribute):
            chain = f"{_last(node.value)}.{node.attr}"
            reason = _NAMES.get(node.attr) or _CHAINS.get(chain) or _module(ast.unparse(node))
            if reason:
                yield line, chain, reason
        elif isinstance(node, ast.Name) and node.id in _NAMES:
            yield line, node.id, _NAMES[node.id]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from ((line, part, reason) for part, reason in _TEXTS.items() if part in node.value)


def _module(name: str) -> str | None:
    if _SCALARS.fullmatch(name):
        return None
    return next((r for m, r in _MODULES.items() if name == m or name.startswith(f"{m}.")), None)


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
