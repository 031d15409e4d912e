"""Timed blocks of a candidate and its base in one runner, as `verifier.timing` and `verifier.racing` want them.

From block to block the two sides exchange the memory of their inputs, so that an address that is better favours both
alike, and outputs and scratch are allocated anew. Where inputs are large, they do so every other block, and the base
keeps its inputs in the one between. A call of each goes before and does not count: for some 20 ms after gigabytes were
given back, calls are up to 4% slower (H200; the driver seems to clear them). Which side begins changes from block to
block, as `timing.candidate_first` says.

Each call of the candidate that counts gets inputs that it has never seen: what is left of earlier calls, wherever a
kernel may keep it (a buffer of the graph, shared or local memory, cache), answers nothing. The inputs of later calls
lie sealed in the runner's memory, each under a key that comes with the call. While calls are timed, the two sides never
hold the same values. The caches are emptied before each call.

The candidate's outputs are poisoned before each call, those of the base where they are small. In blocks that are
checked, the outputs of one call of the candidate that the judge picks are compared like any other; no call knows
whether it is that one. Guards of both sides and, where they are small, the inputs of the base must be as they were.

Not protected against: a kernel that leaves work out in so few of its calls that the median does not show it (the one
call that is looked at finds a share p of the calls with probability 1 - (1 - p)^n after n checked blocks; half of the
calls: 98% after 6); a kernel that knows a word of the inputs of a later call and so unseals them in an earlier one, or
that finds the weights of the base: all of it lies in one address space; a runner that lies about its times, beyond what
the judge's own clock refutes.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from torch import Tensor

from verifier.gpu.check import DoesNotFit, Loaded, Slots, compared, in_full, write
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.protocol import Reply
from verifier.gpu.slots import Arena, Sealed, Want, all_bytes, seal, want_values
from verifier.plan.schema import LaunchStep
from verifier.reference import Expected, Reference
from verifier.specs import leaves
from verifier.timing import Block, candidate_first
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
FRESH_BYTES = 1 << 30
"""Of inputs for later calls that a block may hold; it has fewer pairs where they do not fit, at least two."""
LARGE_INPUTS = 1 << 30
"""Bytes of inputs from which the base keeps its own for two blocks."""
SLOW_INPUTS = 2e-3
"""Seconds that a file may take to make inputs before a block has only two pairs."""


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
        self._later: Arena | None = None
        self._renewed = 0
        self._given: list[Any] = []
        """What both sides were captured with, and the base is timed with; of small inputs only."""
        self.clocks: list[float] = []
        """Readings of the blocks so far, Hz."""
        self._making = math.inf
        """The least seconds that the file took to make inputs."""
        self._pairs, self._most, self._flush, self._trials = 0, MOST_PAIRS, device.flush_bytes > 0, _TRIALS
        self._coins = secrets.randbits(64)

    # -- for verifier.timing -----------------------------------------------------------------------

    def measure(self, index: int) -> Block:
        """One block in new memory, on new inputs."""
        check = index == 0 or self._bytes() < SMALL_BYTES or secrets.randbelow(CHECK_EVERY) == 0
        salt = f"block {index}"
        self._renew(salt)
        pairs = min(self._pairs, self._most)
        first = candidate_first(index, self._coins)
        order: list[Side] = [
            s for pair in range(pairs) for s in (("a", "b") if first == (pair % 2 == 0) else ("b", "a"))
        ]
        ours = [i for i, side in enumerate(order) if side == "a"]
        looked = secrets.randbelow(pairs) if check else -1
        made, sealed = self._refresh(salt, pairs, looked)
        fresh = dict(zip(ours[1:], sealed, strict=True))
        give = ours[looked] if check else -1
        with self._link.part("runner time"):
            timed = self._link.time(order, flush=self._flush, changed=("a",), fresh=fresh, give=give)
        if made is not None:
            with self._link.part("timed compare"):
                self._check(made)
        found, reply = _paired(order, timed.reply), timed.reply
        self._adapt(found)
        if reply.clock_hz is not None:
            self.clocks.append(reply.clock_hz)
        starved = reply.starved if all(self.graphs) else 0  # without a graph a call may take longer to give than to run
        return Block(found, reply.clock_hz, timed.host_seconds, reply.untimed_seconds, starved)

    def host_bound(self) -> float:
        """Seconds of a call by the judge's own clock, with all that a block takes beside its calls: above its honest
        time."""
        if not self._open:
            self._renew("bound")
        calls = max(1, self._pairs // 2)
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
            self._renew("race")
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
        arenas = [a for slots in self._open.values() for a in slots.arenas] + ([self._later] if self._later else [])
        used, self._open, self._later = bool(arenas), {}, None
        self._loaded.clear()
        try:
            if used:
                self._link.drop()
        finally:
            for arena in arenas:
                arena.close()

    # -- one block's memory ------------------------------------------------------------------------

    def _renew(self, salt: str) -> None:
        """New inputs for both sides, each in the other's memory of the block before; outputs and scratch in new memory.
        Raises DoesNotFit.
        """
        sides: list[Side] = ["a", "b"]
        if secrets.randbelow(2):
            sides.reverse()
        again = self._renewed % 2 == 1 and self._bytes(outputs=False) > LARGE_INPUTS
        self._renewed += 1
        if not self._open:
            with self._link.part("timed slots"):
                self._allocate(sides)
        else:
            self._link.release()
            if not again:
                self._open["a"].exchange_inputs(self._open["b"])
        values = None if again else self._made_inputs(salt)
        self._given = values if values is not None and self._bytes() < SMALL_BYTES else []
        for side in sides:
            self._fill(side, values)
        graphs = {side: self._capture(side) for side in sides}
        self.graphs = (graphs["a"], graphs["b"])
        self.side = None
        self._warm(sides)

    def _warm(self, sides: Sequence[Side]) -> None:
        """A call of each that does not count, the candidate's on inputs that it need not answer for. The first time it
        says how long a call is."""
        with self._link.part("runner warm"):
            reply = self._link.time(sides, flush=self._flush, changed=("a",)).reply
        if not self._pairs:
            self._adapt(_paired(sides, reply))

    def _made_inputs(self, salt: str) -> list[Any]:
        start = time.perf_counter()
        values = self._inputs(salt)
        self._making = min(self._making, time.perf_counter() - start)
        self._most = 2 if self._making > SLOW_INPUTS else MOST_PAIRS
        return values

    def _allocate(self, sides: Sequence[Side]) -> None:
        """The slots of all blocks."""
        self._refuse_large()
        for number, side in enumerate(sides):
            self.side = side
            program = self._sides[side].program(self._reference.workload.name)
            self._open[side] = Slots(
                self._device, program, self._reference.state, number * _STEP, outputs=side == "a"
            )  # fmt: skip
        self._link.map([a for slots in self._open.values() for a in slots.arenas])

    def _bytes(self, *, outputs: bool = True) -> int:
        """Of inputs and outputs."""
        program = self._program
        values = (*program.inputs, *(program.output_values() if outputs else ()))
        return sum(program.storages[i].bytes for i in {program.values[v].storage for v in values})

    def _refuse_large(self) -> None:
        """The least that judge and runner need at once: inputs of both sides, those of a later call twice, the
        candidate's outputs in the runner, in their slots and as PyTorch gives them, and the base's."""
        given = self._bytes(outputs=False)
        need, free = 4 * given + 4 * (self._bytes() - given), self._device.free_bytes()
        if need > free:
            raise DoesNotFit(f"the timing needs at least {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")

    def needed_bytes(self) -> int:
        """What judge and runner allocate at most for both sides, where no library needs more for itself."""
        programs = (loaded.program(self._reference.workload.name) for loaded in self._sides.values())
        made = sum(s.bytes for program in programs for s in program.storages if s.origin != "input")
        return made + 4 * self._bytes()

    def _fill(self, side: Side, values: list[Any] | None) -> None:
        """Inputs and program of one side; without `values` its inputs stay."""
        self.side = side
        loaded, reference, link, slots = self._sides[side], self._reference, self._link, self._open[side]
        with link.part("timed write"):
            # A capture runs nothing where the program ran before, and then the candidate has no use for these inputs.
            slots.write(values if side == "b" or side not in self._loaded else None, reference.state)
            slots.arm()
        if side not in self._loaded:
            link.load(side, loaded.text, loaded.blobs, reference.workload.name)
            self._loaded.add(side)
        if side == "a" and self.alternatives():
            link.choose(side, self.choice)
        link.bind(side, slots.inputs, slots.state, slots.outputs, seed=reference.init_seed, setup=True, poison=False)

    def _inputs(self, salt: str) -> list[Any]:
        return self._reference.inputs("task", f"{self._salt} {salt}")

    def _refresh(self, salt: str, calls: int, looked: int) -> tuple[Expected | None, list[Sealed]]:
        """Other inputs for each call of the candidate than those that its captures ran on, those of all but the first
        call sealed. Gives what call `looked` must come to, and the sealed ones.
        """
        made = self._reference.draw("task", f"{self._salt} {salt} call {looked}") if looked >= 0 else None
        wants = want_values(self._program, self._program.inputs)
        later, sealed = self._room_for(wants * (calls - 1)), []
        for call in range(calls):
            values = made.inputs if made is not None and call == looked else self._inputs(f"{salt} call {call}")
            here = slice((call - 1) * len(wants), call * len(wants))
            with self._link.part("timed write"):
                if not call:
                    for slot, tensor in zip(self._open["a"].inputs.views, leaves(values), strict=True):
                        write(slot, tensor)
                    continue
                sealed.append(Sealed(later.places[here], secrets.randbits(62)))
                for place, tensor in zip(range(here.start, here.stop), leaves(values), strict=True):
                    _write_sealed(later, place, tensor, sealed[-1].key)
        return made, sealed

    def _room_for(self, wants: list[Want]) -> Arena:
        """Shared memory for the inputs of later calls, that of the last block where it is large enough."""
        if self._later is None or len(self._later.places) < len(wants):
            with self._link.part("timed slots"):
                if self._later is not None:
                    self._later.close()
                self._later = Arena(self._device, 2 * _STEP, wants)
                self._link.map([self._later])
        return self._later

    def _capture(self, side: Side) -> bool:
        self.side = side
        return self._link.capture(side)

    def _check(self, made: Expected) -> None:
        slots, reference = self._open["a"], self._reference
        for held in self._open.values():
            if broken := held.broken():
                raise TimedWrong(broken)
        base = self._open["b"]
        if self._given and set(base.changed(self._given)) - set(base.program.mutated_inputs):
            raise TimedWrong("a kernel wrote into the inputs of the base")
        program = slots.program
        outputs, checks = compared(program, slots.outputs.views, made, reference, "timed")
        if checks is None:
            if self._device.free_bytes() < 8 * self._bytes():
                self.close()  # the float64 reference needs the room
            checks = in_full(program, outputs, made, reference, "timed")
        for check in checks:
            if not check["passed"]:
                raise TimedWrong(f"output {check['output']} of a timed call: {check['reason']}")

    def _adapt(self, pairs: tuple[tuple[float, float], ...]) -> None:
        """Pairs of the next block: an even number that takes about BLOCK_SECONDS."""
        one = sum(median(side) for side in zip(*pairs, strict=True))
        count = int(BLOCK_SECONDS / max(one, 1e-6)) // 2 * 2
        fit = (1 + FRESH_BYTES // max(self._bytes(outputs=False), 1)) // 2 * 2
        self._pairs = max(2, min(count, fit, MOST_PAIRS))


def _write_sealed(later: Arena, place: int, tensor: Tensor, key: int) -> None:
    """In one pass where the tensor has a storage to itself that is laid out as the place."""
    slot = later.views[place]
    into = all_bytes(slot)
    alike = tensor.storage_offset() == slot.storage_offset() and tensor.stride() == slot.stride()
    if not (alike and tensor.untyped_storage().nbytes() == into.numel()):
        write(slot, tensor)
        tensor = slot
    seal(all_bytes(tensor), key, into)


def _paired(order: Sequence[Side], reply: Reply) -> tuple[tuple[float, float], ...]:
    """(candidate, base) of each pair."""
    both = [dict(zip(order[i : i + 2], reply.seconds[i : i + 2], strict=True)) for i in range(0, len(order), 2)]
    return tuple((pair["a"], pair["b"]) for pair in both)
