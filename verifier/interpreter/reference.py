"""The trusted job that runs the reference: inputs, weights and expected values for each draw of one workload.

Runs the user's problem file in a fork of a zygote without TRITON_INTERPRET and never loads a candidate. The
expected value is the reference in float64, the yardstick the reference in the contract's precision, and what
the reference cannot take or cannot tell apart is skipped by name.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from verifier import inputs, numerics
from verifier.errors import ProblemError
from verifier.interpreter.blobs import pack
from verifier.interpreter.precise import Float64, RoundedOperands
from verifier.loader import arguments, inspect_arguments, materialize, user_errors
from verifier.problem import Problem, Workload
from verifier.specs import SpecError, dtype_of, leaves

Answer = tuple[dict[str, Any], dict[str, bytes]]


def reference_job(payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path) -> Answer:
    """Expected values of one workload.

    payload: {"problem": Problem JSON, "workloads": [Workload JSON], "seed": int, "max_bytes": [int], "draws": names
    or null for all, "sampled": bool}; the first workload whose arguments and weights fit and on which the reference
    runs is used. With `sampled` the outputs count too, and there is no probe. Value: {"status": "ok" | "too_large" |
    "stochastic" | "error", "reason", "seconds"} and when ok {"workload": Workload JSON, "init": spec, "init_seed",
    "programs_seed", "state": spec, "draws": [draw], "skipped": {name: reason}, "probe": draw or null}.
    draw: {"name", "inputs", "native", "expected", "yardstick": spec or null, "mutated": [int]}. Blobs:
    `init/0`, `state/0`, `d0/in/0`, `d0/native/0`, `d0/expected/0`, `d0/yardstick/0`, `probe/in/0`, ...
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
            reference = _Reference.create(problem, workload, int(payload["seed"]))
            value, blobs = reference.run(payload["draws"], max_bytes - size if sampled else None)
    except _TooLarge as error:
        return {"status": "too_large", "reason": str(error)}, {}
    except ProblemError as error:
        place = f"{error.file}:{error.line}: " if error.line is not None else f"{error.file}: "
        message = str(error).removeprefix(place)
        return {"status": "error", "reason": str(error), "message": message, "line": error.line}, {}
    return {**value, "workload": workload.model_dump(mode="json")}, blobs


def _refuse_large(size: int, most: int) -> None:
    if size > most:
        raise _TooLarge(f"the outputs take {size / 2**20:.1f} MiB")


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
            size = _bytes_of([init, given, dict(model.state_dict())])
            return size, _bytes_returned(model, given) if outputs else 0
    except ProblemError:
        described = inspect_arguments(problem, workload)
        return sum(_spec_bytes(s) for s in [*described["init"], *described["inputs"]]), 0


def _bytes_of(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in leaves(values))


def _bytes_returned(model: nn.Module, given: list[Any]) -> int:
    try:
        with torch.no_grad():
            return _bytes_of(model(*given))
    except Exception:  # noqa: BLE001 - not every reference runs without data
        return 0


def _spec_bytes(spec: Mapping[str, Any]) -> int:
    if spec["kind"] == "tensor":
        return int(torch.Size(spec["shape"]).numel()) * dtype_of(spec["dtype"]).itemsize
    items = spec.get("items", ())
    return sum(_spec_bytes(s) for s in (items.values() if isinstance(items, dict) else items))


