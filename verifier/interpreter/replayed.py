"""Runs a plan of small sizes on the draws of the interpreter's test, without the file that it was traced from.

What the interpreter tests is the file, in the file's own process; what a machine without a GPU could only compare was
what both processes say that they did. Here the plan itself is replayed by trusted code: library steps by torch on the
CPU, kernels from their TTIR (`tile_machine.py`). A file that computes by other means where it is tested, or changes
the compiler where it is traced, leaves a plan whose results are wrong.

Every alternative of a launch runs at least once, in rounds over the draws, as far as the time allows. What it cannot
find: PTX that is not made of the TTIR, and a plan of the timed sizes that does something else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifier.gpu.aten import decode
from verifier.gpu.memory import ReplayError, foreign
from verifier.gpu.packing import passed
from verifier.gpu.replay import Replayer
from verifier.interpreter.blobs import pack, to_bytes, unpack
from verifier.interpreter.limits import ENOUGH_DRAWS, OutOfTime, Unsupported
from verifier.interpreter.tile_machine import Machine, Tile
from verifier.interpreter.tile_memory import OutOfBounds, TileMemory
from verifier.interpreter.tile_ops import scalar
from verifier.plan.arguments import DescriptorArg, PointerArg, ScalarFloatArg, ScalarIntArg
from verifier.plan.reader import read_plan
from verifier.plan.schema import Alternative, KernelImage, LaunchStep, Program
from verifier.profile.ttir import TtirError, parse
from verifier.specs import dtype_of, leaves

Answer = tuple[dict[str, Any], dict[str, bytes]]
MAX_ROUNDS = 64


def replay_job(payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path) -> Answer:
    """Runs a plan that `read_plan` has read in full before.

    payload: {"plan", "workload": name, "draws": [{"prefix", "inputs": spec, and for other weights
    "state": spec}], "state": spec, "init_seed": int, "seconds": float}; blobs of the plan and of the tensors under
    `state/`, `d0/in/`, `d6/state/`, .... Value: {"status": "ok" |
    "wrong" | "not_applicable", "reason", "rounds": [{"outputs": {prefix: spec}, "mutated": {prefix: [int]}}]}, outputs
    of round 1 under `1/d0/out/`, ....
    """
    torch.set_num_threads(1)
    made: dict[str, bytes] = {}
    rounds: list[dict[str, Any]] = []
    status, reason = "ok", ""
    try:
        with torch.no_grad():
            _Replay(payload, blobs).all(rounds, made)
    except OutOfTime as stop:
        enough = bool(rounds) and len(rounds[0]["outputs"]) >= min(ENOUGH_DRAWS, len(payload["draws"]))
        status, reason = ("ok" if enough else "not_applicable"), f"the time allowed let it run {stop}"
    except OutOfBounds as outside:
        status, reason = "wrong", f"a kernel of the plan reads or writes {outside}"
    except (Unsupported, TtirError, ReplayError, NotImplementedError) as unknown:
        status, reason = "not_applicable", str(unknown)[:600]
    return {"status": status, "reason": reason, "rounds": rounds}, made


class _Replay:
    def __init__(self, payload: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        self._payload, self._given = payload, blobs
        plan = read_plan(payload["plan"], blobs, kernels=False)
        program = plan.program(payload["workload"])
        launcher = _TileLauncher(program, blobs, time.monotonic() + float(payload["seconds"]))
        self._replayer = Replayer(plan, blobs, program.workload, device=torch.device("cpu"), launcher=launcher)
        self._replayer.poison = True
        self._state = self._fitting(unpack(payload["state"], blobs, "state"))

    def _fitting(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that the plan has, in its shape."""
        program = self._replayer.program
        shapes = {name: program.values[p.value].shape for name, p in program.parameters.items()}
        return {name: t for name, t in state.items() if shapes.get(name) == tuple(t.shape)}

    def all(self, rounds: list[dict[str, Any]], made: dict[str, bytes]) -> None:
        """Adds rounds, and their draws as they are done; one that the time cuts short is kept if it is the first."""
        draws, forward = self._payload["draws"], self._replayer.program.forward
        ways = {i: len(s.alternatives) for i, s in enumerate(forward) if isinstance(s, LaunchStep)}
        count = min(-(-max(ways.values(), default=1) // len(draws)), MAX_ROUNDS)
        for number in range(count):
            found: dict[str, Any] = {"outputs": {}, "mutated": {}}
            if not number:
                rounds.append(found)
            for i, draw in enumerate(draws):
                self._replayer.choose({at: (number * len(draws) + i) % n for at, n in ways.items()})
                self._draw(draw, f"{number}/{draw['prefix']}/out", found, made)
            if number:
                rounds.append(found)

    def _draw(self, draw: Mapping[str, Any], prefix: str, found: dict[str, Any], made: dict[str, bytes]) -> None:
        name, replayer = draw["prefix"], self._replayer
        inputs = list(leaves(unpack(draw["inputs"], self._given, f"{name}/in")))
        other = unpack(draw["state"], self._given, f"{name}/state") if "state" in draw else {}
        replayer.bind(inputs, self._state | self._fitting(other))
        replayer.load()
        torch.manual_seed(self._payload["init_seed"])
        replayer.setup(self._payload["init_seed"])
        outputs = iter(replayer.run())
        output = decode(replayer.program.output, lambda _: next(outputs), torch.device("cpu"))
        if replayer.written_past():
            raise OutOfBounds("past the end of a tensor")
        changed = [i for i, t in enumerate(inputs) if to_bytes(t) != self._given[f"{name}/in/{i}"]]
        found["mutated"][name] = changed
        found["outputs"][name], blobs = pack(output, prefix)
        made.update(blobs)


class _TileLauncher:
    """Kernels of one program from their TTIR."""

    def __init__(self, program: Program, blobs: Mapping[str, bytes], deadline: float) -> None:
        self._program, self._blobs, self._deadline = program, blobs, deadline

    def load(self, image: KernelImage, cubin: bytes) -> Machine:
        if image.ttir is None:
            raise Unsupported(f"the kernel `{image.title}`, which has no TTIR")
        return Machine(parse(self._blobs[f"{image.ttir}.ttir"].decode(errors="replace")), self._deadline)

    def launch(
        self, kernel: Machine, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        memory = TileMemory()
        arguments: list[Any] = []
        kinds = iter([kind for _, kind in kernel.module.kernel.parameters])
        for arg, address in zip(passed(launch), addresses, strict=False):
            kind = next(kinds, None)
            if kind is None:
                raise Unsupported(f"the kernel `{image.title}`, whose TTIR takes fewer parameters")
            if isinstance(arg, PointerArg):
                arguments.append(torch.tensor(self._base(arg, address, memory) + arg.offset))
            elif isinstance(arg, DescriptorArg):
                arguments += self._tile(arg, address, memory)
                for _ in range(2 * len(arg.shape)):
                    next(kinds, None)
            elif isinstance(arg, ScalarIntArg | ScalarFloatArg):
                arguments.append(scalar(float(arg.v) if isinstance(arg, ScalarFloatArg) else arg.v, kind))
            else:
                arguments.append(torch.tensor(0))
        kernel.launch(launch.grid, arguments, memory)

    def _base(self, arg: PointerArg | DescriptorArg, address: int, memory: TileMemory) -> int:
        size = self._program.storages[arg.storage].bytes
        if not size:
            return memory.add(torch.empty(0, dtype=torch.uint8))
        return memory.add(foreign(address - arg.offset, size, torch.device("cpu")))

    def _tile(self, arg: DescriptorArg, address: int, memory: TileMemory) -> list[Any]:
        base = self._base(arg, address, memory) + arg.offset
        made = Tile(
            base, arg.shape, arg.strides, arg.block, dtype_of(arg.dtype), nan=arg.padding == "nan",
            tf32=arg.round_f32_to_tf32,
        )  # fmt: skip
        sizes = [torch.tensor(n, dtype=torch.int32) for n in arg.shape]
        return [made, *sizes, *(torch.tensor(n) for n in arg.strides)]

    def close(self) -> None:
        return None
