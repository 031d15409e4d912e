"""What a variant needs to write a kernel, and the filler that joins pieces into templates.

A template is a kernel as a person would write it, with `$name` where a choice stands. A line that holds
nothing but a placeholder takes a piece of many lines at its own indentation, or vanishes when the piece is
empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tools.models.sampler.genome import LOOPED, Genome
from tools.models.sampler.task import Task

LOG2E = "1.4426950408889634"

_LINE = re.compile(r"^([ ]*)\$(\w+)$")
_WORD = re.compile(r"\$(\w+)")


@dataclass(frozen=True, slots=True)
class Build:
    """One kernel to write: a genome for a task."""

    genome: Genome
    task: Task

    def slip(self, name: str) -> bool:
        """Whether the genome makes this mistake."""
        return name in self.genome.mistakes

    @property
    def base2(self) -> bool:
        """Scores are in units of log2, so that exp2 can be used."""
        return self.genome.exponential == "exp2"

    @property
    def exp(self) -> str:
        return "tl.math.exp2" if self.base2 else "tl.exp"

    @property
    def to_log2(self) -> str:
        return f" * {LOG2E}" if self.base2 else ""

    @property
    def host_scale(self) -> str:
        """1/sqrt(D), in units of log2 where nothing non-linear follows."""
        return f"{LOG2E if self.base2 and self.task.family != 'softcap' else '1.0'} / math.sqrt(D)"

    @property
    def cast(self) -> str:
        """Behind a load: operands of tl.dot stay as stored or become fp32."""
        return "" if self.genome.operands == "input" else ".to(tl.float32)"

    @property
    def precision(self) -> str:
        """Last argument of tl.dot for fp32 operands. Plain TF32 is a choice, never the default of fp32 inputs."""
        if self.genome.operands == "input":
            return "" if self.task.half else ', input_precision="tf32x3"'
        return f', input_precision="{self.genome.operands}"'

    @property
    def scaled_queries(self) -> bool:
        """The scale goes to the queries. In 16 bits that would round them once more, so they must be fp32."""
        return self.genome.scale_at == "queries" and self.genome.operands != "input"

    @property
    def skips(self) -> bool:
        """Key tiles without a kept score are left out."""
        return self.genome.ranges == "skip" and self.task.masked and self.genome.variant in LOOPED

    @property
    def tuned(self) -> bool:
        """Tiles, warps and stages come from `triton.autotune`."""
        return self.genome.tuning == "autotune" and self.genome.variant in LOOPED


@dataclass(frozen=True, slots=True)
class Program:
    """What a variant writes: top-level definitions before the module, and the body of `forward`."""

    summary: str
    definitions: tuple[str, ...]
    forward: str


def fill(template: str, pieces: Mapping[str, str]) -> str:
    """`template` with every `$name` replaced. Raises KeyError on a name without a piece."""
    lines: list[str] = []
    for line in template.strip("\n").split("\n"):
        whole = _LINE.match(line)
        if whole is None:
            lines.append(_WORD.sub(lambda m: pieces[m[1]], line))
        elif piece := pieces[whole[2]].strip("\n"):
            lines.extend(whole[1] + part if part else "" for part in piece.split("\n"))
    return "\n".join(lines)
