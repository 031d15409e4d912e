"""Reads problem files, executes them for one workload and says what their arguments are.

`load_problem` looks at the syntax tree only: no PyTorch, nothing runs. `materialize` executes the file with
the workload's constants in place of its own. `inspect_job` is a job for a trusted child of the zygote: shapes
and dtypes of the arguments without the memory that they would take.

The reference is the user's code and is trusted. What it raises becomes a ProblemError that names file and
line.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from verifier.errors import ProblemError
from verifier.problem import Constant, Problem, Workload
from verifier.problem_file import ProblemFile, bindings

MAX_SOURCE_BYTES = 4 << 20
MAX_REAL_BYTES = 2 << 30
"""Tensors that `inspect_job` may really create when the fake run fails, bytes in all."""

_serial = itertools.count()


def load_problem(path: Path, name: str | None = None) -> Problem:
    """Reads and checks a problem file. Raises ProblemError; `name` is the file's stem when left out."""
    return parse_problem(_read(Path(path)), file=str(path), name=name or Path(path).stem)


def parse_problem(source: str, *, file: str, name: str) -> Problem:
    """Checks the text of a problem file. Raises ProblemError."""
    parsed = ProblemFile.parse(source, file)
    parsed.check_flops()
    baselines, excuses = parsed.baselines()
    return Problem(
        name=name,
        source=source,
        file=file,
        workloads=parsed.workloads(),
        precision=parsed.precision(),
        baseline=parsed.baseline(),
        baselines=baselines,
        excuses=excuses,
        library=parsed.library(),
        prompt=parsed.prompt(),
        title=parsed.title(),
    )


def constants(problem: Problem) -> dict[str, Constant]:
    """What a workload of this problem may override, with the values in the file."""
    return ProblemFile.parse(problem.source, problem.file).constants()


def render(problem: Problem, workload: Workload) -> str:
    """The file's text for one workload: `; NAME = <override>` behind every assignment that binds NAME.

    Constants derived from an overridden one follow, and every line keeps its number.
    """
    tree = ProblemFile.parse(problem.source, problem.file).tree
    lines = [line.encode() for line in re.split("\r\n|\r|\n", problem.source)]
    for statement in reversed(tree.body):
        bound = {target: value for target, value in bindings(statement) if target in workload.constants}
        added = "".join(f"; {n} = {_literal(workload.constants[n], value)}" for n, value in bound.items())
        row, column = (statement.end_lineno or 1) - 1, statement.end_col_offset or 0
        lines[row] = lines[row][:column] + added.encode() + lines[row][column:]
    return "\n".join(line.decode() for line in lines)


def materialize(problem: Problem, workload: Workload) -> ModuleType:
    """Executes the problem file with the workload's constants in a new module, registered in `sys.modules` until
    `forget`.

    Imports PyTorch when the file does. Raises ProblemError.
    """
    serial = next(_serial)
    filename = f"<problem {problem.name}, workload {workload.name}, {serial}>"
    text = render(problem, workload)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = ModuleType(f"warpsmith_problem_{problem.id}_{serial}")
    module.__file__ = filename
    sys.modules[module.__name__] = module
    try:
        with user_errors(problem):
            exec(compile(text, filename, "exec", dont_inherit=True), module.__dict__)
    except ProblemError:
        del sys.modules[module.__name__]
        raise
    return module


def forget(name: str, file: str) -> None:
    """Takes a materialized module of that `__name__` and `__file__` out of the interpreter's tables."""
    sys.modules.pop(name, None)
    linecache.cache.pop(file, None)


@contextmanager
def user_errors(problem: Problem) -> Iterator[None]:
    """Turns whatever code of the problem file raises into a ProblemError that names its line."""
    try:
        yield
    except ProblemError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error}".strip(": ")
        module = error.name if isinstance(error, ModuleNotFoundError) else None
        step = f"install the module `{module}`, which the problem file imports" if module else ""
        raise ProblemError(message, file=problem.file, line=_line_in(problem, error), next_step=step) from error


def arguments(problem: Problem, module: ModuleType) -> tuple[list[Any], list[Any]]:
    """Live results of `get_init_inputs()` and `get_inputs()`. Raises ProblemError, also for no list."""
    with user_errors(problem):
        found = {name: getattr(module, name)() for name in ("get_init_inputs", "get_inputs")}
    for name, value in found.items():
        if not isinstance(value, list | tuple):
            raise ProblemError(f"`{name}` returns a {type(value).__name__}, not a list", file=problem.file)
    return list(found["get_init_inputs"]), list(found["get_inputs"])


