"""Runs Inductor on a GPU, with autotuning, for a compiled baseline; `verifier.plan.inductor` traces what it wrote.

    python -m verifier.gpu.tune REQUEST ANSWER

Two JSON files: {workload: {"source", "class"}} and {workload: {"modules", "choices"}}, or {"error": one sentence}. A
process of its own that sees trusted code alone, and ends. Every `torch.compile` in the file compiles whole graphs as
mode max-autotune-no-cudagraphs does, with caches that are new: what is found in a cache is not tuned again.
"""

from __future__ import annotations

import json
import linecache
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from verifier.baseline import BaselineError, source_of
from verifier.errors import InfrastructureError
from verifier.problem import Problem, Workload
from verifier.sandbox.access import PROJECT_ROOT

LIMIT_SECONDS = 900.0


def tune(problem: Problem, name: str, workloads: Sequence[Workload], device: str) -> dict[str, Any]:
    """What `trace_base` takes as `tuned`. `device` is the CUDA_VISIBLE_DEVICES of the process.

    Raises BaselineError where the baseline does not run there, InfrastructureError where the process fails.
    """
    request = {}
    for workload in workloads:
        source, owner = source_of(problem, workload, name)
        request[workload.name] = {"source": source, "class": owner}
    with tempfile.TemporaryDirectory(prefix="warpsmith-tune-") as folder:
        asked, said = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request))
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        path = os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environ = {**os.environ, **caches, "CUDA_VISIBLE_DEVICES": device, "PYTHONPATH": path}
        command = [sys.executable, "-m", "verifier.gpu.tune", str(asked), str(said)]
        log = Path(folder) / "log"
        if not _ran(command, environ, log):
            raise BaselineError(f"tuning the baseline {name} takes more than {LIMIT_SECONDS:.0f} s")
        if not said.exists():
            raise InfrastructureError(f"tuning gave no answer: {log.read_text(errors='replace')[-2000:]}")
        answer: dict[str, Any] = json.loads(said.read_text())
    if "error" in answer:
        raise BaselineError(f"the baseline {name} cannot be tuned: {answer['error']}")
    return answer


def _ran(command: Sequence[str], environ: Mapping[str, str], log: Path) -> bool:
    """Whether it ended in time. The workers that Inductor compiles in end with it."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return True


class Tuner:
    """Collects what Inductor writes and chooses, one workload after the other."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.choices: dict[str, Any] = {}
        self._texts: list[str] = []

    def run(self, source: str, owner: str) -> dict[str, Any]:
        """Compiles, tunes and runs the file's class on the file's inputs."""
        import torch

        module = _executed(source)
        model = getattr(module, owner)(*module.get_init_inputs()).cuda()
        inputs = [a.cuda() if isinstance(a, torch.Tensor) else a for a in module.get_inputs()]
        model(*inputs)
        torch.cuda.synchronize()
        made: dict[str, Any] = {"modules": self.modules, "choices": self.choices}
        self.modules, self.choices = [], {}
        torch._dynamo.reset()
        return made

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Changes torch in this process for good."""
        import torch
        from torch._inductor.graph import GraphLowering
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        plain: Any = torch.compile
        run: Any = CachingAutotuner.run

        def compile(model: Any = None, **options: Any) -> Any:  # stands for torch.compile
            if model is None:
                return lambda given: compile(given, **options)
            return plain(model, backend=self._backend, fullgraph=True, dynamic=options.get("dynamic", False))

        def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            result = run(kernel, *args, **kwargs)
            config = kernel.launchers[0].config
            self.choices[kernel.inductor_meta["kernel_name"]] = {
                "kwargs": dict(config.kwargs), "num_warps": config.num_warps, "num_stages": config.num_stages,
            }  # fmt: skip
            return result

        module: Any = torch
        autotuner: Any = CachingAutotuner
        module.compile, autotuner.run = compile, noted
        GraphLowering.save_output_code = staticmethod(lambda text, *_args: self._texts.append(text))
        with torch.no_grad():
            yield

    def _backend(self, graph: Any, inputs: Sequence[Any]) -> Any:
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        mode = {"triton.cudagraphs": False, **list_mode_options("max-autotune-no-cudagraphs")}
        return compile_fx(graph, inputs, inner_compile=self._inner, config_patches=mode)

    def _inner(self, graph: Any, inputs: Sequence[Any], **options: Any) -> Any:
        """The last text is the graph's own: modules that only take part in the tuning come before it."""
        from torch._inductor.compile_fx import compile_fx_inner

        made = compile_fx_inner(graph, inputs, **options)
        self.modules.append(self._texts[-1])
        return made


def _executed(source: str) -> ModuleType:
    module, name = ModuleType("baseline"), "<baseline>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    sys.modules["baseline"] = module
    exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    return module


def answer(request: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The answer to a request. What the baseline raises is data."""
    tuner = Tuner()
    try:
        with tuner.installed():
            return {name: tuner.run(asked["source"], asked["class"]) for name, asked in request.items()}
    except Exception as error:  # noqa: BLE001 - the process boundary
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return {"error": f"{type(error).__name__}: {lines[0][:300]}"}


if __name__ == "__main__":
    from verifier.gpu.runner import end_with_parent

    end_with_parent()
    Path(sys.argv[2]).write_text(json.dumps(answer(json.loads(Path(sys.argv[1]).read_text()))))
    os._exit(0)  # Inductor's pool of workers takes its time
