"""Is a plan right on one workload? The judge's part: slots, expected values, guards, comparison.

For each draw every input slot is written anew and the guards around inputs and outputs are filled anew; before each run
outputs are poisoned. As soon as the runner has answered, the outputs are compared with PyTorch's own result, byte by
byte and in one pass; where they differ they are copied away first, and only the copies are compared. The first draw
runs several times; runs that do not agree bit by bit are a warning, and then each of them is compared.

A kernel that is wrong in a share p of its runs is found with probability 1 - (1 - p)^n after n of them: ten runs for a
workload with five repeats find 74% of those that are wrong one time in eight, 15% of one in 64, eight runs of a slow
kernel 66% and 12%; what `pairs` looks at comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verifier import inputs, numerics
from verifier.gpu.aten import decode
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.memory import as_stored, guard_bytes, poison_byte
from verifier.gpu.references import References
from verifier.gpu.slots import Arena, Place, broken_guards, want_dense, want_tensor, want_values
from verifier.interpreter.compare import compare_values, quick_values
from verifier.interpreter.replay_gate import ignores_weights
from verifier.near import all_same, same_bytes
from verifier.plan.schema import Plan, Program
from verifier.reference import Expected, Reference, Skip
from verifier.specs import dtype_name, elements, leaves
from verifier.verdict import Diagnostic, OutputCheck, Status

PROBE_ELEMENTS = 1 << 28
LARGE_BYTES, SLOW_SECONDS, FEW_REPEATS = 4 << 30, 5e-3, 3
"""Bytes of inputs and outputs, and time of a run, above which the first draw runs fewer times."""
_STATE_GUARD = 512


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked plan with what the runner needs to read it again."""

    plan: Plan
    text: bytes
    blobs: Mapping[str, bytes]

    def program(self, workload: str) -> Program:
        """Raises RunnerFailed where the plan has none."""
        try:
            return self.plan.program(workload)
        except KeyError:
            raise RunnerFailed("plan-refused", f"it has no program for workload {workload}", lost=False) from None


class DoesNotFit(Exception):
    """The workload is too large for the device. One sentence."""


@dataclass
class Found:
    """What the checks of a visit have found so far."""

    checks: list[OutputCheck] = field(default_factory=list)
    findings: list[Diagnostic] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    precision: str | None = None
    status: Status | None = None

    def fail(self, status: Status, code: str, message: str, line: int | None = None) -> None:
        if self.status is None:
            self.status = status
        self.findings.append(Diagnostic(severity="error", code=code, message=message, line=line))

    def wrong(self) -> bool:
        return self.status is not None or any(not c.passed for c in self.checks)


