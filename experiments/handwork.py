"""Batch runs from the command line: which requests wait, what they say, and how their answers come back."""

from __future__ import annotations

import sys
from pathlib import Path

from agent.run_folder import RunFolder
from experiments.tables import visible
from tools.models import restore_model
from tools.models.batch import Batch
from verifier.errors import UsageError


def batch_of(folder: RunFolder) -> Batch:
    """The batch model of a run. Raises UsageError for a run with another model."""
    manifest = folder.manifest
    model = restore_model(manifest.model_spec, manifest.model, folder.path)
    if not isinstance(model, Batch):
        raise UsageError(f"{folder.path} is no batch run: its model is {manifest.model_spec}")
    return model


def waiting_run(path: Path | None) -> RunFolder:
    """The run that was named, else the newest one below `runs/` that is a batch run."""
    if path is not None:
        return RunFolder.open(path)
    runs = sorted(Path("runs").glob("*/manifest.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in runs:
        folder = RunFolder.open(file.parent)
        if folder.manifest.model_spec.startswith("batch:"):
            return folder
    raise UsageError("there is no batch run below runs/", next_step="name one with --run RUN")


def waiting(folder: RunFolder) -> list[str]:
    """Ids of the requests without an answer, one line each."""
    return [request.id for request in batch_of(folder).waiting()]


def show(folder: RunFolder, request: str) -> str:
    """One request as readable text. Raises UsageError for an unknown id."""
    return visible(batch_of(folder).show(request))


def answer(folder: RunFolder, request: str, file: Path) -> str:
    """Records an answer; `-` reads standard input. Raises UsageError. Returns what to do next."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", next_step="name a UTF-8 text file") from None
    if not text.strip():
        raise UsageError(f"{file} is empty", next_step="write the whole answer with one fenced python block")
    batch = batch_of(folder)
    batch.answer(request, text)
    left = len(batch.waiting())
    return f"recorded; {left} requests still wait\nnext: warpsmith resume {folder.path}"


def take_answers(folder: RunFolder, file: Path) -> str:
    """Reads a results file into the run and says what became of each line."""
    report = batch_of(folder).read_answers(file)
    parts = [f"{len(report.accepted)} answers taken"]
    for what in ("repeated", "conflicting", "unknown", "failed", "bad_lines"):
        if found := getattr(report, what):
            parts.append(f"{len(found)} {what.replace('_', ' ')}")
    parts.append(f"{len(report.waiting)} still wait")
    lines = [f"bad line {bad.line}: {bad.reason}" for bad in report.bad_lines]
    lines += [f"failed {name}: {reason}" for name, reason in report.failed.items()]
    return "\n".join([", ".join(parts), *lines])


def instructions(folder: RunFolder) -> str:
    """Writes requests.jsonl and says how to go on."""
    batch = batch_of(folder)
    file = batch.write_requests()
    first = batch.waiting()[0].id
    return (
        f"waiting: {len(batch.waiting())} requests in {file} (OpenAI batch format)\n"
        f"by file:  run them, then: warpsmith resume {folder.path} --answers RESULTS.jsonl\n"
        f"by hand:  warpsmith batch show {first} --run {folder.path}\n"
        f"          warpsmith batch answer {first} ANSWER.txt --run {folder.path}\n"
        f"          warpsmith resume {folder.path}"
    )
