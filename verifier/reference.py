"""The reference of a problem on one workload: inputs, weights and expected values for each draw, on any device.

The expected value is the reference in float64, the yardstick the reference in the contract's precision, and what the
reference cannot take or cannot tell apart is skipped by name. Both are made when they are first asked for: an output
that is PyTorch's own result needs neither (`near.py`). Runs the user's problem file, never a candidate.

Precision: on a CPU the operands of products are rounded to the contract's class; on a GPU a TF32 contract is PyTorch's
own TF32 instead.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from verifier import inputs, numerics
from verifier.interpreter.precise import Float64, RoundedOperands
from verifier.loader import forget, materialize, user_errors
from verifier.near import Near
from verifier.problem import Precision, Problem, Workload
from verifier.specs import leaves

Part = Callable[[str], AbstractContextManager[None]]
"""Counts the time of what happens inside."""


def _uncounted(name: str) -> AbstractContextManager[None]:
    return nullcontext()


CUT_MARGIN = 1.25
"""What errors may be of those of products with operands cut off to TF32, which are the same on every machine."""
_STATISTICS = ("running_mean", "running_var")
REDUCED = 8
"""Elements of the largest input for one of the outputs, of a reference that reduces."""


class Skip(Exception):
    """A distribution that the reference cannot take; the message says why."""


@dataclass(frozen=True)
class Expected:
    """One draw. `expected` and `yardstick` raise Skip where the reference cannot take the draw."""

    name: str
    inputs: list[Any]
    native: Any
    """PyTorch's result in its own precision and dtypes."""
    mutated: list[int]
    """Numbers of the input tensors that the reference changes."""
    make_expected: Callable[[], Any] = field(repr=False)
    make_yardstick: Callable[[], Any] = field(repr=False)
    make_cut: Callable[[], Any] = field(default=lambda: None, repr=False)
    cut_margin: float = CUT_MARGIN
    """Times the error of `cut` that is within the limits."""

    @cached_property
    def expected(self) -> Any:
        """`native` in float64."""
        return self.make_expected()

    @cached_property
    def yardstick(self) -> Any:
        """The result in the contract's precision, None where it would be `native`."""
        return self.make_yardstick()

    @cached_property
    def cut(self) -> Any:
        """A second yardstick, None where there is none: PyTorch's result with operands of products cut off to TF32, or
        rounded to 16 bits after a multiplication; in float64, so that no rounding of outputs is forgiven of it.
        """
        if (made := self.make_cut()) is None:
            return None
        return tree_map_only(Tensor, lambda t: t.double() if t.dtype.is_floating_point else t, made)

    @cached_property
    def near(self) -> list[Near | None]:
        """For each tensor of `native`, by what an output is near it."""
        return [Near.of(t) for t in leaves(self.native)]

    @property
    def nbytes(self) -> int:
        """Of all that is held."""
        made = (self.__dict__.get(name) for name in ("expected", "yardstick", "cut"))
        return sum(map(bytes_of, (self.inputs, self.native, *made)))

    def coarse(self) -> str:
        """Why this draw cannot tell right from wrong, or an empty string. The task's own always counts."""
        if self.name == "task":
            return ""
        pairs = zip(leaves(self.expected), leaves(self.ruler), strict=True)
        return next(filter(None, (numerics.coarse(r, y) for r, y in pairs)), "")

    @property
    def ruler(self) -> Any:
        """The result whose error is the yardstick."""
        return self.native if self.yardstick is None else self.yardstick


@dataclass(frozen=True, slots=True)
class Probe:
    """Integer inputs and weights on which the reference is exact in fp32."""

    inputs: list[Any]
    state: dict[str, Tensor]
    expected: Tensor


