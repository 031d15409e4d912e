"""Random streams of a traced file: which seed each draw comes from, so that a replay draws the same numbers.

A stream starts where something is seeded: the caller before the constructor (no seed is written down: the judge
chooses it), `torch.manual_seed`, `torch.cuda.manual_seed`, or a `torch.Generator`. Steps name their stream;
`program.py` keeps every earlier draw of a stream that set-up needs.
"""

from __future__ import annotations

from typing import Any

import torch


class Streams:
    """Streams in the order of their seeding; `draws` counts the recorded draws of each."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.draws: list[int] = []
        self.of_generator: dict[int, int] = {}
        """Stream by the address of a generator: operators get another Python object around it."""
        self.defaults: dict[int, str] = {}
        """Device by the address of the generator that stands for its default one."""
        self.default = {"cpu": self.start("cpu", None), "cuda": self.start("cuda", None)}

    def start(self, device: str, seed: int | None) -> int:
        """A new stream; its number."""
        self.entries.append({"device": device, "seed": seed})
        self.draws.append(0)
        return len(self.entries) - 1

    def restart(self, seed: int) -> None:
        """The caller seeds, before a constructor. A file that asks is told `seed`."""
        torch.default_generator.manual_seed(seed)
        self.default = {"cpu": self.start("cpu", None), "cuda": self.start("cuda", None)}

    def draw(self, generator: Any, device: str) -> int:
        """The stream that an operator on `device` draws from; `generator` is what it was given, or None.

        Raises KeyError for a generator that is not known.
        """
        device = device if generator is None else self.defaults.get(generator._cdata, "")
        number = self.default[device] if device else self.of_generator[generator._cdata]
        self.draws[number] += 1
        return number


def marker(stream: int) -> int:
    """What stands for a stream among the storages that a step reads and writes."""
    return -1 - stream
