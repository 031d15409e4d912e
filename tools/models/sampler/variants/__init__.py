"""The algorithms, one file each. A variant is a function from a build to the program that it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tools.models.sampler.build import Build, Program
from tools.models.sampler.variants import flash, split_kv, three_kernel, two_pass, whole_row

WRITERS: Mapping[str, Callable[[Build], Program]] = {
    "flash": flash.write,
    "two_pass": two_pass.write,
    "split_kv": split_kv.write,
    "whole_row": whole_row.write,
    "three_kernel": three_kernel.write,
}
