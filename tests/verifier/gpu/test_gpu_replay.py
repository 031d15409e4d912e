"""Plans of the example candidates, replayed on a GPU and compared bit for bit with a direct run of the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from verifier.gpu.graph import CapturedProgram
from verifier.gpu.launch import CudaLauncher
from verifier.gpu.replay import Replayer

CANDIDATES = sorted((Path(__file__).parent / "candidates").glob("*.py"))
GPU = torch.device("cuda", 0)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Passing foreign stream objects:DeprecationWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def on_gpu(values: list[Any]) -> list[Any]:
    return [v.to(GPU) if isinstance(v, torch.Tensor) else v for v in values]


@pytest.mark.parametrize("path", CANDIDATES, ids=lambda p: p.stem)
def test_a_replay_is_the_direct_run(path: Path, traced: Any) -> None:
    file = module(path)
    torch.manual_seed(1)
    init = file.get_init_inputs()
    inputs = on_gpu(file.get_inputs())
    plan, blobs = traced(path.read_text(), inputs, init)
    torch.manual_seed(2)
    model = file.ModelNew(*init).to(GPU)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    kept = [t.clone() for t in inputs if isinstance(t, torch.Tensor)]
    with torch.no_grad():
        direct = model(*[t.clone() if isinstance(t, torch.Tensor) else t for t in inputs])
        model.load_state_dict(state)
        second = model(*[t.clone() if isinstance(t, torch.Tensor) else t for t in inputs])
    replayer = Replayer(plan, blobs, "w", device=GPU, launcher=CudaLauncher())
    replayer.poison = True
    replayer.load()
    replayer.bind(kept, state)
    replayer.setup(seed=2)
    outputs = [t.clone() for t in replayer.run()]
    torch.cuda.synchronize()
    expected = torch.utils._pytree.tree_leaves(direct)
    again = torch.utils._pytree.tree_leaves(second)
    assert len(outputs) == len(expected)
    for ours, theirs, repeated in zip(outputs, expected, again, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if torch.equal(theirs, repeated):
            assert torch.equal(ours, theirs)
        else:  # atomics in an unfixed order
            assert torch.allclose(ours.double(), theirs.double(), rtol=1e-3, atol=1e-3)
    graph = CapturedProgram(replayer)
    graph.outputs[0].zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(graph.outputs[0].double(), outputs[0].double(), rtol=1e-3, atol=1e-3, equal_nan=True)
    replayer.close()
