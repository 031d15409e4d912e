"""Just enough of ELF to see what a cubin carries: its sections and their sizes."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LINES = frozenset({".debug_line", ".rel.debug_line", ".rela.debug_line"})
MAX_SECTIONS = 4096
MAX_SYMBOLS = 65_536
_NOBITS = 8
_OPTIONS = {b"__CUDA_FTZ", b"__CUDA_ARCH", b"__CUDA_PREC_SQRT", b"__CUDA_PREC_DIV"}


def sections(data: bytes) -> list[tuple[str, int, bytes]]:
    """(name, size, content) of each section of a 64-bit little-endian ELF file; empty for anything else.

    A section without bytes in the file (zero-initialised memory) has empty content.
    """
    return [(name, r[5], b"" if r[1] == _NOBITS else data[r[4] : r[4] + r[5]]) for name, r in _rows(data)]


def whole(data: bytes) -> bool:
    """Whether it is such a file and holds its segments' table and all that its sections' table names."""
    rows = _rows(data)
    if not rows:
        return False
    fields = _HEADER.unpack_from(data)
    return fields[5] + fields[9] * fields[10] <= len(data) and all(
        r[1] == _NOBITS or r[4] + r[5] <= len(data) for _, r in rows
    )


def same_code(one: bytes, other: bytes) -> bool:
    """Whether two such files differ at most in their table of source lines, and in where their parts lie for its sake.
    Some assemblers write the time of a source file there, where the file is to be found.
    """
    return one == other or (whole(one) and whole(other) and _but_lines(one) == _but_lines(other))


def _but_lines(data: bytes) -> tuple[object, ...]:
    fields = _HEADER.unpack_from(data)
    table, size, count = fields[5], fields[9], fields[10]
    segments = [_SEGMENT.unpack_from(data, table + i * size) for i in range(count)] if size == _SEGMENT.size else []
    rows = _rows(data)
    loaded = [(s[:2], s[3:]) if s[2] == table else _loaded(data, s, rows) for s in segments]
    parts = [
        (name, row[:4], row[6:]) if name in _LINES
        else (name, row[:4], row[5:], b"" if row[1] == _NOBITS else data[row[4] : row[4] + row[5]])
        for name, row in rows
    ]  # fmt: skip
    return fields[:5], fields[7:], len(segments), loaded, parts


def _loaded(data: bytes, segment: tuple[int, ...], rows: list[tuple[str, tuple[int, ...]]]) -> tuple[object, ...]:
    """A segment but for where it lies: the names of its sections in order, and what is not zero between them."""
    start, end = segment[2], segment[2] + segment[5]
    between, names = bytearray(data[start:end]), []
    for name, row in sorted(rows, key=lambda named: named[1][4]):
        if row[1] != _NOBITS and start <= row[4] < end:
            names.append(name)
            between[row[4] - start : row[4] + row[5] - start] = bytes(row[5])
    return segment[:2], segment[3:5], segment[6] - segment[5], segment[7], names, bytes(between).strip(b"\0")


def symbols(data: bytes) -> list[str]:
    """Names of the symbol table's entries, in order."""
    content = {name: body for name, _, body in sections(data)}
    table, names = content.get(".symtab", b""), content.get(".strtab", b"")
    offsets = [entry[0] for entry in _SYMBOL.iter_unpack(table[: len(table) // _SYMBOL.size * _SYMBOL.size])]
    return [names[offset:].split(b"\0", 1)[0].decode(errors="replace") for offset in offsets[:MAX_SYMBOLS]]


def _rows(data: bytes) -> list[tuple[str, tuple[int, ...]]]:
    if len(data) < _HEADER.size or data[:6] != b"\x7fELF\x02\x01":
        return []
    fields = _HEADER.unpack_from(data)
    start, count, names_index = fields[6], fields[12], fields[13]
    if count > MAX_SECTIONS or start + count * _SECTION.size > len(data) or names_index >= count:
        return []
    rows = [_SECTION.unpack_from(data, start + i * _SECTION.size) for i in range(count)]
    names = rows[names_index]
    table = data[names[4] : names[4] + names[5]]
    return [(table[r[0] :].split(b"\0", 1)[0].decode(errors="replace"), r) for r in rows]


def global_bytes(cubin: bytes) -> int:
    """Bytes of device memory that live as long as the module: a place to remember earlier answers.

    The compiler's own strings (names of libdevice options, which no kernel can address) do not count.
    """
    return sum(
        size for name, size, content in sections(cubin) if name.startswith(".nv.global") and not _only_options(content)
    )


def _only_options(content: bytes) -> bool:
    return bool(content) and content.endswith(b"\0") and set(content[:-1].split(b"\0")) <= _OPTIONS
