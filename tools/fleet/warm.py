"""The host of a CPU worker that is a process of its own: a judge with its own sandbox."""

from __future__ import annotations

from contextlib import ExitStack

from verifier.judge import Judge, open_zygotes
from verifier.problem import Problem


class WarmJudge(Judge):
    """A judge with a sandbox of its own, as it lives on a CPU worker."""

    def __init__(
        self,
        problem: Problem,
        target: str,
        seed: int,
        measured: bool = False,
        figures: str | None = None,
        tuned: str | None = None,
    ) -> None:
        """Starts the two warm servers. Raises SandboxError."""
        self._servers = ExitStack()
        warm = self._servers.enter_context(open_zygotes())
        super().__init__(problem, warm, target=target, seed=seed, measured=measured, figures=figures, tuned=tuned)

    def close(self) -> None:
        self._servers.close()
