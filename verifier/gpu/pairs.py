"""Timed blocks of a candidate and its base in one runner, as `verifier.timing` and `verifier.racing` want them.

For every block all memory is allocated anew and filled with inputs that were never used before; the two sides never
hold the same values. The caches are emptied before each call.

Outputs are poisoned before each call. In blocks that are checked, at a call that the judge picks, the candidate's
inputs are replaced by others and the outputs of that call are compared like any other. So a kernel that leaves work out
because earlier calls did it is found out, unless it does so rarely: one call of a block is looked at. A kernel that
knows old inputs by their content is right at that call, and slow: `refuse_memory` compares its time with the others.

Not protected against: a runner that lies about its times, beyond what the judge's own clock refutes.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from statistics import median
from typing import Literal

from verifier.gpu.check import DoesNotFit, Loaded, Slots, compared, in_full, write
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.protocol import Reply
from verifier.gpu.slots import Arena, want_values
from verifier.plan.schema import LaunchStep
from verifier.reference import Expected, Reference
from verifier.specs import leaves
from verifier.timing import Block
from verifier.verdict import StepTimes

Side = Literal["a", "b"]
"""The candidate and the base."""

BLOCK_SECONDS = 0.012
"""Device time that a block should take."""
MOST_PAIRS = 16
CHECK_EVERY = 4
SMALL_BYTES = 64 << 20
"""Every block with fewer bytes of inputs and outputs is checked, of the others the first and one of CHECK_EVERY."""
_TRIALS, _LONG_SECONDS = 3, 1e-3
"""Calls for one measurement of a race; one where they are long."""
_STEP = 8
"""Block numbers kept for each program."""
SURPRISE = 2.0
"""Time on fresh inputs over that on inputs seen before: above it, and by more than `SURPRISE_SECONDS`, the candidate
remembers. Wide, because what honest kernels lose on freshly copied inputs was not measured."""
SURPRISE_SECONDS = 5e-6
_SURPRISES = 5
"""Comparisons that a suspicion needs."""


class TimedWrong(Exception):
    """An output of a timed call was wrong. `reason` of the check."""


class Pairs:
    """Blocks of one workload. Raises RunnerFailed, TimedWrong, OutOfMemoryError; which side failed says `side`."""

    def __init__(
        self, device: Device, link: Link, reference: Reference, candidate: Loaded, base: Loaded,
        salt: str = "",
    ) -> None:  # fmt: skip
        """`salt` of this visit's inputs."""
        self._salt = salt
        self._device, self._link, self._reference = device, link, reference
        self._sides: dict[Side, Loaded] = {"a": candidate, "b": base}
        self.choice: dict[int, int] = {}
        """The candidate's alternatives."""
        self.side: Side | None = None
        """Whose program is being loaded or captured, None for what comes later."""
        self.graphs = (True, True)
        self._program = candidate.program(reference.workload.name)
        self._open: dict[Side, Slots] = {}
        self._loaded: set[Side] = set()
        self._fresh: Arena | None = None
        self._made: Expected | None = None
        self.fresh_times: list[tuple[float, float]] = []
        """Of calls on fresh inputs, with the median of the candidate's other calls in the block. Seconds."""
        self.clocks: list[float] = []
        """Readings of the blocks so far, Hz."""
        self._pairs, self._flush, self._trials = 2, device.flush_bytes > 0, _TRIALS

    # -- for verifier.timing -----------------------------------------------------------------------

    def measure(self, index: int) -> Block:
        """One block in new memory, on new inputs; candidate first in even pairs."""
        check = index == 0 or self._bytes() < SMALL_BYTES or secrets.randbelow(CHECK_EVERY) == 0
        return self._block(f"block {index}", check=check)

    def refuse_memory(self) -> None:
        """Raises TimedWrong where the candidate is slow on inputs that it has not seen. Takes blocks for it."""
        wanted = 1
        for extra in range(4 * _SURPRISES):
            if len(self.fresh_times) >= wanted:
                if not self._surprised():
                    return
                if wanted == _SURPRISES:
                    raise TimedWrong("it is slow on inputs that it has not seen: it remembers answers")
                wanted = _SURPRISES
            self.checked(f"extra {extra}")

    def checked(self, salt: str) -> Block:
        """A block whose fresh inputs go to any call of the candidate but its first, which has costs of its own."""
        return self._block(salt, check=True, first=1)

    def _surprised(self) -> bool:
        over = median(fresh / seen for fresh, seen in self.fresh_times)
        return over > SURPRISE and median(fresh - seen for fresh, seen in self.fresh_times) > SURPRISE_SECONDS

    def _block(self, salt: str, *, check: bool, first: int = 0) -> Block:
        """`first`: the candidate's first call that may get the fresh inputs."""
        self._renew(salt, check=check)
        order = [side for pair in range(self._pairs) for side in (("a", "b") if pair % 2 == 0 else ("b", "a"))]
        ours = [i for i, side in enumerate(order) if side == "a"]
        if not self.fresh_times and not first:  # one comparison is wanted in any case
            first = secrets.randbelow(2)
        switch = secrets.choice(ours[first:]) if check else -1
        with self._link.part("runner time"):
            timed = self._link.time(order, flush=self._flush, switch=switch, fresh=self._fresh)
        pairs, reply = _paired(timed.reply), timed.reply
        if self._made is not None:
            with self._link.part("timed compare"):
                self._check(self._made)
            seen = [reply.seconds[i] for i in ours if i != switch]
            if switch != ours[0] and min(seen) > 0:  # the first call of a block has costs of its own
                self.fresh_times.append((reply.seconds[switch], median(seen)))
        self._adapt(pairs)
        if reply.clock_hz is not None:
            self.clocks.append(reply.clock_hz)
        return Block(pairs, reply.clock_hz, timed.host_seconds, reply.untimed_seconds)

    def host_bound(self) -> float:
        """The candidate's mean time by the judge's own clock, calls back to back: above its honest time. Seconds."""
        if not self._open:
            self._renew("bound", check=False)
        calls = 2 * self._pairs
        return self._link.time(["a"] * calls, flush=self._flush).host_seconds / calls

    def steps(self) -> StepTimes | None:
        """Where the candidate's time goes, after `host_bound`; None where its steps cannot be timed one by one."""
        seconds = self._link.steps("a")
        if len(seconds) != len(self._program.forward) + 1:
            return None
        return StepTimes(workload=self._program.workload, seconds=seconds[:-1], launch_seconds=seconds[-1])

    # -- for verifier.racing -----------------------------------------------------------------------

    def alternatives(self) -> dict[int, int]:
        """Forward step to its number of alternatives, where it has several."""
        counts = {i: len(s.alternatives) for i, s in enumerate(self._program.forward) if isinstance(s, LaunchStep)}
        return {i: n for i, n in counts.items() if n > 1}

    def seconds_of(self, choice: Mapping[int, int]) -> float:
        """Median time of the candidate with other alternatives, infinite where they cannot run."""
        if not self._open:
            self._renew("race", check=False)
        try:
            if not self._link.choose("a", choice):
                self._link.capture("a")
            with self._link.part("runner race"):
                timed = self._link.time(["a"] * self._trials, flush=self._flush)
        except RunnerFailed as failed:
            if failed.lost:
                raise
            return math.inf
        seconds = median(timed.reply.seconds)
        self._trials = 1 if seconds > _LONG_SECONDS else _TRIALS
        return seconds

    def close(self) -> None:
        """Drops everything from the runner and frees the slots. Raises RunnerFailed."""
        try:
            self._free()
            if self._loaded:
                self._loaded.clear()
                self._link.drop()
        finally:
            self._loaded.clear()

    # -- one block's memory ------------------------------------------------------------------------

    def _renew(self, salt: str, *, check: bool) -> None:
        """New memory and inputs for both sides, in an order that nobody knows. Raises DoesNotFit."""
        with self._link.part("free blocks"):
            self._free()
            self._refuse_large()
            self._device.make_room(self._bytes_of_runner())
        sides: list[Side] = ["a", "b"]
        if secrets.randbelow(2):
            sides.reverse()
        for number, side in enumerate(sides):
            self._fill(side, salt, number * _STEP)
        graphs = {side: self._capture(side) for side in sides}
        self.graphs = (graphs["a"], graphs["b"])
        self.side = None
        # After the captures, which run the candidate: no untimed call can read these inputs from its context.
        self._made = self._renew_fresh(salt, len(sides) * _STEP) if check else None

    def _free(self) -> None:
        """Gives back the last block's memory; the programs stay loaded."""
        arenas = [a for slots in self._open.values() for a in slots.arenas] + ([self._fresh] if self._fresh else [])
        held, self._open, self._fresh, self._made = bool(arenas), {}, None, None
        try:
            if held:
                self._link.release()
        finally:
            for arena in arenas:
                arena.close()

    def _bytes(self) -> int:
        """Of inputs and outputs."""
        program = self._program
        moved = {program.values[v].storage for v in (*program.inputs, *program.output_values())}
        return sum(program.storages[i].bytes for i in moved)

    def _refuse_large(self) -> None:
        """The least that judge and runner need at once: inputs of both sides, those of the checked call twice, the
        candidate's outputs in the runner, in their slots and as PyTorch gives them, and the base's."""
        program = self._program
        given = sum(program.storages[i].bytes for i in {program.values[v].storage for v in program.inputs})
        need, free = 4 * given + 4 * (self._bytes() - given), self._device.free_bytes()
        if need > free:
            raise DoesNotFit(f"the timing needs at least {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")

    def _bytes_of_runner(self) -> int:
        """What the runner allocates at most for both sides, where no library needs more for itself."""
        programs = (loaded.program(self._reference.workload.name) for loaded in self._sides.values())
        return sum(s.bytes for program in programs for s in program.storages if s.origin != "input")

    def _fill(self, side: Side, salt: str, number: int) -> None:
        """Memory, inputs and program of one side; block numbers begin at `number`."""
        self.side = side
        loaded, reference, link = self._sides[side], self._reference, self._link
        program = loaded.program(reference.workload.name)
        with link.part("timed slots"):
            slots = Slots(self._device, program, reference.state, number, outputs=side == "a")
        self._open[side] = slots
        made = reference.inputs("task", f"{self._salt} {salt} {side}")
        with link.part("timed write"):
            slots.write(made, reference.state)
            slots.arm()
        if side not in self._loaded:
            link.load(side, loaded.text, loaded.blobs, reference.workload.name)
            self._loaded.add(side)
        link.map(slots.arenas)
        if side == "a" and self.alternatives():
            link.choose(side, self.choice)
        link.bind(side, slots.inputs, slots.state, slots.outputs, seed=reference.init_seed, setup=True, poison=False)

    def _renew_fresh(self, salt: str, number: int) -> Expected:
        """The inputs of the call that is checked, in a block of their own, and what it must give."""
        made = self._reference.draw("task", f"{self._salt} {salt} fresh")
        with self._link.part("timed slots"):
            self._fresh = Arena(self._device, number, want_values(self._program, self._program.inputs))
        with self._link.part("timed write"):
            for slot, tensor in zip(self._fresh.views, leaves(made.inputs), strict=True):
                write(slot, tensor)
        self._link.map([self._fresh])
        return made

    def _capture(self, side: Side) -> bool:
        self.side = side
        return self._link.capture(side)

    def _check(self, made: Expected) -> None:
        slots, reference = self._open["a"], self._reference
        if broken := slots.broken():
            raise TimedWrong(broken)
        program = slots.program
        outputs, checks = compared(program, slots.outputs.views, made, reference, "timed")
        if checks is None:
            if self._device.free_bytes() < 8 * self._bytes():
                self._free()  # the float64 reference needs the room
            checks = in_full(program, outputs, made, reference, "timed")
        for check in checks:
            if not check["passed"]:
                raise TimedWrong(f"output {check['output']} of a timed call: {check['reason']}")

    def _adapt(self, pairs: tuple[tuple[float, float], ...]) -> None:
        """Pairs of the next block: an even number that takes about BLOCK_SECONDS."""
        one = sum(median(side) for side in zip(*pairs, strict=True))
        count = int(BLOCK_SECONDS / max(one, 1e-6)) // 2 * 2
        self._pairs = min(max(count, 2), MOST_PAIRS)


def _paired(reply: Reply) -> tuple[tuple[float, float], ...]:
    """(candidate, base) of each pair; odd pairs ran the other way round."""
    seconds = reply.seconds
    both = [(seconds[i], seconds[i + 1]) for i in range(0, len(seconds), 2)]
    return tuple((x, y) if i % 2 == 0 else (y, x) for i, (x, y) in enumerate(both))
