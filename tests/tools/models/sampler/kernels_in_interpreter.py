"""Runs kernels of the sampler in Triton's interpreter and prints one JSON line: the name of
each case to its relative error or its exception.

Started by `test_kernels.py` in a process of its own, because TRITON_INTERPRET must be set before Triton is imported.
stdin: JSON {case: {"source": candidate, "reference": problem, "constants": {name: value}}}.
"""

from __future__ import annotations

import json
import linecache
import re
import sys
import types

import torch

from verifier.interpreter import repair


def load(name: str, text: str) -> types.ModuleType:
    """Executes `text` as a module that `inspect` can read, which Triton needs."""
    module = types.ModuleType(name)
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), module.__dict__)
    return module


def error(case: dict[str, object], name: str) -> float | str:
    text = str(case["reference"])
    for constant, value in case["constants"].items():  # type: ignore[attr-defined]
        text = re.sub(rf"(?m)^{constant} = .*$", f"{constant} = {value!r}", text)
    problem = load(f"{name}-reference", text)
    torch.manual_seed(0)
    inputs, init = problem.get_inputs(), problem.get_init_inputs()
    expected = problem.Model(*init)(*[x.double() for x in inputs])
    try:
        # views of (B, S, H, D): nothing may rely on contiguous inputs
        apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
        got = load(f"{name}-candidate", str(case["source"])).ModelNew(*init)(*apart)
    except Exception as failure:  # noqa: BLE001 - whatever a candidate raises is the result
        return f"{type(failure).__name__}: {failure}"
    return float((got.double() - expected).norm() / (expected - expected.mean()).norm())


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # torch.empty is filled with NaN
    repair.install(lambda code, message: None)
    print(json.dumps({name: error(case, name) for name, case in json.load(sys.stdin).items()}))
