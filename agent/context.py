"""What the nodes reach for: the graph's `context_schema`. Nothing of it enters a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.budget import Ledger
from agent.history import Attempt, History
from agent.judging import Judge
from agent.prompting import Prompts
from agent.run_folder import RunFolder
from tools.models.gateway import Gateway
from verifier.candidate import Candidate
from verifier.errors import UsageError


@dataclass(frozen=True, slots=True)
class Context:
    """Dependencies of one run."""

    folder: RunFolder
    history: History
    ledger: Ledger
    judge: Judge
    prompts: Prompts
    gateways: Mapping[str, Gateway]
    """By the name that a proposal may give; "" is the default."""
    record: Callable[[dict[str, Any]], None]
    """Appends an event to the journal and applies it."""
    progress: Callable[[str, str], None]
    """Tells a live view that an attempt entered a node."""

    def attempt(self, name: str) -> Attempt:
        return self.history.attempts[name]

    def gateway(self, model: str | None) -> Gateway:
        """Raises UsageError for a model that the run was not given."""
        if (model or "") not in self.gateways:
            raise UsageError(f"the run has no model {model!r}; it has {', '.join(filter(None, self.gateways))}")
        return self.gateways[model or ""]

    def candidate(self, attempt: Attempt, turn: int) -> Candidate:
        """The candidate of a turn that was parsed."""
        source = attempt.turns[turn - 1].source
        if source is None:
            raise LookupError(f"turn {turn} of {attempt.id} has no candidate")
        return Candidate(source=self.folder.blobs.text(source))
