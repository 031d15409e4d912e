"""Where the wall time of a visit goes: seconds by part, a part inside another counted for itself alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Parts:
    """A clock of named parts. `settle` waits for the device, so that a part pays for the work that it queued."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self._settle = settle
        self._inner = [0.0]
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts what happens inside for `name`, less the parts inside it."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
            self._settle()
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[name] = self.seconds.get(name, 0.0) + own
