"""The runner: a disposable process that replays checked plans in its own context of the device.

`nursery.py` forks it.

Trusted code, but a candidate's kernels share its context, so nobody believes it: it has no secret seed, no expected
value and no way to the result. It reads a plan's schema again, maps the slots that it is sent, and answers each command
once. When the context is lost it says so and ends. It ends with its parent and with its socket.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.gpu.answering import PATIENCE, Answering, serve
from verifier.gpu.cuda import CudaError
from verifier.gpu.device import Call, Captured, Device, open_device
from verifier.gpu.memory import ReplayError, as_stored, poison_byte
from verifier.gpu.protocol import FROM_JUDGE, Channel, FailureKind, Message, Reply
from verifier.gpu.replay import Replayer
from verifier.gpu.slots import Flags, all_bytes, seal
from verifier.gpu.stepclock import time_steps
from verifier.plan.reader import PlanError, read_plan
from verifier.plan.schema import Plan

_GRAPHS_SHARE = 8
"""Graphs of several alternatives are kept side by side where so many times their memory is free."""
_PLANS = 4
"""Plans that a runner keeps as read: those of the last candidates and of their base."""
_OF_A_PLAN = (ReplayError, CudaError, RuntimeError, MemoryError, ValueError, NotImplementedError)
_LEFT_BYTES = 1 << 28
"""Of an output that nobody looks at, above which a timed call finds it as the last one left it."""
_PLACED_BYTES = 1 << 20
"""Memory for which it matters where it lies."""
_UNSUPPORTED = frozenset({209, 222, 223})
"""No binary for this GPU, a version of PTX that the driver does not know, no compilation by the driver."""


@dataclass(slots=True)
class _Program:
    """A loaded program; `slots` are where its outputs go, `last` its output tensors, `graph` what is timed."""

    replayer: Replayer
    seed: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    slots: list[Tensor] = field(default_factory=list)
    ready: bool = False
    graph: Captured | None = None
    last: list[Tensor] = field(default_factory=list)
    choice: tuple[tuple[int, int], ...] = ()
    others: dict[tuple[tuple[int, int], ...], Captured] = field(default_factory=dict)
    """Graphs of other alternatives, on the same memory."""
    known: dict[tuple[tuple[int, int], ...], bool] = field(default_factory=dict)
    """Whether what ran once with some alternatives could be captured."""

    def run(self) -> None:
        self.last = self.replayer.run()

    def call(self) -> None:
        """What is timed: forward alone. What it changes was restored by `prepare`."""
        if self.graph is None:
            self.last = self.replayer.forward()
        else:
            self.graph.replay()
            self.last = self.graph.outputs

    def prepare(self, fresh: Sequence[Tensor] = (), key: int = 0, *, most: int = sys.maxsize) -> None:
        """Before a timed call: other inputs where given, state as at the start, scratch poisoned, and each output of at
        most `most` bytes."""
        if fresh:
            for slot, tensor in zip(self.inputs, fresh, strict=True):
                seal(all_bytes(tensor), key, all_bytes(slot))
            self.replayer.forget_inputs()
        self.replayer.restore()
        self.replayer.poison_scratch()
        for made, value in zip(self.last, self.replayer.program.output_values(), strict=True):
            storage = self.replayer.program.storages[self.replayer.program.values[value].storage]
            if storage.origin == "forward" and storage.bytes <= most:
                all_bytes(made).fill_(poison_byte(made.dtype))

    def capture(self, device: Device, *, graph: bool) -> None:
        """Makes it ready to be timed. Its first run is not in a graph, nor is any where that cannot or must not be."""
        if not graph:
            self.unready()
            self.run()
            self.ready = True
            return
        if not self.known.get(self.choice, False):
            self.run()
            device.synchronize()
        if self.known.get(self.choice, True):
            self.last = []
            self.replayer.begin()
            device.tidy(sum(s.bytes for s in self.replayer.program.storages))
            self.graph = device.capture(self.replayer)
            self.known[self.choice] = self.graph is not None
            if self.graph is not None:
                self.last = self.graph.outputs
            else:
                self.run()
        self.ready = True

    def choose(self, choice: Mapping[int, int], device: Device) -> bool:
        """Other alternatives from now on; whether they are ready to be timed."""
        made = sum(s.bytes for s in self.replayer.program.storages if s.origin == "forward")
        if self.graph is not None and _GRAPHS_SHARE * made < device.free_bytes():
            self.others[self.choice] = self.graph
        elif self.graph is not None:
            self.graph.close()
        self.replayer.choose(choice)
        self.choice = tuple(sorted((step, index) for step, index in choice.items() if index))
        self.graph = self.others.pop(self.choice, None)
        self.ready, self.last = self.graph is not None, [] if self.graph is None else self.graph.outputs
        return self.ready

    def unready(self) -> None:
        for graph in (self.graph, *self.others.values()):
            if graph is not None:
                graph.close()
        self.others.clear()
        self.ready, self.graph = False, None
        self.last = []

    def close(self) -> None:
        self.release()
        self.replayer.close()

    def release(self) -> None:
        """Gives up all memory."""
        self.unready()
        self.slots, self.inputs = [], []
        self.replayer.release()

    def give(self) -> None:
        """Copies the outputs to their slots."""
        for slot, made in zip(self.slots, self.last, strict=True):
            if slot.shape != made.shape or slot.dtype != made.dtype:
                raise ReplayError(
                    f"an output is {tuple(made.shape)} {made.dtype}, not {tuple(slot.shape)} {slot.dtype}"
                )
            as_stored(slot).copy_(as_stored(made))


class Runner(Answering[_Program]):
    """Executes the judge's commands. One thread."""

    def __init__(self, device: Device, flags: Flags) -> None:
        super().__init__(device, flags)
        self._plans: dict[bytes, Plan] = {}
        self._commands |= {
            "choose": self._choose, "time": self._time, "steps": self._steps, "release": self._release,
        }  # fmt: skip

    def _failed(self, error: BaseException, turn: int) -> Reply:
        """A failure of the device or of the plan is data; any other ends this process."""
        if isinstance(error, PlanError):
            return Reply(turn=turn, failure="plan-refused", text=str(error)[:2000])
        if not isinstance(error, _OF_A_PLAN):
            raise error
        text = " ".join(str(error).split())[:2000]
        found = self._device.failure(error)
        if found is not None:
            return Reply(turn=turn, failure=found.kind, text=found.text[:2000], lost=found.lost)
        ours = isinstance(error, ReplayError | ValueError | NotImplementedError)
        kind: FailureKind = "not-replayed" if ours else "unexpected"
        return Reply(turn=turn, failure=kind, text=text or type(error).__name__)

    def _load(self, message: Message, turn: int) -> Reply:
        blobs, device = dict(message.blobs), self._device
        plan = self._plan(blobs.pop("plan"), blobs)
        replayer = Replayer(
            plan, blobs, message.header["workload"], device=device.torch_device, launcher=device.launcher()
        )
        try:
            replayer.load()
        except (CudaError, KeyError) as error:
            found = device.failure(error)
            lost = found is not None and found.lost
            known = isinstance(error, CudaError) and error.code in _UNSUPPORTED
            return Reply(
                turn=turn, failure="unsupported" if known else "load-failed", text=str(error)[:2000], lost=lost
            )  # fmt: skip
        self._programs[message.header["name"]] = _Program(replayer)
        return Reply(turn=turn)

    def _plan(self, text: bytes, blobs: Mapping[str, bytes]) -> Plan:
        """Reads a plan, or gives one of the last ones again."""
        key = hashlib.sha256(b"\0".join([text, *(n.encode() for n in sorted(blobs))])).digest()
        plan = self._plans.pop(key, None) or read_plan(json.loads(text), blobs, kernels=False)
        self._plans[key] = plan
        while len(self._plans) > _PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _bind(self, message: Message, turn: int) -> Reply:
        program, header = self._programs[message.header["name"]], message.header
        program.slots = [self._blocks.view(p) for p in header["outputs"]]
        program.seed = header["seed"]
        program.unready()
        program.inputs = [self._blocks.view(p) for p in header["inputs"]]
        program.replayer.poison = header["poison"]
        program.replayer.bind(program.inputs, {k: self._blocks.view(p) for k, p in header["state"].items()})
        if header["setup"]:
            program.replayer.setup(program.seed)
            self._device.synchronize()
        return Reply(turn=turn)

    def _run(self, message: Message, turn: int) -> Reply:
        replayer = self._programs[message.header["name"]].replayer
        if message.header["changed"]:
            replayer.forget_inputs()
        reply = super()._run(message, turn)
        if replayer.written_past():
            return Reply(turn=turn, failure="wrote-past", text="the guard of a tensor that forward makes has changed")
        return reply

    def _choose(self, message: Message, turn: int) -> Reply:
        program = self._programs[message.header["name"]]
        choice = {int(k): int(v) for k, v in message.header["choice"].items()}
        captured = program.choose(choice, self._device)
        return Reply(turn=turn, captured=captured)

    def _capture(self, message: Message, turn: int) -> Reply:
        """Makes a program ready for timing: as a graph where it can be one."""
        program = self._programs[message.header["name"]]
        program.capture(self._device, graph=message.header["graph"])
        return Reply(turn=turn, captured=program.graph is not None)

    def _time(self, message: Message, turn: int) -> Reply:
        header = message.header
        for name in header["changed"]:
            self._programs[name].replayer.forget_inputs()
        sealed = {
            int(i): ([self._blocks.view(p) for p in s["places"]], int(s["key"])) for i, s in header["fresh"].items()
        }
        calls = [
            self._call(n, *sealed.get(i, ([], 0)), give=i == header["give"], looked=n in header["changed"])
            for i, n in enumerate(header["order"])
        ]
        self._flags.set(Flags.READY, turn)
        if not self._flags.wait(Flags.GO, turn, PATIENCE):
            raise ReplayError("no go came")
        timed = self._device.time(calls, header["flush"])
        self._device.synchronize()
        self._flags.set(Flags.DONE, turn)
        return Reply(turn=turn, seconds=tuple(timed.seconds), untimed_seconds=timed.untimed_seconds,
                     clock_hz=timed.clock_hz, starved=timed.starved)  # fmt: skip

    def _steps(self, message: Message, turn: int) -> Reply:
        """Seconds of each step of forward, then those of a tiny kernel. Outputs are not given to the judge."""
        program = self._programs[message.header["name"]]
        seconds = time_steps(program.replayer, self._device)
        program.unready()
        return Reply(turn=turn, seconds=tuple(seconds))

    def _call(self, name: str, fresh: list[Tensor], key: int, *, give: bool, looked: bool) -> Call:
        """One timed call, on sealed `fresh` inputs where there are any; `give`: the judge gets its outputs; `looked`:
        it may get those of any call of this program."""
        program = self._programs[name]
        if not program.ready:
            raise ReplayError(f"program {name} is not ready to be timed")
        most = sys.maxsize if looked else _LEFT_BYTES
        return Call(lambda: program.prepare(fresh, key, most=most), program.call, program.give if give else _nothing)

    def _release(self, message: Message, turn: int) -> Reply:
        """Gives the programs' memory back; blocks stay mapped. What a graph makes lies elsewhere in the next one. What
        outlives a call would lie where it lay, if torch kept that memory."""
        self._device.synchronize()
        for program in self._programs.values():
            program.release()
        kept = any(program.replayer.kept_bytes() > _PLACED_BYTES for program in self._programs.values())
        (self._device.trim if kept else self._device.tidy)()
        return Reply(turn=turn)


def _nothing() -> None:
    return None


def end_with_parent() -> None:
    """Ends this process soon after its parent, also while a kernel spins."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def run(end: int, flags: int, factory: str) -> None:
    """Is a runner until the judge is gone; never returns. Takes over the descriptors of the socket and the flags."""
    end_with_parent()
    torch.set_grad_enabled(False)
    page = Flags(flags)
    os.close(flags)
    serve(Channel(socket.socket(fileno=end), FROM_JUDGE), Runner(open_device(factory), page))
    os._exit(0)  # a lost context makes an orderly end hang or fail
