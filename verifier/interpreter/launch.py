"""Launches under Triton's interpreter: argument binding, the grid loop, autotuning and the deadline.

Departs from Triton's `GridExecutor`: a grid function gets the plain arguments, as on a GPU; tensors are not
copied; pointers are made-up addresses (see memory.py); functions are patched once per launch instead of once
per call of a device function; an exception names the candidate's line. Of an autotuned kernel one
configuration runs per launch: the first in the first draw of inputs, the next one in the next draw, so that
several are tried at no extra cost. With a `Coverage` only a sample of the programs runs.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as ti
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from verifier.interpreter import device, reduce, repair
from verifier.interpreter.compiled import CompiledKernel
from verifier.interpreter.limits import OutOfTime, Unsupported
from verifier.interpreter.memory import Memory, flat
from verifier.interpreter.sampling import Coverage
from verifier.plan.calllog import CallLog, Event
from verifier.plan.tuner_key import tuning_key
from verifier.specs import dtype_name


class KernelError(Exception):
    """A kernel body raised under the interpreter. The message names kernel, line and cause."""

    def __init__(self, kernel: str, line: int | None, error: BaseException) -> None:
        where = f" at line {line}" if line else ""
        cause = f"no {error}" if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
        super().__init__(f"kernel `{kernel}`{where}: {cause}")


class Launcher:
    """Takes over launches in this process once `install` has run. One per process."""

    def __init__(
        self,
        filename: str,
        deadline: float,
        coverage: Coverage | None = None,
        compiled: Mapping[str, Any] | None = None,
    ) -> None:
        """`deadline`: time.monotonic() at which the interpreter gives up. `compiled`: figures of compiled kernels."""
        self.filename = filename
        self._compiled = compiled or {}
        self.deadline = deadline
        self.memory = Memory(ti._interpreter, filename, coverage=coverage)
        self.rotation = 0
        """Number of the autotune configuration to run, modulo how many there are."""
        self.launches = 0
        self.errors: list[KernelError] = []
        self.configurations: set[str] = set()
        self.log = CallLog()
        self.spoil = False
        """Whether what a kernel stores is changed afterwards, to see if anything comes of it."""
        self.copies = 0
        """Launches under `spoil` that stored, element by element, what one of their arguments held before."""
        self._patched: set[Any] = set()
        """Modules of the language that are patched for this launch."""
        self._scopes = contextlib.ExitStack()
        self._keys: set[tuple[Any, ...]] = set()
        """Autotuners with the keys that they have met."""

    def install(self) -> None:
        """Repairs the interpreter and routes its launches here, in this process, for good."""
        repair.install(self._observe)
        reduce.install()
        ti._interpreter = self.memory
        convert = ti._implicit_cvt
        ti._implicit_cvt = lambda arg: self._pointer(arg) if hasattr(arg, "data_ptr") else convert(arg)
        launcher = self

        def call(executor: Any, *args: Any, **kwargs: Any) -> None:
            launcher.run(executor, args, kwargs)

        def device_function(function: Any, *args: Any, **kwargs: Any) -> Any:
            launcher._patch(function.fn)
            return function.rewrite()(*args, **kwargs)

        def tuned(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            return launcher._run_tuned(tuner, args, kwargs)

        run = ti.InterpretedFunction.run

        def launched(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> CompiledKernel:
            run(function, *args, grid=grid, warmup=warmup, **kwargs)
            return CompiledKernel(function, kwargs, launcher._compiled.get(function.__name__, ()))

        def compiled(function: Any, *args: Any, **kwargs: Any) -> None:
            raise Unsupported(f"kernels of Gluon, as `{function.__name__}` is one")

        JITFunction.run = compiled
        ti.InterpretedFunction.run = launched
        ti.GridExecutor.__call__ = call
        ti.InterpretedFunction.__call__ = device_function
        Autotuner.run = tuned

    def run(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One launch. Raises KernelError, OutOfTime, and whatever binding or the grid function raises."""
        with self.log.pause():
            self._launch(executor, args, kwargs)
        device.captured(lambda: self._launch(executor, args, kwargs, replayed=True))

    def _launch(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, replayed: bool = False) -> None:
        spec = inspect.getfullargspec(executor.fn)
        kwargs = {k: v for k, v in kwargs.items() if k in spec.args or k in spec.kwonlyargs}
        for hook in executor.pre_run_hooks:
            hook(*args, **kwargs)
        plain = inspect.getcallargs(executor.fn, *args, **kwargs)
        grid = _grid(executor.grid(plain) if callable(executor.grid) else executor.grid)
        self.launches += 1
        name = executor.fn.__name__
        if not replayed:
            self.log.launch(_written(executor.fn), grid, plain)
        self.memory.begin(name)
        coverage = self.memory.coverage
        programs = coverage.begin(name, grid) if coverage else range(grid[0] * grid[1] * grid[2])
        with torch._C.DisableTorchFunction(), np.errstate(all="ignore"), self._patches(executor.fn):
            self._name_regions(plain)
            bound = {k: v if k in executor.constexprs else ti._implicit_cvt(v) for k, v in plain.items()}
            ti.interpreter_builder.set_grid_dim(*grid)
            tensors = [v for v in plain.values() if isinstance(v, torch.Tensor)] if self.spoil else []
            before = [flat(t).clone() for t in tensors]
            self._programs(executor.fn, bound, grid, programs, name)
            if coverage:
                coverage.end()
            if self.spoil:
                self.copies += self.memory.spoil(tensors, before)

    def _programs(
        self, function: Any, bound: dict[str, Any], grid: tuple[int, int, int], programs: Sequence[int], name: str
    ) -> None:
        x, y, _ = grid
        try:
            for done, program in enumerate(programs):
                if time.monotonic() > self.deadline:
                    raise OutOfTime(f"{done} of {len(programs)} programs of kernel `{name}` in the time allowed")
                self.memory.program = program
                ti.interpreter_builder.set_grid_idx(program % x, program // x % y, program // (x * y))
                function(**bound)
        except Exception as error:
            failure = KernelError(name, self._line(error), error)
            self.errors.append(failure)
            raise failure from error

    # arguments

    def _name_regions(self, plain: dict[str, Any]) -> None:
        for name, value in plain.items():
            self._register(name, getattr(value, "base", value) if _is_descriptor(value) else value)

    def _register(self, name: str, value: Any) -> int | None:
        if isinstance(value, tuple | list):
            for i, item in enumerate(value):
                self._register(f"{name}[{i}]", item)
            return None
        if not hasattr(value, "data_ptr"):
            return None
        tensor = ti._unwrap_tensor(value)
        storage = tensor.untyped_storage()
        if self.memory.coverage:
            self.memory.coverage.argument(tensor)
        described = f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
        base = self.memory.add(name, storage.data_ptr(), storage.nbytes(), tensor.element_size(), described)
        return int(base + tensor.data_ptr() - storage.data_ptr())

    def _pointer(self, arg: Any) -> Any:
        """A tensor argument as the interpreter's pointer to made-up memory."""
        kind = tl.str_to_ty(triton.runtime.jit.mangle_type(arg), None)
        address = self._register("tensor", arg)
        return tl.tensor(ti.TensorHandle(np.array([address], dtype=np.uint64), kind), kind)

    # patches of triton.language

    @contextlib.contextmanager
    def _patches(self, function: Any) -> Iterator[None]:
        with contextlib.ExitStack() as self._scopes:
            self._scopes.callback(ti._patch_lang(function).restore)
            self._patched = set(repair.languages(function))
            yield

    def _patch(self, function: Any) -> None:
        """Patches the modules that a device function sees and the kernel did not, until the launch is over."""
        if missing := set(repair.languages(function)) - self._patched:
            self._scopes.callback(ti._patch_lang(function).restore)
            self._patched |= missing

    # autotuning

    def _run_tuned(self, tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        configs = list(tuner.prune_configs(kwargs) if len(tuner.configs) > 1 else tuner.configs)
        config = configs[self.rotation % len(configs)]
        tuner.best_config = config
        self.configurations.add(f"{tuner.base_fn.__name__}: {config}")
        settings = config.all_kwargs()
        left = self._tuning_leaves(tuner, {**tuner.nargs, **kwargs, **settings}, tuning_key(tuner, kwargs))
        mark = self.log.mark()
        if config.pre_hook is not None:
            config.pre_hook({**tuner.nargs, **kwargs, **settings})
        result = tuner.fn.run(*args, **kwargs, **settings)
        self.log.join(mark)
        for event in left:  # a trace knows the launches first
            self.log.add(event)
        tuner.nargs = None
        return result

    def _tuning_leaves(self, tuner: Any, arguments: dict[str, Any], key: tuple[Any, ...]) -> list[Event]:
        """Does what tuning leaves behind, which is the first call with a key: `reset_to_zero`."""
        with self.log.later() as done:
            if len(tuner.configs) > 1 and (tuner, key) not in self._keys:
                self._keys.add((tuner, key))
                tuner.pre_hook(arguments, reset_only=True)
        return done

    # findings

    def _observe(self, code: str, message: str) -> None:
        self.memory.note("advice", code, message, self.memory.here())

    def _line(self, error: BaseException) -> int | None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == self.filename]
        return lines[-1] if lines else None


def _written(rewritten: Any) -> Any:
    """The function as the candidate wrote it; the interpreter runs a rewritten copy."""
    return next((own for own, new in ti.InterpretedFunction.rewritten_fn.items() if new is rewritten), rewritten)


def _is_descriptor(value: object) -> bool:
    return hasattr(value, "block_shape") and hasattr(value, "base")


def _grid(grid: Any) -> tuple[int, int, int]:
    """Three integers. Raises TypeError and ValueError as a launch on a GPU does."""
    sizes = [operator.index(n) for n in (grid if isinstance(grid, tuple | list) else (grid,))]
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"grid must have 1 to 3 dimensions, not {len(sizes)}")
    if any(n < 0 for n in sizes):
        raise ValueError(f"a grid dimension is negative: {sizes}")
    x, y, z = [*sizes, 1, 1][:3]
    return x, y, z
