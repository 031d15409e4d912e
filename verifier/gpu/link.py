"""The judge's end of the line to its runner: commands, deadlines, and what each kind of failure means."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verifier.gpu.parts import Parts
from verifier.gpu.protocol import Channel, Expired, FailureKind, Gone, ProtocolError, Reply, read_reply
from verifier.gpu.slots import Arena, Flags, Sealed
from verifier.verdict import Status

Kind = FailureKind | Literal["hang", "died", "broke-protocol"]

STATUS: dict[str, Status] = {
    "hang": Status.TIMEOUT,
    "died": Status.CRASH,
    "broke-protocol": Status.CRASH,
    "illegal-address": Status.OUT_OF_BOUNDS,
    "device-assert": Status.RUNTIME_ERROR,
    "launch-failed": Status.RUNTIME_ERROR,
    "out-of-memory": Status.RUNTIME_ERROR,
    "load-failed": Status.COMPILE_ERROR,
    "unsupported": Status.UNTESTED,
    "not-replayed": Status.UNTRACEABLE,
    "plan-refused": Status.REJECTED,
    "wrote-past": Status.OUT_OF_BOUNDS,
    "unexpected": Status.RUNTIME_ERROR,
    "raised": Status.RUNTIME_ERROR,
    "build-failed": Status.COMPILE_ERROR,
    "no-model": Status.UNPARSABLE,
    "other-output": Status.WRONG,
}
"""What a failure of the runner says about the candidate."""

_WORDS: dict[str, str] = {
    "died": "its process on the GPU ended",
    "broke-protocol": "its process on the GPU broke the protocol",
    "illegal-address": "a kernel reads or writes memory that is not there",
    "device-assert": "an assertion in a kernel failed",
    "launch-failed": "a kernel could not be launched or failed",
    "out-of-memory": "it needs more memory than the device has",
    "load-failed": "a kernel could not be loaded",
    "unsupported": "this GPU or its driver does not take the compiled kernels",
    "not-replayed": "the plan cannot be replayed",
    "plan-refused": "the plan is malformed",
    "wrote-past": "a kernel wrote outside of every tensor",
    "unexpected": "it failed",
    "build-failed": "its native code does not build",
}
_SEND_SECONDS = 30.0
_CALL_SPIN = 0.1
"""Seconds of a call in which its end is seen at once."""


class RunnerFailed(Exception):
    """A command that did not end well. `lost`: the runner must be replaced."""

    def __init__(self, kind: Kind, text: str, *, lost: bool, line: int | None = None) -> None:
        super().__init__(f"{_WORDS[kind]}: {text}" if kind in _WORDS else text)
        self.kind, self.lost, self.line = kind, lost, line

    @property
    def status(self) -> Status:
        return STATUS[self.kind]


@dataclass(frozen=True, slots=True)
class TimedReply:
    """A timed block: the runner's claims and the judge's own clock round them."""

    reply: Reply
    host_seconds: float


class Link:
    """One runner. Every command raises RunnerFailed unless the runner answers that it went well, in time."""

    def __init__(
        self, channel: Channel, flags_fd: int, deadline: float, settle: Callable[[], None] = lambda: None
    ) -> None:
        """Takes over both. `deadline`: seconds that a command may take. `settle` waits until what the judge wrote into
        slots is there: the two contexts know nothing of each other's streams.
        """
        self._settle = settle
        self._channel, self._flags = channel, Flags(flags_fd)
        os.close(flags_fd)
        self.deadline = deadline
        self.budget = math.inf
        """Seconds that are left for all commands of a visit together."""
        self.part = Parts(settle)
        self._turn, self._asked, self._calls = 0, 0.0, 0
        self._renewed: set[str] = set()
        self._ended: RunnerFailed | None = None

    def close(self) -> None:
        self._channel.close()
        self._flags.close()

    def load(self, name: str, plan: bytes, blobs: Mapping[str, bytes], workload: str) -> None:
        self._ask({"command": "load", "name": name, "workload": workload}, {**blobs, "plan": plan})

    def map(self, arenas: Sequence[Arena]) -> None:
        """Shares the arenas' blocks."""
        blocks = [[a.number, a.block.nbytes] for a in arenas]
        self._ask({"command": "map", "blocks": blocks}, fds=[a.fd for a in arenas])

    def bind(
        self, name: str, inputs: Arena, state: Mapping[str, Any], outputs: Arena, *,
        seed: int, setup: bool, poison: bool,
    ) -> None:  # fmt: skip
        """`state`: name to Place. With `setup` the set-up steps run."""
        self._renewed.discard(name)
        places = [[p.model_dump(mode="json") for p in a.places] for a in (inputs, outputs)]
        self._ask({
            "command": "bind", "name": name, "inputs": places[0], "outputs": places[1], "seed": seed, "setup": setup,
            "poison": poison, "state": {k: p.model_dump(mode="json") for k, p in state.items()},
        })  # fmt: skip

    def renew(self, name: str) -> None:
        """The inputs of a bound program hold other values, where they were."""
        self._renewed.add(name)

    def run(self, name: str) -> None:
        self._ask({"command": "run", "name": name, "changed": name in self._renewed})
        self._renewed.discard(name)

    def choose(self, name: str, choice: Mapping[int, int]) -> bool:
        """Whether the program is ready for `time` as it is: it was captured with these alternatives before."""
        said = {str(k): v for k, v in choice.items()}
        return bool(self._ask({"command": "choose", "name": name, "choice": said}).captured)

    def capture(self, name: str, *, graph: bool = True) -> bool:
        """Makes a program ready for `time` and `calls`; whether it became a graph, which only `graph` allows."""
        return bool(self._ask({"command": "capture", "name": name, "graph": graph}).captured)

    def time(
        self, order: Sequence[str], *, flush: bool, changed: Sequence[str] = (),
        fresh: Mapping[int, Sealed] | None = None, give: int = -1,
    ) -> TimedReply:  # fmt: skip
        """Times the programs in `order`. Those in `changed` hold other inputs than before. Right before a call in
        `fresh` its program gets these inputs, and right after call `give` it copies its outputs to their slots.
        """
        sealed = {
            str(i): {"key": s.key, "places": [p.model_dump(mode="json") for p in s.places]}
            for i, s in (fresh or {}).items()
        }
        self._send({"command": "time", "order": list(order), "flush": flush, "changed": list(changed), "fresh": sealed,
                    "give": give})  # fmt: skip
        ready = self._flags.wait(Flags.READY, self._turn, self.deadline, unless=self._channel.pending)
        start = time.perf_counter()
        self._flags.set(Flags.GO, self._turn)
        done = ready and self._flags.wait(Flags.DONE, self._turn, self.deadline, unless=self._channel.pending)
        host = time.perf_counter() - start
        reply = self._receive(self.deadline if done else 0.2)
        if not done or len(reply.seconds) != len(order):
            raise self._lost(ProtocolError("it did not time what it was asked to"))
        return TimedReply(reply, host)

    def begin_calls(self, name: str, count: int, *, idle: bool, repeats: int = 1) -> None:
        """A program gets ready for `count` calls; between them nothing else may be asked. A call is `repeats` runs of
        the program and ends when its outputs are in their slots. `idle`: every other call, from the first on, does next
        to nothing; for runners.
        """
        self._flags.set(Flags.GO, 0)
        self._send({"command": "calls", "name": name, "count": count, "idle": idle, "repeats": repeats})
        self._calls = 0

    def near(self) -> None:
        """The next call is about to come."""
        self._flags.set(Flags.NEAR, Flags.call(self._turn, self._calls))

    def call(self) -> float:
        """Seconds of one call, from go to done."""
        value = Flags.call(self._turn, self._calls)
        self._calls += 1
        self._asked = time.monotonic()
        start = time.perf_counter()
        self._flags.set(Flags.GO, value)
        if not self._flags.wait(Flags.DONE, value, self.deadline, unless=self._channel.pending, spin=_CALL_SPIN):
            self._receive(0.2)  # raises what it says, or that it says nothing
            raise self._lost(ProtocolError("it did not run what it was asked to"))
        seconds = time.perf_counter() - start
        self.budget -= seconds
        return seconds

    def end_calls(self) -> None:
        """After the last call, or to call it off."""
        if self._ended is not None:
            raise self._ended
        self._asked = time.monotonic()
        self._flags.set(Flags.GO, Flags.STOP)
        self._receive()

    def steps(self, name: str) -> tuple[float, ...]:
        """Seconds of each forward step as the runner claims them, then those of a tiny kernel."""
        return self._ask({"command": "steps", "name": name}).seconds

    def release(self) -> None:
        """The runner gives its programs' memory back. They stay loaded and blocks mapped, to be bound again."""
        self._ask({"command": "release"})

    def drop(self, *, trim: bool = False) -> None:
        """The runner forgets all programs and blocks; with `trim` it keeps no memory for later."""
        self._ask({"command": "drop", "trim": trim})

    def _ask(
        self, header: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None, fds: Sequence[int] = ()
    ) -> Reply:
        with self.part(f"runner {header['command']}"):
            self._send(header, blobs, fds)
            return self._receive()

    def _send(
        self, header: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None, fds: Sequence[int] = ()
    ) -> None:
        if self._ended is not None:
            raise self._ended
        if self.budget <= 0 and header["command"] != "drop":
            raise RunnerFailed("hang", "its runs take too long together", lost=False)
        self._turn += 1
        self._settle()
        self._asked = time.monotonic()
        try:
            if self._channel.pending():
                self._channel.receive(seconds=0.1)  # raises Gone where it ended
                raise ProtocolError("it spoke out of turn")
            self._channel.send({**header, "turn": self._turn}, blobs, fds, seconds=_SEND_SECONDS)
        except (Gone, Expired, ProtocolError) as error:
            raise self._lost(error) from None

    def _receive(self, seconds: float | None = None) -> Reply:
        try:
            message = self._channel.receive(seconds=self.deadline if seconds is None else seconds)
            reply = read_reply(message.header, self._turn)
        except (Gone, Expired, ProtocolError) as error:
            raise self._lost(error) from None
        finally:
            self.budget -= time.monotonic() - self._asked
        if reply.failure is not None:
            failed = RunnerFailed(reply.failure, reply.text, lost=reply.lost, line=reply.line)
            self._ended = failed if reply.lost else None
            raise failed
        return reply

    def _lost(self, error: Exception) -> RunnerFailed:
        """What ends this line; every later command gives it again, at once."""
        if isinstance(error, Expired):
            self._ended = RunnerFailed("hang", f"it did not finish within {self.deadline:g} s on the GPU", lost=True)
        else:
            kind: Kind = "died" if isinstance(error, Gone) else "broke-protocol"
            self._ended = RunnerFailed(kind, str(error), lost=True)
        return self._ended
