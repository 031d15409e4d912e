"""What `warmup` and a launch give back: the compiled kernel, of which files ask registers and shared memory.

The interpreter compiles nothing. The figures are the plan's, which the trace of the file left for the sizes that are
timed; small sizes may compile to others. Loads neither torch nor Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from verifier.interpreter.limits import Unsupported

_OPTIONS = ("num_warps", "num_stages", "num_ctas")


class CompiledKernel:
    """Stands for `triton.compiler.CompiledKernel`. What is not known here raises Unsupported."""

    def __init__(self, function: Any, options: Mapping[str, Any], compiled: Sequence[Mapping[str, int]]) -> None:
        """`function` launches; `options` it was launched with; `compiled` as `traced.figures` has it for its name."""
        self._function, self._options = function, dict(options)
        asked = {k: v for k, v in options.items() if k in _OPTIONS}
        fits = (c for c in compiled if all(c[k] == v for k, v in asked.items()))
        self._figures = next(fits, next(iter(compiled), None))
        self.name = str(function.__name__)

    def _init_handles(self) -> None: ...

    @property
    def metadata(self) -> Any:
        """`shared` in bytes, and the options of the compiler."""
        return SimpleNamespace(name=self.name, **self._known())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "n_regs":
            return self._known()["n_regs"]
        if name == "n_spills":
            return 0
        raise Unsupported(f"`{name}` of a compiled kernel")

    def _known(self) -> Mapping[str, int]:
        if self._figures is None:
            raise Unsupported(f"figures of kernel `{self.name}`, which the plan does not launch")
        return self._figures

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **_stream: Any) -> None:
            self._function.run(*args, grid=grid, warmup=False)

        return launch
