"""Replays a plan folder once, for a profiler or a sanitizer around it:

    ncu --profile-from-start off ... python -m verifier.gpu.replay_once FOLDER

Inputs and weights are made as the judge makes them, from the seed in the folder; nothing is compared. One run warms up
what libraries do on their first call; only the second lies between the profiler's start and stop.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from verifier.errors import WarpsmithError
from verifier.gpu.cuda import CudaError
from verifier.gpu.launch import CudaLauncher, Launcher
from verifier.gpu.memory import ReplayError
from verifier.gpu.replay import Replayer
from verifier.gpu.replay_folder import Replay
from verifier.plan.reader import PlanError, read_plan
from verifier.reference import Reference
from verifier.specs import leaves

Profiled = Callable[[], AbstractContextManager[object]]


def replay(
    folder: Path, device: torch.device, launcher: Launcher, profiled: Profiled = nullcontext
) -> list[torch.Tensor]:
    """The outputs of the run under `profiled`.

    Raises PlanError, ProblemError, ReplayError, CudaError, StopIteration for an unknown workload.
    """
    blobs = {path.name: path.read_bytes() for path in (folder / "blobs").iterdir()}
    plan = read_plan(json.loads((folder / "plan.json").read_text()), blobs)
    asked = Replay.model_validate_json((folder / "request.json").read_text())
    workload = next(w for w in asked.problem.workloads if w.name == asked.workload)
    reference = Reference.create(asked.problem, workload, asked.seed, device)
    replayer = Replayer(plan, blobs, asked.workload, device=device, launcher=launcher)
    replayer.load()
    replayer.choose(asked.choice)
    known = replayer.program.parameters
    state = {name: tensor for name, tensor in reference.state.items() if name in known}
    replayer.bind(list(leaves(reference.inputs("task"))), state)
    torch.manual_seed(reference.init_seed)
    replayer.setup()
    replayer.run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    with profiled():
        outputs = replayer.run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return outputs


def main() -> int:
    torch.set_grad_enabled(False)
    if not torch.cuda.is_available():
        print("there is no NVIDIA GPU here", file=sys.stderr)
        return 1
    try:
        replay(Path(sys.argv[1]), torch.device("cuda", 0), CudaLauncher(), torch.cuda.profiler.profile)
    except (PlanError, WarpsmithError, ReplayError, CudaError, RuntimeError, OSError) as error:
        print(" ".join(str(error).split())[:1000], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
