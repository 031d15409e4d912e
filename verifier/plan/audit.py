"""The audit of a plan: does the candidate do the work, with its own kernels, as the problem allows?

Pure data in, findings out; errors mean REJECTED. It follows data through storages, so a view carries its
base's marks. What it cannot see: whether a kernel computes the right thing (the numeric stages do), and, where the
problem allows library compute, a kernel with arithmetic that comes to nothing (an identity, a result that is
multiplied by zero later). The interpreter's run finds the plain ones of these: it changes what kernels store
and looks for an effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from verifier.plan import ttir
from verifier.plan.device_rules import check_device_code
from verifier.plan.effects import effects, forward_line, line_of, reorders, written_values
from verifier.plan.products import Product, products
from verifier.plan.schema import AtenStep, KernelImage, LaunchStep, Plan, Program
from verifier.plan.source_rules import check_source
from verifier.plan.textutil import clip, excerpt
from verifier.problem import LibraryPolicy, Precision, Problem
from verifier.profile import shares
from verifier.target import get_target
from verifier.verdict import Diagnostic

_RANK = {Precision.FP32: 0, Precision.TF32: 0, Precision.FP16: 1, Precision.BF16: 1, Precision.FP8: 2}
_DTYPE_RANK = {
    "float16": 1,
    "bfloat16": 1,
    "float8_e4m3fn": 2,
    "float8_e5m2": 2,
    "float8_e4m3fnuz": 2,
    "float8_e5m2fnuz": 2,
}
_PRODUCT_RANK = {"f16": 1, "bf16": 1, "e4m3": 2, "e5m2": 2, "e2m1": 2, "s8": 2, "u8": 2, "s4": 2, "u4": 2}


@dataclass(frozen=True, slots=True)
class Reference:
    """What a problem's own reference does in one workload."""

    flop: int = 0
    """0 where it is not known."""
    moves: int = 0
    """Steps that only bring data into another order, as `effects.reorders` counts them."""


def references(plan: Plan) -> dict[str, Reference]:
    """By workload, from the plan of the reference, which only library operators compute."""
    flop = shares.totals(plan)
    return {p.workload: Reference(flop[p.workload], reorders(p)) for p in plan.programs}


def audit(
    plan: Plan,
    problem: Problem,
    source: str,
    blobs: Mapping[str, bytes] | None = None,
    reference: Mapping[str, Reference] | None = None,
) -> tuple[Diagnostic, ...]:
    """Findings about the plan, errors first, each with the candidate's line where one is known.

    `blobs` are the plan's; without them no kernel counts as one that only moves data. `reference` by workload, as
    `references` gives it; without it no share is told and the reference moves nothing.
    """
    found: list[Diagnostic] = [Diagnostic(**f.model_dump()) for f in plan.findings]
    found += check_source(source)
    movers = _movers(plan, blobs or {})
    texts = {key: (blobs or {}).get(f"{i.ptx}.ptx", b"").decode(errors="replace") for key, i in plan.kernels.items()}
    for key, image in plan.kernels.items():
        found += _device_code(image, texts[key])
    multiplied = {key: products(text) for key, text in texts.items()}
    for program in plan.programs:
        known = _Known(movers, multiplied, (reference or {}).get(program.workload, Reference()))
        found += _Audit(plan, program, problem, source, known).run()
    order = {"error": 0, "warning": 1, "advice": 2}
    return tuple(sorted(_merged(found), key=lambda d: order[d.severity]))


def _device_code(image: KernelImage, ptx: str) -> list[Diagnostic]:
    """What a kernel may not do. Headers of CUDA C++ and the texts of assertions bring memory along that no kernel
    writes, so the PTX says what is written; without PTX any memory of the module's own counts.
    """
    found: list[Diagnostic] = []
    if ptx:
        cuda = image.language == "cuda"
        found = check_device_code(
            ptx, image.name, title=image.title, line=image.line, dependent=image.pdl, headers=cuda
        )
    if image.global_bytes and not ptx:
        message = f"kernel `{image.title}` carries {image.global_bytes} bytes of memory that outlive a launch"
        found.append(Diagnostic(severity="error", code="writable-globals", line=image.line, message=message))
    return found


