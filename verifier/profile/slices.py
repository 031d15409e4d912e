"""Which values of a kernel decide its work: backward slices over names, and the shape of carried loop values.

Names are compared as text. Sibling regions may reuse a name, which can only make a slice larger than needed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from verifier.profile.ttir import Block, Function, Op

_POINTER_OPERANDS = ("tt.load", "tt.store", "tt.atomic_rmw", "tt.atomic_cas")
_STEPPING = frozenset({"arith.addi", "arith.subi", "tt.addptr"})

Edges = dict[str, set[str]]


def walk(blocks: Iterable[Block]) -> Iterator[Op]:
    """All operations, outer before inner; bodies of reductions left out."""
    for block in blocks:
        for op in block.ops:
            yield op
            if op.name not in ("tt.reduce", "tt.scan"):
                for region in op.regions:
                    yield from walk(region)


def live_names(function: Function) -> set[str]:
    """Names on which a trip count, a condition, a mask or an address depends."""
    edges = dependencies(function)
    seeds: set[str] = set()
    for op in walk(function.blocks):
        seeds.update(_control(op), _masks(op))
        if op.name.startswith("tt.descriptor") or op.name in ("tt.call", "tt.return"):
            seeds.update(op.operands)
        elif op.name in _POINTER_OPERANDS:
            seeds.update(op.operands[:1])
    return _closure(seeds, edges)


def deciding_axes(function: Function) -> tuple[bool, bool, bool]:
    """Axes of the grid on which a trip count, a condition, a mask or the choice of a buffer depends. A call counts as
    depending on all."""
    edges = dependencies(function)
    seeds: set[str] = set()
    for op in walk(function.blocks):
        seeds.update(_control(op), _masks(op))
        if op.name == "tt.call" or op.name.startswith("tt.descriptor"):
            seeds.update(op.operands)
    names = _closure(seeds, edges)
    axes = [False, False, False]
    for op in walk(function.blocks):
        if op.name == "tt.get_program_id" and any(r in names for r in op.results):
            coded = re.search(r"axis = (\d)", op.attributes)
            axes[int(coded.group(1)) % 3 if coded else max(0, "xyz".find(op.attributes.strip()[:1]))] = True
    return axes[0], axes[1], axes[2]


def _control(op: Op) -> tuple[str, ...]:
    if op.name == "scf.for":
        return op.operands[:3]
    if op.name in ("scf.if", "scf.condition", "cf.cond_br"):
        return op.operands[:1]
    if op.name == "arith.select" and op.type.pointer:
        return op.operands[:1]
    return ()


def _masks(op: Op) -> tuple[str, ...]:
    place = {"tt.load": 1, "tt.store": 2, "tt.atomic_rmw": 2, "tt.atomic_cas": 3}.get(op.name)
    return op.operands[place : place + 1] if place is not None else ()


def dependencies(function: Function) -> Edges:
    """For every name the names that it is computed from. A loaded value depends on nothing that can be
    known."""
    edges: Edges = defaultdict(set)
    _collect(list(function.blocks), edges)
    return edges


def _collect(blocks: list[Block], edges: Edges) -> None:
    by_label = {block.label: block for block in blocks}
    for block in blocks:
        for op in block.ops:
            if op.name == "scf.for":
                _for_edges(op, edges)
            elif op.name == "scf.while":
                _while_edges(op, edges)
            elif op.name == "scf.if":
                for region in op.regions:
                    _link(edges, op.results, _yielded(region), op.operands)
            elif op.name in ("cf.br", "cf.cond_br"):
                for label, passed in op.successors:
                    if label in by_label:
                        _link(edges, by_label[label].arguments, passed, op.operands[:1])
            elif op.name not in ("tt.load", "tt.reduce", "tt.scan", "tt.dot", "tt.descriptor_load"):
                for result in op.results:
                    edges[result].update(op.operands)
            if op.name not in ("tt.reduce", "tt.scan"):
                for region in op.regions:
                    _collect(region, edges)


def _link(edges: Edges, targets: Iterable[str], sources: Iterable[str], extra: Iterable[str] = ()) -> None:
    extra = tuple(extra)
    for target, source in zip(targets, sources, strict=False):
        edges[target].update((source, *extra))


def _yielded(region: list[Block]) -> tuple[str, ...]:
    last = region[-1].ops[-1] if region and region[-1].ops else None
    return last.operands if last is not None and last.name in ("scf.yield", "scf.condition") else ()


def _for_edges(op: Op, edges: Edges) -> None:
    iv, *carried = op.regions[0][0].arguments or ("",)
    edges[iv].update(op.operands[:3])
    for values in (op.operands[3:], _yielded(op.regions[0])):
        _link(edges, carried, values)
        _link(edges, op.results, values, op.operands[:3])


def _while_edges(op: Op, edges: Edges) -> None:
    before, after = op.regions
    passed = _yielded(before)
    _link(edges, before[0].arguments, op.operands)
    _link(edges, before[0].arguments, _yielded(after))
    _link(edges, after[0].arguments, passed[1:])
    _link(edges, op.results, passed[1:], passed[:1])


def _closure(seeds: set[str], edges: Edges) -> set[str]:
    found, queue = set(seeds), list(seeds)
    while queue:
        for name in edges.get(queue.pop(), ()):
            if name not in found:
                found.add(name)
                queue.append(name)
    return found


def influence(op: Op) -> list[str] | None:
    """How each carried value of an `scf.for` moves: "same", "step" (a constant stride) or "free" (decides
    nothing).

    None when a carried value that decides work moves in any other way, so that no trip may be skipped.
    """
    region = op.regions[0]
    iv, *carried = region[0].arguments
    inner = Function("loop", (), tuple(region), public=False)
    edges = dependencies(inner)
    needed = live_names(inner)
    makers = {result: o for o in walk(region) for result in o.results}
    moving = {iv, *carried}
    kinds = []
    for name, produced in zip(carried, _yielded(region), strict=False):
        if produced == name:
            kinds.append("same")
        elif name not in needed:
            kinds.append("free")
        elif _steps(name, makers.get(produced), edges, moving):
            kinds.append("step")
        else:
            return None
    return kinds


def _steps(name: str, maker: Op | None, edges: Edges, moving: set[str]) -> bool:
    if maker is None or maker.name not in _STEPPING or name not in maker.operands:
        return False
    if maker.name != "arith.addi" and maker.operands[0] != name:
        return False
    others = {o for o in maker.operands if o != name}
    return len(others) == 1 and not _closure(others, edges) & moving
