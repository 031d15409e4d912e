"""The trusted job that runs the reference: inputs, weights and expected values for each draw of one workload.

Runs the user's problem file in a fork of a zygote without TRITON_INTERPRET and never loads a candidate. The
expected value is the reference in float64, the yardstick the reference in the contract's precision, and what
the reference cannot take or cannot tell apart is skipped by name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from verifier import inputs, numerics
from verifier.errors import ProblemError
from verifier.interpreter.blobs import pack
from verifier.loader import arguments, inspect_arguments, materialize, user_errors
from verifier.problem import Problem, Workload
from verifier.reference import Expected, Reference, Skip, TooLarge, bytes_of
from verifier.sandbox.job import is_allocation_failure
from verifier.specs import SpecError, dtype_of, leaves

Answer = tuple[dict[str, Any], dict[str, bytes]]


def reference_job(payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path) -> Answer:
    """Expected values of one workload.

    payload: {"problem": Problem JSON, "workloads": [Workload JSON], "seed": int, "max_bytes": [int], "draws": names
    or null for all, "sampled": bool, "answer_bytes": int, the most that all blobs may have}; the first workload whose
    arguments and weights fit and on which the reference runs is used. With `sampled` the outputs count too, and there
    is no probe. Value: {"status": "ok" | "too_large" |
    "stochastic" | "error", "reason", "seconds"} and when ok {"workload": Workload JSON, "init": spec, "init_seed",
    "programs_seed", "state": spec, "draws": [draw], "skipped": {name: reason}, "probe": draw or null,
    "constant": bool, "weights": draw with a "state" or null}. constant: what is right for the inputs of one draw is
    right for those of all. weights: the task's inputs, and other values of weights that start with one value
    everywhere, after the draws.
    draw: {"name", "inputs", "native", "expected", "yardstick" and "cut": spec or null, "cut_margin": float,
    "mutated": [int]}. Blobs: `init/0`, `state/0`, `d0/in/0`, `d0/native/0`, `d0/expected/0`, `d0/yardstick/0`,
    `probe/in/0`, ...
    """
    torch.set_num_threads(1)
    problem = Problem.model_validate(payload["problem"])
    versions = [Workload.model_validate(w) for w in payload["workloads"]]
    start = time.perf_counter()
    answer: Answer = {"status": "too_large", "reason": "no sizes"}, {}
    for workload, max_bytes in zip(versions, payload["max_bytes"], strict=True):
        answer = _attempt(problem, workload, max_bytes, payload)
        if answer[0]["status"] in ("ok", "stochastic"):
            break
    return {**answer[0], "seconds": time.perf_counter() - start}, answer[1]


def _attempt(problem: Problem, workload: Workload, max_bytes: int, payload: Mapping[str, Any]) -> Answer:
    try:
        sampled = bool(payload["sampled"])
        size, outputs = _bytes_of_arguments(problem, workload, outputs=sampled)
        if size > max_bytes:
            return {"status": "too_large", "reason": f"the arguments take {size / 2**20:.1f} MiB"}, {}
        if sampled:
            _refuse_large(outputs, max_bytes - size)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            packed = _Packed(Reference.create(problem, workload, int(payload["seed"])))
            value, blobs = packed.run(payload["draws"], max_bytes - size if sampled else None)
        if (kept := sum(map(len, blobs.values()))) > payload["answer_bytes"]:
            reason = f"inputs and results of all distributions take {kept / 2**20:.0f} MiB"
            return {"status": "too_large", "reason": reason}, {}
    except TooLarge as error:
        return {"status": "too_large", "reason": str(error)}, {}
    except ProblemError as error:
        if is_allocation_failure(error.__cause__):  # the machine's fault, not the file's
            return {"status": "too_large", "reason": "the reference takes too much memory on a CPU"}, {}
        place = f"{error.file}:{error.line}: " if error.line is not None else f"{error.file}: "
        message = str(error).removeprefix(place)
        return {"status": "error", "reason": str(error), "message": message, "line": error.line}, {}
    return {**value, "workload": workload.model_dump(mode="json")}, blobs


def _refuse_large(size: int, most: int) -> None:
    if size > most:
        raise TooLarge(f"the outputs take {size / 2**20:.1f} MiB")


def _bytes_of_arguments(problem: Problem, workload: Workload, *, outputs: bool) -> tuple[int, int]:
    """Bytes of the weights and of all tensors that the constructor and `forward` get, and of what `forward` returns
    if `outputs` and where that is known (else 0), without their memory.

    Tensors on the meta device first (no data, no slow imports); a file that reads values runs under
    FakeTensorMode.
    """
    try:
        with torch.device("meta"):
            module = materialize(problem, workload)
            init, given = arguments(problem, module)
            with user_errors(problem):
                model = module.Model(*init)
            size = bytes_of([init, given, dict(model.state_dict())])
            return size, _bytes_returned(model, given) if outputs else 0
    except ProblemError:
        described = inspect_arguments(problem, workload)
        return sum(_spec_bytes(s) for s in [*described["init"], *described["inputs"]]), 0


def _bytes_returned(model: nn.Module, given: list[Any]) -> int:
    try:
        with torch.no_grad():
            return bytes_of(model(*given))
    except Exception:  # noqa: BLE001 - not every reference runs without data
        return 0


def _spec_bytes(spec: Mapping[str, Any]) -> int:
    if spec["kind"] == "tensor":
        return int(torch.Size(spec["shape"]).numel()) * dtype_of(spec["dtype"]).itemsize
    items = spec.get("items", ())
    return sum(_spec_bytes(s) for s in (items.values() if isinstance(items, dict) else items))


class _Packed:
    """What the reference says, as JSON and blobs."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._blobs: dict[str, bytes] = {}

    def run(self, names: Sequence[str] | None, max_bytes: int | None) -> Answer:
        """`max_bytes`: of the outputs of one draw when only programs are sampled."""
        source = self._reference
        draws: list[dict[str, Any]] = []
        first: Expected | None = None
        constant = True
        skipped: dict[str, str] = {}
        for name in names or inputs.DRAWS:
            try:
                made = source.draw(name, most_output_bytes=max_bytes)
                too_coarse = made.coarse()
            except Skip as reason:
                too_coarse = str(reason)
            if too_coarse:
                skipped[name] = too_coarse
            else:
                draws.append(self._draw(made, f"d{len(draws)}"))
                first = first or made
                constant = constant and (made is first or self._serves(first, made))
        if draws and draws[0]["name"] == "task" and source.stochastic():
            return {"status": "stochastic", "reason": "the reference is random given its inputs"}, {}
        value = {
            "status": "ok",
            "init": self._pack(source.init, "init"),
            "init_seed": source.init_seed,
            "programs_seed": inputs.derive_seed(source.seed, source.workload.name, "programs"),
            "state": self._pack(source.state, "state"),
            "draws": draws,
            "skipped": skipped,
            "constant": first is not None and constant and (len(draws) > 1 or self._serves_again(first)),
            "probe": self._probe() if max_bytes is None else None,
            "weights": self._weights(f"d{len(draws)}") if max_bytes is None and draws else None,
        }
        return value, self._blobs

    def _serves(self, one: Expected, other: Expected) -> bool:
        """Whether the result of one draw would be right for another."""
        rows = zip(*(leaves(v) for v in (one.native, other.expected, other.native, other.ruler)), strict=False)
        precision = self._reference.problem.precision
        return all(numerics.compare(o, r, n, precision, yardstick=y).passed for o, r, n, y in rows)

    def _serves_again(self, first: Expected) -> bool:
        """The same for the only draw and another one of its distribution."""
        try:
            return self._serves(first, self._reference.draw(first.name, "again"))
        except Skip:
            return False

    def _draw(self, made: Expected, prefix: str) -> dict[str, Any]:
        packed: dict[str, Any] = {"name": made.name, "inputs": self._pack(made.inputs, f"{prefix}/in")}
        packed["native"] = self._pack(made.native, f"{prefix}/native")
        packed["expected"] = self._pack(made.expected, f"{prefix}/expected")
        packed["yardstick"] = None if made.yardstick is None else self._pack(made.yardstick, f"{prefix}/yardstick")
        packed["cut"] = None if made.cut is None else self._pack(made.cut, f"{prefix}/cut")
        packed["cut_margin"] = made.cut_margin
        packed["mutated"] = made.mutated
        return packed

    def _weights(self, prefix: str) -> dict[str, Any] | None:
        """None where no weight starts with one value everywhere, or where other values say nothing."""
        changed = self._reference.uniform
        if not changed:
            return None
        varied = self._reference.varied()
        try:
            made = varied.draw("task", "weights")
            if any(numerics.coarse(r, y) for r, y in zip(leaves(made.expected), leaves(made.ruler), strict=False)):
                return None
            packed = self._draw(made, prefix)
        except (Skip, ProblemError):
            return None
        state = {name: varied.state[name] for name in changed}
        return {**packed, "name": "weights", "state": self._pack(state, f"{prefix}/state")}

    def _probe(self) -> dict[str, Any] | None:
        probe = self._reference.probe()
        return (
            None
            if probe is None
            else {
                "name": "probe",
                "inputs": self._pack(probe.inputs, "probe/in"),
                "state": self._pack(probe.state, "probe/state"),
                "expected": self._pack(probe.expected, "probe/expected"),
            }
        )

    def _pack(self, value: Any, prefix: str) -> dict[str, Any]:
        try:
            spec, made = pack(value, prefix)
        except SpecError as error:
            raise ProblemError(f"a value cannot be described: {error}", file=self._reference.problem.file) from None
        self._blobs.update(made)
        return spec
