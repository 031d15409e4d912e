"""Parser of TTIR text, the first form that Triton gives a kernel (MLIR, dialects tt, scf, cf, arith, math).

It reads the pretty form that Triton 3.6 and 3.9 print and MLIR's generic form (`"arith.addi"(%a, %b) : ...`).
It keeps what counting work needs: operations with results, operands, types, attribute text, regions and the
source line. It checks no types and knows no dialect beyond the shape of region-carrying operations. The text
is untrusted: anything that it cannot read raises `TtirError`, nesting and size are capped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from verifier.profile.locations import resolve_locations

_MAX_TEXT = 32 << 20
_MAX_DEPTH = 64

_NAME = r"%[\w$.\-]+(?:#\d+)?"
_OPERAND = re.compile(_NAME)
_RESULTS = re.compile(rf"^({_NAME}(?::\d+)?(?:\s*,\s*{_NAME}(?::\d+)?)*)\s*=\s*")
_OPNAME = re.compile(r'^"?([a-z_][\w]*(?:\.[\w$.]+)+|module)"?')
_BLOCK = re.compile(r"^\^(\w+)\s*(?:\((.*)\))?\s*:\s*$")
_SUCCESSOR = re.compile(rf"\^(\w+)(?:\(((?:{_NAME}\s*,?\s*)*)[^)]*\))?")
_TYPED_NAME = re.compile(rf"({_NAME})\s*:\s*")
_BITS = re.compile(r"^(?:bf|tf|f|i|si|ui)(\d+)")


class TtirError(ValueError):
    """Text that is no TTIR as this parser knows it. One sentence."""


@dataclass(frozen=True, slots=True)
class Type:
    """A scalar (`shape == ()`) or a tensor. `element` is MLIR's name: f16, bf16, i32, `!tt.ptr<f16>`, ..."""

    shape: tuple[int, ...]
    element: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def pointer(self) -> bool:
        return self.element.startswith("!tt.ptr")

    @property
    def pointee(self) -> str:
        """Element type behind a pointer or a descriptor."""
        inner = self.element[self.element.index("<") + 1 : -1] if "<" in self.element else self.element
        return inner.split(",")[0].strip()

    @property
    def floating(self) -> bool:
        return self.element.startswith(("f", "bf"))


def element_bytes(element: str) -> float:
    """Bytes of one element; i1 counts as one byte, pointers as eight."""
    if element.startswith("!tt.ptr") or element == "index":
        return 8
    bits = _BITS.match(element)
    if bits is None:
        raise TtirError(f"unknown element type {element[:40]!r}")
    return max(1.0, int(bits.group(1)) / 8)


@dataclass(slots=True)
class Op:
    """One operation. Region-carrying loops keep their bounds first in `operands` (scf.for: lower, upper,
    step, inits)."""

    name: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    attributes: str
    """Text between the name and the types."""
    types: tuple[Type, ...]
    regions: list[list[Block]]
    successors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Block label and arguments of each branch target."""
    location: str = ""

    @property
    def type(self) -> Type:
        """The last type, which is the result's where there is one."""
        if not self.types:
            raise TtirError(f"{self.name} has no type")
        return self.types[-1]


@dataclass(slots=True)
class Block:
    label: str
    arguments: tuple[str, ...]
    ops: list[Op] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    parameters: tuple[tuple[str, Type], ...]
    blocks: tuple[Block, ...]
    public: bool


@dataclass(frozen=True, slots=True)
class Module:
    functions: dict[str, Function]
    lines: dict[str, int]
    """Location name (`#loc12`) to a line of the user's file."""

    @property
    def kernel(self) -> Function:
        """The one public function. Raises `TtirError` when there is none."""
        for function in self.functions.values():
            if function.public:
                return function
        raise TtirError("the module has no public function")

    def line(self, location: str) -> int | None:
        return self.lines.get(location)


def parse_type(text: str) -> Type:
    """`tensor<128x64xf16>`, `i32`, `!tt.ptr<f16>`, `!tt.tensordesc<16x64xf32>` and the same with an
    encoding."""
    text = text.strip()
    for prefix in ("!tt.tensordesc<", "tensor<", "<"):
        if text.startswith(prefix) and text.endswith(">"):
            inner = text[len(prefix) : -1]
            if inner.startswith("tensor<"):
                return parse_type(inner)
            return _parse_shaped(_split(inner, ",")[0])
    return Type((), text)


def _parse_shaped(text: str) -> Type:
    shape = []
    while found := re.match(r"(\d+)x", text):
        shape.append(int(found.group(1)))
        text = text[found.end() :]
    if math.prod(shape) > 1 << 30:
        raise TtirError("a tensor of over 2^30 elements")
    return Type(tuple(shape), text.strip())


