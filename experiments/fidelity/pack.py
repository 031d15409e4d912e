"""Packs answers and the problems that they answer into one folder for another machine, equal files once.

    PACKED/index.json   PACKED/answers/<id>.py   PACKED/problems/<id>.py   PACKED/plans.zip

With plans, each answer is traced here, and a plan that is read without objection travels too: the other machine then
replays what another version of Triton made.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from experiments.fidelity.answers import Answer, find_answers
from experiments.fidelity.plans import PlanFile
from experiments.fidelity.trace import Row, inspector, trace
from experiments.kernelbench import load_kernelbench
from verifier.errors import ProblemError, UsageError
from verifier.judge import COMPILE_PRELOAD
from verifier.loader import load_problem
from verifier.problem import Problem
from verifier.sandbox.zygote import Zygote
from verifier.verdict import Record

INDEX, PLANS, ROWS = "index.json", "plans.zip", "rows.json"


class Entry(Record):
    """One packed answer: a program and a problem, however many files held it."""

    answer: str
    """Name of the file in `answers/`, without suffix: the start of its SHA-256."""
    source: str
    """Name of the problem's file in `problems/`."""
    problem: str
    names: tuple[str, ...]
    """`folder/file` of every copy."""
    recorded: Literal["ran", "failed", ""] = ""
    """What its author's machine said, where that is known."""

    @property
    def id(self) -> str:
        return f"{self.answer}-{self.source}"

    @property
    def folder(self) -> str:
        return self.names[0].partition("/")[0]

    @property
    def file(self) -> str:
        return self.names[0].partition("/")[2]


def pack(pairs: Sequence[tuple[Path, Path]], to: Path, recorded: Mapping[str, bool]) -> list[Entry]:
    """Copies the answers of each (folder, checkout). `recorded`: `folder/file` to whether it ran. UsageError."""
    entries: dict[str, Entry] = {}
    for folder, checkout in pairs:
        for answer in find_answers(folder):
            entry = _packed(answer, load_kernelbench(answer.problem, checkout), to, recorded)
            known = entries.get(entry.id)
            if known is not None:
                entry = known.model_copy(update={"names": (*known.names, *entry.names)})
            entries[entry.id] = entry
    write_index(to, entries.values())
    return list(entries.values())


def _packed(answer: Answer, problem: Problem, to: Path, recorded: Mapping[str, bool]) -> Entry:
    name = f"{answer.folder}/{answer.path.name}"
    ran = {True: "ran", False: "failed", None: ""}[recorded.get(name)]
    return Entry.model_validate({
        "answer": _stored(to / "answers", answer.path.read_bytes()),
        "source": _stored(to / "problems", problem.source.encode()),
        "problem": answer.problem, "names": (name,), "recorded": ran,
    })  # fmt: skip


def _stored(folder: Path, data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_bytes(data)
    return name


def write_index(packed: Path, entries: Iterable[Entry]) -> None:
    (packed / INDEX).write_text(json.dumps([e.model_dump(mode="json") for e in entries], indent=0))


def read_index(packed: Path) -> list[Entry]:
    """Entries of a packed folder. Raises UsageError where there is none."""
    try:
        return [Entry.model_validate(e) for e in json.loads((packed / INDEX).read_text())]
    except FileNotFoundError:
        raise UsageError(f"{packed} is no packed folder", next_step="make one with the command `pack`") from None


def answer_of(packed: Path, entry: Entry) -> Answer:
    return Answer(path=packed / "answers" / f"{entry.answer}.py", folder=entry.folder, problem=entry.problem)


def problem_of(packed: Path, entry: Entry) -> Problem:
    """The problem of an entry. Raises ProblemError."""
    return load_problem(packed / "problems" / f"{entry.source}.py", entry.problem)


def add_plans(packed: Path, seconds: float) -> None:
    """Traces entries that have no row yet and keeps the plans; rows go to `rows.json`. Begins none after `seconds`."""
    end = time.monotonic() + seconds
    plans = PlanFile(packed / PLANS, squeeze=True)
    rows = _old_rows(packed / ROWS)
    waiting = [e for e in read_index(packed) if e.id not in rows]
    with Zygote(preload=COMPILE_PRELOAD) as zygote:
        inspect = inspector(zygote)
        for number, entry in enumerate(waiting, 1):
            if time.monotonic() > end:
                break
            try:
                problem = problem_of(packed, entry)
                row, job = trace(zygote, answer_of(packed, entry), problem, inspect(problem))
            except ProblemError as error:
                print(f"{entry.names[0]}: {error}", file=sys.stderr)
                continue
            if row.kind == "traced":
                plans.add(entry.id, job.value["plan"], job.blobs)
            rows[entry.id] = row.model_copy(update={"folder": entry.folder, "file": entry.file})
            _keep_rows(packed / ROWS, rows)
            print(f"{number}/{len(waiting)} {entry.names[0]}: {row.status}", file=sys.stderr)


def _old_rows(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    return {key: Row.model_validate(row) for key, row in json.loads(path.read_text()).items()}


def _keep_rows(path: Path, rows: Mapping[str, Row]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({key: row.model_dump(mode="json") for key, row in rows.items()}))
    os.replace(part, path)