@dataclass
class _Reference:
    problem: Problem
    workload: Workload
    seed: int
    get_inputs: Any
    init: list[Any]
    model: nn.Module
    blobs: dict[str, bytes] = field(default_factory=dict)
    max_bytes: int | None = None

    @classmethod
    def create(cls, problem: Problem, workload: Workload, seed: int) -> _Reference:
        """Executes the file and builds the model, seeded before each constructor as KernelBench does."""
        module = materialize(problem, workload)
        init_seed = inputs.derive_seed(seed, workload.name, "init")
        with user_errors(problem):
            torch.manual_seed(init_seed)
            init = list(module.get_init_inputs())
            torch.manual_seed(init_seed)
            model = module.Model(*init)
        return cls(problem, workload, seed, module.get_inputs, init, model)

    def run(self, names: Sequence[str] | None, max_bytes: int | None) -> Answer:
        """`max_bytes`: of the outputs of one draw when only programs are sampled."""
        self.max_bytes = max_bytes
        state = {k: v.detach() for k, v in self.model.state_dict().items() if isinstance(v, Tensor)}
        draws: list[dict[str, Any]] = []
        skipped: dict[str, str] = {}
        for name in names or inputs.DRAWS:
            made = self._draw(name, f"d{len(draws)}", state)
            if isinstance(made, str):
                skipped[name] = made
            else:
                draws.append(made)
        if draws and draws[0]["name"] == "task" and self._stochastic(state):
            return {"status": "stochastic", "reason": "the reference is random given its inputs"}, {}
        value = {
            "status": "ok",
            "init": self._pack(self.init, "init"),
            "init_seed": inputs.derive_seed(self.seed, self.workload.name, "init"),
            "programs_seed": inputs.derive_seed(self.seed, self.workload.name, "programs"),
            "state": self._pack(state, "state"),
            "draws": draws,
            "skipped": skipped,
            "probe": self._probe(state) if max_bytes is None else None,
        }
        return value, self.blobs

    def _draw(self, name: str, prefix: str, state: dict[str, Tensor]) -> dict[str, Any] | str:
        seed = inputs.derive_seed(self.seed, self.workload.name, "draw", name)
        with user_errors(self.problem):
            values = inputs.draw(name, self.get_inputs, seed)
        try:
            return self._expect(name, prefix, values, state, seed)
        except _Skip as reason:
            return str(reason)

    def _expect(self, name: str, prefix: str, values: list[Any], state: dict[str, Tensor], seed: int) -> dict[str, Any]:
        own = name == "task"
        try:
            expected = self._float64(values, state, seed)
            if not own and not inputs.finite(expected):
                raise _Skip("the float64 reference is not finite")
            used = copy.deepcopy(values)
            native = self._forward(self.model_with(state), used, seed)
            if self.max_bytes is not None:
                _refuse_large(_bytes_of(native), self.max_bytes)
            mode, model, again = (
                RoundedOperands(self.problem.precision),
                self.model_with(state),
                copy.deepcopy(values),
            )
            with mode:
                rounded = self._forward(model, again, seed)
        except (_Skip, _TooLarge):
            raise
        except Exception as error:
            if own:
                with user_errors(self.problem):
                    raise
            raise _Skip(f"the reference raises {type(error).__name__}: {error}"[:300]) from None
        yardstick = rounded if mode.products else native
        if not own:
            self._refuse_coarse(expected, yardstick)
        spec: dict[str, Any] = {"name": name, "inputs": self._pack(values, f"{prefix}/in")}
        spec["native"] = self._pack(native, f"{prefix}/native")
        spec["expected"] = self._pack(expected, f"{prefix}/expected")
        spec["yardstick"] = self._pack(yardstick, f"{prefix}/yardstick") if mode.products else None
        spec["mutated"] = _changed(values, used)
        return spec

    def _refuse_coarse(self, expected: Any, yardstick: Any) -> None:
        for r, y in zip(leaves(expected), leaves(yardstick), strict=True):
            if reason := numerics.coarse(r, y):
                raise _Skip(reason)

    def model_with(self, state: dict[str, Tensor]) -> nn.Module:
        """A copy of the model with fresh buffers, so that what `forward` mutates does not leak into another
        run.
        """
        model = copy.deepcopy(self.model)
        model.load_state_dict(state, strict=False)
        return model

    def _forward(self, model: nn.Module, values: list[Any], seed: int) -> Any:
        torch.manual_seed(seed)
        return model(*values)

    def _float64(self, values: list[Any], state: dict[str, Tensor], seed: int) -> Any:
        wide = [_double(v) for v in copy.deepcopy(values)]
        model = self.model_with(state).double()
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with Float64():
                return self._forward(model, wide, seed)
        finally:
            torch.set_default_dtype(default)

    def _stochastic(self, state: dict[str, Tensor]) -> bool:
        """Whether two runs on equal inputs differ by more than the order of summation explains."""
        seed = inputs.derive_seed(self.seed, self.workload.name, "draw", "task")
        values = inputs.draw("task", self.get_inputs, seed)
        with user_errors(self.problem):
            one, two = (self._forward(self.model_with(state), copy.deepcopy(values), seed + i) for i in (0, 1))
        pairs = zip(leaves(one), leaves(two), strict=True)
        return any(not torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs)

    def _probe(self, state: dict[str, Tensor]) -> dict[str, Any] | None:
        """Integer inputs and weights on which the reference is exact in fp32, None where it is not."""
        seed = inputs.derive_seed(self.seed, self.workload.name, "probe")
        torch.manual_seed(seed)
        values = inputs.probe(list(self.get_inputs()), seed)
        weights = inputs.probe_state(state, seed)
        try:
            exact = self._float64(values, weights, seed)
            native = self._forward(self.model_with(weights), copy.deepcopy(values), seed)
        except Exception:  # noqa: BLE001 - a probe that the reference cannot take is no probe
            return None
        if not (isinstance(native, Tensor) and native.dtype == torch.float32 and native.numel()):
            return None
        if not torch.equal(native.double(), exact) or not bool((exact != 0).any()):
            return None
        return {
            "name": "probe",
            "inputs": self._pack(values, "probe/in"),
            "state": self._pack(weights, "probe/state"),
            "expected": self._pack(exact, "probe/expected"),
        }

    def _pack(self, value: Any, prefix: str) -> dict[str, Any]:
        try:
            spec, made = pack(value, prefix)
        except SpecError as error:
            raise ProblemError(f"a value cannot be described: {error}", file=self.problem.file) from None
        self.blobs.update(made)
        return spec


class _TooLarge(Exception):
    """The outputs do not fit."""


class _Skip(Exception):
    """A distribution that the reference cannot take; the message says why."""


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype.is_floating_point else value
    if isinstance(value, list | tuple):
        return type(value)(_double(v) for v in value)
    return {k: _double(v) for k, v in value.items()} if isinstance(value, dict) else value


def _changed(before: list[Any], after: list[Any]) -> list[int]:
    """Numbers of the input tensors that a run changed."""
    pairs = enumerate(zip(leaves(before), leaves(after), strict=True))
    return [i for i, (a, b) in pairs if not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)]
