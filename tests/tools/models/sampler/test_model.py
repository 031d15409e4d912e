from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from typing import Any

from tools.models.base import Model, ModelRequest
from tools.models.sampler import Sampler
from tools.models.sampler.genome import parse_genome

CHILD = """
import asyncio, sys
from tools.models.base import ModelRequest
from tools.models.sampler import Sampler
request = ModelRequest.model_validate_json(sys.stdin.read())
print(asyncio.run(Sampler(seed=3).complete(request)).text)
"""


async def text(kit: Any, question: str, seed: int = 0, model: Model | None = None) -> str:
    return (await (model or Sampler()).complete(kit.request(question, seed))).text


def elsewhere(question: ModelRequest, hash_seed: str) -> str:
    """What another process answers and prints."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=question.model_dump_json(),
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    return child.stdout


async def test_equal_requests_get_equal_answers_in_every_process(kit: Any) -> None:
    question = kit.request(kit.prompt("alibi", "draft"), seed=7)
    here = (await Sampler(seed=3).complete(question)).text
    for hash_seed in ("1", "2"):
        assert await asyncio.to_thread(elsewhere, question, hash_seed) == here + "\n"


async def test_seeds_change_the_answer(kit: Any) -> None:
    question = kit.prompt("causal", "draft")
    assert len({await text(kit, question, seed) for seed in range(12)}) > 8
    assert len({await text(kit, question, 0, Sampler(seed)) for seed in range(12)}) > 8


async def test_the_id_of_a_request_is_no_source_of_chance(kit: Any) -> None:
    question = kit.request(kit.prompt("causal", "draft"))
    other = question.model_copy(update={"id": "a9/9"})
    first, second = [await Sampler().complete(r) for r in (question, other)]
    assert first.text == second.text
    assert (first.request, second.request) == ("a0/1", "a9/9")


async def test_an_answer_explains_itself_and_holds_one_block(kit: Any) -> None:
    answers = [await text(kit, kit.prompt("full", "draft"), seed) for seed in range(400)]
    closed = [a for a in answers if a.count("```") == 2]
    assert 370 <= len(closed) < 400  # one of eighty forgets to close the block
    assert all(len(re.findall(r"^```python$", a, re.MULTILINE)) == 1 for a in answers)
    assert all(a.index("```") > 40 for a in answers)
    assert all(any(parse_genome(line) for line in a.splitlines()) for a in closed)


async def test_an_unknown_problem_gets_an_honest_answer_without_code(kit: Any) -> None:
    question = kit.prompt("full", "draft").replace(kit.source("full"), "class Model(nn.Module):\n    pass\n")
    answer = await text(kit, question)
    assert "```" not in answer
    assert "not a language model" in answer


async def test_usage_is_an_estimate_and_costs_nothing(kit: Any) -> None:
    question = kit.request(kit.prompt("softcap", "draft"))
    done = await Sampler().complete(question)
    assert done.usage.estimated
    assert done.usage.uncached == -(-len(question.messages[0].content.encode()) // 4)
    assert done.usage.output == -(-len(done.text.encode()) // 4)
    assert Sampler().profile.prices.dollars(done.usage) == 0.0
    assert not Sampler().profile.is_language_model


async def test_an_answer_never_exceeds_its_bound(kit: Any) -> None:
    done = await Sampler().complete(kit.request(kit.prompt("causal", "draft"), max_tokens=50))
    assert done.finish_reason == "length"
    assert done.usage.output <= 50
