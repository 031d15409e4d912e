"""Replays one program of a checked plan: library steps through torch, custom kernels through the launcher.

Trusted code; the only thing of the candidate that runs is its compiled device code. A library step may lay out or alias
its result otherwise than the traced build did; the result is then copied to where the plan says, so that every launch
finds the strides it was traced with (`relaid` counts such copies).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from verifier.errors import first_line
from verifier.gpu.aten import apply_flags, decode, operator
from verifier.gpu.launch import Launcher
from verifier.gpu.memory import Memory, ReplayError
from verifier.gpu.packing import passed
from verifier.plan.arguments import DescriptorArg, LaunchArg, PointerArg, values_in
from verifier.plan.schema import Alternative, AtenStep, Generator, KernelImage, LaunchStep, Plan
from verifier.specs import dtype_name

Step = AtenStep | LaunchStep
_KEPT = ("input", "parameter", "constant", "setup", "scratch", "earlier_input")
"""Origins of storages that live from one run to the next."""
MOST_MADE = 1 << 20
"""Bytes of what a set-up made that are kept on the host."""
GUARDED_BYTES = 1 << 28
"""Of the largest allocation that is made twice while a plan is checked, to have guards around it."""


class Replayer:
    """One program on one device. Not safe from several threads: library flags are process-wide."""

    def __init__(
        self, plan: Plan, blobs: Mapping[str, bytes], workload: str, *, device: torch.device, launcher: Launcher
    ) -> None:
        """Loads nothing yet. `blobs` are those that `read_plan` checked the plan with."""
        self.plan, self.program = plan, plan.program(workload)
        self.poison = False
        """Fill scratch and every allocation of the plan before use."""
        self.relaid = 0
        """Library results that were copied to the plan's layout in the last run."""
        self._blobs, self._device, self._launcher = blobs, device, launcher
        self._kernels: dict[str, Any] = {}
        self._loaded = False
        self._memory = Memory(self.program, device)
        self._state: Mapping[str, Tensor] = {}
        self._choice: Mapping[int, int] = {}
        self._saved: dict[int, Tensor] = {}
        self._random: list[Tensor] = []
        self._made: dict[int, Tensor] | None = None
        self._flags: int | None = None
        self._dying = self._last_uses()

    # -- preparation -------------------------------------------------------------------------------

    def load(self) -> None:
        """Loads every kernel that the program launches with the alternatives chosen so far. Raises CudaError."""
        self._loaded = True
        steps = [(0, s) for s in self.program.setup]
        steps += [(self._choice.get(i, 0), s) for i, s in enumerate(self.program.forward)]
        for choice, step in steps:
            if not isinstance(step, LaunchStep):
                continue
            name = step.alternatives[choice].kernel
            if name not in self._kernels:
                image = self.plan.kernels[name]
                self._kernels[name] = self._launcher.load(image, self._blobs[f"{image.cubin}.cubin"])

    def bind(self, inputs: Sequence[Tensor], state: Mapping[str, Tensor]) -> None:
        """Input tensors in leaf order, used in place, and the state-dict values to load (copied in set-up).

        Raises ReplayError where an input does not have the plan's shape, strides and dtype.
        """
        if len(inputs) != len(self.program.inputs):
            raise ReplayError(f"{len(inputs)} input tensors given, the plan has {len(self.program.inputs)}")
        for position, (value, tensor) in enumerate(zip(self.program.inputs, inputs, strict=True)):
            self._bind_input(position, value, tensor)
        self._state = state
        self._memory.guarded = self.poison

    def written_past(self) -> bool:
        """Whether kernels wrote past what the plan allocated, where memory is poisoned; since the last time asked."""
        return self._memory.written_past()

    def _bind_input(self, position: int, value: int, tensor: Tensor) -> None:
        said = self.program.values[value]
        if (said.shape, said.dtype) != (tuple(tensor.shape), dtype_name(tensor.dtype)) or said.stride != tuple(
            tensor.stride()
        ):
            raise ReplayError(f"input {position} is {tuple(tensor.shape)} {dtype_name(tensor.dtype)}, the plan has "
                              f"{said.shape} {said.dtype}, or the strides differ")  # fmt: skip
        if tensor.storage_offset() != said.offset:
            raise ReplayError(f"input {position} starts at element {tensor.storage_offset()}, not at {said.offset}")
        self._memory.hold(said.storage, tensor.untyped_storage())
        self._saved.pop(said.storage, None)

    def setup(self, seed: int = 0) -> None:
        """Constants, parameters and the set-up steps, in the plan's order. Raises ReplayError, CudaError.

        `seed` is that of the device's random stream where the candidate set none. What a small set-up of library steps
        made, from nothing that is given, is kept on the host and put back the next time.
        """
        self._saved.clear()
        self._random = [self._seeded(made, seed) for made in self.program.generators]
        for i, storage in enumerate(self.program.storages):
            if storage.origin in ("parameter", "scratch", "earlier_input"):
                self._memory.allocate(i)
            elif storage.origin != "input":
                self._memory.drop(i)
            if storage.origin == "earlier_input":  # no honest output needs one: where one does, it shows as NaN
                self._memory.poison(i)
        self._memory.load_constants()
        if self._made is not None:
            for i, held in self._made.items():
                self._memory.allocate(i)
                self._memory.bytes(i)[: held.numel()].copy_(held)
            return
        ready: dict[int, list[str]] = {}
        for name, parameter in self.program.parameters.items():
            ready.setdefault(parameter.ready, []).append(name)
        idle = self._idle()
        for at, step in enumerate([*self.program.setup, None]):
            for name in ready.get(at, ()):
                self._load_parameter(name)
            if step is not None and at not in idle:
                self._step(step, 0)
        self._end_setup()

    def _idle(self) -> set[int]:
        """Set-up steps that fill or draw a weight which nothing reads before its own value is loaded, and whose stream
        nothing draws from afterwards: a large layer takes seconds to draw.
        """
        program = self.program
        loaded = {program.values[p.value]: p.ready for n, p in program.parameters.items() if n in self._state}
        fixed = {program.values[p.value].storage for p in program.parameters.values() if p.fixed}
        drawn = {s.generator for s in _library_steps(program.forward)}
        found: set[int] = set()
        for at, step in reversed(list(enumerate(program.setup))):
            if isinstance(step, AtenStep) and step.role in ("fill", "random") and len(step.mutates) == 1:
                value = program.values[step.mutates[0]]
                between = range(at + 1, loaded.get(value, 0))
                read = any(value.storage in self._touched(program.setup[i]) for i in between if i not in found)
                named = [v for a in (*step.args, *step.kwargs.values()) for v in values_in(a)]
                alone = {program.values[v] for v in (*named, *step.outputs)} == {value} and value.storage not in fixed
                if at < loaded.get(value, 0) and alone and not read and step.generator not in drawn - {None}:
                    found.add(at)
                    continue
            drawn |= {s.generator for s in _library_steps((step,))}
        return found

    def _end_setup(self) -> None:
        """Gives back what forward has no use for."""
        program, lasting = self.program, self._lasting()
        for i, storage in enumerate(program.storages):
            if storage.origin == "setup" and i not in lasting:
                self._memory.drop(i)
        origins = {program.storages[i].origin for i in lasting} - {"input", "forward"}
        alone = all(isinstance(s, AtenStep) and s.generator is None for s in program.setup)
        if program.setup and alone and origins <= {"setup", "constant"} and not program.parameters:
            held = [i for i in lasting if program.storages[i].origin in origins]
            if sum(program.storages[i].bytes for i in held) <= MOST_MADE:
                self._made = {i: self._memory.bytes(i).to("cpu", copy=True) for i in held}

    def _lasting(self) -> set[int]:
        """Storages that forward needs."""
        program = self.program
        values = (*program.output_values(), *(p.value for p in program.parameters.values()))
        needed = {program.values[v].storage for v in values}
        return needed.union(program.restore, *(self._touched(step) for step in program.forward))

    def kept_bytes(self) -> int:
        """Of weights and of all else that it holds from call to call, inputs aside."""
        storages = (self.program.storages[i] for i in self._lasting())
        return sum(s.bytes for s in storages if s.origin not in ("input", "forward"))

    def _load_parameter(self, name: str) -> None:
        if name not in self._state:
            return
        place, given = self._memory.value(self.program.parameters[name].value), self._state[name]
        if place.shape != given.shape:
            raise ReplayError(f"parameter {name!r} has shape {tuple(place.shape)}, {tuple(given.shape)} given")
        if self.program.parameters[name].fixed and not torch.equal(place, given.to(place)):
            raise ReplayError(f"the file reads the value of parameter {name!r}, and another one is given")
        place.copy_(given)

    def choose(self, choice: Mapping[int, int]) -> None:
        """Which alternative each launch of `forward` uses: position among all forward steps to index; else the first.

        Raises ReplayError for a choice that the plan does not have.
        """
        for position, index in choice.items():
            step = self.program.forward[position] if position < len(self.program.forward) else None
            if not isinstance(step, LaunchStep) or not 0 <= index < len(step.alternatives):
                raise ReplayError(f"step {position} has no alternative {index}")
        self._choice = dict(choice)
        if self._loaded:
            self.load()

    # -- running -----------------------------------------------------------------------------------

    def run(self) -> list[Tensor]:
        """One call of forward on restored state. Gives the output tensors depth first; they live until the next run."""
        self.restore()
        return self.forward()

    def poison_with_zeros(self, on: bool) -> None:
        """Where `poison` is set: zeros from now on in place of NaN and odd numbers."""
        self._memory.zeros = on

    def restore(self) -> None:
        """Puts what forward changes and needs back to where it was before the first run, and poisons scratch."""
        for storage in self.program.restore:
            if storage in self._saved:
                self._memory.bytes(storage).copy_(self._saved[storage])
            else:
                self._saved[storage] = self._memory.bytes(storage).clone()
        if self.poison:
            self.poison_scratch()

    def poison_scratch(self) -> None:
        """Overwrites what a call may leave for the next one in memory that needs no content."""
        for i, storage in enumerate(self.program.storages):
            if storage.origin == "scratch":
                self._memory.poison(i)

    def forget_inputs(self) -> None:
        """The input tensors hold other values now: what was saved of them to restore is out of date."""
        for value in self.program.inputs:
            self._saved.pop(self.program.values[value].storage, None)

    def forward(self) -> list[Tensor]:
        """The steps of forward alone. Raises ReplayError, CudaError."""
        for position in range(len(self.program.forward)):
            self.step(position)
        return [self._memory.value(v) for v in self.program.output_values()]

    def step(self, position: int) -> None:
        """One step of forward; memory that no later step needs is given back. Steps run in order, from 0."""
        if position == 0:
            self.begin()
        self._step(self.program.forward[position], self._choice.get(position, 0))
        for storage in self._dying.get(position, ()):
            self._memory.drop(storage)

    def begin(self) -> None:
        """Forgets what the last run made, so that library results stay where the library puts them; streams that
        forward seeds start anew."""
        self.relaid = 0
        for i, stream in enumerate(self.program.generators):
            if stream.each_call:
                self._random[i] = self._seeded(stream, 0)
        for i, storage in enumerate(self.program.storages):
            if storage.origin == "forward":
                self._memory.drop(i)

    def release(self) -> None:
        """Drops all memory; the kernels stay loaded. It must be bound and set up again."""
        self._memory = Memory(self.program, self._device)
        self._saved.clear()
        self._state = {}

    def close(self) -> None:
        """Drops all memory and unloads the kernels."""
        self.release()
        self._kernels.clear()
        self._launcher.close()

    # -- steps -------------------------------------------------------------------------------------

    def _step(self, step: Step, choice: int) -> None:
        if isinstance(step, AtenStep):
            self._aten(step)
            return
        launch = step.alternatives[choice]
        for before in launch.before:
            self._aten(before)
        self._launch(launch)

    def _aten(self, step: AtenStep) -> None:
        if self._flags != step.flags:
            apply_flags(self.plan.flags[step.flags])
            self._flags = step.flags
        args = [decode(a, self._memory.value, self._device) for a in step.args]
        kwargs = {k: decode(a, self._memory.value, self._device) for k, a in step.kwargs.items()}
        try:
            with self._drawing(step):
                out = operator(step.op)(*args, **kwargs)
        except (RuntimeError, AttributeError, TypeError, ValueError, NotImplementedError) as failed:
            if isinstance(failed, torch.OutOfMemoryError | torch.AcceleratorError):
                raise
            raise ReplayError(f"{step.op}: {first_line(failed)}") from failed
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if len(made) != len(step.outputs):
            raise ReplayError(f"{step.op} gave {len(made)} tensors, the plan has {len(step.outputs)}")
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for value, tensor in zip(step.outputs, made, strict=True):
            self._keep(step, value, tensor, given)

    def _seeded(self, made: Generator, seed: int) -> Tensor:
        """State of a stream before its first number."""
        device = self._device if made.device == "cuda" else torch.device("cpu")
        return torch.Generator(device).manual_seed(seed if made.seed is None else made.seed).get_state()

    @contextmanager
    def _drawing(self, step: AtenStep) -> Iterator[None]:
        """Lets a step draw from its stream. Everything draws from the device's default generator."""
        if step.generator is None:
            yield
            return
        cuda = self.program.generators[step.generator].device == "cuda" and self._device.type == "cuda"
        default = torch.cuda.default_generators[self._device.index or 0] if cuda else torch.default_generator
        default.set_state(self._random[step.generator])
        yield
        self._random[step.generator] = default.get_state()

    def _keep(self, step: AtenStep, value: int, tensor: Tensor, given: set[int]) -> None:
        """Puts a library result where the plan has it."""
        said = self.program.values[value]
        if tuple(tensor.shape) != said.shape or dtype_name(tensor.dtype) != said.dtype:
            raise ReplayError(f"{step.op} gave {tuple(tensor.shape)} {dtype_name(tensor.dtype)}, the plan has "
                              f"{said.shape} {said.dtype}")  # fmt: skip
        known, allocation = said.storage in self._memory, step.role == "alloc"
        own = self._memory.value(value) if known else None
        if own is not None and own.data_ptr() == tensor.data_ptr():
            return
        fits = tensor.stride() == said.stride and tensor.storage_offset() == said.offset
        big = tensor.untyped_storage().nbytes() >= self.program.storages[said.storage].bytes
        aliases = tensor.untyped_storage().data_ptr() in given and tensor.numel() > 0
        made = step.role in ("alloc", "fill")
        guarded = self.poison and made and tensor.untyped_storage().nbytes() < GUARDED_BYTES
        if own is None and fits and big and not aliases and not guarded:
            self._memory.hold(said.storage, tensor.untyped_storage())
        else:
            if own is None:
                self._memory.allocate(said.storage)
            if not allocation:
                self._memory.value(value).copy_(tensor)
                self.relaid += not guarded
        if allocation and self.poison:
            self._memory.poison(said.storage)

    def _launch(self, launch: Alternative) -> None:
        image = self.plan.kernels[launch.kernel]
        addresses = [self._address(arg) for arg in passed(launch)]
        scratch = self._scratch(image, launch)
        addresses += [0 if t is None else t.data_ptr() for t in scratch]
        stream = torch.cuda.current_stream().cuda_stream if self._device.type == "cuda" else 0
        self._launcher.launch(self._kernels[launch.kernel], image, launch, addresses, stream)

    def _address(self, arg: LaunchArg) -> int:
        if isinstance(arg, PointerArg | DescriptorArg):
            return self._memory.address(arg.storage, arg.offset)
        return 0

    def _scratch(self, image: KernelImage, launch: Alternative) -> list[Tensor | None]:
        """Global and profile scratch of a Triton launch, aligned to 512 bytes. The caching allocator gives the memory
        to nothing that the stream runs before the launch."""
        if image.language != "triton":
            return []
        blocks = launch.grid[0] * launch.grid[1] * launch.grid[2] * image.num_ctas
        sizes = [part.size * blocks for part in (image.global_scratch, image.profile_scratch)]
        return [torch.empty(n, dtype=torch.uint8, device=self._device) if n else None for n in sizes]

    def _last_uses(self) -> dict[int, list[int]]:
        """Position of a forward step to the storages that nothing needs after it."""
        kept = {i for i, s in enumerate(self.program.storages) if s.origin in _KEPT}
        kept |= {self.program.values[v].storage for v in self.program.output_values()}
        last: dict[int, int] = {}
        for position, step in enumerate(self.program.forward):
            for storage in self._touched(step) - kept:
                last[storage] = position
        dying: dict[int, list[int]] = {}
        for storage, position in last.items():
            dying.setdefault(position, []).append(storage)
        return dying

    def _touched(self, step: Step) -> set[int]:
        if isinstance(step, AtenStep):
            named = [v for a in (*step.args, *step.kwargs.values()) for v in values_in(a)]
            return {self.program.values[v].storage for v in (*named, *step.outputs, *step.mutates)}
        args = [a for launch in step.alternatives for a in launch.args]
        touched = {a.storage for a in args if isinstance(a, PointerArg | DescriptorArg)}
        return touched.union(*(self._touched(b) for launch in step.alternatives for b in launch.before))


def _library_steps(steps: Iterable[Step]) -> Iterator[AtenStep]:
    """Those among `steps` and before their launches."""
    for step in steps:
        if isinstance(step, AtenStep):
            yield step
        else:
            yield from (before for launch in step.alternatives for before in launch.before)
