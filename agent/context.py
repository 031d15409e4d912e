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
from tools.metering import Charge
from tools.models.gateway import Gateway
from verifier.bench import CONFIRM_SECONDS, VISIT_SECONDS
from verifier.candidate import Candidate
from verifier.errors import UsageError

VERDICT, FILE, EXAMINE, ANEW = PARTS = "gpu", "file", "examine", "anew"
"""What GPU seconds are held for, the last part of a reservation's key: the visits of a verdict, the own file of a new
best, a closer look at it, a verdict anew.
"""


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

    def hold_gpu(self, request: str) -> None:
        """Reserves the GPU seconds of the verdict on one turn, where the run measures. Raises BudgetExhausted."""
        if self.judge.measures:
            self.ledger.reserve(f"{request}/{VERDICT}", Charge(gpu_seconds=VISIT_SECONDS + CONFIRM_SECONDS))

    def free_gpu(self, request: str) -> None:
        """Gives back what is still held for a verdict that nobody asked for."""
        if (key := f"{request}/{VERDICT}") in self.ledger.open:
            self.ledger.settle(key, Charge())

    def settle_gpu(self, event: dict[str, Any], owner: str, request: str) -> None:
        """Records a judged turn with the GPU seconds that `owner` leased for it, and closes what was held for them."""
        spent = self.judge.take_seconds(owner)
        visits = sum(seconds for call, seconds in spent.items() if call not in (FILE, EXAMINE))
        parts = {VERDICT: visits, ANEW: visits, FILE: spent.get(FILE, 0.0), EXAMINE: spent.get(EXAMINE, 0.0)}
        actuals = {f"{request}/{part}": Charge(gpu_seconds=seconds) for part, seconds in parts.items()}
        self.ledger.settle_in(event | {"gpu": spent}, actuals)

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
