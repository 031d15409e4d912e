"""The JSON body of a chat completion request, and what a refusal teaches about the server's dialect.

A server that refuses a parameter by name ("Unsupported parameter: 'max_tokens'", "does not support
temperature") is asked again without it, or with `max_tokens` under its other name. A value out of range is
not such a refusal. What was learned is kept by the caller only after a success.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from tools.models.answer import error_text
from tools.models.base import ModelProfile, ModelRequest
from tools.models.charging import output_bound

OPTIONAL = ("temperature", "top_p", "seed", "reasoning_effort", "stream_options")
"""Parameters that a request can do without."""
OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
REFUSAL = re.compile(
    r"unsupported|not\W+support|unrecogni[sz]ed|unknown|unexpected|not (be )?(permitted|allowed|accepted)"
    r"|extra|refuse|deprecated|cannot be (used|set)|not (available|compatible)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a server differs: parameters that it refuses and its name for the bound of the output."""

    refused: frozenset[str]
    max_tokens_field: str

    @classmethod
    def of(cls, profile: ModelProfile) -> Quirks:
        return cls(profile.unsupported, profile.max_tokens_field)

    def merged(self, learned: Quirks) -> Quirks:
        return Quirks(self.refused | learned.refused, learned.max_tokens_field)


def request_body(
    profile: ModelProfile, request: ModelRequest, quirks: Quirks, *, stream: bool = False
) -> dict[str, Any]:
    """The body as JSON values. The profile's `extra_body` is merged last: the user has the last word."""
    sampling = request.sampling.model_dump(exclude_none=True, exclude={"max_tokens"})
    body: dict[str, Any] = {"model": profile.model, "messages": [m.model_dump() for m in request.messages]}
    body |= {name: value for name, value in sampling.items() if name not in quirks.refused}
    body[quirks.max_tokens_field] = output_bound(profile, request)
    if stream:
        body["stream"] = True
        if "stream_options" not in quirks.refused:
            body["stream_options"] = {"include_usage": True}
    return body | profile.extra_body


def learn(quirks: Quirks, sent: dict[str, Any], refusal: object) -> tuple[Quirks, str] | None:
    """The quirk that the body of a 400 or 422 shows, with a note for the record; None where it shows none."""
    text = error_text(refusal)
    if not REFUSAL.search(text):
        return None
    for name in (n for n in sent if _names(refusal, text, n)):
        if name in OTHER_NAME:
            return replace(quirks, max_tokens_field=OTHER_NAME[name]), f"learned to send {OTHER_NAME[name]} for {name}"
        if name in OPTIONAL:
            return replace(quirks, refused=quirks.refused | {name}), f"learned to leave out {name}"
    return None


def _names(refusal: object, text: str, name: str) -> bool:
    """Whether the error is about `name`: its `param` says so, or else its text does."""
    error = refusal.get("error", refusal) if isinstance(refusal, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    if isinstance(param, str) and param:
        return param == name
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", text) is not None
