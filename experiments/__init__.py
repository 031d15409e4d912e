"""What a person runs: the command line and the Python API (`from experiments import solve, verify`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.api import Solution, solve, verify

__all__ = ["Solution", "solve", "verify"]


def __getattr__(name: str) -> object:
    """Loads the API on first use, so that `warpsmith --help` imports nothing heavy."""
    if name in __all__:
        from experiments import api

        return getattr(api, name)
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")
