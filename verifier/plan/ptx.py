"""What a kernel of CUDA C++ does with each parameter, read from the PTX that NVRTC makes beside the cubin.

A parameter's provenance is followed through registers, without regard to control flow and for every register at
once, so a store that may go through a parameter is always found where the address is computed from it. Where
this cannot know (a call that was not inlined, pointers kept in memory) every pointer counts as read and written.
Pure text in, records out; loads neither torch nor Triton.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Access = Literal["none", "load", "store", "both"]

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.(?!align)\w+\s+)*(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d+)\])?"
)
_DECLARES = r"^[^\S\n]*(?:\.(?:visible|extern|weak)\s+)*"
_VARIABLES = re.compile(r"(?<![\w.$])\.(?:global|const)\b([^;]*);")
_BESIDES = re.compile(r"\{[^{}]*\}|\[[^\]]*\]|\.attribute\s*\([^)]*\)")
_FUNCTION = re.compile(rf"{_DECLARES}\.(entry|func)\b\s*([\w$]*)", re.M)
_NOISE = re.compile(r"^\s*(?:\.(?:loc|pragma|file)\b[^\n]*|[$\w]+:(?!:))", re.M)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_STATEMENT = re.compile(r"[\s{}]*(?:@!?%?[\w$]+\s+)?([a-z][\w.:]*)\s+(.*)", re.S)
_REGISTER = re.compile(r"%?[A-Za-z_$][\w$]*")
"""Also names without a percent sign: inline assembly declares its own."""
_BRACKET = re.compile(r"\[([^\]]*)\]")
_SCALARS = {"8": "i8", "16": "i16", "32": "i32", "64": "i64"}
_FLOATS = {"f16": "u16", "f32": "fp32", "f64": "fp64"}
_BITS = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}
_HARMLESS_CALLS = ("vprintf", "__assertfail", "__assert_fail")
_ON_CHIP = (".shared", ".local", ".param", ".const")
MAX_STATEMENTS = 400_000


@dataclass(frozen=True, slots=True)
class PtxParam:
    """`type` is `*void`, a scalar type of the plan (`u` marks raw bits of a small struct such as __half), or
    `bytes` for any other struct. `size` in bytes."""

    type: str
    size: int
    access: Access


@dataclass(slots=True)
class _Flow:
    """Provenance while it is computed: parameter positions by register, and what each parameter is used for."""

    names: dict[str, int]
    registers: dict[str, frozenset[int]] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    """Parameters whose derivatives were written to memory as 64-bit values."""
    loaded: set[int] = field(default_factory=set)
    stored: set[int] = field(default_factory=set)
    pointers: set[int] = field(default_factory=set)
    unknown: bool = False

    def of(self, text: str) -> frozenset[int]:
        found = [self.registers[r] for r in _REGISTER.findall(text) if r in self.registers]
        return frozenset().union(*found)


def defines(text: str, kernel: str) -> bool:
    """Whether the text has an entry of this name."""
    return any(m.group(1) == kernel for m in _ENTRY.finditer(_COMMENT.sub("", text)))


def parameters(text: str, kernel: str) -> tuple[PtxParam, ...] | None:
    """Parameters of an entry in order, None when the text has no such entry or it is too long to follow."""
    text = _COMMENT.sub("", text)
    match = next((m for m in _ENTRY.finditer(text) if m.group(1) == kernel), None)
    if match is None:
        return None
    declared = [_declared(m) for m in _PARAM.finditer(match.group(2))]
    statements = list(_statements(text, match.end()))
    if len(statements) > MAX_STATEMENTS:
        return None
    flow = _Flow({name: i for i, (name, _, _) in enumerate(declared)})
    _follow(flow, statements)
    return tuple(_finished(flow, i, kind, size) for i, (_, kind, size) in enumerate(declared))


def variables(text: str, kernel: str) -> dict[str, Access]:
    """What a kernel, and every function of its module, does with the module's own memory (`.global` and `.const`
    variables), by name. Those that no code names are left out: CUDA's headers declare hundreds.
    """
    text = _COMMENT.sub("", text)
    declared = set(_variables(text))
    found: dict[str, Access] = {}
    for start, entry in _bodies(text, kernel) if declared else ():
        statements = list(_statements(text, start))
        names = sorted(declared & set(_REGISTER.findall(" ".join(operands for _, operands in statements))))
        flow = _Flow({}, {name: frozenset({i}) for i, name in enumerate(names)})
        long = len(statements) > MAX_STATEMENTS
        _follow(flow, () if long else statements)
        escaped = flow.kept if flow.unknown or not entry else frozenset()
        for i, name in enumerate(names):
            access = "both" if long or i in escaped else _access(flow, i)
            found[name] = access if found.get(name, "none") in ("none", access) else "both"
    return found


def _variables(text: str) -> Iterator[str]:
    """Names of declarations, which inline assembly may put anywhere and several at once."""
    for (declaration,) in map(re.Match.groups, _VARIABLES.finditer(text)):
        while (plain := _BESIDES.sub(" ", declaration)) != declaration:
            declaration = plain
        names = [re.findall(r"[\w$]+", part.partition("=")[0]) for part in declaration.split(",")]
        if ")" not in declaration.split("=")[0]:  # `.param .u64 .ptr .global .align 4 name)` is a parameter
            yield from (found[-1] for found in names if found)


def _bodies(text: str, kernel: str) -> Iterator[tuple[int, bool]]:
    """Where the bodies of an entry and of all functions start, and whether it is the entry."""
    for match in _FUNCTION.finditer(text):
        brace = text.find("{", match.end())
        declaration = ";" in text[match.end() : brace]
        if brace >= 0 and not declaration and (match[1] == "func" or match[2] == kernel):
            yield brace + 1, match[1] == "entry"


def _declared(match: re.Match[str]) -> tuple[str, str, int]:
    """(name, type, bytes) of one declaration."""
    kind, count = match["type"], match["count"]
    if count is not None:
        size = int(count) * (int(kind.lstrip("busf")) // 8)
        return match["name"], _BITS.get(size, "bytes"), size
    bits = kind.lstrip("busf")
    return match["name"], _FLOATS.get(kind) or _SCALARS.get(bits, "bytes"), int(bits) // 8


def _finished(flow: _Flow, position: int, kind: str, size: int) -> PtxParam:
    if kind != "i64":
        return PtxParam(kind, size, "none")
    kind = "*void" if position in flow.pointers else "i64"
    return PtxParam(kind, size, "both" if flow.unknown else _access(flow, position))


def _access(flow: _Flow, position: int) -> Access:
    if position in flow.loaded:
        return "both" if position in flow.stored else "load"
    return "store" if position in flow.stored else "none"


def _statements(text: str, start: int) -> Iterator[tuple[str, str]]:
    """(opcode, operands) of the body that starts at `start` and ends with its brace."""
    end, depth = start, 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            end = start + brace.start()
            break
    for chunk in text[start:end].split(";"):
        match = _STATEMENT.match(_NOISE.sub("", chunk))
        if match is not None:
            yield match.group(1), match.group(2)


def _follow(flow: _Flow, statements: Sequence[tuple[str, str]]) -> None:
    """Runs over the statements until nothing new is learned."""
    while True:
        before = (sum(len(v) for v in flow.registers.values()), len(flow.kept))
        for opcode, operands in statements:
            _step(flow, opcode, operands)
        if before == (sum(len(v) for v in flow.registers.values()), len(flow.kept)):
            return


def _step(flow: _Flow, opcode: str, operands: str) -> None:
    base = opcode.split(".", 1)[0]
    if base in ("setp", "bra", "ret", "bar", "barrier", "exit", "trap", "mbarrier", "fence", "membar"):
        return
    if base == "call":
        flow.unknown |= not any(name in operands for name in _HARMLESS_CALLS)
    elif base in ("ld", "ldu"):
        _load(flow, opcode, operands)
    elif base in ("st", "red", "atom"):
        _memory_write(flow, opcode, operands)
    elif "[" in operands:
        _other_memory(flow, opcode, operands)
    else:
        _arithmetic(flow, opcode, operands)


def _targets(operands: str) -> tuple[list[str], str]:
    """Destination registers and the rest: the first operand may be a vector in braces."""
    if operands.lstrip().startswith("{"):
        head, _, tail = operands.partition("}")
    else:
        head, _, tail = operands.partition(",")
    return _REGISTER.findall(head), tail


def _spread(flow: _Flow, targets: Sequence[str], taint: frozenset[int]) -> None:
    if taint:
        for register in targets:
            flow.registers[register] = flow.registers.get(register, frozenset()) | taint


def _load(flow: _Flow, opcode: str, operands: str) -> None:
    targets, tail = _targets(operands)
    address = (_BRACKET.search(tail) or _BRACKET.search(operands) or [tail, tail])[1]
    if ".param" in opcode:
        symbol = re.split(r"[+\s]", address.strip(), maxsplit=1)[0]
        if symbol in flow.names:
            _spread(flow, targets, frozenset({flow.names[symbol]}))
        return
    if not any(space in opcode for space in _ON_CHIP):
        flow.loaded |= flow.of(address)
    if "64" in opcode:
        _spread(flow, targets, flow.kept)


def _memory_write(flow: _Flow, opcode: str, operands: str) -> None:
    address = (_BRACKET.search(operands) or [operands, operands])[1]
    rest = operands.replace(f"[{address}]", " ", 1)
    reached = flow.of(address)
    if not any(space in opcode for space in _ON_CHIP):
        flow.stored |= reached
        if not opcode.startswith("st"):
            flow.loaded |= reached
    value = flow.of(rest)
    if value and "64" in opcode:
        flow.kept |= value
    if opcode.startswith("atom"):
        targets, _ = _targets(operands)
        if "64" in opcode:
            _spread(flow, targets, flow.kept)


def _other_memory(flow: _Flow, opcode: str, operands: str) -> None:
    """Copies between memories by the order of their spaces, anything else reads and writes."""
    reached = frozenset().union(*(flow.of(a) for a in _BRACKET.findall(operands)))
    spaces = re.findall(r"\.(shared|global)", opcode)
    if opcode.startswith(("prefetch", "discard", "applypriority")):
        return
    if spaces[:2] == ["shared", "global"] or opcode.startswith(("ldmatrix", "wmma.load", "tex", "suld")):
        flow.loaded |= reached
    elif spaces[:2] == ["global", "shared"] or opcode.startswith("wmma.store"):
        flow.stored |= reached
        flow.loaded |= reached if ".reduce" in opcode else set()
    else:
        flow.loaded |= reached
        flow.stored |= reached


def _arithmetic(flow: _Flow, opcode: str, operands: str) -> None:
    targets, tail = _targets(operands)
    taint = flow.of(tail)
    if opcode.startswith("cvta.to.global"):
        flow.pointers |= taint if len(taint) == 1 else set()
    _spread(flow, targets, taint)
