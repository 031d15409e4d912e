"""Time by the judge's own clock, for what runs in a process that nobody believes.

One call at a time, from go to done, each on inputs that were never used before. They are written by a kernel of the
judge right before go: meanwhile the GPU serves no other process, so nobody sees a part of them early. Outputs are
poisoned before; right after done a copy engine takes parts of them, and they are copied away as a whole. So

- an early done shows: the parts differ from what is there in the end, or all is still poison. That holds for each call;
- answers that are remembered, by address or by content, are answers to other inputs: outputs of some calls, which only
  the judge knows, are compared like any other;
- work that runs before go keeps the judge's own kernels waiting, which shows (`disturbed`).

Handing the GPU over between processes takes more than 0.1 ms, in calls of both sides. Calls of next to nothing in the
base's runner, beside each pair, say how much, and that is subtracted. What is left holds the start of kernels and the
Python of both sides.

What this does not see: up to `HIDDEN_SECONDS` of a call can hide between the last byte of the inputs and go, and
between done and the copy engine's reading. Both sides' times hold a copy of their outputs into slots, which a candidate
that finds its slots could leave out (`copy_seconds`). No claim is made of a gain that the two together could explain,
and none of a candidate that takes less than the former (`too_short`). Several calls in one window would be told apart
more finely, but one who knows that they come could do them at once.
Memory stays where it is for the whole comparison. Inputs were just written on both sides, so small ones come from the
cache.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeVar

import torch
from torch import Tensor

from verifier.gpu.check import Loaded, Slots, in_full, write
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.memory import poison_byte
from verifier.gpu.pairs import TimedWrong
from verifier.reference import Reference
from verifier.specs import leaves
from verifier.timing import RULES, Block, Rules, Timing, candidate_first

HIDDEN_SECONDS = 6e-5
"""What a liar may gain in one call."""
_MARGIN = math.log(1.02)
"""A host's clock is coarser than a GPU's, and neither side's memory moves between blocks."""
BLOCK_SECONDS = 0.1
MOST_PAIRS = 16
_NEAR_SECONDS = 2e-4
_LEAST_SECONDS = 1e-6
_PEEKS, _PEEK_BYTES = 6, 16 << 10
"""Parts of each output that are looked at right after done."""
_BUSY_SECONDS = 5e-4
_LEAST_ELEMENTS = 16
"""Fewer may by chance be what poison is."""
_STEP = 8
_COPIES = 5
R = TypeVar("R", bound=Rules)
Side = Literal["a", "b"]


@dataclass
class Contender:
    """One side: its process and what it runs."""

    side: Side
    link: Link
    loaded: Loaded
    choice: Mapping[int, int] = field(default_factory=dict)
    slots: Slots | None = None
    graph: bool = False