@dataclass
class Reference:
    """A problem's model, built once. Raises ProblemError where the problem file is at fault, OutOfMemoryError."""

    problem: Problem
    workload: Workload
    seed: int
    get_inputs: Any
    init: list[Any]
    model: nn.Module
    device: torch.device
    state: dict[str, Tensor] = field(init=False)
    part: Part = field(default=_uncounted, repr=False)
    """Told what takes time: inputs, float64, native, yardstick."""
    reduces: bool = field(default=False, init=False)
    """Whether the outputs are much smaller than the largest input; known after the first run."""

    def __post_init__(self) -> None:
        self.state = {k: v.detach() for k, v in self.model.state_dict().items() if isinstance(v, Tensor)}

    @classmethod
    def create(cls, problem: Problem, workload: Workload, seed: int, device: torch.device | str = "cpu") -> Reference:
        """Executes the file and builds the model on the host, seeded before each constructor as KernelBench does."""
        module = materialize(problem, workload)
        init_seed = inputs.derive_seed(seed, workload.name, "init")
        with _blaming(problem):
            inputs.seed_streams(init_seed)
            init = list(module.get_init_inputs())
            inputs.seed_streams(init_seed)
            model = module.Model(*init).to(device)
        made = cls(problem, workload, seed, module.get_inputs, init, model, torch.device(device))
        weakref.finalize(made, forget, module.__name__, str(module.__file__)).atexit = False
        return made

    @property
    def init_seed(self) -> int:
        """What every constructor is seeded with."""
        return inputs.derive_seed(self.seed, self.workload.name, "init")

    def inputs(self, name: str, *salt: str) -> list[Any]:
        """The arguments of `forward` under distribution `name`, made anew; another `salt` gives other values."""
        with self.part("inputs"), _blaming(self.problem):
            return inputs.draw(
                name, self.get_inputs, self._seed(name, *salt), self.device, reduced=self.reduces, bare=not self.state
            )

    def _seed(self, name: str, *salt: str) -> int:
        return inputs.derive_seed(self.seed, self.workload.name, "draw", name, *salt)

    def draw(self, name: str, *salt: str, most_output_bytes: int | None = None) -> Expected:
        """One draw; its expected values may still raise Skip. Raises Skip, and TooLarge for outputs over
        `most_output_bytes`.

        A draw may still be too coarse: see `Expected.coarse`.
        """
        values, seed = self.inputs(name, *salt), self._seed(name, *salt)
        watched = RoundedOperands(Precision.FP32)
        with self.part("native"), self._skipping(name), watched, tf32(False):
            native = self._forward(self._model(self.state), values, seed)
        if most_output_bytes is not None and (size := bytes_of(native)) > most_output_bytes:
            raise TooLarge(f"the outputs take {size / 2**20:.1f} MiB")
        mutated = [i for i, t in enumerate(leaves(values)) if t.untyped_storage().data_ptr() in watched.written]
        if mutated:
            values = self.inputs(name, *salt)
        rounded = bool(watched.products) and self.problem.precision is not Precision.FP32
        cut = rounded and self.problem.precision is not Precision.FP8
        margin = CUT_MARGIN if self.problem.precision is Precision.TF32 else numerics.MARGIN
        return Expected(
            name, values, native, mutated,
            lambda: self._expected(name, values, seed), lambda: self._rounded(name, values, seed) if rounded else None,
            lambda: self._rounded(name, values, seed, cut=True) if cut else None,
            margin,
        )  # fmt: skip

    @contextmanager
    def _skipping(self, name: str) -> Iterator[None]:
        """Makes an error of the reference a Skip; on the task's own inputs it is the file's fault."""
        try:
            yield
        except (Skip, TooLarge, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if name == "task":
                with user_errors(self.problem):
                    raise
            raise Skip(f"the reference raises {type(error).__name__}: {error}"[:300]) from None

    def _expected(self, name: str, values: list[Any], seed: int) -> Any:
        with self.part("float64"), self._skipping(name):
            expected = self._float64(values, self.state, seed)
        if name != "task" and not inputs.finite(expected):
            raise Skip("the float64 reference is not finite")
        return expected

    def _rounded(self, name: str, values: list[Any], seed: int, *, cut: bool = False) -> Any:
        """The result in the contract's precision, or with operands cut off. Copies the inputs, which it may change."""
        on_gpu = self.device.type == "cuda" and self.problem.precision is Precision.TF32
        narrow = self.problem.precision
        if cut and narrow is Precision.FP16 and any(t.dtype is torch.bfloat16 for t in leaves(values)):
            narrow = Precision.BF16
        precise = nullcontext() if on_gpu and not cut else RoundedOperands(narrow, cut=cut)
        with self.part("yardstick"), self._skipping(name), tf32(on_gpu), precise:
            return self._forward(self._model(self.state), copy.deepcopy(values), seed)

    @cached_property
    def uniform(self) -> dict[str, Tensor]:
        """Weights, and statistics of norms, that start with one value everywhere, so that nothing shows whether they
        are used. Those with several names are left out.
        """
        trained = {name for name, _ in self.model.named_parameters()}
        places = Counter(t.data_ptr() for t in self.state.values())
        found = {k: t for k, t in self.state.items() if k in trained or k.endswith(_STATISTICS)}
        return {k: t for k, t in found.items() if _uniform(t) and places[t.data_ptr()] == 1}

    def varied(self) -> Reference:
        """The same problem with other values of its `uniform` weights, at most a quarter off, zeros up to a quarter."""
        generator = torch.Generator(self.device).manual_seed(
            inputs.derive_seed(self.seed, self.workload.name, "weights")
        )
        made = copy.copy(self)
        made.state = dict(self.state)
        for name, t in self.uniform.items():
            factor = 0.25 * (2 * torch.rand(t.shape, generator=generator, device=t.device) - 1)
            made.state[name] = torch.where(t == 0, factor, t * (1 + factor)).to(t.dtype)
        return made

    def stochastic(self) -> bool:
        """Whether two runs on equal inputs differ by more than the order of summation explains."""
        seed, values = self._seed("task"), self.inputs("task")
        with _blaming(self.problem):
            one, two = (self._forward(self._model(self.state), copy.deepcopy(values), seed + i) for i in (0, 1))
        pairs = zip(leaves(one), leaves(two), strict=True)
        return any(not torch.equal(a, b) and not _close(a, b, 1e-3) for a, b in pairs)

    def probe(self) -> Probe | None:
        """Integers on which the reference is exact in fp32, None where it is not."""
        seed = inputs.derive_seed(self.seed, self.workload.name, "probe")
        with _blaming(self.problem):
            values = inputs.probe(inputs.own(self.get_inputs, seed, self.device), seed)
        weights = inputs.probe_state(self.state, seed)
        try:
            with tf32(False):
                native = self._forward(self._model(weights), copy.deepcopy(values), seed)
            if not (isinstance(native, Tensor) and native.dtype == torch.float32 and native.numel()):
                return None
            exact = self._float64(values, weights, seed)
        except Exception:  # noqa: BLE001 - a probe that the reference cannot take is no probe
            return None
        if not torch.equal(native.double(), exact) or not bool((exact != 0).any()):
            return None
        return Probe(values, weights, exact)

    def _model(self, state: dict[str, Tensor]) -> nn.Module:
        """A copy of the model with fresh buffers, so that what `forward` mutates does not leak into another
        run.
        """
        model = copy.deepcopy(self.model)
        model.load_state_dict(state, strict=False)
        return model

    def _forward(self, model: nn.Module, values: list[Any], seed: int) -> Any:
        largest = max((t.numel() for t in leaves(values)), default=0)
        inputs.seed_streams(seed)
        made = model(*values)
        self.reduces = REDUCED * sum(t.numel() for t in leaves(made)) <= largest
        return made

    def _float64(self, values: list[Any], state: dict[str, Tensor], seed: int) -> Any:
        wide = [_double(v) for v in values]
        model = self._model(state).double()
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with Float64(), sdpa_kernel(SDPBackend.MATH):
                return tree_map_only(Tensor, _no_fp8, self._forward(model, wide, seed))
        finally:
            torch.set_default_dtype(default)


@contextmanager
def _blaming(problem: Problem) -> Iterator[None]:
    """`user_errors`, but that a device is full is no fault of the file."""
    full = None
    with user_errors(problem):
        try:
            yield
        except torch.OutOfMemoryError as error:
            full = error
    if full is not None:
        raise full


class TooLarge(Exception):
    """The outputs do not fit."""


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of fp32 may be TF32 on a GPU, while active. Through torch's newer interface where this process
    has used that already: the older one then raises.
    """
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [cuda, cudnn]
    name: str = "allow_tf32"
    value: bool | str = allowed
    try:
        before = [getattr(switch, name) for switch in switches]
    except RuntimeError:
        switches, name, value = [cuda, cudnn.conv, cudnn.rnn], "fp32_precision", "tf32" if allowed else "ieee"
        before = [getattr(switch, name) for switch in switches]
    for switch in switches:
        setattr(switch, name, value)
    try:
        yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            setattr(switch, name, old)


def bytes_of(values: Any) -> int:
    """Bytes of the tensors in a nested value."""
    return sum(t.numel() * t.element_size() for t in leaves(values))


def _uniform(t: Tensor) -> bool:
    if not t.dtype.is_floating_point or t.numel() < 2:
        return False
    return bool((t == t.reshape(-1)[0]).all() & torch.isfinite(t).all())


def _double(value: Any) -> Any:
    """A copy in float64; integers keep their dtype."""
    if isinstance(value, Tensor):
        return value.to(torch.float64 if value.dtype.is_floating_point else value.dtype, copy=True)
    if isinstance(value, list | tuple):
        return type(value)(_double(v) for v in value)
    return {k: _double(v) for k, v in value.items()} if isinstance(value, dict) else value


def _no_fp8(tensor: Tensor) -> Tensor:
    """What a file rounds to fp8 by itself, in float64: nearly nothing can be done with fp8."""
    return tensor.double() if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1 else tensor


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
