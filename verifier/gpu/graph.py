"""A program as one CUDA graph, for timing without the host."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.gpu.device import Capturable


class CapturedProgram:
    """`forward` of a bound program that is set up, as a graph. Its inputs and outputs stay where they are.

    The program must have run once: library handles and lazy initialisation must be past before a capture. Raises
    RuntimeError (of torch) or CudaError where a step cannot be captured; the context survives that.
    """

    def __init__(self, program: Capturable) -> None:
        program.restore()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.outputs: list[Tensor] = program.forward()

    def replay(self) -> None:
        """One call of forward; state that forward changes is not restored."""
        self._graph.replay()

    def close(self) -> None:
        self.outputs = []
        self._graph.reset()