def _movers(plan: Plan, blobs: Mapping[str, bytes]) -> frozenset[str]:
    """Kernels that load and store without any arithmetic."""
    texts = {key: blobs.get(f"{image.ttir}.ttir", b"") for key, image in plan.kernels.items()}
    return frozenset(key for key, text in texts.items() if ttir.moves_only(text.decode(errors="replace")))


def library_steps(program: Program) -> dict[str, int]:
    """Operators of forward that compute, with their counts; data movement and allocation left out."""
    steps = [s.op for s in program.library() if s.role in ("compute", "random")]
    return dict(Counter(steps).most_common())


def _merged(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """One finding per code and line; `count` says how often it was seen."""
    merged: dict[tuple[str, str, int | None], Diagnostic] = {}
    for d in found:
        key = (d.code, d.severity, d.line)
        seen = merged.get(key)
        merged[key] = d if seen is None else seen.model_copy(update={"count": seen.count + d.count})
    return list(merged.values())


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known beside the program itself."""

    movers: frozenset[str]
    """Kernels that only move data."""
    products: Mapping[str, frozenset[Product]]
    """Matrix instructions by kernel."""
    reference: Reference


class _Audit:
    """Findings of one program."""

    def __init__(self, plan: Plan, program: Program, problem: Problem, source: str, known: _Known) -> None:
        self._plan, self._program, self._problem, self._source = plan, program, problem, source
        self._known = known
        self._found: list[Diagnostic] = []

    def run(self) -> list[Diagnostic]:
        self._custom()
        self._foreign()
        self._flow()
        self._library()
        self._precision()
        self._state()
        self._memory()
        return self._found

    def _line(self, storage: int) -> int | None:
        return line_of(self._plan, self._program, storage, self._source)

    def _say(self, severity: str, code: str, message: str, line: int | None = None) -> None:
        text = clip(f"{message} (workload {self._program.workload})" if len(self._plan.programs) > 1 else message)
        shown = excerpt(self._source, line, None)
        self._found.append(Diagnostic.model_validate(
            {"severity": severity, "code": code, "message": text, "line": line,
            "excerpt": shown}))  # fmt: skip

    def _refuse(self, code: str, message: str, storage: int) -> None:
        """An error about a storage, at the line that writes it."""
        self._say("error", code, message, self._line(storage))

    # -- are there kernels, and is anything stale --------------------------------------------------

    def _custom(self) -> None:
        if not self._program.launches() and self._problem.library is not LibraryPolicy.ALLOWED:
            self._say(
                "error",
                "no-custom-kernel",
                "forward launches no custom kernel; write the computation as a Triton kernel",
                forward_line(self._source),
            )

    def _foreign(self) -> None:
        """An earlier call's input that an output still needs means that a result is remembered instead of
        computed. Steps that no output needs do not count: running statistics, for example."""
        stale = {i for i, s in enumerate(self._program.storages) if s.origin == "earlier_input"}
        tainted = set(stale)
        for step in self._program.setup:
            reads, writes, _ = effects(self._plan, self._program, step)
            if reads & tainted:
                tainted |= writes
        used = self._results()
        for step in self._needed(used):
            used |= effects(self._plan, self._program, step)[0]
        if used & tainted:
            line = next((s.line for s in reversed(self._program.setup)
                         if effects(self._plan, self._program, s)[1] & tainted), None)  # fmt: skip
            self._say("error", "foreign-output",
                "forward uses a result that an earlier call computed from its own inputs; "
                      "compute everything from the arguments of the current call", line)  # fmt: skip

    def _results(self) -> set[int]:
        """Storages that the caller sees after the call: outputs and mutated inputs."""
        program = self._program
        mutated = {program.values[program.inputs[i]].storage for i in program.mutated_inputs}
        return mutated | set(self._output_storages())

    def _needed(self, targets: set[int]) -> list[AtenStep | LaunchStep]:
        """Steps of forward on the way to the final content of `targets`, the last one first."""
        needed: list[AtenStep | LaunchStep] = []
        live = set(targets)
        for step in reversed(self._program.forward):
            reads, writes, kills = effects(self._plan, self._program, step)
            if not writes.isdisjoint(live):
                needed.append(step)
                live -= kills
                live |= reads
        return needed

    # -- data flow ---------------------------------------------------------------------------------

    def _output_storages(self) -> list[int]:
        return [self._program.values[v].storage for v in self._program.output_values()]

    def _flow(self) -> None:
        program = self._program
        inputs = {program.values[v].storage for v in program.inputs}
        from_input, from_launch, computed, written = set(inputs), set[int](), set[int](), set[int]()
        for step in program.forward:
            reads, writes, kills = effects(self._plan, program, step)
            launch = isinstance(step, LaunchStep)
            shown = ((from_input, bool(reads & from_input)), (from_launch, launch or bool(reads & from_launch)))
            computes = isinstance(step, LaunchStep) and step.kernel not in self._known.movers
            for marked, gains in (*shown, (computed, computes or bool(reads & computed))):
                marked -= kills
                if gains:
                    marked |= writes
            written |= writes if not (isinstance(step, AtenStep) and step.role == "alloc") else set()
        self._check_outputs(inputs, from_input, from_launch, written)
        self._check_movers(from_launch - computed)
        self._decoys()

    def _check_outputs(self, inputs: set[int], from_input: set[int], from_launch: set[int], written: set[int]) -> None:
        storages = self._output_storages()
        if not storages:
            self._say("error", "no-output", "forward returns no tensor", forward_line(self._source))
        for i, (value, storage) in enumerate(zip(self._program.output_values(), storages, strict=True)):
            origin, device = self._program.storages[storage].origin, self._program.storages[storage].device
            size = 0 not in self._program.values[value].shape
            if device != "cuda":
                self._refuse("host-output", f"output {i} is on the host; return it on the device", storage)
            if storage not in written and storage not in inputs:
                what = (
                    "never written by forward"
                    if origin in ("forward", "scratch")
                    else f"made outside forward ({origin})"
                )
                self._refuse("output-not-computed", f"output {i} is {what}", storage)
            elif inputs and storage not in from_input:
                self._refuse("constant-output", f"output {i} does not depend on any input", storage)
            elif storage not in from_launch and self._program.launches() and size:
                self._refuse("kernel-not-used", f"no custom kernel is on the way to output {i}", storage)

    def _check_movers(self, moved: set[int]) -> None:
        """Outputs that kernels only moved, while the library computed. Where the reference itself reorders data (a
        channel shuffle) and the library does less of that here, moving is a step of the problem and no decoy; a kernel
        that leaves everything in its place is found when it runs.
        """
        if not any(s.role == "compute" for s in self._program.library()):
            return
        asked = reorders(self._program) < self._known.reference.moves
        for i, storage in enumerate(self._output_storages()):
            if storage not in moved:
                continue
            what = f"the custom kernels on the way to output {i} only copy data"
            if asked:
                message = f"{what}, as a step of the problem does; library operators compute it"
                self._say("warning", "only-moves", message, self._line(storage))
            else:
                self._refuse("copy-kernel", f"{what}; library operators compute it", storage)

    def _decoys(self) -> None:
        """Launches whose results nothing uses, found backwards from the outputs and the mutated state."""
        needed = {id(step) for step in self._needed(self._results() | set(self._program.restore))}
        for step in reversed(self._program.launches()):
            if id(step) not in needed:
                name = self._plan.kernels[step.kernel].title
                message = f"the result of kernel `{name}` is never used"
                self._say("warning", "decoy-launch", message, step.line)

    # -- policy ------------------------------------------------------------------------------------

    def _library(self) -> None:
        needed = {id(step) for step in self._needed(self._results())}
        steps = [s for s in self._program.library() if s.role in ("compute", "random")]
        compute = [s for s in steps if id(s) in needed or not self._counts(s)]
        flop = shares.by_operator(self._program, self._plan.flags)
        for op, steps in _by_op(compute).items():
            count = f" ({len(steps)} calls)" if len(steps) > 1 else ""
            message = f"forward computes with `{op}`{count}{shares.share(flop[op], self._known.reference.flop)}"
            if self._problem.library is LibraryPolicy.FORBIDDEN:
                said = f"{message}; this problem allows only custom kernels"
                self._say("error", "library-compute", said, steps[0].line)
            else:
                self._say("advice", "library-compute", f"{message}; a fused kernel may do it", steps[0].line)
        for step in (s for s in compute if s.role == "random"):
            self._say("warning", "random", f"`{step.op}` draws random numbers, so repeated calls differ", step.line)
        host = [s for s in self._program.library() if self._on_host(s)]
        if host:
            self._say("warning", "host-compute", f"forward runs `{host[0].op}` on the host", host[0].line)

    def _counts(self, step: AtenStep) -> bool:
        """Whether a step writes one integer at most, as a counter of calls (`num_batches_tracked`) does. Larger results
        that no output needs might still be read, by a kernel that leaves its buffer.
        """
        values = [self._program.values[v] for v in (*step.outputs, *step.mutates)]
        return all(v.dtype == "int64" and self._program.storages[v.storage].bytes <= 8 for v in values)

    def _on_host(self, step: AtenStep) -> bool:
        storages = [self._program.storages[self._program.values[v].storage] for v in step.outputs]
        return step.role in ("compute", "move") and bool(storages) and all(s.device == "cpu" for s in storages)

    def _precision(self) -> None:
        """Buffers and products narrower than the contract, unless the task's own inputs are as narrow."""
        program = self._program
        contract = self._problem.precision
        inputs = [_DTYPE_RANK.get(program.values[v].dtype, 0) for v in program.inputs]
        allowed = max([_RANK[contract], *inputs])
        self._products(allowed, exact=contract is Precision.FP32 and not any(inputs))
        for step in program.forward:
            for value in written_values(step):
                v = program.values[value]
                if _DTYPE_RANK.get(v.dtype, 0) > allowed:
                    self._say("warning", "narrow-buffer",
                        f"a buffer of dtype {v.dtype} is narrower than the contract "
                              f"({self._problem.precision.value})", step.line)  # fmt: skip

    def _products(self, allowed: int, *, exact: bool) -> None:
        """Matrix instructions of the launched kernels. `exact`: the contract is fp32 without TF32."""
        for kernel in dict.fromkeys(step.kernel for step in self._program.launches()):
            image = self._plan.kernels[kernel]
            for product in sorted(self._known.products[kernel]):
                rank = _PRODUCT_RANK.get(product.operand, 0)
                if rank > allowed or (exact and product.operand == "tf32"):
                    what = f"multiplies matrices in {product.operand}, which is narrower than the contract"
                elif product.result == "f16" and not allowed:
                    what = "adds up matrix products in f16, which is narrower than the contract"
                else:
                    continue
                message = f"kernel `{image.title}` {what} ({self._problem.precision.value})"
                self._say("warning", "narrow-products", message, image.line)

    def _state(self) -> None:
        program = self._program
        known = set(program.mutated.values())
        carried = [s for s in program.restore if program.storages[s].origin != "input" and s not in known]
        if carried:
            message = f"forward carries {len(carried)} buffer(s) from call to call; they are restored before every run"
            self._say("warning", "carried-state", message, self._line(carried[0]))
        weights = [n for n in program.mutated if n in program.parameters and not program.parameters[n].buffer]
        if weights:
            message = f"forward writes into the parameter `{weights[0]}`"
            self._refuse("parameter-mutated", message, program.mutated[weights[0]])
        for i in program.mutated_inputs[:1]:
            line = self._line(program.values[program.inputs[i]].storage)
            self._say("warning", "input-mutated", f"forward writes its input {i} in place", line)

    def _memory(self) -> None:
        target = get_target(self._plan.device or self._plan.target)
        sizes = [s.bytes if s.device == "cuda" else 0 for s in self._program.storages]
        if (largest := max(sizes, default=0)) > target.total_memory:
            message = f"a tensor of {largest >> 30} GiB does not fit the device's {target.total_memory >> 30} GiB"
            self._refuse("out-of-memory", message, sizes.index(largest))


def _by_op(steps: list[AtenStep]) -> dict[str, list[AtenStep]]:
    found: dict[str, list[AtenStep]] = {}
    for step in steps:
        found.setdefault(step.op, []).append(step)
    return found
