"""Timed blocks of a candidate and its base in one runner, as `verifier.timing` and `verifier.racing` want them.

For every block all memory is allocated anew, at other addresses, and filled with inputs that were never used before;
the two sides never hold the same values. Small input sets are evicted from the cache before each call, large ones
rotate.

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

from verifier.gpu.aten import decode
from verifier.gpu.check import Loaded, Slots, write
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.protocol import Reply
from verifier.gpu.slots import Arena, want_values
from verifier.interpreter.compare import compare_values
from verifier.plan.schema import LaunchStep
from verifier.reference import Expected, Reference
from verifier.specs import leaves
from verifier.timing import Block
from verifier.verdict import StepTimes

Side = Literal["a", "b"]
"""The candidate and the base."""

BLOCK_SECONDS = 0.02
"""Device time that a block should take."""
MOST_PAIRS = 16
CHECK_EVERY = 4
SMALL_BYTES = 64 << 20
"""Every block with fewer bytes of inputs and outputs is checked, of the others the first and one of CHECK_EVERY."""
SETS = 2
"""Input sets of one side that rotate where they are too large to flush."""
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
        self._open: dict[str, Slots] = {}
        self._fresh: Arena | None = None
        self._made: Expected | None = None
        self.fresh_times: list[tuple[float, float]] = []
        """Of calls on fresh inputs, with the median of the candidate's other calls in the block. Seconds."""
        self._pairs, self._sets, self._flush = 2, 1, False

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
        names = [f"{side}{i // 2 % self._sets}" for i, side in enumerate(order)]
        ours = [i for i, name in enumerate(names) if name.startswith("a")]
        switch = secrets.choice(ours[first:]) if check else -1
        with self._link.part("runner time"):
            timed = self._link.time(names, flush=self._flush, switch=switch, fresh=self._fresh)
        pairs, reply = _paired(timed.reply), timed.reply
        if self._made is not None:
            with self._link.part("timed compare"):
                self._check(self._made, names[switch])
            seen = [reply.seconds[i] for i in ours if i != switch]
            if switch != ours[0] and min(seen) > 0:  # the first call of a block has costs of its own
                self.fresh_times.append((reply.seconds[switch], median(seen)))
        self._adapt(pairs)
        return Block(pairs, reply.clock_hz, timed.host_seconds, reply.untimed_seconds)

    def host_bound(self) -> float:
        """The candidate's mean time by the judge's own clock, calls back to back: above its honest time. Seconds."""
        self._renew("bound", check=False)
        calls = 2 * self._pairs
        return self._link.time(["a0"] * calls, flush=False).host_seconds / calls

    def steps(self) -> StepTimes | None:
        """Where the candidate's time goes, after `host_bound`; None where its steps cannot be timed one by one."""
        seconds = self._link.steps("a0")
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
            self._link.choose("a0", choice)
            self._link.capture("a0")
            with self._link.part("runner race"):
                timed = self._link.time(["a0"] * 3, flush=self._flush)
        except RunnerFailed as failed:
            if failed.lost:
                raise
            return math.inf
        return median(timed.reply.seconds)

    def close(self) -> None:
        """Drops everything from the runner and frees the slots. Raises RunnerFailed."""
        arenas = [a for slots in self._open.values() for a in slots.arenas] + ([self._fresh] if self._fresh else [])
        loaded, self._open, self._fresh = bool(self._open), {}, None
        try:
            if loaded:
                self._link.drop()
        finally:
            for arena in arenas:
                arena.close()

    # -- one block's memory ------------------------------------------------------------------------

    def _renew(self, salt: str, *, check: bool) -> None:
        part = self._link.part
        with part("free blocks"):
            self.close()
            self._device.trim()
        moved = self._bytes()
        self._flush = 0 < moved < 2 * self._device.flush_bytes
        roomy = 8 * SETS * moved < self._device.free_bytes()
        self._sets = SETS if not self._flush and self._device.flush_bytes and roomy else 1
        names: list[tuple[Side, int]] = [(side, k) for k in range(self._sets) for side in ("a", "b")]
        if secrets.randbelow(2):
            names.reverse()
        for number, (side, k) in enumerate(names):
            self._fill(side, k, salt, number * _STEP)
        graphs = {name: self._capture(name) for name in sorted(self._open)}
        self.graphs = (graphs["a0"], graphs["b0"])
        self.side = None
        # After the captures, which run the candidate: no untimed call can read these inputs from its context.
        self._made = self._renew_fresh(salt, len(names) * _STEP) if check else None

    def _bytes(self) -> int:
        """Of inputs and outputs."""
        program = self._program
        moved = {program.values[v].storage for v in (*program.inputs, *program.output_values())}
        return sum(program.storages[i].bytes for i in moved)

    def _fill(self, side: Side, k: int, salt: str, number: int) -> None:
        """Memory, inputs and program of one side; block numbers begin at `number`."""
        self.side = side
        loaded, reference, name = self._sides[side], self._reference, f"{side}{k}"
        with self._link.part("timed slots"):
            program = loaded.program(reference.workload.name)
            slots = self._open[name] = Slots(self._device, program, reference.state, number)
        made = reference.inputs("task", f"{self._salt} {salt} {name}")
        with self._link.part("timed write"):
            slots.write(made, reference.state)
            slots.arm()
        self._link.load(name, loaded.text, loaded.blobs, reference.workload.name)
        self._link.map(slots.arenas)
        if side == "a" and self.choice:
            self._link.choose(name, self.choice)
        self._link.bind(
            name, slots.inputs, slots.state, slots.outputs, seed=reference.init_seed, setup=True, poison=False
        )

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

    def _capture(self, name: str) -> bool:
        self.side = "a" if name.startswith("a") else "b"
        return self._link.capture(name)

    def _check(self, made: Expected, name: str) -> None:
        slots, reference = self._open[name], self._reference
        for side, held in self._open.items():
            if side.startswith("a") and (broken := held.broken()):
                raise TimedWrong(broken)
        tensors = iter([view.clone() for view in slots.outputs.views])
        tree = decode(slots.program.output, lambda _: next(tensors), self._device.torch_device)
        checks = compare_values(
            tree, made.native, made.expected, made.ruler,
            reference.problem.precision, given=list(leaves(made.inputs)), workload=reference.workload.name,
            draw="timed",
        )  # fmt: skip
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
