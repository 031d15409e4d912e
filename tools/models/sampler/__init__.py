"""The template sampler: a `Model` that draws attention kernels from templates. No language model is inside.

genome.py     genes, draws and moves            task.py      recognises the problem
mistakes.py   mistakes and their symptoms       brief.py     reads the prompt
pieces.py     kernel source, piece by piece     operators.py draft, repair, refine, diversify, crossover
variants/     the algorithms, one file each     render.py    a whole candidate file
"""

from tools.models.sampler.model import Sampler

__all__ = ["Sampler"]
