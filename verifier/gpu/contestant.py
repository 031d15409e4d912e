"""The contestant: the process in which a candidate's own Python runs on the device, where the runner would stand.

A confined job (`verifier.sandbox`, with the GPU's nodes) that the supervisor starts anew for each candidate and ends
with all it started. It speaks the runner's protocol: `load` brings the source instead of a plan. It has no reference,
no expected value, no seed of inputs and no line to anything but its judge, which believes nothing that it says: a
`Reply` is text and numbers within caps, values are copied by the judge, time is the judge's own clock.

What this does NOT protect against, beside what `sandbox/confine.py` lists:

- The GPU driver. The candidate speaks to it by ioctl, which no filter looks into; a hole in the driver or in the
  device's firmware opens the machine. The device's nodes are all there, also those of other GPUs.
- Load on the device. Its kernels share the GPU with the judge and the base while it lives. What slows the base down is
  refused by comparing it with the base alone; what slows the judge down costs the candidate its own time limit.
- Compilers. A live job may execute the system's programs and build native code; the layers hold those as they hold it.
- What computes. Nothing outside of its process sees which kernels made the outputs, so the problem's library policy is
  not checked; and up to 60 us of a call, and the copy of its outputs, can hide from the judge's clock (`live.py`).
- The driver's own messages between processes and its counters (clocks, memory in use, names of other processes).
"""

from __future__ import annotations

import os
import socket
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verifier.gpu.answering import Answering, serve
from verifier.gpu.device import Captured, Device, open_device
from verifier.gpu.native import FAILED, FILE, arch_list, load_module, said, shortened, take
from verifier.gpu.protocol import FROM_JUDGE, Channel, FailureKind, Message, Reply
from verifier.gpu.slots import Flags
from verifier.sandbox import job
from verifier.specs import dtype_name, dtype_of, elements, leaves, rebuild

_TEXT = 2000


class NoModel(Exception):
    """The file defines no class `ModelNew`."""


class OtherOutput(Exception):
    """What forward returned is not what the reference returns: number, shape or dtype. One sentence."""


