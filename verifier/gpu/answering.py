"""What a runner and a contestant have in common: programs on memory that a judge shares, and a judge's commands.

Both sides of a live comparison run the same loop between go and done.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from verifier.gpu.device import Device
from verifier.gpu.protocol import Channel, Gone, Message, Reply
from verifier.gpu.slots import Flags, Mapped
from verifier.inputs import seed_streams

PATIENCE = 60.0
"""Seconds to wait for a go, or for a judge that reads."""


class Playable(Protocol):
    """A loaded program with its inputs and the slots of its outputs."""

    seed: int

    def run(self) -> object:
        """Once, on restored state."""
        ...

    def prepare(self) -> None:
        """Before a timed call."""
        ...

    def call(self) -> None:
        """What is timed."""
        ...

    def give(self) -> None:
        """Copies the outputs to their slots."""
        ...

    def close(self) -> None: ...


P = TypeVar("P", bound=Playable)


class Answering(ABC, Generic[P]):
    """Executes the judge's commands. `load`, `bind` and `capture` are those of a subclass, which may have more."""

    def __init__(self, device: Device, flags: Flags) -> None:
        self._device, self._flags = device, flags
        self._programs: dict[str, P] = {}
        self._blocks = Mapped(device)
        self._commands: dict[str, Callable[[Message, int], Reply]] = {
            "load": self._load, "map": self._map, "bind": self._bind, "run": self._run, "capture": self._capture,
            "calls": self._calls, "drop": self._drop,
        }  # fmt: skip

    def answer(self, message: Message) -> Reply:
        """The reply to one command. The boundary where what a program raises becomes data."""
        turn = int(message.header["turn"])
        try:
            return self._commands[message.header["command"]](message, turn)
        except BaseException as error:  # noqa: BLE001 - `_failed` raises what is none of the program's
            return self._failed(error, turn)

    @abstractmethod
    def _failed(self, error: BaseException, turn: int) -> Reply: ...

    @abstractmethod
    def _load(self, message: Message, turn: int) -> Reply: ...

    @abstractmethod
    def _bind(self, message: Message, turn: int) -> Reply: ...

    @abstractmethod
    def _capture(self, message: Message, turn: int) -> Reply: ...

    def _map(self, message: Message, turn: int) -> Reply:
        fds, message.fds = message.fds, []
        self._blocks.map(fds, message.header["blocks"])
        return Reply(turn=turn)

    def _run(self, message: Message, turn: int) -> Reply:
        program = self._programs[message.header["name"]]
        seed_streams(program.seed)
        program.run()
        program.give()
        self._device.synchronize()
        return Reply(turn=turn)

    def _calls(self, message: Message, turn: int) -> Reply:
        """One call for each go of the judge, of `repeats` runs. Done says that the outputs are in their slots. `idle`:
        calls 0, 2, 4 ... do next to nothing.
        """
        program, header = self._programs[message.header["name"]], message.header
        for i in range(header["count"]):
            program.prepare()
            self._device.synchronize()
            if not self._flags.wait_go(turn, i, PATIENCE):
                break
            if header["idle"] and i % 2 == 0:
                self._device.nothing()
            else:
                for _ in range(header["repeats"]):
                    program.call()
                program.give()
            self._device.synchronize()
            self._flags.set(Flags.DONE, Flags.call(turn, i))
        return Reply(turn=turn)

    def _drop(self, message: Message, turn: int) -> Reply:
        """Forgets all programs and blocks."""
        self._device.synchronize()
        for program in self._programs.values():
            program.close()
        self._programs.clear()
        self._blocks.close()
        (self._device.trim if message.header["trim"] else self._device.tidy)()
        return Reply(turn=turn)


def serve(channel: Channel, answering: Answering[P]) -> None:
    """Says hello and answers until the judge is gone or the context is lost."""
    channel.send({"hello": os.getpid()}, seconds=PATIENCE)
    while True:
        try:
            reply = answering.answer(channel.receive())
            channel.send(reply.model_dump(mode="json"), seconds=PATIENCE)
        except Gone:
            return
        if reply.lost:
            return
