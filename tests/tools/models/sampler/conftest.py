"""Tasks of the suite, and prompts as the agent writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.models.base import Message, ModelRequest, Sampling
from tools.models.sampler.task import FAMILIES, Task, read_task

SUITE = Path(__file__).parents[4] / "experiments" / "suites" / "attention"
NAMES = {
    "full": "full",
    "causal": "causal",
    "relative": "relative_position",
    "alibi": "alibi",
    "softcap": "softcap",
    "neighbourhood": "neighbourhood_2d",
}
ASKS = {
    "draft": "Write `ModelNew` with one or more Triton kernels that do the work, correct first, then fast.",
    "repair": "Find the cause of what the feedback says, and repair it. Answer with the whole corrected file.",
    "refine": "Make it faster. Start with what the feedback ranks first.",
    "diversify": "Write a `ModelNew` that works in another way than these.",
    "crossover": "Join the strengths of these candidates in one.",
}


class Kit:
    """Tasks of the suite, and requests as the agent writes them."""

    asks = ASKS

    def source(self, family: str) -> str:
        return (SUITE / f"{NAMES[family]}.py").read_text()

    def task(self, family: str) -> Task:
        task = read_task(self.source(family))
        assert task is not None
        return task

    def prompt(self, family: str, operator: str, *attempts: tuple[str, str]) -> str:
        """A user message. Each attempt is (source, feedback)."""
        parts = ["The reference:", f"```python\n{self.source(family)}```"]
        for number, (source, feedback) in enumerate(attempts):
            parts.append(f"## Parent (a{number}): tried\n```python\n{source}```\nFeedback on it:\n{feedback}")
        return "\n\n".join([*parts, ASKS[operator]])

    def request(self, text: str, seed: int = 0, max_tokens: int = 16384) -> ModelRequest:
        message = Message(role="user", content=text)
        return ModelRequest(id="a0/1", messages=(message,), sampling=Sampling(seed=seed, max_tokens=max_tokens))


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
