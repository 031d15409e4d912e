"""Reads a plan that an untrusted process wrote. Everything a replayer or an estimate relies on is checked
here.

`read_plan` raises PlanError and nothing else: ids in range, views and pointers inside their storages and
aligned, grids and blocks within the target, kernels present, blobs that match their names, launch arguments
that match the kernel's parameters, storages used only after something made them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from verifier.plan import abi_sizes, cuda_image, elf, roles, triton_image
from verifier.plan.arguments import (
    ConstexprArg,
    DescriptorArg,
    LaunchArg,
    NullArg,
    PointerArg,
    ScalarFloatArg,
    ScalarIntArg,
    values_in,
)  # fmt: skip
from verifier.plan.cuda_abi import CubinError, read_facts
from verifier.plan.schema import Alternative, AtenStep, Constant, KernelImage, LaunchStep, Plan, Program
from verifier.target import ARCHITECTURES, TARGETS, Target, get_target

MAX_PLAN_BYTES = 64 << 20
HALF_OVERFLOW = 65520.0
"""From here on a number rounds to no half."""
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "bool": 1,
    "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip


class PlanError(ValueError):
    """A plan that is malformed or contradicts itself. One sentence."""


def read_plan(value: object, blobs: Mapping[str, bytes], *, kernels: bool = True) -> Plan:
    """The checked plan. `value` is the plan's JSON value; `blobs` must hold every kernel's cubin and PTX, the TTIR of
    Triton's, the source of CUDA's. Without `kernels` only that each cubin is there and holds its kernel: for a process
    that runs a plan which was read in full before.
    """
    try:
        text = json.dumps(value, allow_nan=False)
        if len(text) > MAX_PLAN_BYTES:
            raise PlanError(f"the plan has {len(text)} bytes; the limit is {MAX_PLAN_BYTES}")
        plan = Plan.model_validate_json(text)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise PlanError(f"{where or 'plan'}: {first['msg']}") from None
    except (TypeError, ValueError, RecursionError) as wrong:
        if isinstance(wrong, PlanError):
            raise
        raise PlanError(f"the plan is not JSON: {type(wrong).__name__}") from None
    target = _target(plan)
    for sha, image in plan.kernels.items():
        if kernels:
            _check_kernel(sha, image, blobs, target)
        else:
            _find_kernel(image, blobs)
    for program in plan.programs:
        _ProgramCheck(plan, program, target).run()
    return plan


def _target(plan: Plan) -> Target:
    """The device that the plan's file was shown."""
    _require(plan.target in ARCHITECTURES, f"unknown target {plan.target!r}")
    _require(plan.device is None or plan.device in TARGETS, f"unknown device {plan.device!r}")
    target = get_target(plan.device or plan.target)
    _require(target.arch == plan.target, f"device {target.name} does not run {plan.target}")
    return target


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanError(message)


def _blob(blobs: Mapping[str, bytes], sha: str, suffix: str) -> bytes:
    data = blobs.get(f"{sha}.{suffix}")
    _require(isinstance(data, bytes), f"blob {sha[:12]}.{suffix} is missing")
    assert data is not None
    _require(hashlib.sha256(data).hexdigest() == sha, f"blob {sha[:12]}.{suffix} does not match its name")
    return data


def _find_kernel(image: KernelImage, blobs: Mapping[str, bytes]) -> None:
    cubin = _blob(blobs, image.cubin, "cubin")
    _require(elf.whole(cubin), f"kernel {image.name}: its cubin is cut off")
    try:
        read_facts(cubin, image.name)
    except CubinError as wrong:
        raise PlanError(f"kernel {image.name}: {wrong}") from None


def _check_kernel(sha: str, image: KernelImage, blobs: Mapping[str, bytes], target: Target) -> None:
    if image.language == "cuda":
        _require(image.source is not None, f"kernel {image.name}: no source")
        assert image.source is not None
        _blob(blobs, image.source, "cu")
        try:
            cuda_image.check(sha, image, _blob(blobs, image.cubin, "cubin"), _blob(blobs, image.ptx, "ptx"), target)
        except ValueError as wrong:
            raise PlanError(f"kernel {image.name}: {wrong}") from None
        return
    _require(image.ttir is not None, f"kernel {image.name}: no TTIR")
    assert image.ttir is not None
    cubin = _blob(blobs, image.cubin, "cubin")
    text, assembly = (
        _blob(blobs, *named).decode(errors="replace") for named in ((image.ttir, "ttir"), (image.ptx, "ptx"))
    )
    try:
        triton_image.check(sha, image, cubin, text, assembly, target)
    except ValueError as wrong:
        raise PlanError(f"kernel {image.name}: {wrong}") from None


