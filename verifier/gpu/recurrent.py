"""Packs the weights of recurrent layers for cuDNN, as `nn.LSTM.flatten_parameters` does when a module moves to a GPU.

A plan does not say how weights lie to each other in memory. cuDNN wants those of a layer in one piece and otherwise
copies them together at every call: the results are equal, the time is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.backends.cudnn import rnn

from verifier.gpu.memory import Memory
from verifier.plan.arguments import BoolArg, IntArg, values_in
from verifier.plan.schema import AtenStep, Program

_MODES = {"aten::lstm.input": "LSTM", "aten::gru.input": "GRU", "aten::rnn_tanh.input": "RNN_TANH",
          "aten::rnn_relu.input": "RNN_RELU"}  # fmt: skip
_WEIGHTS, _BIASES, _LAYERS, _BIDIRECTIONAL, _BATCH_FIRST = 2, 3, 4, 7, 8
"""Positions of arguments; they are the same for all these operators."""


class PackedWeights:
    """Copies of the weights that forward only reads, by the plan's values. Made after set-up."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._packed: dict[tuple[int, ...], list[Tensor]] = {}

    def forget(self) -> None:
        """The weights are about to change."""
        self._packed.clear()

    def pack(self, memory: Memory) -> None:
        """Packs what the recurrent steps of forward read, on a GPU."""
        for step in self._program.library():
            key = _weights(step) if step.op in _MODES else ()
            if key and key not in self._packed and self._lasts(key):
                self._packed[key] = _flattened(step, memory, key)

    def put_into(self, step: AtenStep, args: list[Any]) -> list[Any]:
        """The arguments of a step with packed weights where there are any."""
        if step.op not in _MODES or (packed := self._packed.get(_weights(step))) is None:
            return args
        return [*args[:_WEIGHTS], packed, *args[_WEIGHTS + 1 :]]

    def _lasts(self, values: Sequence[int]) -> bool:
        """Whether weights have their content when forward starts and keep it."""
        storages = {self._program.values[v].storage for v in values}
        kept = {i for i in storages if self._program.storages[i].origin in ("parameter", "setup", "constant")}
        return kept == storages and storages.isdisjoint((*self._program.restore, *self._program.mutated.values()))


def _weights(step: AtenStep) -> tuple[int, ...]:
    return tuple(values_in(step.args[_WEIGHTS]))


def _flattened(step: AtenStep, memory: Memory, values: Sequence[int]) -> list[Tensor]:
    """Aliases of new, packed memory; the plan's own weights stay where they are."""
    weights = [memory.value(v).detach() for v in values]
    mode = _MODES[step.op]
    gates, width = weights[1].shape
    hidden = gates // {"LSTM": 4, "GRU": 3}.get(mode, 1)
    projected = width if width != hidden else 0
    per_layer = (4 if _number(step, _BIASES) else 2) + bool(projected)
    number: Any = rnn.get_cudnn_mode
    torch._cudnn_rnn_flatten_weight(  # sets the tensors to views of one buffer
        weights, per_layer, weights[0].shape[1], number(mode), hidden, projected, _number(step, _LAYERS),
        bool(_number(step, _BATCH_FIRST)), bool(_number(step, _BIDIRECTIONAL)),
    )  # fmt: skip
    return weights


def _number(step: AtenStep, position: int) -> int:
    arg = step.args[position]
    return arg.v if isinstance(arg, BoolArg | IntArg) else 0
