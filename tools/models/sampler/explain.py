"""The few sentences before the code. They describe the genome; they hide its mistakes, as an author who
made them would.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.models.sampler.brief import Operator
from tools.models.sampler.genome import Genome
from tools.models.sampler.task import Task

OPENINGS: Mapping[Operator, str] = {
    "draft": "A first kernel",
    "repair": "The repaired kernel",
    "refine": "A faster version of the parent",
    "diversify": "A kernel that works in another way",
    "crossover": "A kernel that joins its parents",
}

ALGORITHMS = {
    "flash": "One pass over keys and values with an online softmax keeps the scores on the chip",
    "two_pass": "A first pass finds the statistics of the softmax, a second the output; nothing is rescaled",
    "split_kv": "The keys are split over more programs to fill the chip, and a second kernel joins the parts",
    "whole_row": "Each program holds whole rows of scores; a short sequence needs no online softmax",
    "three_kernel": "Scores, softmax and the product with V are three plain kernels",
}


def explain(operator: Operator, genome: Genome, task: Task) -> str:
    """Two or three sentences on what was chosen."""
    sizes = f"{genome.block_m} x {genome.block_n} tiles, {genome.num_warps} warps, {genome.num_stages} stages"
    dots = {
        "input": "products in the type of the inputs",
        "tf32": "products in TF32",
        "ieee": "products in full fp32",
    }[genome.operands]
    opening = f"{OPENINGS[operator]} for {task.family} attention."
    return f"{opening} {ALGORITHMS[genome.variant]}. It uses {sizes}, {dots}."
