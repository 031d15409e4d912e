"""What a confined interpreter job may say. It comes from the candidate's process, so parsing is strict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifier.verdict import Diagnostic, Traffic

Text = Annotated[str, Field(max_length=4000)]
Line = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FindingRecord(_Strict):
    severity: Literal["error", "warning", "advice"]
    code: Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9-]*$")]
    message: Text
    line: Line | None
    count: Count


class TrafficRecord(_Strict):
    line: Count
    kernel: Annotated[str, Field(max_length=256)]
    loaded: Count
    stored: Count
    atomic: Count
    masked_off: Count


class Answer(_Strict):
    """Value of `run.interpret_job`. `outputs` are specs, checked when they are unpacked."""

    status: Literal["ok", "failed", "not_applicable"]
    code: Annotated[str, Field(max_length=64)]
    reason: Text
    line: Line | None
    outputs: Annotated[dict[str, dict[str, Any]], Field(max_length=16)]
    mutated: Annotated[dict[str, list[Count]], Field(max_length=16)]
    findings: Annotated[list[FindingRecord], Field(max_length=256)]
    traffic: Annotated[list[TrafficRecord], Field(max_length=4096)]
    dots: Annotated[list[Annotated[str, Field(max_length=16)]], Field(max_length=16)]
    launches: Count
    sampled: Count = 0
    programs: Count = 0
    """Programs that ran and programs of one `forward`; 0 when none were left out on purpose."""
    calls: list[Any]
    """What the first calls did; `plan.agreement` checks and reads it."""
    without_effect: bool
    """Whether the outputs stay the same when everything that the kernels store is changed."""
    only_copies: bool
    """Whether every kernel only stores what one of its arguments held."""
    configurations: Annotated[list[Text], Field(max_length=64)]

    def diagnostics(self, source: str) -> tuple[Diagnostic, ...]:
        """Findings as diagnostics with the source line; errors first."""
        order = {"error": 0, "warning": 1, "advice": 2}
        made = [
            Diagnostic(
                severity=f.severity, code=f.code, message=f.message, line=f.line, count=max(f.count, 1),
                excerpt=excerpt(source, f.line),
            )
            for f in self.findings
        ]  # fmt: skip
        return tuple(sorted(made, key=lambda d: order[d.severity]))

    def traffic_lines(self) -> tuple[Traffic, ...]:
        return tuple(Traffic(**t.model_dump()) for t in self.traffic)


def parse(value: object) -> Answer | str:
    """The answer, or one sentence on why it is malformed."""
    try:
        return Answer.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"the answer of the candidate's process is malformed at `{where}`: {first['msg']}"


def excerpt(source: str, line: int | None) -> str:
    """Source line `line` without its indentation, empty when there is none."""
    lines = source.splitlines()
    return lines[line - 1].strip()[:200] if line is not None and 0 < line <= len(lines) else ""
