"""One answer's whole story on a GPU machine, and the cause of every difference in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from experiments.fidelity.trace import Row
from verifier.verdict import Record

Ended = Literal["ok", "error", "timeout", "crash"]
RIGHT = 1e-2
"""Largest error against the reference of an answer that the table calls right: the floor of fp16 and bf16."""


class _Loose(Record):
    """A report of a child, of which only these fields are kept."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Direct(_Loose):
    """The answer's own file on the GPU. Absent facts were not reached."""

    status: Ended
    message: str = ""
    stage: str = ""
    wall_seconds: float = 0.0
    first_seconds: float | None = None
    """The first call, compilation and autotuning included."""
    times: dict[str, float] | None = None
    repeatable: bool | None = None
    """Two later calls on equal state and inputs agree in all bits."""
    first_equal: bool | None = None
    changes_inputs: bool = False
    reference_shapes: bool | None = None
    reference_error: float | None = None
    """Centred relative error against the reference; None also where it is infinite."""
    reference_fault: str = ""

    @property
    def ran(self) -> bool:
        """`forward` returned, whatever else happened."""
        return self.first_seconds is not None

    @property
    def late(self) -> bool:
        """Nobody knows whether it would have run."""
        return self.status == "timeout" and not self.ran

    @property
    def right(self) -> bool:
        return self.reference_error is not None and self.reference_error <= RIGHT


class Replayed(_Loose):
    """One plan of the answer, compared with the direct run."""

    status: Ended
    message: str = ""
    stage: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    steps: int = 0
    random: bool = False
    """Forward draws random numbers by library steps."""
    same_inputs: bool | None = None
    other_flags: tuple[str, ...] = ()
    """Settings of torch in which the plan's library steps and the direct run differ."""
    chosen: int = 0
    without_choice: int = 0
    """Autotuned launches whose configuration on the GPU is no alternative of the plan."""
    relaid: int = 0
    shapes: bool | None = None
    equal: bool | None = None
    """All bits of all outputs; None where there is no direct run to compare with."""
    error: float | None = None
    within: bool | None = None
    reads_unwritten: bool | None = None
    """Where bits differ: the outputs also differ between fresh memory of NaN and of zeros."""
    with_zeros: dict[str, Any] = Field(default_factory=dict)
    """Then: the comparison with the direct run once more, fresh memory being zero."""
    repeatable: bool | None = None
    launches: dict[str, int] = Field(default_factory=dict)
    """Where bits differ: launches by what became of them (see `launches.py`)."""
    load_ms: float | None = None
    setup_ms: float | None = None
    first_ms: float | None = None
    times: dict[str, float] | None = None
    graph: bool | None = None
    graph_message: str = ""
    graph_equal: bool | None = None
    graph_times: dict[str, float] | None = None


class Case(Record):
    """One answer. `replays` by label: `here` for the plan traced on this machine, `carried` for one that came along."""

    id: str
    names: tuple[str, ...]
    recorded: str = ""
    trace: Row
    direct: Direct | None = None
    replays: dict[str, Replayed] = Field(default_factory=dict)


def read_replays(report: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Replayed]:
    """Results by label. A label without an ending of its own ended as the child did."""
    ending = {k: report.get(k, "") for k in ("status", "message")}
    parts = {label: report.get(label, {}) for label in labels}
    return {label: Replayed.model_validate({**ending, **part}) for label, part in parts.items()}


def cause(direct: Direct | None, replay: Replayed) -> str:
    """In a few words: equal, or why not. The first that applies."""
    if replay.status != "ok":
        return f"replay: {_short(replay)}"
    if direct is None or not direct.ran:
        return "no direct run to compare with"
    if replay.equal is None:
        return "the direct run ended before its outputs were kept"
    if replay.equal:
        return "bit-identical"
    if replay.shapes is False:
        return "other shapes or dtypes"
    if replay.same_inputs is False:
        return "other inputs"
    if replay.repeatable is False:  # on the same poison, so it is no garbage that differs
        return "not repeatable: the replay" + (" nor the direct run" if direct.repeatable is False else "")
    if replay.reads_unwritten:
        return "reads memory that nothing wrote"
    if direct.repeatable is False:
        return "not repeatable: the direct run"
    if replay.random:
        return "draws random numbers"
    if replay.without_choice:
        return "a configuration that the plan does not have"
    return _by_launches(replay)


def _by_launches(replay: Replayed) -> str:
    fates = replay.launches
    if fates.get("different"):
        return "a custom launch differs on equal arguments"
    if not fates or fates.get("unmatched"):
        return "launches cannot be matched"
    return "library steps; custom launches identical" if fates.get("identical") else "library steps before any launch"


def _short(replay: Replayed) -> str:
    return f"{replay.status} at {replay.stage or 'start'}"


def same_reason(trace: str, direct: str) -> bool:
    """Whether at least 60% of the words of a refusal's message stand in the message of the direct run."""
    said, heard = (set(re.findall(r"\w+", text.lower())) for text in (trace, direct))
    return len(said & heard) >= 0.6 * len(said)


def kernels_proven(replay: Replayed) -> bool:
    """No custom launch of the plan left other bits than the direct run's on equal arguments."""
    return bool(replay.equal) or not (replay.launches.get("different") or replay.launches.get("unmatched"))
