"""A whole candidate file for a genome: docstring, genome line, imports, kernels and `ModelNew`."""

from __future__ import annotations

import re

from tools.models.sampler.build import Build, Program, fill
from tools.models.sampler.genome import Genome
from tools.models.sampler.task import Family, Task
from tools.models.sampler.variants import WRITERS

TITLES: dict[Family, str] = {
    "full": "Attention",
    "causal": "Causal attention",
    "relative": "Attention with a relative position added to the scores",
    "alibi": "Attention with linear biases (ALiBi)",
    "softcap": "Attention with soft-capped scores",
    "neighbourhood": "2-D neighbourhood attention",
}

FILE = '''
"""$title: $summary."""
$genome
$imports


$definitions


class ModelNew(nn.Module):
    $init

    def forward($parameters):
        $forward
'''

TANH = """
@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0
"""

LIBRARY = """
return F.scaled_dot_product_attention($inputs, is_causal=$causal)
"""


def render(genome: Genome, task: Task) -> str:
    """Python source of the candidate, ending in a newline."""
    build = Build(genome, task)
    program = WRITERS[genome.variant](build)
    text = fill(
        FILE,
        {
            "title": TITLES[task.family],
            "summary": program.summary,
            "genome": genome.comment(),
            "imports": _imports(build),
            "definitions": _definitions(build, program),
            "init": _init(task),
            "parameters": ", ".join(["self", *task.inputs]),
            "forward": _forward(build, program),
        },
    )
    return text.replace("(nn.Module):\n\n", "(nn.Module):\n") + "\n"


def _imports(b: Build) -> str:
    lines = [] if b.slip("missing_import") else ["import math", ""]
    lines += ["import torch"]
    lines += ["import torch.nn.functional as F"] if b.slip("library_call") else []
    return "\n".join([*lines, "import triton", "import triton.language as tl", "from torch import nn"])


def _definitions(b: Build, program: Program) -> str:
    helpers = (TANH.strip(),) if b.task.family == "softcap" and not b.slip("missing_tanh") else ()
    kernels = (re.sub(r"\n{3,}", "\n\n", d.strip()) for d in program.definitions)
    return "\n\n\n".join([*helpers, *kernels])


def _init(task: Task) -> str:
    if not task.init:
        return ""
    lines = [f"def __init__(self, {', '.join(task.init)}):", "    super().__init__()"]
    return "\n".join([*lines, *(f"    self.{n} = {n}" for n in task.init_names)])


def _forward(b: Build, program: Program) -> str:
    if b.slip("library_call"):
        return fill(LIBRARY, {"inputs": ", ".join(b.task.inputs), "causal": str(b.task.causal)})
    return program.forward
