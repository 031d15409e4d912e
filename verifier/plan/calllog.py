"""What one call of `forward` does, as a list that a trace and the interpreter can both write: torch functions
that return tensors, and launches with their kernel's text, grid and scalars.

The list is made at the level of torch's Python functions, above the dispatcher, so that a CPU build and a
fake device, which take operators apart differently, give the same one. It is the word of the candidate's
process; `agreement.py` compares two of them.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

MAX_EVENTS = 4000
CALLS = 2
"""Calls that are kept: the first, where caches are made, and the second, which is the plan."""
_ADDRESS = 1 << 40
"""Integers from here on are addresses, which differ from process to process."""
_DEPTH = 8

Event = dict[str, Any]


class CallLog(TorchFunctionMode):
    """Active inside `call`. `paused` while Triton itself touches tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[Event]] = []
        self.paused = 0
        self._active = False
        self._known: list[tuple[str, torch.Tensor]] = []
        """Inputs of the call that runs and weights before it, by what they are called in both processes."""

    @contextmanager
    def call(self, inputs: Iterable[torch.Tensor] = (), model: torch.nn.Module | None = None) -> Iterator[None]:
        """One call of `forward`. Later ones than CALLS are not kept."""
        if len(self.calls) >= CALLS:
            yield
            return
        self.calls.append([])
        weights = [*model.named_parameters(), *model.named_buffers()] if model is not None else []
        self._known = [*((f"input {i}", t) for i, t in enumerate(inputs)), *weights]
        self._active = True
        try:
            with self:
                yield
        finally:
            self._active = False
            self._known = []

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.paused and _has_tensor(result):
            self.add({"op": str(getattr(func, "__name__", func))[:100]})
        return result

    def launch(self, kernel: Any, grid: Iterable[int], arguments: Mapping[str, Any]) -> None:
        """A launch of a kernel: Triton's JIT function, or the Python function behind it, with its `arguments`."""
        way = {"grid": [int(n) for n in grid], "scalars": self._texts(arguments)}
        name = str(getattr(kernel, "__name__", "?"))[:200]
        self.add({"launch": name, "code": fingerprint(kernel), "ways": [way], "free": []})

    def _texts(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Scalars by parameter, and what the pointers point to."""
        found: dict[str, str] = {}
        storages: list[int] = []
        for name, value in arguments.items():
            items = value if isinstance(value, tuple | list) else (value,)
            for i, item in enumerate(items):
                tensor = item if isinstance(item, torch.Tensor) else getattr(item, "base", None)
                if isinstance(tensor, torch.Tensor):
                    storages.append(_storage(tensor))
                    text: str | None = f"{self._named(tensor)} (storage {storages.index(storages[-1])})"
                else:
                    text = self._addressed(item) if type(item) is int and item >= _ADDRESS else _text(item)
                if text is not None:
                    found[f"{name}.{i}" if isinstance(value, tuple | list) else name] = text
        return found

    def _named(self, tensor: torch.Tensor) -> str:
        storage = _storage(tensor)
        label = next((label for label, known in self._known if _storage(known) == storage), "a tensor")
        return f"{label[:60]} of {tuple(map(int, tensor.shape))} {tensor.dtype}"[:180]

    def _addressed(self, address: int) -> str:
        spans = ((label, t.data_ptr(), t.numel() * t.element_size()) for label, t in self._known)
        return next((label[:60] for label, start, size in spans if start <= address < start + size), "address")

    def mark(self) -> int:
        return len(self.calls[-1]) if self._active else 0

    def join(self, mark: int, free: Iterable[str] = ()) -> None:
        """Makes the launches since `mark` one launch in several ways (the configurations of an autotuner).

        `free` names the settings that may have values beside these: some configurations were dropped.
        """
        if not self._active:
            return
        events = self.calls[-1]
        launches = [e for e in events[mark:] if "launch" in e]
        del events[mark:]
        if launches:
            ways = [way for event in launches for way in event["ways"]]
            events.append({**launches[0], "ways": ways, "free": sorted(set(free))})

    @contextmanager
    def later(self) -> Iterator[list[Event]]:
        """What is done inside is not noted, but given out, for `add` when its turn comes."""
        held: list[Event] = []
        mark = self.mark()
        try:
            yield held
        finally:
            if self._active:
                held += self.calls[-1][mark:]
                del self.calls[-1][mark:]

    def add(self, event: Event) -> None:
        if self._active and len(self.calls[-1]) < MAX_EVENTS:
            self.calls[-1].append(event)


def _has_tensor(result: Any) -> bool:
    items = result if isinstance(result, tuple | list) else (result,)
    return any(isinstance(item, torch.Tensor) for item in items)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _text(value: Any) -> str | None:
    """A constant as text that is the same in both processes; None for what has no such text."""
    value = getattr(value, "value", value) if type(value).__name__ == "constexpr" else value
    if value is None or isinstance(value, bool | float | str):
        return repr(value)[:200]
    if type(value).__module__.startswith("triton.language") and type(value).__name__.endswith("dtype"):
        return str(value)[:200]
    if isinstance(getattr(value, "fn", None), types.FunctionType):
        return fingerprint(value)
    if isinstance(value, int):
        return "address" if value >= _ADDRESS else repr(value)
    return None


def fingerprint(kernel: Any) -> str:
    """SHA-256 of a kernel's text, referenced plain globals, device functions and byte code of other functions.

    Triton and its interpreter compile texts, which a function's byte code need not be that of.
    """
    digest = hashlib.sha256()
    _feed(digest, kernel, set(), 0, jit=True)
    return digest.hexdigest()


def _feed(digest: Any, kernel: Any, seen: set[int], depth: int, *, jit: bool) -> None:
    function = kernel if isinstance(kernel, types.FunctionType) else kernel.fn
    if id(function) in seen or depth > _DEPTH:
        return
    seen.add(id(function))
    text = _source(kernel, function) if jit else None
    names = _feed_code(digest, function.__code__) if text is None else _feed_text(digest, text)
    outer = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    space = function.__globals__
    for name in names:
        value = _reached(name, outer, space)
        if isinstance(value, types.FunctionType):
            if name not in function.__code__.co_varnames:  # a parameter may be called `field`
                _feed(digest, value, seen, depth + 1, jit=False)
        elif isinstance(getattr(value, "fn", None), types.FunctionType):
            _feed(digest, value, seen, depth + 1, jit=True)
        elif value is not None and (text := _text(value)) is not None:
            digest.update(f"{name}={text};".encode())


def _reached(name: str, outer: Mapping[str, Any], space: Mapping[str, Any]) -> Any:
    """The object behind a dotted name; None for what lies in Triton, which is another one in the interpreter, and for
    the names that the interpreter leaves in a candidate's module (`T`, a type variable of its own).
    """
    first, *rest = name.split(".")
    value = outer[first].cell_contents if first in outer else space.get(first)
    if value is getattr(sys.modules.get("triton.runtime.interpreter"), first, None):
        return None
    for part in rest:
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] == "triton":
            return None
        value = getattr(value, part, None)
    return None if _is_tritons(value) else value


def _is_tritons(value: Any) -> bool:
    """Whether it is a function of Triton's language, imported by its name."""
    function = value.func if isinstance(value, partial) else value
    if not isinstance(function, types.FunctionType):
        return False
    home = sys.modules.get(function.__module__)
    inside = home is not None and home.__name__.split(".")[0] == "triton"
    return inside and getattr(home, function.__name__, None) is value


def _source(kernel: Any, function: types.FunctionType) -> str | None:
    """What is compiled of a kernel: the text that Triton keeps of it, or the interpreter reads anew."""
    kept = getattr(kernel, "src", None)
    return kept if isinstance(kept, str) else _written(function)


@cache
def _written(function: types.FunctionType) -> str | None:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return None


@cache
def _parsed(text: str) -> tuple[str, tuple[str, ...]]:
    """The syntax of a function without decorators, lines and the indentation of its texts; and the names in it."""
    (function,) = ast.parse(textwrap.dedent(text)).body
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list = []
    nodes = list(ast.walk(function))
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = " ".join(node.value.split())
    dotted = [ast.unparse(node) for node in nodes if isinstance(node, ast.Name) or _is_chain(node)]
    return ast.dump(function), tuple(dict.fromkeys(dotted))


def _is_chain(node: ast.AST) -> bool:
    """`a.b.c`"""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _feed_text(digest: Any, text: str) -> list[str]:
    shape, names = _parsed(text)
    digest.update(shape.encode())
    return list(names)


def _feed_code(digest: Any, code: types.CodeType) -> list[str]:
    digest.update(code.co_code)
    names = [*code.co_names, *code.co_freevars]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _feed_code(digest, constant)
        else:
            digest.update(repr(constant).encode())
    digest.update(" ".join(names).encode())
    return names
