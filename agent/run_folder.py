"""A run on disk.

    manifest.json      what the run is: everything that can change its result
    journal.jsonl      what happened, the source of truth (journal.py)
    blobs/             prompts, completions, sources, verdicts, by SHA-256
    completions/       what the gateway received (tools/models/store.py)
    checkpoint.sqlite  half-finished attempts; a cache that may be deleted
    best/NAME.py       the best candidate, runs without this project; best/verdict.json beside it; where the file itself
                       does not do what its plan does, what was judged is best/plan, started by best/replay.py
    requests.jsonl     of a batch run: what waits for an answer
    report.html

Nothing in it names the machine's folders or holds a key, so that two machines can take turns on one run.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from agent.blobs import BlobStore, write_atomic
from agent.budget import Budget
from agent.journal import read_events
from tools.models.base import ModelProfile, Sampling
from verifier.errors import StorageError, UsageError
from verifier.gpu.replay_folder import unpack_folder
from verifier.gpu.ship import write_launcher
from verifier.problem import Problem
from verifier.verdict import Record, Verdict

_LAUNCHER = '''\
"""What was judged: the plan beside this file, run once by warpsmith's own code on inputs of the problem.

    python replay.py        # needs torch and an NVIDIA GPU of the plan's architecture; `lib` is what it needs of ours

`kernel.py` beside it has the plan as a PyTorch module.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "lib"))

from verifier.gpu.replay_once import main

sys.argv[1:] = [str(Path(__file__).parent / "plan")]
sys.exit(main())
'''


class TargetFacts(Record):
    """The target as prompts and reports name it."""

    name: str
    facts: dict[str, str] = Field(default_factory=dict)
    """Limit to value with its unit, for example "shared memory per block": "232448 bytes"."""


class Manifest(Record):
    """All that can change the result of a run, and what identifies it."""

    format: int = 1
    run: str
    """Name of the run; also the first part of the checkpoint's thread ids."""
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    problem: Problem
    problem_id: str
    model_spec: str = ""
    """The model as it was asked for, for example `batch:deepseek`."""
    model: ModelProfile
    """The default model with its pinned prices; a profile never holds a key."""
    models: dict[str, ModelProfile] = Field(default_factory=dict)
    """Further models that proposals may name."""
    strategy: str
    """The specification, for example `beam(width=4,branching=3)`."""
    budget: Budget
    seed: int = 0
    width: int = Field(default=1, gt=0)
    """Attempts in flight at most."""
    max_repairs: int = Field(default=1, ge=0)
    sampling: Sampling = Sampling()
    target: TargetFacts
    measured: bool = False
    """Candidates are judged and timed on GPUs from the start; otherwise by the interpreter, with estimated times, until
    the journal says that they are judged anew."""
    examine: bool = True
    """A new best of a measured run gets a closer look: hardware counters and sanitizer."""
    tuned: str | None = None
    """Digest of the tuned plan of the problem's baseline that they are timed against; None for the plan as traced."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package to version; `triton` is shown to the model."""
    prompts: str
    """Digest of the prompt templates."""
    isolation: tuple[str, ...] = ()
    """What the sandbox cannot give here."""
    machine: dict[str, str] = Field(default_factory=dict)
    """Kernel, processor and the like."""
    init: str | None = None
    """Blob of the given first candidate."""


class RunFolder:
    """Paths of one run and its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.blobs = BlobStore(path / "blobs")
        self.journal = path / "journal.jsonl"
        self.checkpoint = path / "checkpoint.sqlite"
        self.best = path / "best"

    @classmethod
    def create(cls, path: Path, manifest: Manifest, *, init: str | None = None) -> RunFolder:
        """Makes the folder and writes the manifest. `init` is the source of a given first candidate.

        Raises UsageError when there is a run already, StorageError when the folder cannot be written.
        """
        if (path / "manifest.json").exists():
            raise UsageError(f"{path} holds a run already", next_step=f"go on with: warpsmith resume {path}")
        if init is not None:
            manifest = manifest.model_copy(update={"init": BlobStore(path / "blobs").put(init)})
        text = manifest.model_dump_json(indent=2) + "\n"
        write_atomic(path / "manifest.json", text.encode(), sync=True)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Raises UsageError when the folder holds no run, StorageError when its manifest is damaged."""
        try:
            text = (path / "manifest.json").read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{path} holds no run: it has no manifest.json", next_step="name a run folder") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        try:
            return cls(path, Manifest.model_validate_json(text))
        except ValidationError as error:
            raise StorageError(
                f"{path}/manifest.json is damaged: {error.error_count()} errors",
                next_step="restore it from a copy; the journal alone cannot be resumed",
            ) from error

    def measured(self) -> bool:
        """Whether the run measures: from its beginning, or since it was judged anew. Raises StorageError."""
        if self.manifest.measured or not self.journal.exists():
            return self.manifest.measured
        return any(event["t"] == "measure" for event in read_events(self.journal)[0])

    def best_file(self) -> Path:
        """Where the best candidate is or will be."""
        return self.best / f"{best_name(self.manifest.problem.name)}.py"

    def clear_best(self) -> None:
        """Removes `best/`, where nothing is best any more."""
        shutil.rmtree(self.best, ignore_errors=True)

    def write_best(self, source: str, verdict: Verdict, plan: bytes | None = None) -> Path:
        """Replaces `best/` by this candidate and gives the path of its source. `plan`: packed, where it ships too."""
        path = self.best_file()
        if plan is None:
            shutil.rmtree(self.best / "plan", ignore_errors=True)
            shutil.rmtree(self.best / "lib", ignore_errors=True)
            for name in ("replay.py", "kernel.py"):
                (self.best / name).unlink(missing_ok=True)
        else:
            unpack_folder(plan, self.best / "plan")
            write_launcher(self.best)
            write_atomic(self.best / "replay.py", _LAUNCHER.encode())
        write_atomic(path, source.encode())
        write_atomic(self.best / "verdict.json", (verdict.model_dump_json(indent=2) + "\n").encode())
        return path


def best_name(problem: str) -> str:
    """File name for a problem: its last part with only letters, digits and underscores."""
    last = problem.replace(":", "/").rstrip("/").split("/")[-1].removesuffix(".py")
    name = re.sub(r"\W+", "_", last, flags=re.ASCII).strip("_")
    return name if name and not name[0].isdigit() else f"kernel_{name}".rstrip("_")
