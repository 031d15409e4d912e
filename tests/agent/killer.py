"""Runs a search in forked children and kills them. Started by test_kill.py in a fresh process: `python
killer.py FOLDER SEED`.

One import for all children, so that fifty kills take seconds. Every second run measures on a scripted GPU. Prints
one JSON line per run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from agent.journal import read_events
from agent.prompting import Prompts
from agent.record import load_run
from agent.run_folder import RunFolder
from agent.search import search
from agent.session import Deps
from agent.testing import PROBLEM, ScriptedBench, ScriptedGpu, ScriptedModel, Wander, make_run
from strategies.base import Operator
from tools.fleet.local import LocalFleet
from tools.models.store import CompletionStore

ATTEMPTS = 4
PROMPTS = Prompts()


def run(path: Path) -> None:
    """One session in this process, to its end."""

    async def session() -> None:
        model = ScriptedModel(delay=lambda request: 0.01, log=path / "asked.log")
        devices = [ScriptedGpu(seconds=0.003)] if RunFolder.open(path).manifest.measured else []
        with LocalFleet(ScriptedBench(), 2, devices) as fleet:
            deps = Deps(Wander(ATTEMPTS), model, fleet, prompts=PROMPTS)
            await search(RunFolder.open(path), deps)

    asyncio.run(session())


def child(path: Path, kill_after: float | None) -> bool:
    """Runs a session in a fork; True when it ended by itself."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(path)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"a session of {path} failed")
    return os.WIFEXITED(status)


def stored(path: Path) -> set[str]:
    return {d.request for d in CompletionStore(path).dispatches() if d.state == "answered"}


def asked(path: Path) -> Counter[str]:
    log = path / "asked.log"
    return Counter(line.split()[1] for line in log.read_text().splitlines()) if log.exists() else Counter()


def archive(path: Path) -> list[object]:
    keys = ("attempt", "status", "score", "candidate", "repairs", "duplicate_of", "confirmed")
    return [[e[k] for k in keys] for e in read_events(path / "journal.jsonl")[0] if e["t"] == "outcome"]


def gpu_faults(path: Path) -> list[str]:
    """What is wrong with the GPU seconds: each verdict's are charged, once, and nothing else is."""
    record = load_run(path)
    told = [sum(turn.gpu.values()) for attempt in record.attempts for turn in attempt.turns]
    charged = [turn.charge.gpu_seconds for attempt in record.attempts for turn in attempt.turns]
    if any(abs(a - b) > 1e-9 for a, b in zip(told, charged, strict=True)):
        return [f"GPU seconds {told} were charged as {charged}"]
    if abs(record.spent.gpu_seconds - sum(told)) > 1e-9 or record.reserved.gpu_seconds:
        return [f"GPU seconds {sum(told)} are {record.spent.gpu_seconds}, {record.reserved.gpu_seconds} reserved"]
    return []


def main(folder: Path, kills: int) -> None:
    for operator in Operator:  # compiles the templates before the forks
        PROMPTS.user(operator, PROBLEM)
    expected: dict[bool, list[object]] = {}
    for measured in (True, False):
        make_run(folder / f"whole{measured}", measured=measured)
        start = time.monotonic()
        child(folder / f"whole{measured}", None)
        expected[measured] = archive(folder / f"whole{measured}")
    whole, draw, done, number = time.monotonic() - start, random.Random(), 0, 0
    while done < kills:
        number += 1
        path = folder / f"run{number}"
        measured = number % 2 == 0
        make_run(path, measured=measured)
        faults: list[str] = []
        for _ in range(5):
            before = read_prefix(path)
            if child(path, draw.uniform(0.0, 0.8 * whole)):
                break
            done += 1
            after = read_prefix(path)
            if after[: len(before)] != before:
                faults.append("the journal's prefix changed")
        kept, seen = stored(path), asked(path)
        child(path, None)
        lost = Counter(e["key"].partition("@")[0] for e in read_prefix(path) if e["t"] == "lost")
        faults += [f"{name} was stored and asked again" for name in kept if asked(path)[name] != seen[name]]
        faults += [f"{n} asked {k} times, {lost[n]} lost" for n, k in asked(path).items() if k > 1 + lost[n]]
        if archive(path) != expected[measured]:
            faults.append(f"the archive differs: {archive(path)} is not {expected[measured]}")
        faults += gpu_faults(path)
        print(
            json.dumps({"run": number, "kills": done, "faults": faults, "lost": sum(lost.values())}),
            flush=True,
        )


def read_prefix(path: Path) -> list[dict[str, object]]:
    journal = path / "journal.jsonl"
    return read_events(journal)[0] if journal.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
