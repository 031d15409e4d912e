"""What one model call may cost and did cost, from the profile's limits and prices.

Wall seconds are the ledger's own axis (calls overlap), so they are 0 here. A call is one completion: the
HTTP attempts behind it are recorded beside it, and failed ones carry no tokens.
"""

from __future__ import annotations

from tools.metering import Charge, Usage
from tools.models.base import ModelProfile, ModelRequest


def output_bound(profile: ModelProfile, request: ModelRequest) -> int:
    """Tokens that the server may generate: what is sent as `max_tokens`, and what is reserved."""
    return min(request.sampling.max_tokens, profile.max_tokens)


def bound(profile: ModelProfile, request: ModelRequest) -> Charge:
    """Upper bound of one call: no prompt token is cached, every output token is used."""
    usage = Usage(uncached=request.prompt_bound, output=output_bound(profile, request))
    dearest = max(profile.prices.uncached, profile.prices.cached)
    prices = profile.prices.model_copy(update={"uncached": dearest})
    return Charge(calls=1, usage=usage, dollars=prices.dollars(usage))


def actual(profile: ModelProfile, usage: Usage) -> Charge:
    return Charge(calls=1, usage=usage, dollars=profile.prices.dollars(usage))
