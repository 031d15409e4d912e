"""Problems: a PyTorch reference, its inputs and the contract a candidate must keep. `loader.py` reads the files.

A problem file is KernelBench's format: a class `Model`, functions `get_inputs` and `get_init_inputs`, and
module-level constants. Our own format is the same file with optional upper-case declarations: `WORKLOADS`, `PRECISION`,
`BASELINES`, `BASELINE`, `PROMPT`, `LIBRARY`, `FLOPS`, `TITLE`. A workload overrides module-level constants by name: the
literal in `NAME = <literal>` is replaced before the file is executed, so constants derived from it follow.

The reference is the user's own code and is trusted. A candidate never sees it run.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from verifier.verdict import Record

BUILT_IN = ("eager", "compile")
"""Baselines of every problem: `Model` as it is, and `torch.compile` of it."""

Constant = int | float | bool | str | None | tuple[int | float, ...]


class Role(StrEnum):
    SMALL = "small"
    """Sized for the interpreter."""
    CHECK = "check"
    """Correctness on a GPU."""
    TIMED = "timed"
    """Correctness and timing on a GPU; the score is the mean over these."""
    HELD_OUT = "held_out"
    """Used only to confirm a new best; never shown to a model or a strategy."""


class Precision(StrEnum):
    """Precision contract: the least precise arithmetic that the problem accepts inside a kernel."""

    FP32 = "fp32"
    TF32 = "tf32"
    """fp32 inputs and outputs, TF32 products allowed: what a KernelBench fp32 file means."""
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"


class LibraryPolicy(StrEnum):
    """Whether library operators (aten) may compute."""

    FORBIDDEN = "forbidden"
    """A custom kernel must be on the way to every output, and library steps may only move or allocate data."""
    ASSIST = "assist"
    """Library compute is allowed beside custom kernels, which must be on the way to every output."""
    ALLOWED = "allowed"


class Workload(Record):
    """One set of sizes. `constants` override module-level constants of the problem file."""

    name: str
    roles: frozenset[Role]
    constants: dict[str, Constant] = Field(default_factory=dict)
    weight: float = Field(default=1.0, gt=0)


class Problem(Record):
    """A loaded problem. `id` changes whenever anything that can change a verdict changes."""

    name: str
    """For example `attention/relative_position` or `kernelbench:level1/19`."""
    source: str
    """The problem file, unchanged."""
    file: str
    """Where it was read, for messages only."""
    workloads: tuple[Workload, ...] = Field(min_length=1)
    precision: Precision = Precision.TF32
    baseline: str = "eager"
    """The primary baseline, which candidates are timed against: one of `BUILT_IN` or of `baselines`."""
    baselines: dict[str, str] = Field(default_factory=dict)
    """Further baselines: name to the class of the file, which takes `Model`'s arguments and state."""
    excuses: dict[str, str] = Field(default_factory=dict)
    """Baselines that cannot be had, each with the reason."""
    library: LibraryPolicy = LibraryPolicy.ASSIST
    prompt: str | None = None
    """Opening prompt; None means the default one."""
    title: str = ""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [w.name for w in self.workloads]
        if len(set(names)) != len(names):
            raise ValueError(f"workload names repeat: {names}")
        return self

    @property
    def id(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"file", "title"}).encode()).hexdigest()[:16]

    @property
    def timed(self) -> tuple[Workload, ...]:
        """Those that make the score: the timed ones, else all that are not held out."""
        shown = tuple(w for w in self.workloads if Role.HELD_OUT not in w.roles)
        return self.having(Role.TIMED) or shown or self.workloads

    def having(self, role: Role) -> tuple[Workload, ...]:
        """The workloads that carry `role`, in file order."""
        return tuple(w for w in self.workloads if role in w.roles)
