"""A program as one CUDA graph, for timing without the host."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from verifier.gpu.device import Capturable


@cache
def _side_stream() -> torch.cuda.Stream:
    """Of all captures of this process."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class CapturedProgram:
    """`forward` of a bound program that is set up, as a graph. Its inputs and outputs stay where they are.

    The program must have run once: library handles and lazy initialisation must be past before a capture. Raises
    RuntimeError (of torch) or CudaError where a step cannot be captured; the context survives that.
    """

    def __init__(self, program: Capturable) -> None:
        program.restore()
        self._graph = torch.cuda.CUDAGraph()
        self.outputs: list[Tensor] = []
        torch.cuda.synchronize()  # torch.cuda.graph would also give back all memory that torch keeps
        with torch.cuda.stream(_side_stream()):
            self._graph.capture_begin()
            try:
                self.outputs = program.forward()
            finally:
                self._graph.capture_end()

    def replay(self) -> None:
        """One call of forward; state that forward changes is not restored."""
        self._graph.replay()

    def close(self) -> None:
        self.outputs = []
        self._graph.reset()
