"""Loops of machine code: natural loops of its control flow graph.

A backward branch alone is no loop. The compiler puts the slow path of a barrier wait behind the kernel's end and jumps
back into the middle, which by addresses would enclose half of the kernel. Here a loop is a back edge whose target
dominates its source (Aho, Lam, Sethi, Ullman, section 9.6). Loops that only wait for a barrier are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_ENDS = frozenset({"EXIT", "RET"})
_WAITS = frozenset({"barrier", "branch", "integer and other"})
_WAIT_LENGTH = 10
"""A shorter loop of nothing but these groups waits for a barrier; its trips are unknown and cost little."""


class Row(NamedTuple):
    """One instruction. `predicate` is its guard, empty when it always runs; `rest` are its operands."""

    address: int
    predicate: str
    opcode: str
    rest: str


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of the machine code; counts include inner loops. `start` is its header, `end` its last latch."""

    start: int
    end: int
    depth: int
    instructions: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.instructions.values())


def find_loops(rows: Sequence[Row], group_of: Callable[[str], str]) -> tuple[Loop, ...]:
    """The loops in the order of their headers; `group_of` gives the group of an opcode."""
    blocks = _blocks(rows)
    follows = _successors(rows, blocks)
    dominators = _dominators(follows)
    bodies: dict[int, set[int]] = {}
    latches: dict[int, int] = {}
    for source, targets in enumerate(follows):
        for header in targets:
            if header in dominators[source]:
                bodies.setdefault(header, {header}).update(_body(source, header, follows))
                latches[header] = max(latches.get(header, 0), rows[blocks[source].stop - 1].address)
    counts = {h: Counter(group_of(rows[i].opcode) for b in body for i in blocks[b]) for h, body in bodies.items()}
    kept = [h for h in sorted(bodies) if sum(counts[h].values()) >= _WAIT_LENGTH or not set(counts[h]) <= _WAITS]
    depths = {h: sum(h in bodies[o] for o in kept) for h in kept}
    return tuple(Loop(rows[blocks[h].start].address, latches[h], depths[h], dict(counts[h])) for h in kept)


def _branch(row: Row) -> int | None:
    """Address that a direct branch goes to, None for any other instruction."""
    found = _TARGET.search(row.rest) if row.opcode.startswith("BRA") else None
    return int(found.group(1), 16) if found else None


def _blocks(rows: Sequence[Row]) -> list[range]:
    """Basic blocks as ranges of rows, in address order."""
    index = {row.address: i for i, row in enumerate(rows)}
    leaders = {0}
    for i, row in enumerate(rows):
        target = _branch(row)
        if target is not None:
            leaders.add(next((index[a] for a in range(target, target + 0x100, 0x10) if a in index), len(rows)))
        if target is not None or row.opcode.split(".")[0] in _ENDS:
            leaders.add(i + 1)
    starts = sorted(leader for leader in leaders if leader < len(rows))
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _successors(rows: Sequence[Row], blocks: Sequence[range]) -> list[list[int]]:
    """Blocks that may follow each block."""
    at = {rows[block.start].address: i for i, block in enumerate(blocks)}
    addresses = sorted(at)
    follows: list[list[int]] = []
    for i, block in enumerate(blocks):
        last = rows[block.stop - 1]
        target = _branch(last)
        always = not last.predicate and "," not in last.rest and ".DIV" not in last.opcode
        ends = target is not None or last.opcode.split(".")[0] in _ENDS
        found = [i + 1] if i + 1 < len(blocks) and not (ends and always) else []
        if target is not None:
            found += [at[a] for a in addresses if a >= target][:1]
        follows.append(found)
    return follows


def _dominators(follows: Sequence[Sequence[int]]) -> list[set[int]]:
    """For each block the blocks that every path from the entry passes; empty for an unreachable block."""
    before: list[list[int]] = [[] for _ in follows]
    for source, targets in enumerate(follows):
        for target in targets:
            before[target].append(source)
    everything = set(range(len(follows)))
    found = [{0}, *(set(everything) for _ in follows[1:])]
    changed = True
    while changed:
        changed = False
        for block in range(1, len(follows)):
            new = {block} | (set.intersection(*(found[p] for p in before[block])) if before[block] else set())
            if new != found[block]:
                found[block], changed = new, True
    return found


def _body(latch: int, header: int, follows: Sequence[Sequence[int]]) -> set[int]:
    """Blocks that reach the latch without passing the header."""
    before: dict[int, list[int]] = {}
    for source, targets in enumerate(follows):
        for target in targets:
            before.setdefault(target, []).append(source)
    found, waiting = {header}, [latch]
    while waiting:
        block = waiting.pop()
        if block not in found:
            found.add(block)
            waiting += before.get(block, [])
    return found
