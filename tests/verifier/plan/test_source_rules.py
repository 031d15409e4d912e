"""Rules over names: what no kernel needs is an error with its line; what honest files do is none."""

from __future__ import annotations

import pytest

from verifier.plan.source_rules import check_source

REFUSED = {
    "import verifier.plan.record": "reaches-out",
    "from verifier.plan import ops": "reaches-out",
    "import sys\nsys.modules['x']": "reaches-out",
    "import sys\nsys._getframe()": "reaches-out",
    "import gc\ngc.get_objects()": "reaches-out",
    "import ctypes\nctypes.memset(1, 0, 1)": "reaches-out",
    "x.__class__.__subclasses__()": "reaches-out",
    "from torch._subclasses.fake_tensor import FakeTensor": "asks-who-is-looking",
    "import torch\ntorch._subclasses.FakeTensor": "asks-who-is-looking",
    "import os\nos.environ.get('TRITON_INTERPRET')": "asks-who-is-looking",
    "import triton\nif triton.knobs.runtime.interpret: pass": "asks-who-is-looking",
    "type(x).__name__ == 'FakeTensor'": "asks-who-is-looking",
}

HONEST = """\"\"\"Runs under TRITON_INTERPRET=1, too; see the verifier.\"\"\"
import gc, inspect, os, sys, ctypes, math
import torch
from torch.utils.cpp_extension import load_inline
os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
gc.collect()
sys.setrecursionlimit(5000)
arg = ctypes.c_int(3)
x = torch.zeros(3).is_cuda
inspect.signature(print)
"""


@pytest.mark.parametrize("source", REFUSED)
def test_refused(source: str) -> None:
    found = check_source(source)
    assert [d.code for d in found][-1] == REFUSED[source]
    assert found[-1].severity == "error"
    assert found[-1].line == source.count("\n") + 1


def test_honest_files_pass() -> None:
    assert check_source(HONEST) == ()


def test_text_that_does_not_parse_is_not_ours() -> None:
    assert check_source("def f(:") == ()
