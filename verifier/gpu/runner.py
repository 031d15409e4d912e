"""The runner: a disposable process that replays checked plans in its own context of the device.

`nursery.py` forks it.

Trusted code, but a candidate's kernels share its context, so nobody believes it: it has no secret seed, no expected
value and no way to the result. It reads a plan's schema again, maps the slots that it is sent, and answers each command
once. When the context is lost it says so and ends. It ends with its parent and with its socket.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verifier.gpu.cuda import CudaError
from verifier.gpu.device import Block, Call, Captured, Device, open_device
from verifier.gpu.memory import ReplayError
from verifier.gpu.protocol import FROM_JUDGE, Channel, FailureKind, Gone, Message, Reply
from verifier.gpu.replay import Replayer
from verifier.gpu.slots import Flags, Place, view
from verifier.gpu.stepclock import time_steps
from verifier.plan.reader import PlanError, read_plan

_PATIENCE = 60.0
"""Seconds that the runner waits for a go, or for a judge that reads."""


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

    def run(self) -> None:
        self.last = self.replayer.run()

    def call(self) -> None:
        """What is timed: forward alone. What it changes was restored by `prepare`."""
        if self.graph is None:
            self.last = self.replayer.forward()
        else:
            self.graph.replay()

    def prepare(self, fresh: list[Tensor] | None) -> None:
        """Before a timed call: other inputs where given, state as at the start, scratch and outputs poisoned."""
        if fresh is not None:
            for slot, tensor in zip(self.inputs, fresh, strict=True):
                slot.untyped_storage().copy_(tensor.untyped_storage())
            self.replayer.forget_inputs()
        self.replayer.restore()
        self.replayer.poison_scratch()
        for made, value in zip(self.last, self.replayer.program.output_values(), strict=True):
            said = self.replayer.program
            if said.storages[said.values[value].storage].origin == "forward":
                made.fill_(math.nan if made.dtype.is_floating_point or made.dtype.is_complex else 0x55)

    def unready(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.ready, self.graph = False, None
        self.last = []

    def give(self) -> None:
        """Copies the outputs to their slots."""
        for slot, made in zip(self.slots, self.last, strict=True):
            if slot.shape != made.shape or slot.dtype != made.dtype:
                raise ReplayError(
                    f"an output is {tuple(made.shape)} {made.dtype}, not {tuple(slot.shape)} {slot.dtype}"
                )
            slot.copy_(made)


class Runner:
    """Executes the judge's commands. One thread."""

    def __init__(self, device: Device, flags: Flags) -> None:
        self._device, self._flags = device, flags
        self._programs: dict[str, _Program] = {}
        self._blocks: dict[int, Block] = {}
        self._commands: dict[str, Callable[[Message, int], Reply]] = {
            "load": self._load, "map": self._map, "bind": self._bind, "run": self._run, "choose": self._choose,
            "capture": self._capture, "time": self._time, "steps": self._steps, "drop": self._drop,
        }  # fmt: skip

    def answer(self, message: Message) -> Reply:
        """The reply to one command; a failure of the device or the plan is data."""
        turn = int(message.header["turn"])
        try:
            return self._commands[message.header["command"]](message, turn)
        except PlanError as wrong:
            return Reply(turn=turn, failure="plan-refused", text=str(wrong)[:2000])
        except (ReplayError, CudaError, RuntimeError, MemoryError, ValueError, NotImplementedError) as error:
            return self._failed(error, turn)

    def _failed(self, error: BaseException, turn: int) -> Reply:
        text = " ".join(str(error).split())[:2000]
        found = self._device.failure(error)
        if found is not None:
            return Reply(turn=turn, failure=found.kind, text=found.text[:2000], lost=found.lost)
        ours = isinstance(error, ReplayError | ValueError | NotImplementedError)
        kind: FailureKind = "not-replayed" if ours else "unexpected"
        return Reply(turn=turn, failure=kind, text=text or type(error).__name__)

    def _load(self, message: Message, turn: int) -> Reply:
        blobs = dict(message.blobs)
        plan = read_plan(json.loads(blobs.pop("plan")), blobs)
        device = self._device
        replayer = Replayer(
            plan, blobs, message.header["workload"], device=device.torch_device, launcher=device.launcher()
        )
        try:
            replayer.load()
        except (CudaError, KeyError) as error:
            found = device.failure(error)
            lost = found is not None and found.lost
            return Reply(turn=turn, failure="load-failed", text=str(error)[:2000], lost=lost)
        self._programs[message.header["name"]] = _Program(replayer)
        return Reply(turn=turn)

    def _map(self, message: Message, turn: int) -> Reply:
        fds, message.fds = message.fds, []
        for fd, (number, nbytes) in zip(fds, message.header["blocks"], strict=True):
            self._blocks[number] = self._device.map(fd, nbytes)
        return Reply(turn=turn)

    def _bind(self, message: Message, turn: int) -> Reply:
        program, header = self._programs[message.header["name"]], message.header
        program.slots = [self._view(p) for p in header["outputs"]]
        program.seed = header["seed"]
        program.unready()
        program.inputs = [self._view(p) for p in header["inputs"]]
        program.replayer.poison = header["poison"]
        program.replayer.bind(program.inputs, {k: self._view(p) for k, p in header["state"].items()})
        if header["setup"]:
            program.replayer.setup(program.seed)
            self._device.synchronize()
        return Reply(turn=turn)

    def _view(self, place: Any) -> Tensor:
        where = Place.model_validate_json(json.dumps(place))
        return view(self._blocks[where.block], where)

    def _run(self, message: Message, turn: int) -> Reply:
        program = self._programs[message.header["name"]]
        torch.manual_seed(program.seed)
        program.run()
        program.give()
        self._device.synchronize()
        if program.replayer.written_past():
            return Reply(turn=turn, failure="wrote-past", text="the guard of a tensor that forward makes has changed")
        return Reply(turn=turn)

    def _choose(self, message: Message, turn: int) -> Reply:
        program = self._programs[message.header["name"]]
        program.replayer.choose({int(k): int(v) for k, v in message.header["choice"].items()})
        program.unready()
        return Reply(turn=turn)

    def _capture(self, message: Message, turn: int) -> Reply:
        """Makes a program ready for timing: as a graph where it can be one."""
        program = self._programs[message.header["name"]]
        program.unready()
        program.run()
        self._device.synchronize()
        program.graph = self._device.capture(program.replayer)
        if program.graph is not None:
            program.last = program.graph.outputs
        program.ready = True
        return Reply(turn=turn, captured=program.graph is not None)

    def _time(self, message: Message, turn: int) -> Reply:
        header = message.header
        fresh = [self._view(p) for p in header["fresh"]]
        calls = [self._call(n, fresh if i == header["switch"] else None) for i, n in enumerate(header["order"])]
        if not self._flags.wait(Flags.GO, turn, _PATIENCE):
            raise ReplayError("no go came")
        timed = self._device.time(calls, header["flush"])
        self._device.synchronize()
        self._flags.set(Flags.DONE, turn)
        return Reply(turn=turn, seconds=tuple(timed.seconds), untimed_seconds=timed.untimed_seconds,
                     clock_hz=timed.clock_hz)  # fmt: skip

    def _steps(self, message: Message, turn: int) -> Reply:
        """Seconds of each step of forward, then those of a tiny kernel. Outputs are not given to the judge."""
        program = self._programs[message.header["name"]]
        seconds = time_steps(program.replayer, self._device)
        program.unready()
        return Reply(turn=turn, seconds=tuple(seconds))

    def _call(self, name: str, fresh: list[Tensor] | None) -> Call:
        """One timed call; with `fresh` inputs it gives its outputs to the judge."""
        program = self._programs[name]
        if not program.ready:
            raise ReplayError(f"program {name} is not ready to be timed")
        after = program.give if fresh is not None else _nothing
        return Call(lambda: program.prepare(fresh), program.call, after)

    def _drop(self, message: Message, turn: int) -> Reply:
        """Forgets all programs and blocks."""
        self._device.synchronize()
        for program in self._programs.values():
            program.unready()
            program.slots, program.inputs = [], []
            program.replayer.close()
        self._programs.clear()
        for block in self._blocks.values():
            block.close()
        self._blocks.clear()
        self._device.trim()
        return Reply(turn=turn)


def _nothing() -> None:
    return None


def serve(channel: Channel, runner: Runner) -> None:
    """Says hello and answers until the judge is gone or the context is lost."""
    channel.send({"hello": os.getpid()}, seconds=_PATIENCE)
    while True:
        try:
            message = channel.receive()
            reply = runner.answer(message)
            channel.send(reply.model_dump(mode="json"), seconds=_PATIENCE)
        except Gone:
            return
        if reply.lost:
            return


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
