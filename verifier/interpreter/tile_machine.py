"""Runs a kernel from the TTIR in a plan, program by program: what the plan computes, whatever its file says.

The text is the candidate's, the code that runs it is not: no Python of the candidate is in this process. It follows
`verifier.profile.ttir`'s reading of the text, which knows no dialect, so what it cannot place is `Unsupported`.
Programs run one after the other; a kernel that waits for a later one runs until the deadline.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verifier.interpreter.limits import OutOfTime, Unsupported
from verifier.interpreter.tile_memory import TileMemory
from verifier.interpreter.tile_ops import Evaluator, dtype_of, evaluator, number, round_to_tf32
from verifier.profile.ttir import Block, Function, Module, Op, Type

Env = dict[str, Any]
_CALLS = 64
_NOTHING = frozenset({"tt.print", "tt.assert", "ttg.barrier", "gpu.barrier", "ttg.async_wait", "tt.debug_barrier",
                      "llvm.intr.assume", "ttng.fence_async_shared"})  # fmt: skip
_ENDS = frozenset({"scf.yield", "scf.condition", "tt.return", "cf.br", "cf.cond_br", "tt.reduce.return",
                   "tt.scan.return"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tile:
    """A tensor descriptor or a block pointer: shape and strides in elements. `starts` are a block pointer's offsets."""

    base: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]
    dtype: torch.dtype
    starts: tuple[int, ...] = ()
    nan: bool = False
    tf32: bool = False

    def places(self, starts: Sequence[int], axes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Addresses of a block, and where it is inside the tensor along `axes` (all)."""
        address, inside = torch.tensor(self.base), torch.tensor(True)
        for axis, (start, size) in enumerate(zip(starts, self.block, strict=True)):
            index = torch.arange(start, start + size).reshape([-1 if i == axis else 1 for i in range(len(self.block))])
            address = address + index * (self.strides[axis] * self.dtype.itemsize)
            if axes is None or axis in axes:
                inside = inside & (index >= 0) & (index < self.shape[axis])
        return address, inside.expand(address.shape)


class Machine:
    """One kernel. Evaluators are made once."""

    def __init__(self, module: Module, deadline: float) -> None:
        """`deadline` in `time.monotonic()`."""
        self.module, self._deadline = module, deadline
        self._evaluators: dict[int, Evaluator | None] = {}
        self._memory = TileMemory()
        self._program, self._grid = (0, 0, 0), (1, 1, 1)
        self._calls = 0

    def launch(self, grid: tuple[int, int, int], arguments: Sequence[Any], memory: TileMemory) -> None:
        """All programs, x fastest. `arguments` in the order of the text's parameters.

        Raises Unsupported, OutOfTime, OutOfBounds.
        """
        self._memory, self._grid = memory, grid
        kernel = self.module.kernel
        if len(arguments) != len(kernel.parameters):
            raise Unsupported(f"a kernel of {len(kernel.parameters)} parameters with {len(arguments)} arguments")
        x, y, z = grid
        for program in range(x * y * z):
            self._program = (program % x, program // x % y, program // (x * y))
            self._call(kernel, arguments)

    def _call(self, function: Function, arguments: Sequence[Any]) -> list[Any]:
        if self._calls >= _CALLS:
            raise Unsupported("calls within calls")
        self._calls += 1
        env: Env = {name: value for (name, _), value in zip(function.parameters, arguments, strict=True)}
        try:
            return self._region(function.blocks, env)
        finally:
            self._calls -= 1

    # -- control flow ------------------------------------------------------------------------------

    def _region(self, blocks: Sequence[Block], env: Env) -> list[Any]:
        """What the terminator that leaves the region passes on."""
        by_label = {block.label: block for block in blocks}
        block = blocks[0]
        while True:
            if time.monotonic() > self._deadline:
                raise OutOfTime("the plan's kernels in part")
            end = self._block(block, env)
            if end is None:
                return []
            if not end.name.startswith("cf."):
                return [env[name] for name in end.operands]
            taken = 0 if end.name == "cf.br" or bool(env[end.operands[0]]) else 1
            label, passed = end.successors[taken]
            if label not in by_label:
                raise Unsupported("a branch out of its region")
            block = by_label[label]
            env.update(zip(block.arguments, [env[n] for n in passed], strict=True))

    def _block(self, block: Block, env: Env) -> Op | None:
        for op in block.ops:
            if op.name in _ENDS:
                return op
            self._step(op, env)
        return None

    def _step(self, op: Op, env: Env) -> None:
        key = id(op)
        if key not in self._evaluators:
            self._evaluators[key] = evaluator(op)
        evaluate = self._evaluators[key]
        if evaluate is not None:
            made = evaluate(*[env[name] for name in op.operands])
        elif op.name in _SPECIAL:
            made = _SPECIAL[op.name](self, op, env)
        elif op.name in _NOTHING:
            return
        else:
            raise Unsupported(f"the operation `{op.name}`")
        if len(op.results) == 1:
            env[op.results[0]] = made[0] if isinstance(made, list | tuple) else made
        elif op.results:
            env.update(zip(op.results, made, strict=True))

    def _for(self, op: Op, env: Env) -> list[Any]:
        lower, upper, step = (env[n] for n in op.operands[:3])
        carried, body = [env[n] for n in op.operands[3:]], op.regions[0]
        if int(step) <= 0:
            raise Unsupported("a loop that does not advance")
        for i in range(int(lower), int(upper), int(step)):
            values = [torch.tensor(i, dtype=lower.dtype), *carried]
            env.update(zip(body[0].arguments, values, strict=True))
            carried = self._region(body, env)
        return carried

    def _while(self, op: Op, env: Env) -> list[Any]:
        before, after = op.regions
        carried = [env[n] for n in op.operands]
        while True:
            env.update(zip(before[0].arguments, carried, strict=True))
            condition, *passed = self._region(before, env)
            if not bool(condition):
                return passed
            env.update(zip(after[0].arguments, passed, strict=True))
            carried = self._region(after, env)

    def _if(self, op: Op, env: Env) -> list[Any]:
        taken = 0 if bool(env[op.operands[0]]) else 1
        return self._region(op.regions[taken], env) if taken < len(op.regions) else []

    def _called(self, op: Op, env: Env) -> list[Any]:
        found = re.search(r'@("[^"]*"|[\w$.\-]+)', op.attributes)
        callee = self.module.functions.get(found.group(1).strip('"')) if found else None
        if callee is None:
            raise Unsupported("a call of an unknown function")
        return self._call(callee, [env[n] for n in op.operands])

    def _id(self, op: Op, env: Env) -> Tensor:
        return torch.tensor(self._program[_axis(op)], dtype=torch.int32)

    def _count(self, op: Op, env: Env) -> Tensor:
        return torch.tensor(self._grid[_axis(op)], dtype=torch.int32)

    # -- reductions --------------------------------------------------------------------------------

    def _reduce(self, op: Op, env: Env) -> list[Tensor]:
        axis, arrays = number(op, "axis"), [env[n] for n in op.operands]
        while (n := arrays[0].shape[axis]) > 1:
            half = [a.narrow(axis, 0, n // 2 * 2).unfold(axis, 2, 2) for a in arrays]
            rest = [a.narrow(axis, n - 1, 1) for a in arrays] if n % 2 else []
            arrays = self._combine(op, [h[..., 0] for h in half], [h[..., 1] for h in half], env)
            arrays = [torch.cat((a, r), axis) for a, r in zip(arrays, rest, strict=True)] if rest else arrays
        return [a.squeeze(axis) for a in arrays]

    def _scan(self, op: Op, env: Env) -> list[Tensor]:
        """Inclusive: after step k each element holds the combination of the 2^k elements up to it."""
        axis, arrays = number(op, "axis"), [env[n] for n in op.operands]
        backwards = "reverse = true" in op.attributes
        if backwards:
            arrays = [a.flip(axis) for a in arrays]
        length, distance = arrays[0].shape[axis], 1
        while distance < length:
            left = [a.narrow(axis, 0, length - distance) for a in arrays]
            right = [a.narrow(axis, distance, length - distance) for a in arrays]
            made = self._combine(op, left, right, env)
            arrays = [torch.cat((a.narrow(axis, 0, distance), m), axis) for a, m in zip(arrays, made, strict=True)]
            distance *= 2
        return [a.flip(axis) for a in arrays] if backwards else arrays

    def _combine(self, op: Op, left: list[Tensor], right: list[Tensor], env: Env) -> list[Tensor]:
        inner = dict(env)
        inner.update(zip(op.regions[0][0].arguments, [*left, *right], strict=True))
        made = self._region(op.regions[0], inner)
        return [m.to(a.dtype).expand(a.shape) for m, a in zip(made, left, strict=True)]

    # -- memory ------------------------------------------------------------------------------------

    def _add_pointer(self, op: Op, env: Env) -> Tensor:
        pointer, offset = (env[n] for n in op.operands)
        return pointer + offset.long() * _pointee(op.types[0]).itemsize  # type: ignore[no-any-return]

    def _load(self, op: Op, env: Env) -> Tensor:
        pointer, *rest = (env[n] for n in op.operands)
        if isinstance(pointer, Tile):
            address, inside = pointer.places(pointer.starts, _checked(op))
            return self._memory.load(address, inside, _padding(op, pointer), pointer.dtype)
        mask, other = (*rest, None, None)[:2]
        return self._memory.load(pointer, mask, other, _pointee(_pointer_type(op)))

    def _store(self, op: Op, env: Env) -> None:
        pointer, value, *rest = (env[n] for n in op.operands)
        if isinstance(pointer, Tile):
            address, inside = pointer.places(pointer.starts, _checked(op))
            self._memory.store(address, value.reshape(address.shape), inside)
        else:
            self._memory.store(pointer, value, rest[0] if rest else None)

    def _atomic(self, op: Op, env: Env) -> Tensor:
        pointer, value, *rest = (env[n] for n in op.operands)
        kind = op.attributes.strip().split(",")[0].strip()
        if kind in ("umax", "umin"):
            raise Unsupported("an unsigned atomic maximum or minimum")
        return self._memory.update(kind, pointer, value, rest[0] if rest else None)

    def _swap(self, op: Op, env: Env) -> Tensor:
        return self._memory.swap(*(env[n] for n in op.operands))

    def _describe(self, op: Op, env: Env) -> Tile:
        base, *numbers = (env[n] for n in op.operands)
        rank = len(numbers) // 2
        shape, strides = (tuple(int(n) for n in part) for part in (numbers[:rank], numbers[rank:]))
        kind = op.type
        nan = bool(re.search(r"padding = (?:2|.*nan)", op.attributes))
        return Tile(int(base), shape, strides, kind.shape, dtype_of(kind.element), nan=nan)

    def _descriptor_load(self, op: Op, env: Env) -> Tensor:
        tile, *starts = (env[n] for n in op.operands)
        made = self._tile_load(tile, [int(s) for s in starts])
        return made.reshape(op.type.shape)

    def _tile_load(self, tile: Tile, starts: Sequence[int]) -> Tensor:
        address, inside = tile.places(starts)
        other = torch.tensor(float("nan")).to(tile.dtype).expand(address.shape) if tile.nan else None
        made = self._memory.load(address, inside, other, tile.dtype)
        return round_to_tf32(made) if tile.tf32 else made

    def _descriptor_store(self, op: Op, env: Env) -> None:
        found = [env[n] for n in op.operands]
        tile = found[0]
        rank = len(tile.block)
        tail = op.attributes.partition("]")[2]
        value = found[-1] if "%" in tail else found[1]
        starts = found[1 : 1 + rank] if "%" in tail else found[2 : 2 + rank]
        address, inside = tile.places([int(s) for s in starts])
        self._memory.store(address, value.reshape(address.shape), inside)

    def _descriptor_gather(self, op: Op, env: Env) -> Tensor:
        tile, rows, start = (env[n] for n in op.operands)
        row = Tile(tile.base, tile.shape, tile.strides, (1, *tile.block[1:]), tile.dtype, nan=tile.nan)
        return torch.cat([self._tile_load(row, (i, int(start))) for i in rows.tolist()])

    def _block_pointer(self, op: Op, env: Env) -> Tile:
        groups = [re.findall(r"%[\w$.\-]+(?:#\d+)?", g) for g in re.findall(r"\[([^\]]*)\]", op.attributes)[:3]]
        if len(groups) != 3:
            raise Unsupported("a block pointer of another form")
        shape, strides, starts = (tuple(int(env[n]) for n in group) for group in groups)
        kind = _inner(op.type)
        return Tile(int(env[op.operands[0]]), shape, strides, kind.shape, dtype_of(kind.element), starts)

    def _advance(self, op: Op, env: Env) -> Tile:
        tile, *by = (env[n] for n in op.operands)
        starts = tuple(s + int(n) for s, n in zip(tile.starts, by, strict=True))
        return Tile(tile.base, tile.shape, tile.strides, tile.block, tile.dtype, starts)


_SPECIAL: dict[str, Callable[[Machine, Op, Env], Any]] = {
    "scf.for": Machine._for, "scf.while": Machine._while, "scf.if": Machine._if, "tt.call": Machine._called,
    "tt.get_program_id": Machine._id, "tt.get_num_programs": Machine._count,
    "tt.reduce": Machine._reduce, "tt.scan": Machine._scan,
    "tt.addptr": Machine._add_pointer, "tt.load": Machine._load, "tt.store": Machine._store,
    "tt.atomic_rmw": Machine._atomic, "tt.atomic_cas": Machine._swap,
    "tt.make_tensor_descriptor": Machine._describe, "tt.descriptor_load": Machine._descriptor_load,
    "tt.descriptor_store": Machine._descriptor_store, "tt.descriptor_gather": Machine._descriptor_gather,
    "tt.make_tensor_ptr": Machine._block_pointer, "tt.advance": Machine._advance,
}  # fmt: skip


def _axis(op: Op) -> int:
    found = re.search(r"axis = (\d)", op.attributes)
    return int(found.group(1)) if found else "xyz".index(op.attributes.strip()[:1])


def _pointer_type(op: Op) -> Type:
    found = next((t for t in op.types if t.pointer), None)
    if found is None:
        raise Unsupported(f"`{op.name}` without a pointer type")
    return found


def _pointee(kind: Type) -> torch.dtype:
    return dtype_of(kind.pointee)


def _inner(kind: Type) -> Type:
    """What a pointer to a block points to."""
    found = re.match(r"!tt\.ptr<tensor<((?:\d+x)+)([\w!.<>]+)>>", kind.element)
    if found is None:
        raise Unsupported("a block pointer of another form")
    return Type(tuple(int(n) for n in found.group(1).split("x") if n), found.group(2))


def _checked(op: Op) -> list[int]:
    found = re.search(r"boundaryCheck = array<i32(?:: ([\d, ]+))?>", op.attributes)
    return [int(n) for n in found.group(1).split(",")] if found and found.group(1) else []


def _padding(op: Op, tile: Tile) -> Tensor | None:
    if not re.search(r"padding = 2", op.attributes):
        return None
    return torch.tensor(float("nan")).to(tile.dtype).expand(tile.block)