class Slots:
    """The three blocks of one bound program: inputs, state, outputs."""

    def __init__(
        self, device: Device, program: Program, state: Mapping[str, Tensor], first: int = 0, *, outputs: bool = True
    ) -> None:
        """`first`: number of the first block; without `outputs` there is no place for them. Raises OutOfMemoryError,
        CudaError."""
        wanted = {k: v for k, v in state.items() if k in program.parameters
                  and program.values[program.parameters[k].value].shape == tuple(v.shape)}  # fmt: skip
        self.program, self._names = program, list(wanted)
        self._guard = guard_bytes()
        self.arenas: list[Arena] = []
        try:
            self.arenas.append(Arena(device, first, want_values(program, program.inputs)))
            self.arenas.append(
                Arena(device, first + 1, want_dense(program, program.output_values() if outputs else ()))
            )
            if wanted:
                held = [want_tensor(t) for t in wanted.values()]
                self.arenas.append(Arena(device, first + 2, held, guard=_STATE_GUARD))
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = self.arenas[:2]

    @property
    def state(self) -> dict[str, Place]:
        return dict(zip(self._names, self.arenas[2].places, strict=True)) if self._names else {}

    def write(self, values: list[Any] | None, state: Mapping[str, Tensor]) -> None:
        """Inputs, if any, and weights into their slots. Raises RunnerFailed where the plan has other inputs."""
        if values is not None:
            given = list(leaves(values))
            self._agree(given)
            for slot, tensor in zip(self.inputs.views, given, strict=True):
                write(slot, tensor)
        for name, slot in zip(self._names, self.arenas[2].views if self._names else (), strict=True):
            slot.copy_(state[name])

    def exchange_inputs(self, other: Slots) -> None:
        """Each takes the other's memory for its inputs, where the two are laid out alike."""
        mine, theirs = ([p.model_copy(update={"block": 0}) for p in s.inputs.places] for s in (self, other))
        if mine == theirs:
            self.inputs, other.inputs = other.inputs, self.inputs
            self.arenas[0], other.arenas[0] = self.inputs, other.inputs

    def arm(self) -> None:
        """Fills the guards and poisons the outputs."""
        byte = next(self._guard)
        for arena in (self.inputs, self.outputs):
            arena.arm(byte)
        self.poison()

    def poison(self) -> None:
        """NaN in every floating and complex dtype, odd numbers elsewhere."""
        for i, slot in enumerate(self.outputs.views):
            self.outputs.storage(i).fill_(poison_byte(slot.dtype))

    def broken(self) -> str:
        """Which guard was written over, in words; empty if none was."""
        arenas = {"input": self.inputs, "output": self.outputs}
        for (name, arena), wrong in zip(arenas.items(), broken_guards(list(arenas.values())), strict=True):
            for at in wrong:
                where = f"before {name} {at}" if at < len(arena.places) else f"behind the last {name}"
                return f"a kernel wrote outside of every tensor, {where}"
        return ""

    def changed(self, values: list[Any]) -> list[int]:
        """Numbers of the inputs that no longer hold what was written."""
        pairs = zip(self.inputs.views, leaves(values), strict=True)
        same = all_same([(elements(slot), elements(tensor)) for slot, tensor in pairs])
        return [i for i, alike in enumerate(same) if not alike]

    def close(self) -> None:
        for arena in self.arenas:
            arena.close()

    def _agree(self, given: list[Tensor]) -> None:
        planned = [self.program.values[v] for v in self.program.inputs]
        said = [(v.dtype, v.shape, v.stride) for v in planned]
        real = [(dtype_name(t.dtype), tuple(t.shape), tuple(t.stride())) for t in given]
        if said != real:
            raise RunnerFailed("plan-refused", f"its inputs are {said}, the problem's are {real}"[:500], lost=False)


def write(slot: Tensor, tensor: Tensor) -> None:
    """Copies elements, also those of an expanded tensor, in which several share one place."""
    elements(slot).copy_(elements(tensor))


