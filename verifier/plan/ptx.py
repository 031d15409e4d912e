"""What a kernel of CUDA C++ does with each parameter, read from the PTX that NVRTC makes beside the cubin.

A parameter's provenance is followed through registers, without regard to control flow and for every register at
once, so a store that may go through a parameter is always found where the address is computed from it. Where
this cannot know (a call that was not inlined, pointers kept in memory) every pointer counts as read and written.
Pure text in, records out; loads neither torch nor Triton.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from verifier.plan import ptx_text

Access = Literal["none", "load", "store", "both"]

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.(?!align)\w+\s+)*(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d+)\])?"
)
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
    pieces: frozenset[int] = frozenset()
    """Those written in another width: what is read back is not known to be theirs."""
    harmless: frozenset[str] = frozenset()
    """Functions that do nothing to the memory of a module."""
    loaded: set[int] = field(default_factory=set)
    stored: set[int] = field(default_factory=set)
    pointers: set[int] = field(default_factory=set)
    unknown: bool = False

    def of(self, text: str) -> frozenset[int]:
        found = [self.registers[r] for r in _REGISTER.findall(text) if r in self.registers]
        return frozenset().union(*found)


def defines(text: str, kernel: str) -> bool:
    """Whether the text has an entry of this name."""
    return any(m.group(1) == kernel for m in _ENTRY.finditer(ptx_text.plain(text)))


def parameters(text: str, kernel: str) -> tuple[PtxParam, ...] | None:
    """Parameters of an entry in order, None when the text has no such entry or it is too long to follow."""
    found = _followed(text, kernel)
    if found is None:
        return None
    declared, flow = found
    return tuple(_finished(flow, i, kind, size) for i, (_, kind, size) in enumerate(declared))


def written(text: str, kernel: str) -> tuple[bool, ...] | None:
    """Whether a kernel stores through each parameter of an entry; None where that cannot be known: addresses go through
    memory or into functions, or there is no such entry.
    """
    found = _followed(text, kernel)
    if found is None or found[1].unknown or found[1].kept:
        return None
    return tuple(i in found[1].stored for i in range(len(found[0])))


def _followed(text: str, kernel: str) -> tuple[list[tuple[str, str, int]], _Flow] | None:
    """The declared parameters of an entry, and where they went."""
    text = ptx_text.plain(text)
    match = next((m for m in _ENTRY.finditer(text) if m.group(1) == kernel), None)
    if match is None:
        return None
    declared = [_declared(m) for m in _PARAM.finditer(match.group(2))]
    statements = list(ptx_text.statements(text, match.end()))
    if len(statements) > MAX_STATEMENTS:
        return None
    flow = _Flow({name: i for i, (name, _, _) in enumerate(declared)}, harmless=_harmless(text))
    _follow(flow, statements)
    return declared, flow


def variables(text: str, kernel: str) -> dict[str, Access]:
    """What a kernel, and every function of its module, does with the module's own memory (`.global` and `.const`
    variables), by name. Those that no code names are left out: CUDA's headers declare hundreds.
    """
    text = ptx_text.plain(text)
    declared = set(ptx_text.variables(text))
    found: dict[str, Access] = {}
    for function, entry, start in ptx_text.functions(text) if declared else ():
        if entry and function != kernel:
            continue
        statements = list(ptx_text.statements(text, start))
        names = sorted(declared & set(_REGISTER.findall(" ".join(operands for _, operands in statements))))
        flow = _Flow({}, {name: frozenset({i}) for i, name in enumerate(names)}, harmless=_harmless(text))
        long = len(statements) > MAX_STATEMENTS
        _follow(flow, () if long else statements)
        escaped = flow.pieces | (flow.kept if flow.unknown or not entry else frozenset())
        for i, name in enumerate(names):
            access = "both" if long or i in escaped else _access(flow, i)
            found[name] = access if found.get(name, "none") in ("none", access) else "both"
    return found


def _harmless(text: str) -> frozenset[str]:
    """What prints and asserts, where it is the system's own."""
    return frozenset(_HARMLESS_CALLS) - {name for name, _, _ in ptx_text.functions(text)}


def _callee(operands: str) -> str:
    """`(retval0), vprintf, (param0, param1)`"""
    found = re.match(r"\s*(?:\([^)]*\)\s*,)?\s*([%$\w]+)", operands)
    return found[1] if found else ""


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
    if opcode == ptx_text.UNKNOWN:
        flow.loaded |= flow.of(operands)
        flow.stored |= flow.of(operands)
    elif base == "call":
        flow.unknown |= _callee(operands) not in flow.harmless
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
    elif value and ".param" not in opcode:
        flow.pieces |= value
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
