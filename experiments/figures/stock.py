"""The mix of candidates, traced: one pickle each in a folder, so that a machine with a GPU need not trace.

Attention comes from the template sampler, the rest from the texts of `kernels.py`. Every third candidate has one
planted mistake that compiles. Inputs and outputs take up to 1 GB, a launch has up to four alternatives, and no two
plans are equal. Read only files that you made: a pickle can run code.
"""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from experiments.figures.base import Book, Clock, Lab, Line, Row, Traced, say
from experiments.figures.kernels import FAMILIES
from experiments.suites import problem_paths, resolve
from tools.models.sampler import genome, mistakes
from tools.models.sampler.render import render
from tools.models.sampler.task import Task, read_task
from verifier.candidate import Candidate
from verifier.errors import UsageError
from verifier.plan.schema import Plan
from verifier.problem import Problem

SECONDS = 600.0
COUNT = 400
MOST_BYTES = 1 << 30
MOST_ALTERNATIVES = 4
_TRIES = 30
_REFUSED = frozenset({"compile_error", "unparsable", "rejected"})


@dataclass(frozen=True, slots=True)
class Item:
    """A traced candidate of the mix. `planted` names its mistake, empty for none."""

    number: int
    traced: Traced
    planted: str

    @property
    def source(self) -> str:
        return self.traced.kept.source


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """Traces what is missing, all cores at once."""
    folder, wanted = folder_of(lab), lab.options.count or COUNT
    folder.mkdir(parents=True, exist_ok=True)
    problems = _problems(lab)
    waiting = [i for i in range(wanted) if not _file(folder, i).exists()]
    if waiting:
        say("preparing the problems")
        with ThreadPoolExecutor(lab.options.cores) as pool:
            list(pool.map(lab.judge, problems))
    seen = {row["plan"] for row in book.rows}

    def make(number: int) -> Item | None:
        turn, which = divmod(number, len(problems))
        return _make(lab, problems[which], number, turn % 3 == 2, clock, seen)

    with ThreadPoolExecutor(lab.options.cores) as pool:
        for future in as_completed([pool.submit(make, number) for number in waiting]):
            if (item := future.result()) is not None:
                _keep(folder, item)
                problem, plan = item.traced.problem.name, item.traced.stage.report.plan
                book.add(number=item.number, problem=problem, planted=item.planted, plan=plan)
    _write_lists(folder)


def _write_lists(folder: Path) -> None:
    """`stream.jsonl` and `warm.jsonl` for `experiments.fanout`: one problem after the other, and a right candidate of
    each."""
    files = {file: read_item(file) for file in sorted(folder.glob("*.traced"))}
    files = dict(sorted(files.items(), key=lambda pair: pair[1].traced.problem.name))
    right = {item.traced.problem.name: file for file, item in files.items() if not item.planted}
    for name, chosen in (("stream", files), ("warm", right.values())):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps([str(file.resolve())])}\n" for file in chosen))


def lines(rows: Sequence[Row]) -> list[Line]:
    by = {name: sum(r["problem"] == name for r in rows) for name in sorted({r["problem"] for r in rows})}
    wrong = sum(bool(r["planted"]) for r in rows)
    return [
        Line("candidates traced", f"{len(rows)}, {wrong} with a mistake"),
        Line("by problem", ", ".join(f"{name} {n}" for name, n in by.items())),
    ]


def folder_of(lab: Lab) -> Path:
    return lab.options.stock or lab.options.out / "stock"


def items(lab: Lab) -> list[Item]:
    """All of the folder, as many as are asked for, in the order of a stream. Raises UsageError."""
    files = sorted(folder_of(lab).glob("*.traced"))[: lab.options.count or COUNT]
    if not files:
        raise UsageError(f"{folder_of(lab)} holds no traced candidates", next_step="make them with the figure stock")
    return in_runs([read_item(f) for f in files])


def read_item(file: Path) -> Item:
    """One traced candidate; a file that you made."""
    found: Item = pickle.loads(file.read_bytes())
    return found


def in_runs(found: Sequence[Item]) -> list[Item]:
    """Runs of one problem, two for each, shuffled inside."""
    mixed = random.Random(0).sample(found, len(found))
    names = sorted({item.traced.problem.name for item in mixed})
    groups = [[item for item in mixed if item.traced.problem.name == name] for name in names]
    halves = [(g[: len(g) // 2], g[len(g) // 2 :]) for g in groups]
    return [item for half in (0, 1) for pair in halves for item in pair[half]]


def _problems(lab: Lab) -> list[Problem]:
    names = lab.options.problems or (*FAMILIES, *sorted(problem_paths("attention")))
    small = 256 if lab.options.small else None
    return [FAMILIES[n].problem(n, small) if n in FAMILIES else resolve(n) for n in names]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.traced"


def _keep(folder: Path, item: Item) -> None:
    part = folder / f"{item.number:04d}.part"
    part.write_bytes(pickle.dumps(item))
    os.replace(part, _file(folder, item.number))


def _make(lab: Lab, problem: Problem, number: int, plant: bool, clock: Clock, seen: set[str]) -> Item | None:
    """A candidate that traces, None where the clock has run out or none did."""
    for source, planted in _drafts(problem, number, plant):
        if clock.left < 0:
            return None
        stage = lab.judge(problem).compile(Candidate(source=source))
        if stage.status is None and stage.report.plan not in seen and fits(stage.handle.plan):
            seen.add(stage.report.plan or "")
            return Item(number, Traced(problem, stage), planted)
    say(f"no candidate {number} for {problem.name}")
    return None


def fits(plan: Plan) -> bool:
    """Whether a plan is within the mix's limits."""
    for program in plan.programs:
        moved = {program.values[v].storage for v in (*program.inputs, *program.output_values())}
        if sum(program.storages[i].bytes for i in moved) > MOST_BYTES:
            return False
        if any(len(step.alternatives) > MOST_ALTERNATIVES for step in program.launches()):
            return False
    return True


def _drafts(problem: Problem, number: int, plant: bool) -> Iterator[tuple[str, str]]:
    """Sources with the name of the mistake in each."""
    task = None if problem.name in FAMILIES else read_task(problem.source)
    for turn in range(_TRIES):
        rng = random.Random(f"{problem.name}/{number}/{turn}")
        yield _plain(problem.name, rng, plant) if task is None else _sampled(task, rng, plant)


def _plain(name: str, rng: random.Random, plant: bool) -> tuple[str, str]:
    family = FAMILIES[name]
    source, planted = family.source, ""
    for old, new in (rng.choice(choice) for choice in family.choices):
        source = source.replace(old, new)
    if plant:
        old, new = rng.choice([m for m in family.mistakes if m[0] in source])
        source, planted = source.replace(old, new), f"{old} -> {new}"
    return source, planted


def _sampled(task: Task, rng: random.Random, plant: bool) -> tuple[str, str]:
    drawn = genome.draw(rng)
    while not genome.sensible(drawn, task.head_dim, task.item) or drawn.variant == "whole_row":
        drawn = genome.draw(rng)
    if not plant:
        return render(drawn, task), ""
    names = [n for n in mistakes.possible(drawn, task) if not mistakes.MISTAKES[n].symptoms & _REFUSED]
    name = rng.choices(names, [mistakes.MISTAKES[n].weight for n in names])[0]
    return render(drawn.with_mistakes([name]), task), name