def parse(text: str) -> Module:
    """Parse a whole module. Raises `TtirError`."""
    if len(text) > _MAX_TEXT:
        raise TtirError(f"TTIR of {len(text)} characters, over the limit of {_MAX_TEXT}")
    try:
        return _parse(text)
    except (IndexError, ValueError) as wrong:
        if isinstance(wrong, TtirError):
            raise
        raise TtirError(f"the text is no TTIR ({type(wrong).__name__}: {wrong})") from wrong


def _parse(text: str) -> Module:
    lines = resolve_locations(text)
    body = [line for raw in text.splitlines() if (line := _clean(raw)) and not line.startswith("#")]
    reader = _Reader(body)
    functions: dict[str, Function] = {}
    for op in _functions(reader.blocks(0)):
        function = _function(op)
        functions[function.name] = function
    if not functions:
        raise TtirError("no tt.func in the text")
    return Module(functions, lines)


def _functions(blocks: list[Block]) -> Iterator[Op]:
    for block in blocks:
        for op in block.ops:
            if op.name == "tt.func":
                yield op
            elif op.name in ("module", "builtin.module"):
                for region in op.regions:
                    yield from _functions(region)


def _function(op: Op) -> Function:
    pretty = re.search(r"@([\w$.\-]+|\"[^\"]*\")\s*\(", op.attributes)
    if pretty is not None:
        start = pretty.end()
        parameters = _typed_names(op.attributes[start : _close(op.attributes, start - 1)])
        public = "private" not in op.attributes[: pretty.start()]
        name = pretty.group(1).strip('"')
    else:
        found = re.search(r'sym_name = "([^"]*)"', op.attributes)
        if found is None or not op.regions or not op.regions[0]:
            raise TtirError("a tt.func without a name or a body")
        name = found.group(1)
        types = re.search(r"function_type = \((.*?)\) ->", op.attributes)
        entry = op.regions[0][0].arguments
        kinds = [parse_type(t) for t in _split(types.group(1), ",")] if types and types.group(1) else []
        parameters = tuple(zip(entry, kinds, strict=False))
        public = 'sym_visibility = "private"' not in op.attributes
    return Function(name, parameters, tuple(op.regions[0] if op.regions else ()), public)


def _typed_names(text: str) -> tuple[tuple[str, Type], ...]:
    """`%a: !tt.ptr<f16> {tt.divisibility = 16 : i32}, %n: i32` -> names and types."""
    found = []
    for part in _split(text, ","):
        match = _TYPED_NAME.match(part.strip())
        if match is not None:
            found.append((match.group(1), parse_type(part.strip()[match.end() :].split(" {")[0])))
    return tuple(found)