class _ProgramCheck:
    """Checks one program; `run` raises PlanError."""

    def __init__(self, plan: Plan, program: Program, target: Target) -> None:
        self._plan, self._program, self._target = plan, program, target
        self._made: set[int] = set()

    def run(self) -> None:
        self._values()
        self._tables()
        p = self._program
        self._made = {
            i
            for i, s in enumerate(p.storages)
            if s.origin in ("input", "parameter", "constant", "scratch", "earlier_input")
        }
        for part, origin in ((p.setup, "setup"), (p.forward, "forward")):
            for step in part:
                self._step(step, origin)
        for value in values_in(p.output):
            self._used(value, "output")

    def _values(self) -> None:
        p = self._program
        for i, v in enumerate(p.values):
            _require(v.storage < len(p.storages), f"value {i}: storage {v.storage} does not exist")
            _require(len(v.shape) == len(v.stride), f"value {i}: shape and stride differ in length")
            last = (
                0 if 0 in v.shape else 1 + v.offset + sum((n - 1) * s for n, s in zip(v.shape, v.stride, strict=True))
            )
            size = p.storages[v.storage].bytes
            _require(last * ITEM_BYTES[v.dtype] <= size, f"value {i}: the view leaves its storage of {size} bytes")

    def _tables(self) -> None:
        p = self._program
        for value in p.inputs:
            self._has(value, "inputs")
            _require(
                p.storages[p.values[value].storage].origin == "input",
                f"input value {value} is not in an input storage",
            )
        for name, parameter in p.parameters.items():
            self._has(parameter.value, f"parameter {name!r}")
            _require(parameter.ready <= len(p.setup), f"parameter {name!r}: ready is past the set-up")
        for stream in p.generators:
            _require(not stream.each_call or stream.seed is not None, "forward starts a stream without a seed")
        for constant in p.constants:
            self._constant(constant)
        with_data = {c.storage for c in p.constants}
        _require(len(with_data) == len(p.constants), "a storage has two constants")
        for i, s in enumerate(p.storages):
            _require(
                (s.origin == "constant") == (i in with_data),
                f"storage {i}: constant without data or data without constant",
            )
        _require(all(i < len(p.storages) for i in p.restore), "restore names a storage that does not exist")
        _require(
            all(i < len(p.storages) for i in p.mutated.values()),
            "mutated names a storage that does not exist",
        )
        _require(all(i < len(p.inputs) for i in p.mutated_inputs), "mutated_inputs is out of range")

    def _constant(self, constant: Constant) -> None:
        _require(constant.storage < len(self._program.storages), "a constant's storage does not exist")
        try:
            size = len(base64.b64decode(constant.data, validate=True))
        except (binascii.Error, ValueError):
            raise PlanError("a constant is not base64") from None
        _require(size <= self._program.storages[constant.storage].bytes, "a constant is larger than its storage")

    def _has(self, value: int, where: str) -> None:
        _require(value < len(self._program.values), f"{where}: value {value} does not exist")

    def _used(self, value: int, where: str) -> None:
        self._has(value, where)
        storage = self._program.values[value].storage
        _require(storage in self._made, f"{where}: storage {storage} is used before anything made it")

    def _step(self, step: AtenStep | LaunchStep, origin: str) -> None:
        if isinstance(step, AtenStep):
            self._aten(step, origin)
            return
        for alternative in step.alternatives:
            for before in alternative.before:
                self._aten(before, origin)
            self._launch(alternative)
        names = {a.name for alternative in step.alternatives for a in alternative.args}
        _require(
            set(step.reset_to_zero) | set(step.restore_value) <= names,
            "reset_to_zero names an unknown argument",
        )

    def _aten(self, step: AtenStep, origin: str) -> None:
        _require(step.flags < len(self._plan.flags), f"{step.op}: flags {step.flags} do not exist")
        _require(roles.may_have(step.op, step.role), f"{step.op} is said to be {step.role!r}")
        _require((step.role == "random") == (step.generator is not None), f"{step.op}: a draw without a generator")
        streams = len(self._program.generators)
        _require((step.generator or 0) < max(streams, 1), f"{step.op}: generator {step.generator} does not exist")
        for arg in (*step.args, *step.kwargs.values()):
            for value in values_in(arg):
                self._used(value, step.op)
        for value in step.outputs:
            self._has(value, step.op)
            storage = self._program.values[value].storage
            if storage not in self._made:
                _require(
                    self._program.storages[storage].origin == origin,
                    f"{step.op}: makes storage {storage} of another origin",
                )
                self._made.add(storage)
        for value in step.mutates:
            self._used(value, step.op)

    def _launch(self, launch: Alternative) -> None:
        image = self._plan.kernels.get(launch.kernel)
        _require(image is not None, f"kernel {launch.kernel[:12]} does not exist")
        assert image is not None
        blocks = (launch.grid[0] * image.num_ctas, launch.grid[1], launch.grid[2])
        for count, limit in zip(blocks, self._target.grid_max, strict=True):
            _require(1 <= count <= limit, f"{image.name}: grid {launch.grid} is outside the target's limits")
        try:
            cuda_image.check_grid(image, launch.grid)
        except ValueError as wrong:
            raise PlanError(f"{image.name}: {wrong}") from None
        passed = [a for a in launch.args if not isinstance(a, ConstexprArg)]
        _require(
            len(passed) == len(image.params),
            f"{image.name}: {len(passed)} arguments for {len(image.params)} parameters",
        )
        for arg, param in zip(passed, image.params, strict=True):
            _require(
                arg.name == param.name and arg.type == param.type,
                f"{image.name}: argument {arg.name!r} is not parameter {param.name!r}",
            )
            self._launch_arg(image.name, arg)

    def _launch_arg(self, kernel: str, arg: LaunchArg) -> None:
        if isinstance(arg, NullArg):
            _require(arg.type.startswith("*"), f"{kernel}: {arg.name!r} is null and no pointer")
        elif isinstance(arg, PointerArg | DescriptorArg):
            self._pointer(kernel, arg)
        elif isinstance(arg, ScalarIntArg):
            bits = 8 * abi_sizes.SIZES[arg.type] if arg.type[1:] != "1" else 8
            _require(
                -(1 << (bits - 1)) <= arg.v < 1 << bits,
                f"{kernel}: {arg.name!r} = {arg.v} does not fit {arg.type}",
            )
        elif isinstance(arg, ScalarFloatArg) and arg.type == "fp16" and isinstance(arg.v, float):
            _require(abs(arg.v) < HALF_OVERFLOW, f"{kernel}: {arg.name!r} = {arg.v} does not fit fp16")

    def _pointer(self, kernel: str, arg: PointerArg | DescriptorArg) -> None:
        storages = self._program.storages
        _require(arg.storage < len(storages), f"{kernel}: {arg.name!r} points to no storage")
        _require(
            arg.offset < max(storages[arg.storage].bytes, 1),
            f"{kernel}: {arg.name!r} points past its storage",
        )
        _require(storages[arg.storage].device == "cuda", f"{kernel}: {arg.name!r} points to host memory")
        _require(arg.storage in self._made, f"{kernel}: {arg.name!r} points to a storage that nothing made")
        if arg.value is not None:
            self._has(arg.value, kernel)
            v = self._program.values[arg.value]
            start = v.offset * ITEM_BYTES[v.dtype]
            _require(
                v.storage == arg.storage and start == arg.offset,
                f"{kernel}: {arg.name!r} and its value differ",
            )
        if isinstance(arg, DescriptorArg):
            _require(arg.type.startswith("tensordesc"), f"{kernel}: {arg.name!r} is no descriptor parameter")
            _require(
                len(arg.shape) == len(arg.strides) == len(arg.block) == abi_sizes.rank_of(arg.type),
                f"{kernel}: ranks of descriptor {arg.name!r} differ",
            )
            _require(
                arg.offset % 16 == 0 and arg.strides[-1] == 1,
                f"{kernel}: descriptor {arg.name!r} is not aligned",
            )
            return
        _require(
            arg.type.startswith("*") or arg.type in ("i64", "u64"),
            f"{kernel}: {arg.name!r} is no pointer parameter",
        )


def kernels_used(steps: Iterable[AtenStep | LaunchStep]) -> set[str]:
    """Keys of all kernels that some alternative of the steps launches."""
    return {a.kernel for s in steps if isinstance(s, LaunchStep) for a in s.alternatives}
