"""What lives on a worker that is a process of its own: a host, made there by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verifier.bench import CompileStage


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a host: `factory` is `package.module:Name`, called with `options`, which can be pickled.

    The host of a GPU gets one more, `device`: the CUDA_VISIBLE_DEVICES of the processes that it starts.
    """

    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> Any:
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)(**self.options, **more)


class Resident:
    """The process of a worker: makes its host and calls it. Free of CUDA and of the fleet's own library.

    A stage's handle leaves apart from the stage, so that the caller can keep a reference and never reads it.
    """

    def __init__(self, recipe: Recipe, gpu: bool) -> None:
        self._recipe = recipe
        self._more = {"device": os.environ["CUDA_VISIBLE_DEVICES"]} if gpu else {}
        self._host: Any = None

    def ready(self) -> None:
        """Makes the host; not at the start of the process, so that what this raises reaches the call that needs it."""
        if self._host is None:
            self._host = self._recipe.make(**self._more)

    def call(self, method: str, handle: Any, *args: Any) -> tuple[Any, Any]:
        """The answer, and its handle where it is a CompileStage. `handle` belongs to the stage among the arguments."""
        self.ready()
        answer = getattr(self._host, method)(*(with_handle(arg, handle) for arg in args))
        return (with_handle(answer, None), answer.handle) if isinstance(answer, CompileStage) else (answer, None)

    def close(self) -> None:
        """Ends the host in order, where it has an end."""
        if hasattr(self._host, "close"):
            self._host.close()


def with_handle(value: Any, handle: Any) -> Any:
    """A stage with this handle; any other value as it is."""
    return value.model_copy(update={"handle": handle}) if isinstance(value, CompileStage) else value