class _Reader:
    """Recursive descent over cleaned lines: one operation a line, regions between `{` and `}`."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._at = 0

    def blocks(self, depth: int) -> list[Block]:
        """Blocks up to the line that closes the region (left unread) or the end."""
        if depth > _MAX_DEPTH:
            raise TtirError(f"regions nest deeper than {_MAX_DEPTH}")
        blocks = [Block("bb0", ())]
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith("}"):
                return blocks
            header = _BLOCK.match(line.split("//")[0].split(" @@#")[0].strip())
            if header is not None:
                names = tuple(name for name, _ in _typed_names(header.group(2) or ""))
                if len(blocks) == 1 and not blocks[0].ops:
                    blocks = []
                blocks.append(Block(header.group(1), names))
                self._at += 1
            else:
                blocks[-1].ops.append(self._op(depth))
        if depth:
            raise TtirError("a region is not closed")
        return blocks

    def _op(self, depth: int) -> Op:
        header = self._lines[self._at]
        self._at += 1
        regions: list[list[Block]] = []
        trailer = ""
        opened = header.endswith("{") and not header.endswith("<{")
        while opened:
            regions.append(self.blocks(depth + 1))
            if self._at >= len(self._lines):
                raise TtirError("a region is not closed")
            trailer = self._lines[self._at]
            self._at += 1
            opened = trailer.endswith("{")
        return _make_op(header, regions, trailer)


def _make_op(header: str, regions: list[list[Block]], trailer: str) -> Op:
    location = ""
    for text in (trailer, header):
        found = re.search(r" @@(#loc\d*)", text)
        if found is not None:
            location = found.group(1)
            break
    header = header.split(" @@#", 1)[0] if not regions else re.sub(r" @@#loc\d*", "", header)
    trailer = re.sub(r" @@#loc\d*", "", trailer)
    results: tuple[str, ...] = ()
    found = _RESULTS.match(header)
    if found is not None:
        results = tuple(_expand_results(found.group(1)))
        header = header[found.end() :]
    name = _OPNAME.match(header)
    if name is None:
        raise TtirError(f"no operation in the line {header[:80]!r}")
    generic = header.startswith('"')
    rest = header[name.end() :]
    if name.group(1) == "scf.for" and not generic:
        return _pretty_for(results, rest, regions, location)
    if name.group(1) == "scf.while" and not generic:
        return _pretty_while(results, rest, regions, location)
    signature = trailer if regions and trailer.startswith("})") else rest
    attributes, types = _split_types(rest.rstrip("{ ") if regions else rest)
    if signature is trailer and trailer:
        types = _split_types(trailer[2:])[1]
    head = attributes if name.group(1) != "tt.func" else rest
    successors = tuple((label, tuple(_OPERAND.findall(args or ""))) for label, args in _SUCCESSOR.findall(head))
    plain = _SUCCESSOR.sub("", head) if successors else head
    operands = () if name.group(1) == "tt.func" else tuple(_OPERAND.findall(plain))
    return Op(name.group(1), results, operands, head, types, regions, successors, location)


def _expand_results(text: str) -> Iterator[str]:
    for part in text.split(","):
        name, _, count = part.strip().partition(":")
        if count:
            yield from (f"{name}#{i}" for i in range(min(int(count), 4096)))
        else:
            yield name


def _pretty_for(results: tuple[str, ...], rest: str, regions: list[list[Block]], location: str) -> Op:
    bounds = re.match(rf"\s*(?:unsigned\s+)?({_NAME}) = ({_NAME}) to ({_NAME}) step ({_NAME})", rest)
    if bounds is None or len(regions) != 1:
        raise TtirError(f"cannot read the loop {rest[:80]!r}")
    pairs = _assignments(rest[bounds.end() :])
    regions[0][0].arguments = (bounds.group(1), *(name for name, _ in pairs))
    operands = (*bounds.groups()[1:], *(init for _, init in pairs))
    return Op("scf.for", results, operands, rest, (), regions, (), location)


def _pretty_while(results: tuple[str, ...], rest: str, regions: list[list[Block]], location: str) -> Op:
    pairs = _assignments(rest)
    if len(regions) != 2:
        raise TtirError("an scf.while without two regions")
    if pairs:
        regions[0][0].arguments = tuple(name for name, _ in pairs)
    return Op("scf.while", results, tuple(init for _, init in pairs), rest, (), regions, (), location)


def _assignments(text: str) -> list[tuple[str, str]]:
    return re.findall(rf"({_NAME}) = ({_NAME})", text)


def _split_types(text: str) -> tuple[str, tuple[Type, ...]]:
    """Cut `operands and attributes : types` at the first top-level colon; types of both sides of arrows,
    flattened."""
    cut = _top_level(text, " : ")
    if cut is None:
        return text, ()
    signature = text[cut + 3 :].replace("->", ",").replace(" to ", ",").replace(" * ", ",")
    types: list[Type] = []
    for part in _split(signature, ","):
        part = part.strip()
        inner = part[1:-1] if part.startswith("(") and part.endswith(")") else None
        types += [parse_type(p) for p in (_split(inner, ",") if inner is not None else [part]) if p.strip()]
    return text[:cut], tuple(types)


_OPEN, _SHUT = "<({[", ">)}]"


def _top_level(text: str, token: str) -> int | None:
    depth = 0
    quoted = False
    for i, c in enumerate(text):
        if c == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif c in _OPEN:
            depth += 1
        elif c in _SHUT and text[i - 1 : i + 1] != "->":
            depth -= 1
        elif depth == 0 and text.startswith(token, i):
            return i
    return None


def _split(text: str, separator: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in _OPEN:
            depth += 1
        elif c in _SHUT and text[i - 1 : i + 1] != "->":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return parts


def _close(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in _OPEN:
            depth += 1
        elif text[i] in _SHUT and text[i - 1 : i + 1] != "->":
            depth -= 1
            if depth == 0:
                return i
    raise TtirError("a bracket is not closed")


def _clean(raw: str) -> str:
    """Strip the line and its locations; the last named location is kept as ` @@#loc12` at the end."""
    line = raw.strip()
    if " loc(" not in line and not line.startswith("loc("):
        return line.split(" // ")[0].rstrip() if " // " in line and '"' not in line else line
    out, at, last = [], 0, ""
    while (found := line.find(" loc(", at)) >= 0:
        out.append(line[at:found])
        end = _close_location(line, found + 4)
        inside = line[found + 5 : end]
        if inside.startswith("#loc"):
            last = inside
        at = end + 1
    out.append(line[at:])
    text = "".join(out).rstrip()
    if text.endswith("{") or not last:
        return text
    return f"{text} @@{last}"


def _close_location(line: str, start: int) -> int:
    depth, quoted = 0, False
    for i in range(start, len(line)):
        c = line[i]
        if c == '"' and line[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and c == "(":
            depth += 1
        elif not quoted and c == ")":
            depth -= 1
            if depth == 0:
                return i
    raise TtirError("a location is not closed")
