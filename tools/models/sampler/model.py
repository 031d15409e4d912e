"""`Sampler`: a `Model` without a language model inside.

It draws attention kernels from hand-written templates with hand-written mistakes. It is the default that
needs no key, a controlled landscape for comparing strategies, and the baseline that a language model must
beat. Reports say what it is.

It reads only the text of the request. All chance comes from the profile's seed, the request's seed and its
digest, so equal requests get equal answers, on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import random

from tools.metering import Usage
from tools.models.base import Completion, ModelProfile, ModelRequest
from tools.models.sampler.brief import Brief, read_brief
from tools.models.sampler.explain import explain
from tools.models.sampler.operators import apply
from tools.models.sampler.render import render

UNKNOWN = (
    "I am a sampler of kernel templates, not a language model. I know softmax attention over q, k and v of "
    "shape (B, H, S, D): full, causal, relative position, ALiBi, soft cap and 2-D neighbourhood. "
    "This problem is none of these, so I have no kernel for it."
)
BYTES_PER_TOKEN = 4
"""A usual ratio for code and English; the usage is marked as estimated."""


class Sampler:
    """The template sampler. `seed` shifts all its chance."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.profile = ModelProfile(name="sampler", model=f"sampler-seed{seed}", is_language_model=False)

    async def complete(self, request: ModelRequest) -> Completion:
        """One answer, at once. For a problem that it does not know, the text says so and holds no code."""
        text = answer(read_brief(request.messages), self._chance(request))
        return _completion(request, text, self.profile.model)

    def _chance(self, request: ModelRequest) -> random.Random:
        name = f"{self.seed}/{request.sampling.seed}/{request.digest}"
        return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()))


def answer(brief: Brief, rng: random.Random) -> str:
    """The text of one answer: a short explanation and a block of Python, cut short if the genome says so."""
    if brief.task is None:
        return UNKNOWN
    genome = apply(brief, brief.task, rng)
    source = render(genome.with_mistakes(m for m in genome.mistakes if m != "truncated"), brief.task)
    opening = explain(brief.operator, genome, brief.task)
    if "truncated" in genome.mistakes:
        return f"{opening}\n\n```python\n{source[: int(len(source) * rng.uniform(0.5, 0.9))]}"
    return f"{opening}\n\n```python\n{source}```\n"


def _completion(request: ModelRequest, text: str, model: str) -> Completion:
    limit = request.sampling.max_tokens * BYTES_PER_TOKEN
    cut = len(text.encode()) > limit
    if cut:
        text = text.encode()[:limit].decode(errors="ignore")
    prompt = sum(len(m.content.encode()) for m in request.messages)
    usage = Usage(uncached=_tokens(prompt), output=_tokens(len(text.encode())), estimated=True)
    return Completion(
        request=request.id, text=text, usage=usage, finish_reason="length" if cut else "stop", model=model
    )


def _tokens(count: int) -> int:
    return -(-count // BYTES_PER_TOKEN)
