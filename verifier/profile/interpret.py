"""Runs one program of a kernel on abstract values and tallies its work.

The interpreter follows what decides how often something runs: scalar integers, masks and addresses.
Floating-point tensors are never computed; what they cost is known from their types. Before the first program,
the operations on which no trip count, condition, mask or address depends are dropped, so a loop body of an
attention kernel shrinks to about a third.

Loops: up to 32 trips run one by one. A longer loop whose carried values advance by a constant runs its first
four, last four and eight trips between, each of these standing for its neighbours, and jumps over the rest;
static costs are exact in either case, masked bytes are exact where the trips between are alike. Other long
loops run one by one within a budget.

Where something is unknown (a value loaded from memory): a loop counts one trip and sets `unknown_trips`; a
branch takes its first side and sets `unknown_branches`. A loop or program cut by the budget sets `truncated`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from verifier.profile.costs import dot_shape, op_cost
from verifier.profile.slices import influence, live_names
from verifier.profile.trips import SECTOR_BYTES, advanced, difference, representatives, touched_sectors
from verifier.profile.ttir import Block, Function, Module, Op, TtirError, element_bytes
from verifier.profile.values import EVALUATORS, KEEPS_UNKNOWN, Descriptor, Pointer

Tally = Counter[str]

_EXACT_TRIPS = 32
_SECTOR_SAMPLES = 3
_MAX_CALLS = 16
_LOADS = frozenset({"tt.load", "tt.descriptor_load", "tt.descriptor_gather"})
_STORES = frozenset({"tt.store", "tt.descriptor_store", "tt.descriptor_scatter"})
_ATOMICS = frozenset({"tt.atomic_rmw", "tt.atomic_cas", "tt.descriptor_reduce"})
_ACCESSES = _LOADS | _STORES | _ATOMICS
_CONTROL = frozenset({"scf.for", "scf.while", "scf.if", "tt.call"})
_TERMINATORS = frozenset({"scf.yield", "scf.condition", "cf.br", "cf.cond_br", "tt.return"})


class BudgetExhausted(Exception):
    """The cap on interpreted operations is reached; what was tallied so far stands."""


@dataclass(slots=True)
class Flags:
    unknown_trips: bool = False
    unknown_branches: bool = False
    truncated: bool = False


@dataclass(slots=True)
class _Prepared:
    """A block with its static cost and the operations that must be evaluated."""

    cost: Tally
    live: list[Op]
    terminator: Op | None


@dataclass(slots=True)
class Site:
    """One load, store or atomic in the text."""

    line: int | None
    parameter: str = "?"
    requested: int = 0
    sampled_active: int = 0
    sampled_sectors: int = 0
    samples: int = 0

    @property
    def sector_ratio(self) -> float:
        """Bytes of 32-byte sectors touched over bytes asked for; 1 is ideal, above is waste, below is
        reuse in the tile."""
        return self.sampled_sectors / self.sampled_active if self.sampled_active else 1.0


@dataclass(slots=True)
class Interpreter:
    """State over all programs of one launch. `budget` counts evaluated operations."""

    module: Module
    arguments: dict[str, Any]
    grid: tuple[int, int, int]
    budget: int = 400_000
    flags: Flags = field(default_factory=Flags)
    sites: dict[int, Site] = field(default_factory=dict)
    loops: dict[int, int] = field(default_factory=dict)
    """id of the loop operation to its ordinal in the text."""
    _prepared: dict[int, _Prepared] = field(default_factory=dict)
    _advance: dict[int, list[str] | None] = field(default_factory=dict)
    _tally: Tally = field(default_factory=Counter)
    _program: tuple[int, int, int] = (0, 0, 0)
    _calls: int = 0

    def __post_init__(self) -> None:
        for function in self.module.functions.values():
            live = live_names(function)
            self._prepare(list(function.blocks), live)

    def run(self, program: tuple[int, int, int]) -> Tally:
        """Tally of one program. Raises `BudgetExhausted`."""
        self._program, self._tally, self._calls = program, Counter(), 0
        kernel = self.module.kernel
        self._run_function(kernel, [self.arguments.get(name) for name, _ in kernel.parameters])
        return self._tally

    @property
    def partial(self) -> Tally:
        """Tally of the program that ran last, complete or not."""
        return self._tally

    # -- Preparation

    def _prepare(self, blocks: list[Block], live: set[str]) -> None:
        for block in blocks:
            cost: Tally = Counter()
            kept: list[Op] = []
            for op in block.ops:
                cost.update(op_cost(op))
                shape = dot_shape(op)
                if shape is not None:
                    cost[f"shape {shape[0]}x{shape[1]}x{shape[2]}"] += 1
                if op.name in ("scf.for", "scf.while"):
                    self.loops[id(op)] = len(self.loops)
                if op.name not in ("tt.reduce", "tt.scan"):
                    for region in op.regions:
                        self._prepare(region, live)
                wanted = op.name in _ACCESSES or op.name in _CONTROL or any(r in live for r in op.results)
                if wanted and op.name not in _TERMINATORS:
                    kept.append(op)
            if any(op.name in _LOADS for op in block.ops):
                cost["load steps"] = 1
            last = block.ops[-1] if block.ops and block.ops[-1].name in _TERMINATORS else None
            self._prepared[id(block)] = _Prepared(cost, kept, last)

    # -- Control flow

    def _run_function(self, function: Function, arguments: list[Any]) -> list[Any]:
        self._calls += 1
        if self._calls > _MAX_CALLS:
            raise TtirError("calls nest too deep")
        env = {name: value for (name, _), value in zip(function.parameters, arguments, strict=False)}
        values = self._run_region(list(function.blocks), env)
        self._calls -= 1
        return values

    def _run_region(self, blocks: list[Block], env: dict[str, Any]) -> list[Any]:
        """Run from the entry block to a terminator that leaves the region; the values that it passes on."""
        by_label = {block.label: block for block in blocks}
        block: Block | None = blocks[0] if blocks else None
        while block is not None:
            end = self._run_block(block, env)
            if end is None:
                return []
            if end.name == "cf.br":
                label, passed = end.successors[0]
            elif end.name == "cf.cond_br":
                label, passed = self._choose(end, by_label, env)
            else:
                return [env.get(name) for name in end.operands]
            block = by_label.get(label)
            if block is not None:
                env.update(zip(block.arguments, [env.get(n) for n in passed], strict=False))
        raise TtirError("a branch to a block that does not exist")

    def _choose(self, op: Op, blocks: dict[str, Block], env: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        condition = self._scalar(env.get(op.operands[0]))
        if condition is None:
            self.flags.unknown_branches = True
            return max(op.successors, key=lambda s: len(blocks[s[0]].ops) if s[0] in blocks else 0)
        return op.successors[0] if condition else op.successors[1]

    def _run_block(self, block: Block, env: dict[str, Any]) -> Op | None:
        prepared = self._prepared[id(block)]
        self._tally.update(prepared.cost)
        self.budget -= len(prepared.live) + 1
        if self.budget < 0:
            raise BudgetExhausted
        for op in prepared.live:
            self._evaluate(op, env)
        return prepared.terminator

    def _evaluate(self, op: Op, env: dict[str, Any]) -> None:
        evaluator = EVALUATORS.get(op.name)
        if evaluator is not None:
            values = tuple([env.get(name) for name in op.operands])
            unknown = any(v is None for v in values) and op.name not in KEEPS_UNKNOWN
            env[op.results[0]] = None if unknown else evaluator(op, values)
        elif op.name in _ACCESSES:
            self._access(op, env)
        elif op.name in _SPECIAL:
            _SPECIAL[op.name](self, op, env)

    def _program_id(self, op: Op, env: dict[str, Any]) -> None:
        env[op.results[0]] = self._program[_axis(op)]

    def _program_count(self, op: Op, env: dict[str, Any]) -> None:
        env[op.results[0]] = self.grid[_axis(op)]

    def _descriptor(self, op: Op, env: dict[str, Any]) -> None:
        base = env.get(op.operands[0])
        rank = max(0, (len(op.operands) - 1) // 2)
        shape = tuple(_integer(env.get(name)) for name in op.operands[1 : 1 + rank])
        env[op.results[0]] = Descriptor(base.parameter, shape) if isinstance(base, Pointer) else None

    def _call(self, op: Op, env: dict[str, Any]) -> None:
        name = re.search(r'@("[^"]*"|[\w$.\-]+)', op.attributes)
        callee = self.module.functions.get(name.group(1).strip('"')) if name else None
        if callee is not None:
            values = self._run_function(callee, [env.get(n) for n in op.operands])
            env.update(zip(op.results, values, strict=False))

    def _if(self, op: Op, env: dict[str, Any]) -> None:
        condition = self._scalar(env.get(op.operands[0])) if op.operands else None
        if condition is None:
            self.flags.unknown_branches = True
            condition = True
        region = op.regions[0] if condition else (op.regions[1] if len(op.regions) > 1 else [])
        values = self._run_region(region, env) if region else []
        env.update(zip(op.results, values, strict=False))

    def _while(self, op: Op, env: dict[str, Any]) -> None:
        before, after = op.regions
        carried = [env.get(name) for name in op.operands]
        while True:
            env.update(zip(before[0].arguments, carried, strict=False))
            values = self._run_region(before, env)
            condition, passed = self._scalar(values[0] if values else None), values[1:]
            if condition is None:
                self.flags.unknown_trips = True
            elif not condition:
                break
            self._tally[f"loop {self.loops[id(op)]}"] += 1
            env.update(zip(after[0].arguments, passed, strict=False))
            carried = self._run_region(after, env)
            if condition is None:
                passed = [None] * len(passed)
                break
        env.update(zip(op.results, passed, strict=False))

    def _for(self, op: Op, env: dict[str, Any]) -> None:
        lower, upper, step = (_integer(env.get(name)) for name in op.operands[:3])
        initial = [env.get(name) for name in op.operands[3:]]
        loop = f"loop {self.loops[id(op)]}"
        if lower is None or upper is None or step is None or step <= 0:
            self.flags.unknown_trips = True
            self._tally[loop] += 1
            self._trip(op, env, lower, initial)
            env.update(dict.fromkeys(op.results))
            return
        trips = max(0, -(-(upper - lower) // step))
        self._tally[loop] += trips
        kinds = self._advance_kinds(op) if trips > _EXACT_TRIPS else None
        if kinds is not None:
            final = self._sampled_trips(op, env, lower, step, trips, initial, kinds)
        else:
            final = self._all_trips(op, env, lower, step, trips, initial)
        env.update(zip(op.results, final, strict=False))

    def _trip(self, op: Op, env: dict[str, Any], iv: int | None, carried: list[Any]) -> list[Any]:
        region = op.regions[0]
        env.update(zip(region[0].arguments, [iv, *carried], strict=False))
        return self._run_region(region, env)

    def _all_trips(
        self, op: Op, env: dict[str, Any], lower: int, step: int, trips: int, carried: list[Any]
    ) -> list[Any]:
        for i in range(trips):
            carried = self._trip(op, env, lower + i * step, carried)
        return carried

    def _sampled_trips(
        self,
        op: Op,
        env: dict[str, Any],
        lower: int,
        step: int,
        trips: int,
        initial: list[Any],
        kinds: list[str],
    ) -> list[Any]:
        outer = self._tally
        self._tally = Counter()
        try:
            after_first = self._trip(op, env, lower, initial)
            outer.update(self._tally)
            pairs = zip(kinds, after_first, initial, strict=False)
            strides = [None if kind == "free" else difference(a, b) for kind, a, b in pairs]
            for index, weight in representatives(trips)[1:]:
                carried = [advanced(v, d, index) for v, d in zip(initial, strides, strict=False)]
                self._tally = Counter()
                self._trip(op, env, lower + index * step, carried)
                outer.update({key: n * weight for key, n in self._tally.items()})
        finally:
            self._tally = outer
        return [advanced(v, d, trips) for v, d in zip(initial, strides, strict=False)]

    def _advance_kinds(self, op: Op) -> list[str] | None:
        if id(op) not in self._advance:
            self._advance[id(op)] = influence(op)
        return self._advance[id(op)]

    def _scalar(self, value: Any) -> int | None:
        if isinstance(value, np.ndarray):
            return int(value.flat[0]) if value.size == 1 else None
        return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    # -- Memory

    def _access(self, op: Op, env: dict[str, Any]) -> None:
        site = self.sites.get(id(op))
        if site is None:
            site = self.sites[id(op)] = Site(self.module.line(op.location))
        base = env.get(op.operands[0]) if op.operands else None
        if op.name.startswith("tt.descriptor"):
            total, active, element = self._descriptor_elements(op, env, base)
            sectors = None
        else:
            total, active, element, sectors = self._pointer_elements(op, env, base, site)
        size = round(active * element)
        parameter = base.parameter if isinstance(base, (Pointer, Descriptor)) else "?"
        kind = "load" if op.name in _LOADS else "store" if op.name in _STORES else "atomic"
        site.parameter = parameter
        site.requested += size
        if sectors is not None:
            site.samples += 1
            site.sampled_active += size
            site.sampled_sectors += sectors * SECTOR_BYTES
        self._tally[f"{kind} {parameter}"] += size
        self._tally[f"{kind} bytes"] += size
        self._tally["sector bytes"] += round(size * site.sector_ratio)
        self._tally["masked bytes"] += round((total - active) * element)
        for result in op.results:
            env[result] = None

    def _descriptor_elements(self, op: Op, env: dict[str, Any], base: Any) -> tuple[int, int, float]:
        kind = op.type
        extent = list(kind.shape)
        if isinstance(base, Descriptor) and op.name in ("tt.descriptor_load", "tt.descriptor_store"):
            starts = [_integer(env.get(n)) for n in op.operands[1 : 1 + len(extent)]]
            for i, (start, limit) in enumerate(zip(starts, base.shape, strict=False)):
                if start is not None and limit is not None and i < len(extent):
                    extent[i] = max(0, min(limit, start + extent[i]) - max(0, start))
        return kind.size, math.prod(extent), element_bytes(kind.element)

    def _pointer_elements(
        self, op: Op, env: dict[str, Any], base: Any, site: Site
    ) -> tuple[int, int, float, int | None]:
        kind = next((t for t in op.types if t.pointer), None)
        if kind is None:
            raise TtirError(f"{op.name} without a pointer type")
        element = element_bytes(kind.pointee)
        place = 1 if op.name == "tt.load" else 3 if op.name == "tt.atomic_cas" else 2
        mask = env.get(op.operands[place]) if len(op.operands) > place else None
        active = kind.size
        if isinstance(mask, np.ndarray):
            active = int(np.count_nonzero(mask)) * (kind.size // max(1, mask.size))
        elif isinstance(mask, (bool, int)):
            active = kind.size if mask else 0
        sectors = None
        if site.samples < _SECTOR_SAMPLES and active and isinstance(base, Pointer):
            sectors = touched_sectors(base.offset, mask, kind.shape, element)
        return kind.size, active, element, sectors


_SPECIAL = {
    "tt.get_program_id": Interpreter._program_id,
    "tt.get_num_programs": Interpreter._program_count,
    "tt.make_tensor_descriptor": Interpreter._descriptor,
    "tt.call": Interpreter._call,
    "scf.if": Interpreter._if,
    "scf.while": Interpreter._while,
    "scf.for": Interpreter._for,
}


def _axis(op: Op) -> int:
    coded = re.search(r"axis = (\d)", op.attributes)
    if coded is not None:
        return min(2, int(coded.group(1)))
    return "xyz".find(op.attributes.strip()[:1]) if op.attributes.strip()[:1] in ("x", "y", "z") else 0


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int) else None
