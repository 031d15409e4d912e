"""A plan folder as a PyTorch module: what ships where a candidate's file does not do what its plan does.

    from kernel import ModelNew           # `ship.write_launcher` puts kernel.py beside the folder `plan`
    model = ModelNew()
    model.load_weights(reference.state_dict())
    y = model(x)

Only trusted code and the judged kernels run, on torch, pydantic, cuda-bindings and a GPU that the kernels are for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verifier.gpu.aten import decode
from verifier.gpu.launch import CudaLauncher, Launcher
from verifier.gpu.memory import ReplayError
from verifier.gpu.replay import Replayer
from verifier.plan.reader import read_plan
from verifier.plan.schema import Program
from verifier.specs import dtype_name, leaves, span


class PlanModule(nn.Module):
    """Calls the program of the plan whose inputs have the shapes and dtypes of the arguments.

    Raises PlanError for a malformed plan, ReplayError for arguments that no program takes, CudaError.
    """

    def __init__(self, folder: Path, *, seed: int = 0, device: str = "cuda", launcher: Launcher | None = None) -> None:
        """`seed` is that of the weights where none are loaded; a launcher loads and launches the kernels."""
        super().__init__()
        self._blobs = {path.name: path.read_bytes() for path in (folder / "blobs").iterdir()}
        self._plan = read_plan(json.loads((folder / "plan.json").read_text()), self._blobs)
        asked = json.loads((folder / "request.json").read_text())
        self._choices = {asked["workload"]: {int(k): int(v) for k, v in asked["choice"].items()}}
        self._device, self._seed = torch.device(device), seed
        self._launcher = launcher or CudaLauncher()
        self._state: dict[str, Tensor] = {}
        self._replayers: dict[str, Replayer] = {}
        self._ready: set[str] = set()

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Values of parameters and buffers by their names in the state dict; other names are left out."""
        self._state = {name: tensor.to(self._device) for name, tensor in state.items()}
        self._ready.clear()

    @torch.no_grad()
    def forward(self, *arguments: Any) -> Any:
        """What the plan's forward returns; the plan holds the values of arguments that are no tensors."""
        given = list(leaves(list(arguments)))
        program = self._program(given)
        name = program.workload
        replayer = self._replayers.get(name) or self._loaded(name)
        known = {k: t for k, t in self._state.items() if k in program.parameters}
        replayer.bind([_laid_out(t, program, i) for i, t in enumerate(given)], known)
        if name not in self._ready:
            torch.manual_seed(self._seed)
            replayer.setup(self._seed)
            self._ready.add(name)
        outputs = iter(replayer.run())
        return decode(program.output, lambda _: next(outputs), self._device)

    def _program(self, given: list[Tensor]) -> Program:
        asked = [(tuple(t.shape), dtype_name(t.dtype)) for t in given]
        for program in self._plan.programs:
            if [(program.values[v].shape, program.values[v].dtype) for v in program.inputs] == asked:
                return program
        raise ReplayError(f"no program of the plan takes {asked}")

    def _loaded(self, name: str) -> Replayer:
        made = Replayer(self._plan, self._blobs, name, device=self._device, launcher=self._launcher)
        made.load()
        made.choose(self._choices.get(name, {}))
        self._replayers[name] = made
        return made


def _laid_out(tensor: Tensor, program: Program, position: int) -> Tensor:
    """The tensor as the plan's kernels expect it: strides, and the start of its storage."""
    said = program.values[program.inputs[position]]
    if tuple(tensor.stride()) == said.stride and tensor.storage_offset() == said.offset:
        return tensor
    made = torch.empty(said.offset + span(said.shape, said.stride), dtype=tensor.dtype, device=tensor.device)
    return made.as_strided(said.shape, said.stride, said.offset).copy_(tensor)