class LiveProgram:
    """The candidate's model on one workload. Reads like a `Replayer` where `Device.capture` needs one."""

    def __init__(self, make: Callable[[], Any], device: torch.device, arguments: Mapping[str, Any]) -> None:
        """`make` builds the model; `arguments` is the spec of those of `forward`."""
        self._make, self._device, self._spec = make, device, arguments
        self.inputs: list[Tensor] = []
        self.slots: list[Tensor] = []
        self.seed = 0
        self.graph: Captured | None = None
        self._arguments: list[Any] = []
        self._model: Any = None
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []
        self._last: list[Tensor] = []

    def bind(self, inputs: list[Tensor], slots: list[Tensor]) -> None:
        """Where its arguments are and where its outputs go."""
        self.unready()
        self.inputs, self.slots = inputs, slots
        self._arguments = rebuild(dict(self._spec), iter(inputs))

    def build(self, state: Mapping[str, Tensor]) -> None:
        """A new model, seeded, with the values of `state` where names and shapes match."""
        torch.manual_seed(self.seed)
        model = self._make()
        if isinstance(model, nn.Module):
            model = model.to(self._device)
            own = dict(model.state_dict())
            for name, given in state.items():
                if name in own and own[name].shape == given.shape:
                    own[name].copy_(given)
            self._kept = [
                (module._buffers, name, buffer, buffer.clone())
                for module in model.modules() for name, buffer in module._buffers.items() if buffer is not None
            ]  # fmt: skip
        self._model = model

    def restore(self) -> None:
        """Puts all buffers back: a kernel of the candidate's, or a graph, changes them without a trace in torch."""
        for held, name, buffer, kept in self._kept:
            held[name] = buffer.copy_(kept)

    def forward(self) -> list[Tensor]:
        """One call. Raises OtherOutput, and whatever the candidate raises."""
        made = list(leaves(self._model(*self._arguments)))
        if len(made) != len(self.slots):
            raise OtherOutput(f"it returns {len(made)} tensors, the reference {len(self.slots)}")
        return made

    def run(self) -> list[Tensor]:
        """A call on restored state, after which `give` has something to give."""
        self.restore()
        self._last = self.forward()
        return self._last

    def prepare(self) -> None:
        self.restore()

    def call(self) -> None:
        """What is timed."""
        if self.graph is None:
            self._last = self.forward()
        else:
            self.graph.replay()
            self._last = self.graph.outputs

    def give(self) -> None:
        """Copies the outputs to their slots. Raises OtherOutput."""
        for i, (slot, made) in enumerate(zip(self.slots, self._last, strict=True)):
            if slot.shape != made.shape or slot.dtype != made.dtype:
                what = f"output {i} is {tuple(made.shape)} {dtype_name(made.dtype)}"
                raise OtherOutput(f"{what}, the reference's is {tuple(slot.shape)} {dtype_name(slot.dtype)}")
            slot.copy_(made)

    def capture(self, device: Device) -> bool:
        """Makes a graph of forward where it can be one that does all of the work."""
        self.unready()
        try:
            self.graph = device.capture(self)
            if self.graph is not None and not self._whole(self.graph, device):
                self.unready()
        except Exception:  # noqa: BLE001 - the candidate's own, and a call that follows shows what is left of it
            self.unready()
        device.synchronize()
        if self.graph is not None:
            self._last = self.graph.outputs
        return self.graph is not None

    def _whole(self, graph: Captured, device: Device) -> bool:
        """Whether a replay on other inputs gives what a call gives. Kernels that an extension launches into the default
        stream run while the graph is made, and are not in it.
        """
        if not any(tensor.dtype.is_floating_point for tensor in self.inputs):
            return False
        self._turn(1)
        wanted = [made.clone() for made in self.run()]
        self._turn(1)
        self.run()  # whatever a replay finds from before is of these inputs
        self._turn(-1)
        for made in graph.outputs:
            made.fill_(float("nan") if made.dtype.is_floating_point or made.dtype.is_complex else 1)
        self.restore()
        graph.replay()
        device.synchronize()
        return all(_near(made, want) for made, want in zip(graph.outputs, wanted, strict=True))

    def _turn(self, places: int) -> None:
        """Moves the elements of floating inputs round. Others may be offsets, which must stay as they are."""
        for tensor in (t for t in self.inputs if t.dtype.is_floating_point):
            elements(tensor).copy_(elements(tensor).roll(places))

    def unready(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.graph, self._last = None, []

    def close(self) -> None:
        self.unready()
        self.inputs, self.slots, self._arguments, self._model, self._kept = [], [], [], None, []


class Contestant(Answering[LiveProgram]):
    """Executes the judge's commands. One thread of ours; the candidate may start others."""

    _module: types.ModuleType | None = None
    """The file: once loaded it stays, also where all programs are dropped."""

    def _failed(self, error: BaseException, turn: int) -> Reply:
        found = self._device.failure(error)
        if found is not None:
            return Reply(turn=turn, failure=found.kind, text=found.text[:_TEXT], lost=found.lost, line=_line(error))
        kind: FailureKind = "raised"
        text = said(error)
        if isinstance(error, NoModel | OtherOutput):
            kind, text = "no-model" if isinstance(error, NoModel) else "other-output", str(error)
        elif FAILED in text:
            kind = "build-failed"
        return Reply(turn=turn, failure=kind, text=shortened(text), line=_line(error))

    def _load(self, message: Message, turn: int) -> Reply:
        """Executes the file, once in this process, and keeps how to build its model."""
        blobs, header = message.blobs, message.header
        if self._module is None:
            if "built" in blobs:
                take(blobs["built"])
            self._module = load_module(blobs["source"].decode())
        module, init = self._module, header["init"]

        def make() -> Any:
            tensors = (_tensor(blobs[name], spec) for name, spec in header["init_tensors"])
            return module.ModelNew(*rebuild(init, tensors))

        if not callable(getattr(module, "ModelNew", None)):
            raise NoModel("the file defines no class `ModelNew`")
        self._programs[header["name"]] = LiveProgram(make, self._device.torch_device, header["arguments"])
        return Reply(turn=turn)

    def _bind(self, message: Message, turn: int) -> Reply:
        program, header = self._programs[message.header["name"]], message.header
        program.seed = header["seed"]
        program.bind(
            [self._blocks.view(p) for p in header["inputs"]], [self._blocks.view(p) for p in header["outputs"]]
        )
        if header["setup"]:
            program.build({name: self._blocks.view(p) for name, p in header["state"].items()})
            self._device.synchronize()
        return Reply(turn=turn)

    def _capture(self, message: Message, turn: int) -> Reply:
        program = self._programs[message.header["name"]]
        program.unready()
        program.run()
        self._device.synchronize()
        graph = bool(message.header["graph"]) and program.capture(self._device)
        return Reply(turn=turn, captured=graph)


def _near(made: Tensor, want: Tensor) -> bool:
    """Equal, up to what the order of summation changes."""
    if not made.dtype.is_floating_point or not made.numel():
        return torch.equal(made, want)
    scale = float(want[want.isfinite()].abs().max()) if bool(want.isfinite().any()) else 0.0
    return torch.allclose(made.float(), want.float(), rtol=1e-2, atol=1e-3 * scale, equal_nan=True)


def _tensor(data: bytes, spec: Mapping[str, Any]) -> Tensor:
    """A tensor on the host from its bytes, row-major."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype_of(spec["dtype"])).reshape(spec["shape"])


def _line(error: BaseException) -> int | None:
    """Line of the innermost frame in the candidate's file; of a syntax error its own."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).name == FILE and f.lineno]
    return lines[-1] if lines else getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None


def contest_job(
    payload: Mapping[str, Any], blobs: dict[str, bytes], workdir: Path
) -> tuple[None, dict[str, bytes]]:  # fmt: skip
    """The job of the confined child: `{"device": "package.module:function"}`; it was passed the line to its judge and
    the page of flags.
    """
    end, flags = job.passed
    torch.set_grad_enabled(False)
    page = Flags(flags)
    os.close(flags)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=end)  # named, so that nobody asks the kernel
    device = open_device(payload["device"])
    if device.architecture:
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch_list(device.architecture)
    serve(Channel(line, FROM_JUDGE), Contestant(device, page))
    os._exit(0)  # a lost context makes an orderly end hang or fail