class WorkloadCheck:
    """All draws of one plan on one workload, in one runner."""

    def __init__(
        self, device: Device, link: Link, references: References, candidate: Loaded, reference: Reference,
        salt: str = "", choice: Mapping[int, int] | None = None,
    ) -> None:  # fmt: skip
        """`salt` of the draws; `choice`: alternatives of launches, the first ones when left out."""
        self._salt = salt
        self._device, self._link, self._references = device, link, references
        self._candidate, self._reference, self._choice = candidate, reference, choice or {}
        self._program = candidate.program(reference.workload.name)
        self._nondeterministic = False

    def run(
        self, draws: tuple[str, ...] | None, repeats: int, probe: bool, found: Found,
        held: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:  # fmt: skip
        """Checks until something is wrong. `held`: shapes of the file's weights by name, to try others, None for not.
        Raises RunnerFailed, DoesNotFit, OutOfMemoryError, ProblemError."""
        self._refuse_large()
        if self._moved() > LARGE_BYTES:
            repeats = min(repeats, FEW_REPEATS)
        with self._bound() as slots:
            first = True
            for name in draws or inputs.DRAWS:
                made = self._references.draw(self._reference, name, self._salt)
                if isinstance(made, str):
                    found.skipped[name] = made
                    continue
                self._draw(slots, made, repeats if first else 1, found, setup=first)
                first = False
                del made
                if found.wrong():
                    return
            if held is not None and found.checks and self._asked(held):
                with self._link.part("other weights"), suppress(Skip, torch.OutOfMemoryError):
                    self._other_weights(slots, found)
                if found.wrong():
                    return
            if probe:
                with self._link.part("probe"):
                    found.precision = self._probe(slots) or found.precision

    @contextmanager
    def _bound(self) -> Iterator[Slots]:
        """Slots that the runner has mapped, and the program loaded there; both are dropped at the end."""
        with self._link.part("slots"):
            slots = Slots(self._device, self._program, self._reference.state)
        try:
            self._link.load("check", self._candidate.text, self._candidate.blobs, self._reference.workload.name)
            self._link.map(slots.arenas)
            if self._choice:
                self._link.choose("check", self._choice)
            yield slots
            self._link.drop()
        finally:
            with self._link.part("close slots"):
                slots.close()

    def _draw(self, slots: Slots, made: Expected, repeats: int, found: Found, *, setup: bool) -> None:
        part = self._link.part
        with part("write slots"):
            slots.write(made.inputs, self._reference.state)
            slots.arm()
            self._make_room()
        if setup:
            self._bind(slots)
        else:
            self._link.renew("check")
        kept: list[Tensor] = []
        for turn in range(repeats):
            if turn >= repeats:
                break
            if turn:
                slots.arm()
                if made.mutated:  # nothing but a plan says how to restore them
                    slots.write(made.inputs, self._reference.state)
            start = time.perf_counter()
            self._link.run("check")
            if turn and time.perf_counter() - start > SLOW_SECONDS:
                repeats = min(repeats, FEW_REPEATS)
            with part("guards"):
                broken = slots.broken()
            if broken:
                found.fail(Status.OUT_OF_BOUNDS, "out-of-bounds", broken)
                return
            if turn == 0 or turn >= repeats - 1:
                with part("inputs changed"):
                    self._inputs(slots.changed(made.inputs), made, found)
            with part("compare"):
                if turn and all(same_bytes(a, b) for a, b in zip(kept, slots.outputs.views, strict=True)):
                    continue
                outputs = self._compare(slots, made, found)
            if turn:
                self._unequal(found)
            else:
                kept = outputs
            if found.wrong():
                return

    def _bind(self, slots: Slots) -> None:
        self._link.bind(
            "check", slots.inputs, slots.state, slots.outputs, seed=self._reference.init_seed, setup=True, poison=True
        )

    def _make_room(self) -> None:
        """For what the program allocates, and as much again for libraries."""
        self._references.make_room(self._device, 2 * sum(s.bytes for s in self._program.storages))

    def _inputs(self, changed: list[int], made: Expected, found: Found) -> None:
        extra = sorted(set(changed) - set(made.mutated))
        if extra:
            message = f"input tensor {extra[0]} is changed in place; the reference leaves it as it is"
            found.fail(Status.WRONG, "input-mutated", message)

    def _unequal(self, found: Found) -> None:
        if not self._nondeterministic:
            message = "two runs on the same inputs do not agree bit by bit"
            found.findings.append(Diagnostic(severity="warning", code="nondeterministic", message=message))
        self._nondeterministic = True

    def _compare(self, slots: Slots, made: Expected, found: Found) -> list[Tensor]:
        """Adds the checks of a run; tensors with its outputs, which no runner can change."""
        outputs, checks = compared(self._program, slots.outputs.views, made, self._reference, made.name)
        try:
            checks = checks or in_full(self._program, outputs, made, self._reference, made.name)
            coarse = "" if all(c["passed"] for c in checks) else made.coarse()
        except Skip as reason:
            coarse = str(reason)
        if coarse:
            found.skipped[made.name] = coarse
        else:
            found.checks += [OutputCheck.model_validate(c) for c in checks or ()]
        return outputs

    def _asked(self, held: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether some weights start with one value everywhere, which hides whether anything uses them, and the file
        holds all of those by the reference's names and reads none of them on the host."""
        known, planned = self._reference.uniform, self._program.parameters
        read = any(name in planned and planned[name].fixed for name in known)
        same = all(held.get(name) == tuple(tensor.shape) for name, tensor in known.items())
        return bool(known) and same and not read and 2 * self._needed() < self._device.free_bytes()

    def _other_weights(self, slots: Slots, found: Found) -> None:
        """One run of the task with other values of those weights."""
        other = self._reference.varied()
        made = other.draw("task", self._salt)
        slots.write(made.inputs, other.state)
        slots.arm()
        self._make_room()
        self._bind(slots)
        self._link.run("check")
        outputs, checks = compared(self._program, slots.outputs.views, made, other, "weights")
        checks = checks or in_full(self._program, outputs, made, other, "weights")
        wrong = next((c for c in checks if not c["passed"]), None)
        if wrong is not None and not made.coarse():
            error = ignores_weights(self._reference.uniform, wrong["reason"])
            found.fail(Status.WRONG, error.code, error.message)

    def _probe(self, slots: Slots) -> str | None:
        """The class of arithmetic that integers show, None where they cannot."""
        sizes = [v.numel() for v in (*slots.outputs.views, *slots.inputs.views)]
        if len(slots.outputs.views) != 1 or max(sizes, default=0) > PROBE_ELEMENTS:
            return None
        probe = self._references.probe(self._reference)
        if probe is None or tuple(probe.expected.shape) != tuple(slots.outputs.views[0].shape):
            return None
        slots.write(probe.inputs, probe.state)
        slots.poison()
        self._bind(slots)
        self._link.run("check")
        output = slots.outputs.views[0].clone()
        if not output.dtype.is_floating_point:
            return None
        return numerics.precision_class(output, probe.expected)

    def _moved(self) -> int:
        """Bytes of inputs and outputs."""
        values = (*self._program.inputs, *self._program.output_values())
        return sum(self._program.storages[i].bytes for i in {self._program.values[v].storage for v in values})

    def _refuse_large(self) -> None:
        """Before anything runs."""
        need = self._needed()
        if need > self._device.free_bytes():
            self._references.clear()
        free = self._device.free_bytes()
        if need > free:
            raise DoesNotFit(f"it needs at least {need / 1e9:.1f} GB and the device has {free / 1e9:.1f} GB free")

    def _needed(self) -> int:
        """The least that judge and runner need at once, bytes."""
        sizes = [s.bytes for s in self._program.storages]
        given = sum(sizes[i] for i in {self._program.values[v].storage for v in self._program.inputs})
        made = sum(sizes[i] for i in {self._program.values[v].storage for v in self._program.output_values()})
        weights = sum(s.bytes for s in self._program.storages if s.origin == "parameter")
        return 2 * given + 3 * made + 3 * weights


def compared(
    program: Program, views: list[Tensor], made: Expected, reference: Reference, draw: str
) -> tuple[list[Tensor], list[dict[str, Any]] | None]:
    """Tensors that hold what `views` hold and that nobody else can write, and the checks of outputs that are PyTorch's
    own result or near it; None for others."""
    precision, workload = reference.problem.precision, reference.workload.name
    checks = quick_values(_tree(program, views), made.native, precision, workload=workload, draw=draw)
    if checks is not None:
        return list(leaves(made.native)), checks
    kept = [as_stored(view).clone().view(view.dtype) for view in views]

    def near(number: int, output: Tensor) -> numerics.Comparison | None:
        own = made.near[number]
        return None if own is None else own.compare(output, precision)

    return kept, quick_values(_tree(program, kept), made.native, precision, near, workload=workload, draw=draw)


def in_full(
    program: Program, outputs: list[Tensor], made: Expected, reference: Reference, draw: str
) -> list[dict[str, Any]]:
    """The checks of any outputs, against the float64 reference; what is within the floors needs no yardstick. Raises
    Skip.
    """
    precision, workload = reference.problem.precision, reference.workload.name
    expected, native = list(leaves(made.expected)), list(leaves(made.native))

    def floors(number: int, output: Tensor) -> numerics.Comparison | None:
        return numerics.within_floor(output, expected[number], native[number], precision)

    tree = _tree(program, outputs)
    if checks := quick_values(tree, made.native, precision, floors, workload=workload, draw=draw):
        return checks
    return compare_values(
        tree, made.native, made.expected, made.ruler, precision, given=list(leaves(made.inputs)), workload=workload,
        draw=draw, second=lambda: made.cut, margin=made.cut_margin,
    )  # fmt: skip


def _tree(program: Program, outputs: list[Tensor]) -> Any:
    tensors = iter(outputs)
    return decode(program.output, lambda _: next(tensors), outputs[0].device if outputs else torch.device("cpu"))