class HostPairs:
    """Blocks of one workload for `verifier.timing`. Raises RunnerFailed (`side` says whose), TimedWrong,
    OutOfMemoryError.
    """

    def __init__(self, device: Device, reference: Reference, base: Contender, salt: str = "") -> None:
        """`salt` of this visit's inputs."""
        self._device, self._reference, self._salt = device, reference, salt
        self._base = base
        self._candidate: Contender | None = None
        self.side: Side = "b"
        """Whose process is at work."""
        self.base_seconds: list[float] = []
        """Of the base in blocks so far."""
        self._kept: dict[Side, list[Tensor]] = {}
        self._writes: dict[Side, list[float]] = {"a": [], "b": []}
        """Seconds that writing inputs took, right before each call."""
        self._pairs, self._coins = 2, secrets.randbits(64)
        self.repeats = 1
        """Runs of a program in one call. More than one tell shorter times apart, and let a liar leave the others out:
        only where nothing is claimed."""

    @property
    def graphs(self) -> tuple[bool, bool]:
        """Whether candidate and base run as CUDA graphs."""
        assert self._candidate is not None
        return self._candidate.graph, self._base.graph

    def open(self, candidate: Contender | None = None, *, alike: bool = False) -> None:
        """Memory and programs of both sides, or of the base alone. `alike`: as graphs only if both can be."""
        self._candidate = candidate
        contenders = self._contenders()
        for number, contender in enumerate(contenders):
            self._fill(contender, number * _STEP)
        for contender in contenders:
            self.side = contender.side
            contender.graph = contender.link.capture(contender.side)
        if alike and len({c.graph for c in contenders}) > 1:
            for contender in contenders:
                self.side = contender.side
                contender.graph = contender.link.capture(contender.side, graph=False)

    def rules(self, rules: Rules) -> Rules:
        """For the decision; where the request has no rules of its own, coarser by what the judge's clock cannot see.
        One that is far behind has all of its blocks: what its calls leave out shows in their number.
        """
        whole = {"spread": 0.0}
        if rules != RULES:
            return rules.model_copy(update=whole)
        return self.coarser(rules).model_copy(update={**whole, "max_seconds": 2.0, "max_blocks": 32})

    def coarser(self, rules: R) -> R:
        """The rules with a wider margin, and intervals no narrower than what a liar may gain. Uneven times are the
        host's own; each call is looked at, so nobody leaves its work out.
        """
        hidden = HIDDEN_SECONDS + self.copy_seconds()
        return rules.model_copy(update={"margin": _MARGIN, "resolution": hidden, "uneven": 0.0})

    def copy_seconds(self) -> float:
        """What copying the candidate's outputs takes, on a GPU that does nothing else."""
        assert self._candidate is not None
        found = []
        for _ in range(_COPIES):
            start = time.perf_counter()
            for copy, view in zip(self._kept["a"], self._slots(self._candidate).outputs.views, strict=True):
                copy.copy_(view)
            self._device.synchronize()
            found.append(time.perf_counter() - start)
        return min(found)

    def measure(self, index: int) -> Block:
        """One block. Some of the candidate's calls are checked, nobody knows which."""
        assert self._candidate is not None
        count, late = self._pairs, not candidate_first(index, self._coins)
        checked = set(secrets.SystemRandom().sample(range(count), min(count, max(2, count // 4))))
        with self._calling(count):
            rows = [self._pair(f"block {index} {i}", i + late, check=i in checked) for i in range(count)]
        if broken := self._slots(self._candidate).broken():
            raise TimedWrong(broken)
        frame, least = _quartile([frame for _, _, frame in rows]), self.repeats * _LEAST_SECONDS
        pairs = tuple((max(a - frame, least) / self.repeats, max(b - frame, least) / self.repeats) for a, b, _ in rows)
        self.base_seconds.append(median(b for _, b in pairs))
        self._adapt(sum(map(sum, rows)) / count)
        return Block(pairs)

    def disturbed(self, alone: float, most: float) -> str:
        """Why the times cannot stand, in words; empty where they can. The base takes `most` times what it takes alone,
        or the judge's kernels wait for somebody's before the candidate's calls and not before the base's.
        """
        slow, ours, others = median(self.base_seconds), median(self._writes["a"]), median(self._writes["b"])
        if slow > most * alone and slow - alone > HIDDEN_SECONDS:
            return f"the base takes {slow * 1e6:.0f} us beside the candidate and {alone * 1e6:.0f} us alone"
        if ours > most * others + _BUSY_SECONDS:
            return "the GPU is busy with the candidate's work before it is asked for any"
        return ""

    def alone(self, blocks: int = 2) -> float:
        """Median time of the base while no candidate is loaded anywhere. Seconds."""
        found = []
        for index in range(blocks):
            with self._calling(self._pairs):
                rows = []
                for i in range(self._pairs):
                    frame = self._call(self._base, f"alone {index} {i} idle")
                    rows.append((self._call(self._base, f"alone {index} {i}"), frame))
            frame = _quartile([frame for _, frame in rows])
            found += [max(total - frame, _LEAST_SECONDS) for total, _ in rows]
            self._adapt(sum(map(sum, rows)) / len(rows))
        return median(found)

    def close(self) -> None:
        """Drops everything from both processes and frees the slots. Raises RunnerFailed."""
        failed: RunnerFailed | None = None
        self._kept.clear()
        for contender in self._contenders():
            if contender.slots is None:
                continue
            try:
                contender.link.drop()
            except RunnerFailed as error:
                self.side, failed = contender.side, error
            contender.slots.close()
            contender.slots = None
        if failed is not None:
            raise failed

    # -- one call ----------------------------------------------------------------------------------

    def _pair(self, salt: str, number: int, *, check: bool) -> tuple[float, float, float]:
        """Seconds of a call of the candidate, which goes first if `number` is even, of the base, and of one of next to
        nothing."""
        assert self._candidate is not None
        found: dict[Side, float] = {}
        frame = self._call(self._base, f"{salt} idle")
        for contender in (self._candidate, self._base)[:: 1 if number % 2 == 0 else -1]:
            found[contender.side] = self._call(contender, f"{salt} {contender.side}")
            if check and contender is self._candidate:
                self._check(contender, f"{salt} a")
        return found["a"], found["b"], frame

    def _call(self, contender: Contender, salt: str) -> float:
        """Seconds from go to done on new inputs. The runner knows by its number which call is to do nothing."""
        self.side = side = contender.side
        slots, kept = self._slots(contender), self._kept[side]
        given = list(leaves(self._reference.inputs("task", f"{self._salt} {salt}")))
        slots.poison()
        looks = [_parts(view) for view in slots.outputs.views]
        parts = [part for some in looks for part in some]
        contender.link.near()
        self._device.synchronize()
        _spin(_NEAR_SECONDS)
        start = time.perf_counter()
        for slot, tensor in zip(slots.inputs.views, given, strict=True):
            write(slot, tensor)
        self._device.synchronize()
        self._writes[side].append(time.perf_counter() - start)
        seconds = contender.link.call()
        seen = self._device.peek(parts)
        for copy, view in zip(kept, slots.outputs.views, strict=True):
            copy.copy_(view)
        self._device.synchronize()
        same = (torch.equal(now.cpu(), before) for now, before in zip(parts, seen, strict=True))
        if contender is self._candidate:
            if not all(same):
                raise TimedWrong("an output of a timed call changes after it says that it is done")
            if any(_poisoned(v, some) for v, some in zip(slots.outputs.views, looks, strict=True)):
                raise TimedWrong("an output of a timed call was not written")
        return seconds

    def _check(self, contender: Contender, salt: str) -> None:
        """Compares what was copied away right after the last call."""
        reference = self._reference
        made = reference.draw("task", f"{self._salt} {salt}")
        for check in in_full(self._slots(contender).program, self._kept[contender.side], made, reference, "timed"):
            if not check["passed"]:
                raise TimedWrong(f"output {check['output']} of a timed call: {check['reason']}")

    @contextmanager
    def _calling(self, count: int) -> Iterator[None]:
        """Both sides are ready for `count` calls each, and the base for as many idle ones in between."""
        begun: list[Link] = []
        try:
            for contender in self._contenders():
                self.side = contender.side
                base = contender is self._base
                calls = 2 * count if base else count
                contender.link.begin_calls(contender.side, calls, idle=base, repeats=self.repeats)
                begun.append(contender.link)
            yield
        except BaseException:
            for link in begun:
                with suppress(RunnerFailed):
                    link.end_calls()
            raise
        for contender in self._contenders():
            self.side = contender.side
            contender.link.end_calls()

    # -- memory ------------------------------------------------------------------------------------

    def _fill(self, contender: Contender, number: int) -> None:
        """Slots, inputs and program of one side; block numbers begin at `number`."""
        self.side = side = contender.side
        loaded, reference, link = contender.loaded, self._reference, contender.link
        slots = contender.slots = Slots(
            self._device, loaded.program(reference.workload.name), reference.state, number
        )  # fmt: skip
        slots.write(reference.inputs("task", f"{self._salt} open {side}"), reference.state)
        slots.arm()
        link.load(side, loaded.text, loaded.blobs, reference.workload.name)
        link.map(slots.arenas)
        if contender.choice:
            link.choose(side, contender.choice)
        link.bind(side, slots.inputs, slots.state, slots.outputs, seed=reference.init_seed, setup=True, poison=False)
        self._kept[side] = [view.clone() for view in slots.outputs.views]

    def _contenders(self) -> Sequence[Contender]:
        return [self._base] if self._candidate is None else [self._candidate, self._base]

    def _slots(self, contender: Contender) -> Slots:
        assert contender.slots is not None
        return contender.slots

    def _adapt(self, one: float) -> None:
        """Pairs of the next block: an even number whose calls take about `BLOCK_SECONDS`."""
        self._pairs = min(max(int(BLOCK_SECONDS / max(one, 1e-6)) // 2 * 2, 2), MOST_PAIRS)


def too_short(timing: Timing) -> str:
    """Why no claim is made of these times, in words; empty where they are long enough for the judge's clock."""
    taken, base = timing.candidate_seconds, timing.base_seconds
    if taken is None or base is None or taken >= HIDDEN_SECONDS:
        return ""
    us, beside, least = (1e6 * seconds for seconds in (taken, base, HIDDEN_SECONDS))
    return (
        f"about {us:.0f} us, and {beside:.0f} us of its base, are too short for the judge's clock: under {least:.0f} us"
    )


def _parts(view: Tensor) -> list[Tensor]:
    """Some places of a dense tensor, as bytes: both ends, and others that are drawn anew."""
    flat = view.reshape(-1).view(torch.uint8)
    size = min(_PEEK_BYTES, flat.numel())
    room = flat.numel() - size
    starts = {0, room, *(secrets.randbelow(room + 1) for _ in range(_PEEKS - 2))}
    return [flat[at : at + size] for at in sorted(starts, key=lambda _: secrets.randbits(32))]


def _poisoned(view: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether the parts of an output hold what `Slots.poison` put there, all of them."""
    byte = poison_byte(view.dtype)
    return view.numel() >= _LEAST_ELEMENTS and all(bool((part == byte).all()) for part in parts)


def _quartile(values: Sequence[float]) -> float:
    """The lower one: a busy host makes windows longer, never shorter."""
    return sorted(values)[(len(values) - 1) // 4]


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
