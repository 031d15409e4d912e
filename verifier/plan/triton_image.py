"""The image of a Triton kernel in a plan: its key, and what the reader checks of it.

One cubin can stand behind several images: equal machine code for two element types, or launched once plainly and once
with programmatic dependent launch. So the key is a hash of the whole image. Loads neither torch nor Triton.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from verifier.plan import abi_sizes, cuda_abi, elf, ptx, ttir
from verifier.plan.schema import KernelImage
from verifier.target import Target

_NOT_LAUNCHED = ("num_stages", "line", "source", "assembly")


def key(image: Mapping[str, Any]) -> str:
    """Key of an image, given as the JSON of all its fields. What no launch depends on takes no part."""
    named = {k: v for k, v in image.items() if k not in _NOT_LAUNCHED}
    return hashlib.sha256(json.dumps(named, sort_keys=True, allow_nan=False).encode()).hexdigest()


def check(found: str, image: KernelImage, cubin: bytes, text: str, assembly: str, target: Target) -> None:
    """Compares an image with its files and the target; `text` is its TTIR, `assembly` its PTX.

    Raises ValueError with one sentence.
    """
    facts = cuda_abi.read_facts(cubin, image.name)
    threads = image.num_warps * target.warp_size
    kinds = [p.type for p in image.params]
    ranks = [abi_sizes.rank_of(k) for k in kinds if k.startswith("tensordesc")]
    maps = [len(m.block_size) for m in image.tensor_descriptors]
    problems = {
        "its key does not match": found != key(image.model_dump(mode="json")),
        "it has a block of its own": image.block is not None or image.cluster is not None,
        f"{image.num_warps} warps are too many": threads > target.threads_per_block,
        f"it is built for {facts.max_threads} threads": facts.max_threads not in (None, threads),
        f"{image.shared} bytes of shared memory are too many": image.shared > target.shared_per_block,
        "the cubin is not an ELF file": not elf.sections(cubin),
        "its PTX does not define it": not ptx.defines(assembly, image.name),
        "global_bytes differs from its cubin": elf.global_bytes(cubin) != image.global_bytes,
        "the size of a parameter does not fit its type": [p.size for p in image.params]
        != [abi_sizes.param_size(k) for k in kinds],
        f"descriptors of rank {ranks} and layouts of rank {maps}": maps not in ([], ranks),
        "it takes im2col descriptors": any(m.is_im2col for m in image.tensor_descriptors),
        "accesses differ from its TTIR": [p.access for p in image.params]
        != abi_sizes.param_accesses(kinds, ttir.accesses(text)),
    }
    for problem, present in problems.items():
        if present:
            raise ValueError(problem)
    sizes = list(facts.sizes)
    if sizes not in [abi_sizes.block_sizes(kinds, bool(maps), flags) for flags in (1, 2)]:
        raise ValueError(f"the cubin takes parameters of {sizes} bytes, its types need others")
