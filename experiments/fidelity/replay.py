"""Child: replays the plans of one answer on the same inputs and weights and compares with the direct run's outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from experiments.fidelity import measure
from experiments.fidelity.direct import load
from experiments.fidelity.launches import WatchedLauncher, choose, fates
from experiments.fidelity.plans import PlanFile
from experiments.fidelity.workers import Report, read_report, told
from verifier.gpu.launch import CudaLauncher, Launcher
from verifier.gpu.replay import Replayer
from verifier.plan.reader import read_plan
from verifier.plan.schema import AtenStep, Plan, Program


def replay(report: Report, payload: Mapping[str, Any], launcher: Callable[[], Launcher] = CudaLauncher) -> None:
    """payload: {"problem": file, "name", "id", "plans": {label: archive}, "device"}; the report's folder is that of the
    direct run, if there was one. Notes one result under each label; raises what a replay raises."""
    device = torch.device(payload["device"])
    report.stage("problem")
    problem = load(payload["problem"], payload["name"])
    model = measure.construct(problem.Model, problem)
    state = {name: t.detach() for name, t in measure.tensors_of(model).items()}
    said = read_report(report.folder, "direct")
    for label, archive in payload["plans"].items():
        report.within(label)
        try:
            _replay(report, PlanFile(Path(archive)).get(payload["id"]), problem, state, said, device, launcher)
        except Exception as error:  # noqa: BLE001 - at a process boundary: one plan's failure is its result
            report.note(status="error", message=told(error))
            measure.settle(device)  # a lost context ends the child here


def _replay(
    report: Report,
    packed: tuple[Any, Mapping[str, bytes]],
    problem: ModuleType,
    state: Mapping[str, Tensor],
    said: Mapping[str, Any],
    device: torch.device,
    launcher: Callable[[], Launcher],
) -> None:
    report.stage("plan")
    plan = read_plan(*packed)
    forward = plan.programs[0].forward
    random = any(isinstance(s, AtenStep) and s.role == "random" for s in forward)
    report.note(versions=dict(plan.versions), steps=len(forward), random=random)
    inputs = measure.tensors(measure.make_inputs(problem, device))
    if "inputs" in said:
        report.note(same_inputs=[measure.checksums(t) for t in inputs] == said["inputs"])
    one = _One(report, plan, problem, inputs, said, device, launcher())
    one.prepare(packed[1], state)
    one.measure()
    one.close()
    report.note(status="ok")


class _One:
    """One plan under replay."""

    def __init__(
        self,
        report: Report,
        plan: Plan,
        problem: ModuleType,
        inputs: Sequence[Tensor],
        said: Mapping[str, Any],
        device: torch.device,
        launcher: Launcher,
    ) -> None:
        self.report, self.plan, self.problem, self.said = report, plan, problem, said
        self.program: Program = plan.programs[0]
        self.inputs, self.device = inputs, device
        self.launcher = WatchedLauncher(launcher, self.program, device)

    def prepare(self, blobs: Mapping[str, bytes], state: Mapping[str, Tensor]) -> None:
        report, program = self.report, self.program
        report.stage("load")
        begin = time.perf_counter()
        self.replayer = Replayer(self.plan, blobs, program.workload, device=self.device, launcher=self.launcher)
        self.replayer.load()
        report.note(load_ms=_since(begin))
        report.stage("set-up")
        begin = time.perf_counter()
        self.replayer.bind(self.inputs, {n: t for n, t in state.items() if self._fits(n, t)})
        self.replayer.poison = True
        measure.seed()
        with torch.no_grad():
            self.replayer.setup(measure.SEED)
        measure.settle(self.device)
        chosen, missing = choose(program, self.said.get("choices", ()))
        self.replayer.choose(chosen)
        report.note(setup_ms=_since(begin), chosen=len(chosen), without_choice=missing)
        report.note(other_flags=self._other_flags())

    def _fits(self, name: str, tensor: Tensor) -> bool:
        parameter = self.program.parameters.get(name)
        return parameter is not None and self.program.values[parameter.value].shape == tuple(tensor.shape)

    def _other_flags(self) -> list[str]:
        """Settings of forward's library steps that the direct run did not have at its end."""
        used = {s.flags for s in self.program.forward if isinstance(s, AtenStep)}
        plans = [self.plan.flags[i].model_dump(mode="json") for i in used]
        said = self.said.get("flags", {})
        return sorted({name for flags in plans for name, value in said.items() if flags.get(name, value) != value})

    def measure(self) -> None:
        report, replayer = self.report, self.replayer
        report.stage("first run")
        begin = time.perf_counter()
        outputs = self._run()
        report.note(first_ms=_since(begin), relaid=replayer.relaid)
        again = [measure.checksums(t) for t in outputs]
        if "outputs" in self.said:
            report.note(**measure.compare(outputs, self.said["outputs"], self.report.folder))
            if not report.noted("equal"):
                self._look_closer()
        report.note(repeatable=again == [measure.checksums(t) for t in self._run()])
        replayer.poison = False
        report.stage("time")
        report.note(times=measure.summary(measure.timed(self._call, self.device, seconds=1.0)))
        if self.device.type == "cuda":
            report.stage("graph")
            self._capture()

    def close(self) -> None:
        self.outputs: list[Tensor] = []
        self.replayer.close()

    def _run(self) -> list[Tensor]:
        """One call on the drawn inputs, under the seed of the direct run's calls."""
        if self.program.mutated_inputs:
            drawn = measure.tensors(measure.make_inputs(self.problem, self.device))
            for mine, fresh in zip(self.inputs, drawn, strict=True):
                mine.copy_(fresh)
        measure.seed()
        self._call()
        measure.settle(self.device)
        return self.outputs

    def _call(self) -> None:
        with torch.no_grad():
            self.outputs = self.replayer.run()

    def _look_closer(self) -> None:
        """Bits differ: do they depend on what fresh memory held, and which launches differ on equal arguments?"""
        self.report.stage("closer look")
        poisoned = [measure.checksums(t) for t in self.outputs]
        self.replayer.poison_with_zeros(True)
        zeroed = self._run()
        self.report.note(reads_unwritten=[measure.checksums(t) for t in zeroed] != poisoned)
        self.report.note(with_zeros=measure.compare(zeroed, self.said["outputs"], self.report.folder))
        self.launcher.on = True
        self._run()
        self.launcher.on = False
        found = fates(self.said.get("launches", ()), self.launcher.launches)
        self.report.note(launches={fate: found.count(fate) for fate in sorted(set(found))})
        self.replayer.poison_with_zeros(False)

    def _capture(self) -> None:
        """The call as a CUDA graph: captured or why not, its time, and whether it gives the same bits."""
        wanted = [measure.checksums(t) for t in self._run()]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._call()
        except RuntimeError as refused:
            self.report.note(graph=False, graph_message=str(refused).splitlines()[0][:200])
            return
        self.report.note(graph=True)
        if not self.program.mutated_inputs:
            graph.replay()
            measure.settle(self.device)
            self.report.note(graph_equal=[measure.checksums(t) for t in self.outputs] == wanted)
        self.report.note(graph_times=measure.summary(measure.timed(graph.replay, self.device, seconds=1.0)))


def _since(begin: float) -> float:
    return 1e3 * (time.perf_counter() - begin)
