"""What the stages of a candidate hand on to each other: the handle of its `CompileStage`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifier.baseline import Base
from verifier.plan.schema import Plan
from verifier.verdict import Diagnostic, Estimate, KernelReport, LaunchReport


@dataclass(frozen=True, slots=True)
class Profiled:
    """What `profile_job` said of one plan."""

    kernels: tuple[KernelReport, ...]
    launches: tuple[LaunchReport, ...]
    estimates: tuple[Estimate, ...]
    diagnosis: tuple[Diagnostic, ...]
    shortfalls: tuple[Diagnostic, ...] = ()
    """Errors: work that the outputs need and the launches do not do."""


@dataclass(frozen=True, slots=True)
class LiveFile:
    """What a live visit needs of a candidate that nothing traces."""

    source: str
    reason: str
    """Why it cannot be traced."""
    workloads: tuple[str, ...]
    base: Base | None
    built: bytes = b""
    """Its native code, as `gpu.native.build_job` left it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the later stages need of a candidate that compiled."""

    source: str
    profiled: Profiled
    cuda: bool
    """A kernel of CUDA C++ is among its kernels: Triton's interpreter cannot run it."""
    plan: Plan
    plan_json: Mapping[str, Any]
    """The plan as the tracing process wrote it; whoever replays it reads it again."""
    blobs: Mapping[str, bytes]
    base: Base | None
    """What it is timed against, None where no baseline can be traced."""
    compiled: Mapping[str, Any]
    """What the tracing process says of its compilations."""
    held: dict[str, tuple[int, ...]]
    """Shapes of the weights that the file holds, by name, as the tracing process says."""
