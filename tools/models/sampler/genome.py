"""The genome: what a kernel of the sampler is made of, and moves in that space.

A gene is a choice that leaves the result unchanged: the algorithm, tile sizes, warps, stages, precision of
the products, order of loops and programs. Mistakes (see `mistakes.py`) are kept beside the genes, so that a
mistake can be removed without changing anything else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace

MARK = "# genome: "
"""Start of the comment line that carries a genome in a source file."""


SHARED_LIMIT = 220_000
"""Bytes of shared memory that a block may be expected to use, a little under the limit of the target."""


@dataclass(frozen=True, slots=True)
class Gene:
    """The values of one gene, the weight of each in a draft, and the variants in which it has an effect."""

    values: tuple[str | int, ...]
    weights: tuple[float, ...]
    ordered: bool = False
    """Neighbours in `values` are close to each other, so a small step is one place."""
    variants: frozenset[str] = frozenset()
    """Empty means all variants."""


VARIANTS = ("flash", "two_pass", "split_kv", "whole_row", "three_kernel")
LOOPED = frozenset({"flash", "two_pass", "split_kv"})
_FLASH = frozenset({"flash"})

GENES: Mapping[str, Gene] = {
    "variant": Gene(VARIANTS, (5, 2, 2, 0.15, 2)),
    "block_m": Gene((16, 32, 64, 128, 256), (1, 2, 4, 4, 1), ordered=True),
    "block_n": Gene((16, 32, 64, 128, 256), (1, 3, 4, 3, 1), ordered=True),
    "num_warps": Gene((1, 2, 4, 8, 16), (1, 2, 5, 4, 0.5), ordered=True),
    "num_stages": Gene((1, 2, 3, 4, 5), (2, 4, 4, 1, 0.5), ordered=True),
    "exponential": Gene(("exp", "exp2"), (3, 2)),
    "scale_at": Gene(("scores", "queries"), (4, 1)),
    "operands": Gene(("input", "tf32", "ieee"), (6, 1, 0.3)),
    "ranges": Gene(("all", "skip"), (3, 2), variants=LOOPED),
    "loops": Gene(("one", "split"), (3, 1), variants=_FLASH),
    "order": Gene(("forward", "reverse"), (4, 1), variants=_FLASH),
    "programs": Gene(("rows_first", "heads_first", "long_first"), (4, 1, 1)),
    "splits": Gene((2, 4, 8), (2, 2, 1), ordered=True, variants=frozenset({"split_kv"})),
    "loads": Gene(("pointers", "descriptors"), (8, 1), variants=_FLASH),
    "tuning": Gene(("fixed", "autotune"), (7, 1), variants=LOOPED),
}


@dataclass(frozen=True, slots=True)
class Genome:
    """One point of the space. Every field but `mistakes` is a gene of `GENES`."""

    variant: str = "flash"
    block_m: int = 64
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2
    exponential: str = "exp"
    scale_at: str = "scores"
    operands: str = "input"
    ranges: str = "all"
    loops: str = "one"
    order: str = "forward"
    programs: str = "rows_first"
    splits: int = 4
    loads: str = "pointers"
    tuning: str = "fixed"
    mistakes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, gene in GENES.items():
            if getattr(self, name) not in gene.values:
                raise ValueError(f"gene {name} has no value {getattr(self, name)!r}")

    def comment(self) -> str:
        """The comment line that `parse_genomes` reads back."""
        return MARK + json.dumps(asdict(self), separators=(",", ":"))

    def with_mistakes(self, names: Iterable[str]) -> Genome:
        return replace(self, mistakes=tuple(sorted(set(names))))

    def distance(self, other: Genome) -> int:
        """Number of genes that differ."""
        return sum(getattr(self, name) != getattr(other, name) for name in GENES)


def parse_genome(line: str) -> Genome | None:
    """The genome in a comment line that `Genome.comment` wrote; None for anything else."""
    text = line.strip()
    if not text.startswith(MARK):
        return None
    try:
        data = json.loads(text[len(MARK) :])
        known = {f.name for f in fields(Genome)}
        values = {k: v for k, v in data.items() if k in known}
        return Genome(**values | {"mistakes": tuple(str(m) for m in values.get("mistakes", ()))})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def active(genome: Genome) -> tuple[str, ...]:
    """Genes that change the source of this genome's variant, the variant left out."""
    return tuple(n for n, g in GENES.items() if n != "variant" and (not g.variants or genome.variant in g.variants))


def draw(rng: random.Random) -> Genome:
    """A genome with every gene drawn by its weights, without mistakes."""
    return Genome(**{n: rng.choices(g.values, g.weights)[0] for n, g in GENES.items()})  # type: ignore[arg-type]


def mutate(genome: Genome, name: str, rng: random.Random, direction: int = 0) -> Genome:
    """`genome` with another value of one gene: a place up or down if ordered, else another by weight.

    `direction` is -1, 1 or 0 for a free choice; at the end of the scale an ordered gene turns round.
    """
    gene = GENES[name]
    here = gene.values.index(getattr(genome, name))
    if gene.ordered:
        step = direction or rng.choice((-1, 1))
        there = here + step if 0 <= here + step < len(gene.values) else here - step
    else:
        there = _other(gene, here, rng)
    return replace(genome, **{name: gene.values[there]})  # type: ignore[arg-type]


def _other(gene: Gene, here: int, rng: random.Random) -> int:
    """Index of another value, by the weights of a draft."""
    others = [i for i in range(len(gene.values)) if i != here]
    return rng.choices(others, [gene.weights[i] for i in others])[0]


def mix(a: Genome, b: Genome, rng: random.Random) -> Genome:
    """Each gene from either parent; the algorithm and what belongs to it alone come from one of them."""
    lead = rng.choice((a, b))
    free = [n for n, g in GENES.items() if n != "variant" and not g.variants]
    return replace(lead, **{n: getattr(rng.choice((a, b)), n) for n in free})


def shared_bytes(genome: Genome, head_dim: int, item: int) -> int:
    """Rough shared memory of one block, bytes: tiles of q and scores, `num_stages` tiles of K and V.

    `item` is the size of an input element, bytes.
    """
    item = item if genome.operands == "input" else 4
    if genome.variant == "whole_row":
        return 0
    tile = genome.block_n * head_dim * item
    stages = max(1, genome.num_stages)
    return genome.block_m * head_dim * item + 2 * stages * tile + (genome.block_m * genome.block_n * item) // 2


def register_pressure(genome: Genome, head_dim: int) -> float:
    """Accumulator and score tile, 32-bit values per thread; above about 200 they spill."""
    values = genome.block_m * (genome.block_n + head_dim)
    return values / (32 * genome.num_warps)


def affordable(genome: Genome, head_dim: int) -> bool:
    """Whether it compiles in seconds: products in full fp32 unroll into an instruction per value."""
    if genome.operands == "ieee" and genome.block_m * genome.block_n > 1024:
        return False
    return register_pressure(genome, head_dim) <= 1024


def sensible(genome: Genome, head_dim: int, item: int) -> bool:
    """Whether an experienced author would expect the genome to compile, fit and not spill badly."""
    fits = shared_bytes(genome, head_dim, item) <= SHARED_LIMIT
    return fits and register_pressure(genome, head_dim) <= 256 and affordable(genome, head_dim)
