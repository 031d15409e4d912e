"""Operators that a candidate defines itself: `torch.library.custom_op`, `triton_op`, `Library.impl`.

The dispatcher keeps their Python functions where nobody can call them under the recorder, so they are noted while
they are registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.library

_ORDER = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
"""Dispatch keys whose function a CUDA tensor gets, the first one that is there."""


class CustomOperators:
    """Functions by operator and dispatch key."""

    def __init__(self) -> None:
        self._functions: dict[str, dict[str, Callable[..., Any]]] = {}

    def kernel(self, func: Any) -> Callable[..., Any] | None:
        """What runs for CUDA tensors, None where it is not Python."""
        known = self._functions.get(func.name(), {})
        return next((known[key] for key in _ORDER if key in known), None)

    def watch(self) -> None:
        """Notes every function that is registered from now on, in this process for good."""
        owner: Any = torch.library.Library
        register = owner.impl

        def impl(library: Any, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> Any:
            name = op_name if isinstance(op_name, str) else op_name.name()
            name = name if "::" in name else f"{library.ns}::{name}"
            key = dispatch_key or library.dispatch_key or "CompositeImplicitAutograd"
            self._functions.setdefault(name.removesuffix(".default"), {})[key] = fn
            return register(library, op_name, fn, dispatch_key, **options)

        owner.impl = impl
