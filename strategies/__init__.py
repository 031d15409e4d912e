"""Search policies by name. `base.py` is the contract, `tests/strategies` the conformance suite.

A third party adds a strategy by an entry point in the group `warpsmith.strategies`, for example
`mine = "my_package.search:Mine"`, or is named directly: `my_package.search:Mine(width=3)`. A name of
STRATEGIES stays what it is whatever others register.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from strategies.parameters import parse_spec
from verifier.errors import UsageError

if TYPE_CHECKING:
    from strategies.base import Strategy

GROUP = "warpsmith.strategies"
STRATEGIES = {
    "best_of_n": "strategies.best_of_n:BestOfN",
    "reflection": "strategies.reflection:Reflection",
    "beam": "strategies.beam:Beam",
}


def make_strategy(spec: str) -> Strategy:
    """The strategy of `name`, `name(width=4)` or `name{"width": 4}`; the name may be `package.module:Name`.

    Raises UsageError: an unknown name lists the known ones, an unknown parameter lists the strategy's own.
    """
    from strategies.base import Strategy

    name, parameters = parse_spec(spec)
    factory = _load(name)
    _check_parameters(name, factory, parameters)
    try:
        strategy = factory(**parameters)
    except (TypeError, ValueError) as error:
        raise UsageError(f"strategy {name!r}: {error}") from error
    if not isinstance(strategy, Strategy):
        raise UsageError(f"{name!r} is not a strategy: it lacks `propose`, `observe` or `done`")
    return strategy


def known_strategies() -> dict[str, str]:
    """Name to `module:Class`: those of other installed packages, and STRATEGIES."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | STRATEGIES


def _load(name: str) -> Callable[..., object]:
    known = known_strategies()
    target = known.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UsageError(
            f"unknown strategy {name!r}; known: {', '.join(sorted(known))}",
            next_step="choose one of these, or name a class as package.module:Name",
        )
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"strategy {name!r} cannot be loaded from {target!r}: {error}") from error
    if not callable(factory):
        raise UsageError(f"strategy {name!r}: {target!r} is not a class")
    found: Callable[..., object] = factory
    return found


def _check_parameters(name: str, factory: Callable[..., object], parameters: dict[str, Any]) -> None:
    signature = inspect.signature(factory)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    unknown = [key for key in parameters if key not in signature.parameters]
    if unknown:
        own = ", ".join(signature.parameters) or "none"
        raise UsageError(f"strategy {name!r} has no parameter {unknown[0]!r}; its parameters: {own}")
