"""A candidate: one source text that defines `ModelNew`, frozen and named by its content."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, computed_field


class Candidate(BaseModel):
    """Source of one answer. Two equal texts are one candidate; `id` is the first 16 hex digits of its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """Python source, UTF-8, defining a class `ModelNew` with the call signature of the reference's `Model`."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]
