"""Which kernel arguments a Triton kernel loads from and stores to, read from its TTIR text.

A pointer is followed back through address arithmetic, shape operations, selects and loop-carried values to
the arguments it can come from. What the analysis does not know (a call, an unknown operation on a pointer)
counts as both loaded and stored.
"""

from __future__ import annotations

import re

from verifier.plan.textutil import MAX_IR_BYTES

ACCESSES = ("none", "load", "store", "both")

_HEADER = re.compile(r"tt\.func public @[\w.$\"-]+\((.*?)\)(?: attributes [^\n]*)? \{(?: loc\([^\n]*\))?$", re.M)
_ARGUMENT = re.compile(r"%([\w.$-]+): ([^,{ )]+)")
_LINE = re.compile(r"^( *)(?:%([\w.$-]+)(?::\d+)? = )?\"?([a-z_]+\.[\w.]+)\"?(.*)$")
_NAME = re.compile(r"%([\w.$-]+(?:#\d+)?)")
_CARRIED = re.compile(r"%([\w.$-]+) = %([\w.$-]+(?:#\d+)?)")
_BLOCK = re.compile(r"^ *\^bb\d+\((.*)\)")

_FORWARD = {
    "tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.bitcast", "tt.trans",
    "tt.advance",
    "tt.make_tensor_ptr", "tt.make_tensor_descriptor", "tt.ptr_to_int", "tt.int_to_ptr", "tt.unsplat",
    "tt.reinterpret_tensor_descriptor", "tt.experimental_tensormap_create",
}  # fmt: skip
_LOADS = {"tt.load", "tt.descriptor_load", "tt.descriptor_gather", "tt.experimental_descriptor_load",
          "tt.experimental_descriptor_gather", "tt.print", "tt.assert"}  # fmt: skip
_STORES = {"tt.store", "tt.descriptor_store", "tt.descriptor_scatter", "tt.experimental_descriptor_store",
           "tt.experimental_descriptor_scatter"}  # fmt: skip
_SILENT = {"tt.return", "tt.dot", "tt.reduce.return", "tt.scan.return", "scf.condition"}


def accesses(text: str) -> list[tuple[str, str]]:
    """(type, access) of every argument of the public function, access one of ACCESSES; empty if there is
    none."""
    header = _HEADER.search(text[:MAX_IR_BYTES])
    if header is None:
        return []
    arguments = [(m.group(1), m.group(2)) for m in _ARGUMENT.finditer(header.group(1))]
    body = text[header.end() :]
    end = re.search(r"^  \}", body, re.M)
    analysis = _Analysis(arguments, body[: end.start()] if end else body)
    return [(kind, analysis.access(i)) for i, (_, kind) in enumerate(arguments)]


class _Analysis:
    def __init__(self, arguments: list[tuple[str, str]], body: str) -> None:
        addresses = "tt.int_to_ptr" in body
        self._roots: dict[str, frozenset[int]] = {}
        for i, (name, kind) in enumerate(arguments):
            if kind.startswith(("!tt.ptr", "!tt.tensordesc")) or (addresses and kind == "i64"):
                self._roots[name] = frozenset({i})
        self._all = frozenset().union(*self._roots.values())
        self._loaded: set[int] = set()
        self._stored: set[int] = set()
        self._owners: dict[int, tuple[str, list[str]]] = {}
        lines = body.splitlines()
        for _ in range(2):  # twice, so that what a loop yields reaches its carried names
            for line in lines:
                self._visit(line)

    def access(self, index: int) -> str:
        return ACCESSES[(index in self._loaded) + 2 * (index in self._stored)]

    def _of(self, name: str) -> frozenset[int]:
        found = self._roots.get(name)
        return found if found is not None else self._roots.get(name.split("#")[0], frozenset())

    def _add(self, name: str, roots: frozenset[int]) -> None:
        if roots:
            self._roots[name] = self._roots.get(name, frozenset()) | roots

    def _visit(self, line: str) -> None:
        if block := _BLOCK.match(line):
            if any(op == "scf.while" for op, _ in self._owners.values()):
                for name in re.findall(r"%([\w.$-]+):", block.group(1)):
                    self._add(name, self._all)
            return
        match = _LINE.match(line)
        if match is None:
            return
        indent, result, op, rest = len(match.group(1)), match.group(2), match.group(3), match.group(4)
        rest = rest.split(" loc(")[0]
        names = _NAME.findall(rest)
        if op.startswith("scf."):
            self._control(indent, result, op, rest, names)
            return
        self._plain(result, op, names)

    def _control(self, indent: int, result: str | None, op: str, rest: str, names: list[str]) -> None:
        if op == "scf.yield":
            owner, carried = self._owners.get(indent - 2, ("", []))
            for i, name in enumerate(names):
                targets = carried[2 * i : 2 * i + 2] if owner != "scf.if" else [f"{c}#{i}" for c in carried]
                for target in targets:
                    self._add(target, self._of(name))
            if owner == "scf.if" and len(names) == 1 and carried:
                self._add(carried[0], self._of(names[0]))
            return
        if op == "scf.if":
            self._owners[indent] = (op, [result] if result else [])
            return
        if op in ("scf.for", "scf.while"):
            carried_names: list[str] = []
            pairs = _CARRIED.findall(rest)
            pairs = [p for p in pairs if f"%{p[0]} = %{p[1]} to" not in rest]  # the loop's own counter
            for i, (inner, init) in enumerate(pairs):
                outer = f"{result}#{i}" if len(pairs) > 1 else str(result)
                carried_names += [inner, outer]
                self._add(inner, self._of(init))
                self._add(outer, self._of(init))
            self._owners[indent] = (op, carried_names)

    def _plain(self, result: str | None, op: str, names: list[str]) -> None:
        first = self._of(names[0]) if names else frozenset()
        if op in _FORWARD:
            if result:
                self._add(result, first)
        elif op.startswith("arith."):
            if result:
                self._add(result, frozenset().union(*(self._of(n) for n in names)))
        elif op in _LOADS:
            self._loaded |= first
        elif op in _STORES:
            self._stored |= first
        elif op not in _SILENT:
            reached = frozenset().union(*(self._of(n) for n in names))
            self._loaded |= reached
            self._stored |= reached


_FLOAT_LOAD = re.compile(r"tt\.(?:load|descriptor_load)\b[^\n]*?(?:tensor<[^\n>]*x)?(f16|bf16|f32|f64|f8\w+)\b")
_ANY_LOAD = re.compile(r"^ *%[\w.$:-]+ = \"?tt\.(?:load|descriptor_load|descriptor_gather)\b.*$", re.M)
_COMPUTES = re.compile(
    r"\barith\.(?:add|sub|mul|div|rem|neg|cmp|max\w*|min\w*)f\b|\barith\.select\b|\bmath\.|"
    r"\btt\.(?:dot\w*|reduce|scan|atomic\w*|extern_elementwise|elementwise_inline_asm|clampf|histogram|gather|call)\b"
)


def moves_only(text: str) -> bool:
    """Whether a kernel surely does no arithmetic on its data: it loads floating numbers and stores them."""
    if _COMPUTES.search(text[:MAX_IR_BYTES]):
        return False
    loads = _ANY_LOAD.findall(text[:MAX_IR_BYTES])
    return bool(loads) and all(_FLOAT_LOAD.search(line) for line in loads)
