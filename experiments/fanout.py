"""Throughput of a stream of candidates over one GPU and over several, through the fleet that a search uses.

    python -m experiments.fanout                              # hosts that sleep, on logical GPUs
    python -m experiments.fanout --bench package.module:Name --method judge --arguments FILE --gpus 1,2

A host is made on each GPU by the name given with --bench, with the keyword `device` (tools/fleet/host.py). --method is
called once for each line of --arguments, a JSON list of arguments; without the file it has none. Every GPU is warmed by
calls that are not counted, those of the file --warm or the first one. Prints one line for each number of GPUs: calls,
seconds, calls per hour, GPU-seconds leased, the ratio to the first line, and the median of a call's own seconds, which
shows whether a busy neighbour slows a GPU down.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import flags
from tools.fleet.base import Fleet
from tools.fleet.host import Recipe
from tools.fleet.local import LocalFleet

SLEEPER = "experiments.fanout:Sleeper"


class Sleeper:
    """A host that takes as long as a verdict and uses nothing."""

    SECONDS = 0.2

    def __init__(self, device: str) -> None:
        """`device` is not used."""

    def judge(self) -> None:
        time.sleep(self.SECONDS)


@dataclass(frozen=True, slots=True)
class Measured:
    """One stream."""

    gpus: int
    seconds: float
    leased: float
    calls: tuple[float, ...]
    """Seconds of each call."""

    @property
    def per_hour(self) -> float:
        return 3600 * len(self.calls) / self.seconds


async def stream(
    fleet: Fleet, gpus: int, method: str, jobs: Sequence[Sequence[Any]], first: Sequence[Sequence[Any]]
) -> Measured:
    """Warms `gpus` workers with `first`, then calls `method` once for each job, as many at a time as there are GPUs."""
    leased: list[float] = []
    spans: list[float] = []

    async def one(job: Sequence[Any]) -> None:
        async with fleet.gpu() as device:
            begin = time.perf_counter()
            await device.run(method, *job)
            spans.append(time.perf_counter() - begin)
        leased.append(device.held)

    await _warm(fleet, gpus, method, first)
    begin = time.perf_counter()
    await asyncio.gather(*(one(job) for job in jobs))
    return Measured(gpus, time.perf_counter() - begin, sum(leased), tuple(spans))


async def _warm(fleet: Fleet, gpus: int, method: str, jobs: Sequence[Sequence[Any]]) -> None:
    """All calls on every GPU: none is given back before all were leased."""
    together = asyncio.Barrier(gpus)

    async def one() -> None:
        async with fleet.gpu() as device:
            for job in jobs:
                await device.run(method, *job)
            await together.wait()

    await asyncio.gather(*(one() for _ in range(gpus)))


@contextmanager
def opened(kind: str, recipe: Recipe, gpus: int, logical: int | None) -> Iterator[Fleet]:
    """A fleet of `gpus` GPU workers; `logical` GPUs are what Ray is told that the machine has."""
    if kind == "local":
        with ExitStack() as stack:
            hosts = [recipe.make(device=str(n)) for n in range(gpus)]
            for host in hosts:
                stack.callback(getattr(host, "close", lambda: None))
            yield stack.enter_context(closing(LocalFleet(None, 1, hosts)))
        return
    from tools.fleet.ray import RayFleet, ray_cluster

    with ray_cluster(kind, cpus=1, gpus=logical), closing(RayFleet(recipe, recipe, workers=1, gpus=gpus)) as many:
        yield many


def _jobs(file: Path | None) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file else [[]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", type=flags.fleet, default="ray")
    parser.add_argument("--bench", default=SLEEPER, metavar="MODULE:NAME", help="makes the host of a GPU")
    parser.add_argument("--method", default="judge", help="of the host")
    parser.add_argument("--arguments", type=Path, metavar="FILE", help="one JSON list of arguments a line")
    parser.add_argument("--warm", type=Path, metavar="FILE", help="the same, of calls that each GPU serves before")
    parser.add_argument("--candidates", type=flags.positive, default=60, help="calls; lines are used again when fewer")
    parser.add_argument("--gpus", default="1,2", help="numbers of GPUs to compare")
    args = parser.parse_args(argv)
    jobs = list(itertools.islice(itertools.cycle(_jobs(args.arguments)), args.candidates))
    first = _jobs(args.warm) if args.warm else jobs[:1]
    numbers = [flags.positive(text) for text in args.gpus.split(",")]
    alone: Measured | None = None
    for gpus in numbers:
        logical = max(numbers) if args.bench == SLEEPER else None
        with opened(args.fleet, Recipe(args.bench), gpus, logical) as fleet:
            found = asyncio.run(stream(fleet, gpus, args.method, jobs, first))
        alone = alone or found
        print(
            f"{gpus} GPU: {len(found.calls)} calls in {found.seconds:.2f} s, {found.per_hour:.0f} per hour, "
            f"{found.leased:.2f} GPU-seconds leased, {found.per_hour / alone.per_hour:.3f} x the first, "
            f"median call {1e3 * statistics.median(found.calls):.1f} ms",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