def inspect_job(
    payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """SPECs of the arguments of one workload: `{"problem": Problem JSON, "workload": name}` ->
    `{"init": [SPEC], "init_kwargs": {}, "inputs": [SPEC], "run": "fake" | "real"}`, or
    `{"error": {"message", "file", "line", "next_step"}}` when the problem file is at fault.

    Runs under fake tensors, so a 12 GB input costs nothing. Where that fails, for example because the file
    reads a value of a tensor, it really runs, with at most MAX_REAL_BYTES of tensors.
    """
    problem = Problem.model_validate(payload["problem"])
    workload = next(w for w in problem.workloads if w.name == payload["workload"])
    _forget_devices()
    try:
        return inspect_arguments(problem, workload), {}
    except ProblemError as error:
        message = str(error).removeprefix(f"{error.file}:{error.line}: ").removeprefix(f"{error.file}: ")
        fault = {"message": message, "file": error.file, "line": error.line, "next_step": error.next_step}
        return {"error": fault}, {}


def _forget_devices() -> None:
    """A file may make its inputs on "cuda": a CUDA build of torch would start the driver for a fake tensor, which a
    forked process cannot. Changes torch in this process for good.
    """
    import torch
    import torch._subclasses.fake_tensor

    def nothing(*_args: object) -> None: ...

    fake: Any = torch._subclasses.fake_tensor
    torch.cuda._lazy_init = nothing
    fake.FakeTensorMode.avoid_device_init = property(lambda _self: True)
    if hasattr(fake, "init_gpu_context"):
        fake.init_gpu_context = nothing


def read_inspection(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The value of `inspect_job` as it is, or its ProblemError, raised on this side of the boundary."""
    if "error" in value:
        fault = dict(value["error"])
        raise ProblemError(fault.pop("message"), **fault)
    return value


def inspect_arguments(problem: Problem, workload: Workload) -> dict[str, Any]:
    """What `inspect_job` returns when all goes well. Raises ProblemError."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return {**_specs(problem, workload), "run": "fake"}
    except ProblemError:
        with _bounded_memory(problem):
            return {**_specs(problem, workload), "run": "real"}


def _specs(problem: Problem, workload: Workload) -> dict[str, Any]:
    from verifier.specs import encode

    init, inputs = arguments(problem, materialize(problem, workload))
    try:
        return {"init": [encode(a) for a in init], "init_kwargs": {}, "inputs": [encode(a) for a in inputs]}
    except (TypeError, ValueError) as error:
        raise ProblemError(f"an argument cannot be described: {error}", file=problem.file) from error


@contextmanager
def _bounded_memory(problem: Problem) -> Iterator[None]:
    """Refuses to create more than MAX_REAL_BYTES of tensors, counted after each operator."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Bound(TorchDispatchMode):  # type: ignore[no-untyped-call]
        created = 0

        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            self.created += sum(t.numel() * t.element_size() for t in tensors)
            if self.created > MAX_REAL_BYTES:
                raise ProblemError(
                    f"the arguments cannot be described without running the file, and that takes over "
                    f"{MAX_REAL_BYTES >> 30} GiB",
                    file=problem.file,
                    next_step="create the inputs with torch.randn and its like, without reading their values",
                )
            return result

    with Bound():  # type: ignore[no-untyped-call]
        yield


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise ProblemError(f"cannot be read: {error.strerror or error}", file=path) from None
    if len(data) > MAX_SOURCE_BYTES:
        raise ProblemError(f"longer than {MAX_SOURCE_BYTES >> 20} MiB; this is not a problem file", file=path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ProblemError("not UTF-8 text", file=path, line=line) from None


def _literal(value: Constant, node: ast.expr) -> str:
    return repr(list(value) if isinstance(node, ast.List) and isinstance(value, tuple) else value)


def _line_in(problem: Problem, error: BaseException) -> int | None:
    """Line of the innermost frame of the problem file, None when no frame is in it."""
    ours = f"<problem {problem.name}, "
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(ours)]
    return lines[-1] if lines else None
