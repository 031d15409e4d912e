"""The references that a judge keeps from visit to visit, with what they gave.

The task's own distribution is drawn anew for each visit. The other distributions are drawn once for a problem and seed:
what a candidate leaves in its runner's memory could tell a later one their answers, never those of the task.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from verifier.gpu.device import Device
from verifier.gpu.parts import Parts
from verifier.problem import Problem, Workload
from verifier.reference import Expected, Probe, Reference, Skip, bytes_of

CACHE_BYTES = 8 << 30
"""Of inputs and expected values that a judge keeps for the next visit with the same seed, where the device has no
memory of its own."""
_SHARE = 0.25
"""Of a GPU's memory, for the same: a fleet judges several problems in turn, and each may take gigabytes."""
_PROBE_BYTES = 32 << 20
REFERENCES = 64
"""References that a judge keeps, with their weights on the device."""


class Stochastic(Exception):
    """The reference is random given its inputs."""


_Key = tuple[str, str, int]
"""Problem, workload, seed."""


class References:
    """References by problem, workload and seed, the last few; and their draws, the last that fit in `most` bytes."""

    def __init__(self, device: torch.device, most: int | None = None) -> None:
        self._device, self._most = device, most or _most(device)
        self._held: OrderedDict[_Key, Reference] = OrderedDict()
        self._draws: OrderedDict[tuple[_Key, str, str], Expected | str] = OrderedDict()
        self._sizes: dict[tuple[_Key, str, str], int] = {}
        """Of draws, as of when the next one was asked for."""
        self._asked: tuple[_Key, str, str] | None = None
        self._probes: dict[_Key, Probe | None] = {}
        self._repeatable: set[tuple[str, str]] = set()
        self.part = Parts()

    def get(self, problem: Problem, workload: Workload, seed: int) -> Reference:
        """Builds it on first use. Raises ProblemError, Stochastic."""
        key = (problem.id, workload.name, seed)
        if key not in self._held:
            made = Reference.create(problem, workload, seed, self._device)
            if key[:2] not in self._repeatable and made.stochastic():
                raise Stochastic("the reference is random given its inputs")
            self._repeatable.add(key[:2])
            self._held[key] = made
            while len(self._held) > REFERENCES or (len(self._held) > 1 and self._weights() > self._most // 4):
                self._forget(self._held.popitem(last=False)[0])
        self._held.move_to_end(key)
        held = self._held[key]
        held.part = self.part
        return held

    def draw(self, reference: Reference, name: str, salt: str) -> Expected | str:
        """A draw, or why the reference cannot take it. `salt` makes the task's own values new; the other distributions
        are drawn once."""
        of = (reference.problem.id, reference.workload.name, reference.seed)
        key = (of, name, salt if name == "task" else "")
        if self._asked is not None and self._asked in self._draws:  # its expected values may have been made since then
            self._sizes[self._asked] = _size(self._draws[self._asked])
        self._asked = key
        if key not in self._draws:
            if name == "task":
                self._forget(of, name)
            made: Expected | str
            try:
                made = reference.draw(name, key[2])
            except Skip as reason:
                made = str(reason)
            self._draws[key], self._sizes[key] = made, _size(made)
        held = self._draws[key]
        if self._sizes[key] > self._most // 8:
            del self._draws[key], self._sizes[key]
            return held
        self._draws.move_to_end(key)
        while sum(self._sizes.values()) > self._most:
            self._drop_oldest()
        return held

    def probe(self, reference: Reference) -> Probe | None:
        """The reference's; small ones, and that there is none, are kept."""
        key = (reference.problem.id, reference.workload.name, reference.seed)
        if key in self._probes:
            return self._probes[key]
        made = reference.probe()
        if made is None or bytes_of([made.inputs, made.state, made.expected]) < _PROBE_BYTES:
            self._probes[key] = made
        return made

    def make_room(self, device: Device, nbytes: int) -> None:
        """Drops draws, those that were not used for longest first, until another process could have `nbytes`."""
        while self._draws and device.free_bytes() < nbytes:
            self._drop_oldest()
        device.make_room(nbytes)

    def clear(self) -> None:
        self._probes.clear()
        self._held.clear()
        self._draws.clear()
        self._sizes.clear()

    def _weights(self) -> int:
        return sum(bytes_of(held.state) for held in self._held.values())

    def _drop_oldest(self) -> None:
        key, _ = self._draws.popitem(last=False)
        del self._sizes[key]

    def _forget(self, key: _Key, name: str = "") -> None:
        if not name:
            self._probes.pop(key, None)
        for draw in [d for d in self._draws if d[0] == key and d[1].startswith(name)]:
            del self._draws[draw], self._sizes[draw]


def _most(device: torch.device) -> int:
    return int(_SHARE * torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else CACHE_BYTES


def _size(made: Expected | str) -> int:
    return 0 if isinstance(made, str) else made.nbytes
