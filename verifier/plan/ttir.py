"""Which kernel arguments a Triton kernel loads from and stores to, read from its TTIR text.

A pointer is followed back through address arithmetic, shape operations, selects, branches, loop-carried values and
calls of functions in the same text to the arguments it can come from. Inline PTX that only loads and computes counts as
a load. What the analysis does not know (an unknown operation on a pointer) counts as both loaded and stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from verifier.plan import ssa
from verifier.plan.textutil import MAX_IR_BYTES

ACCESSES = ("none", "load", "store", "both")

_HEADER = re.compile(r"^ *tt\.func (?:(public|private) )?@(\"[^\"\n]*\"|[\w.$-]+)\(([^\n]*)$", re.M)
_END = re.compile(r"^  \}", re.M)
_ARGUMENT = re.compile(r"%([\w.$-]+): ([^,{ )]+)")
_LINE = re.compile(r"^( *)(?:%([\w.$-]+)(?::\d+)? = )?\"?([a-z_]+\.[\w.]+)\"?(.*)$")
_NAME = re.compile(r"%([\w.$-]+(?:#\d+)?)")
_CARRIED = re.compile(r"%([\w.$-]+) = %([\w.$-]+(?:#\d+)?)")
_BLOCK = re.compile(r"^ *\^bb(\d+)\((.*)\)")
_BRANCH = re.compile(r"\^bb(\d+)\(([^)]*)\)")
_CALLEE = re.compile(r"@(\"[^\"\n]*\"|[\w.$-]+)\(")
_ASM = re.compile(r"tt\.elementwise_inline_asm \"((?:[^\"\\\n]|\\.)*)\"")
_POINTER = ("!tt.ptr", "!tt.tensordesc")
_DEPTH = 16
"""Calls within calls that are followed."""

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
_SILENT = {"tt.dot", "tt.reduce.return", "tt.scan.return"}
_READING_PTX = {
    "ld", "ldu", "reg", "mov", "cvt", "cvta", "add", "sub", "mul", "mad", "fma", "neg", "abs", "min", "max", "and",
    "or", "xor", "not", "shl", "shr", "setp", "selp", "prmt", "lop3", "bfe", "bfi", "ex2", "lg2", "rcp", "rsqrt",
    "sqrt", "tanh", "prefetch", "createpolicy", "isspacep", "dp4a", "dp2a",
}  # fmt: skip

Roots = frozenset[int]
NOTHING: Roots = frozenset()


@dataclass(slots=True)
class _Function:
    arguments: list[tuple[str, str]]
    """Name and type."""
    body: str
    summary: _Analysis | None = None
    busy: bool = False


def accesses(text: str) -> list[tuple[str, str]]:
    """(type, access) of every argument of the public function, access one of ACCESSES; empty if there is
    none."""
    text = text[:MAX_IR_BYTES]
    functions: dict[str, _Function] = {}
    kernel = None
    for header in _HEADER.finditer(text):
        end = _END.search(text, header.end())
        arguments = [(m.group(1), m.group(2)) for m in _ARGUMENT.finditer(header.group(3))]
        made = _Function(arguments, text[header.end() : end.start() if end else len(text)])
        functions[header.group(2)] = made
        kernel = kernel or (made if header.group(1) == "public" else None)
    if kernel is None:
        return []
    analysis = _Analysis(kernel, functions)
    return [(kind, analysis.access(i)) for i, (_, kind) in enumerate(kernel.arguments)]


@dataclass(slots=True)
class _Region:
    """An open scf operation: what a yield or a condition inside it feeds."""

    op: str
    result: str = ""
    carried: list[str] = field(default_factory=list)
    passed: list[Roots] = field(default_factory=list)
    """Operands of the condition of an scf.while."""


class _Analysis:
    """One function. `returned` are the arguments that its results can come from."""

    def __init__(self, function: _Function, functions: dict[str, _Function], depth: int = 0) -> None:
        self._functions, self._depth = functions, depth
        self._roots: dict[str, Roots] = {}
        addresses = any("tt.int_to_ptr" in f.body for f in functions.values())
        for i, (name, kind) in enumerate(function.arguments):
            if kind.startswith(_POINTER) or (addresses and kind == "i64"):
                self._roots[name] = frozenset({i})
        self._all = NOTHING.union(*self._roots.values())
        self._loaded: set[int] = set()
        self._stored: set[int] = set()
        self.returned: Roots = NOTHING
        self._regions: dict[int, _Region] = {}
        self._branches: dict[str, list[Roots]] = {}
        lines = list(ssa.unique(function.body.splitlines()))
        for last in (False, True):  # twice, so that what a loop yields reaches its carried names
            for line in lines:
                self._visit(line, last)

    def access(self, index: int) -> str:
        return ACCESSES[(index in self._loaded) + 2 * (index in self._stored)]

    def touched(self, index: int) -> tuple[bool, bool]:
        return index in self._loaded, index in self._stored

    def _of(self, name: str) -> Roots:
        found = self._roots.get(name)
        return found if found is not None else self._roots.get(name.split("#")[0], NOTHING)

    def _union(self, names: Iterable[str]) -> Roots:
        return NOTHING.union(*(self._of(n) for n in names))

    def _add(self, name: str, roots: Roots) -> None:
        if roots:
            self._roots[name] = self._roots.get(name, NOTHING) | roots

    def _visit(self, line: str, last: bool) -> None:
        if block := _BLOCK.match(line):
            self._block(line, block, last)
            return
        match = _LINE.match(line)
        if match is None:
            return
        indent, result, op, rest = len(match.group(1)), match.group(2), match.group(3), match.group(4)
        rest = rest.split(" loc(")[0]
        names = _NAME.findall(rest)
        if op.startswith("scf."):
            self._control(indent, result, op, rest, names)
        elif op.startswith("cf."):
            for label, operands in _BRANCH.findall(rest):
                self._pass(self._branches.setdefault(label, []), _NAME.findall(operands.split(" : ")[0]))
        elif op == "tt.call":
            self._call(result, rest, names)
        elif op == "tt.elementwise_inline_asm":
            self._inline(result, line, rest)
        else:
            self._plain(result, op, names)

    def _pass(self, slots: list[Roots], names: list[str]) -> None:
        slots += [NOTHING] * (len(names) - len(slots))
        for i, name in enumerate(names):
            slots[i] |= self._of(name)

    def _block(self, line: str, block: re.Match[str], last: bool) -> None:
        """Arguments of a block: the operands of the branches to it, or of the condition of the loop it belongs to."""
        indent = len(line) - len(line.lstrip())
        region = self._regions.get(indent)
        passed = region.passed if region is not None and region.op == "scf.while" else None
        if passed is None:
            passed = self._branches.get(block.group(1), [])
        for i, (name, kind) in enumerate(_ARGUMENT.findall(block.group(2))):
            self._add(name, passed[i] if i < len(passed) else NOTHING)
            if last and any(p in kind for p in _POINTER) and not self._of(name):
                self._add(name, self._all)

    def _control(self, indent: int, result: str | None, op: str, rest: str, names: list[str]) -> None:
        owner = self._regions.get(indent - 2, _Region(""))
        if op == "scf.condition":
            self._pass(owner.passed, names[1:])
            self._results(owner.result, names[1:])
        elif op == "scf.yield":
            for name, target in zip(names, owner.carried, strict=False):
                self._add(target, self._of(name))
            if owner.op != "scf.while":
                self._results(owner.result, names)
        elif op in ("scf.for", "scf.while", "scf.if"):
            pairs = [] if op == "scf.if" else _CARRIED.findall(rest)
            pairs = [p for p in pairs if f"%{p[0]} = %{p[1]} to" not in rest]  # the loop's own counter
            for inner, init in pairs:
                self._add(inner, self._of(init))
            if op == "scf.for":
                self._results(result or "", [init for _, init in pairs])
            self._regions[indent] = _Region(op, result or "", [inner for inner, _ in pairs])

    def _results(self, result: str, names: list[str]) -> None:
        if result:
            for i, name in enumerate(names):
                self._add(f"{result}#{i}" if len(names) > 1 else result, self._of(name))

    def _call(self, result: str | None, rest: str, names: list[str]) -> None:
        callee = _CALLEE.search(rest)
        function = self._functions.get(callee.group(1)) if callee else None
        if function is None or function.busy or len(function.arguments) != len(names) or self._depth > _DEPTH:
            self._unknown(names)
            return
        if function.summary is None:
            function.busy = True
            function.summary = _Analysis(function, self._functions, self._depth + 1)
            function.busy = False
        for i, name in enumerate(names):
            loaded, stored = function.summary.touched(i)
            self._loaded |= self._of(name) if loaded else NOTHING
            self._stored |= self._of(name) if stored else NOTHING
        if result:
            self._add(result, self._union(names[i] for i in function.summary.returned))

    def _inline(self, result: str | None, line: str, rest: str) -> None:
        """Inline PTX: its operands come after the attributes; a result may be an address that it computed."""
        names = _NAME.findall(rest.rpartition("}")[2])
        asm = _ASM.search(line)
        reached = self._union(names)
        if asm is not None and _only_reads(asm.group(1)):
            self._loaded |= reached
        else:
            self._unknown(names)
        if result:
            self._add(result, reached)

    def _unknown(self, names: Iterable[str]) -> None:
        reached = self._union(names)
        self._loaded |= reached
        self._stored |= reached

    def _plain(self, result: str | None, op: str, names: list[str]) -> None:
        first = self._of(names[0]) if names else NOTHING
        if op in _FORWARD:
            if result:
                self._add(result, first)
        elif op.startswith("arith."):
            if result:
                self._add(result, self._union(names))
        elif op in _LOADS:
            self._loaded |= first
        elif op in _STORES:
            self._stored |= first
        elif op == "tt.return":
            self.returned |= self._union(names)
        elif op not in _SILENT:
            self._unknown(names)


def _only_reads(asm: str) -> bool:
    """Whether every instruction of a piece of PTX cannot write memory. A label, a comment or an unknown word: no."""
    plain = re.sub(r"\\(?:0[AaDd9]|[nt])", " ", asm)
    if re.search(r"(?<!:):(?!:)|//|/\*", plain):
        return False
    for statement in re.split(r"[;{}]", plain):
        words = [w for w in statement.split() if not w.startswith("@")]
        operand = not words or words[0].startswith(("$", "%", ",", "]", *"0123456789"))
        if not operand and words[0].lstrip(".").split(".")[0] not in _READING_PTX:
            return False
    return True


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
