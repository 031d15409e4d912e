"""What a call costs, and the protocol by which it is reserved and settled. `agent.budget.Ledger` implements it.

The five axes are model calls, tokens, GPU-seconds (leased), wall seconds and US dollars. Dollars are derived from the
price table in the run's manifest. Reasoning tokens are part of the output tokens and are recorded apart.
"""

from __future__ import annotations

from typing import Protocol, Self

from pydantic import Field, model_validator

from verifier.errors import WarpsmithError
from verifier.verdict import Record


class Usage(Record):
    """Tokens of one model call as the server reported them, or as estimated where it did not."""

    uncached: int = Field(default=0, ge=0)
    """Prompt tokens that were not served from a cache."""
    cached: int = Field(default=0, ge=0)
    output: int = Field(default=0, ge=0)
    """Generated tokens, reasoning included."""
    reasoning: int | None = Field(default=None, ge=0)
    """None means that the server did not say, which is not 0."""
    estimated: bool = False

    @property
    def tokens(self) -> int:
        return self.uncached + self.cached + self.output

    @model_validator(mode="after")
    def _reasoning_is_output(self) -> Self:
        if self.reasoning is not None and self.reasoning > self.output:
            raise ValueError("reasoning tokens are part of the output")
        return self


class Charge(Record):
    """An amount on every axis: a reservation (an upper bound) or an actual."""

    calls: int = Field(default=0, ge=0)
    usage: Usage = Usage()
    gpu_seconds: float = Field(default=0.0, ge=0)
    wall_seconds: float = Field(default=0.0, ge=0)
    dollars: float = Field(default=0.0, ge=0)


class BudgetExhausted(WarpsmithError):
    """A reservation does not fit. `axis` names the first axis that is too small. Control flow, not a fault."""

    def __init__(self, axis: str, message: str) -> None:
        super().__init__(message)
        self.axis = axis


class Meter(Protocol):
    """Reserve before dispatch, settle with actuals. Keys are unique per dispatch."""

    def reserve(self, key: str, bound: Charge) -> None:
        """Holds `bound`. Raises BudgetExhausted when a capped axis cannot hold it."""
        ...

    def settle(self, key: str, actual: Charge) -> None:
        """Replaces the reservation by what was spent. An excess is charged, flagged and stops the run."""
        ...

    def refund(self, key: str, reason: str) -> None:
        """Releases the reservation of a dispatch that failed through no fault of the candidate."""
        ...
