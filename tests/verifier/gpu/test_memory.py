"""Tensors over memory that is not torch's."""

from __future__ import annotations

import sys

import torch

from verifier.gpu.memory import foreign


def test_foreign_memory_is_read_and_written_in_place() -> None:
    whole = torch.arange(32, dtype=torch.uint8)
    part = foreign(whole.data_ptr() + 8, 4, whole.device)
    assert (part.tolist(), part.untyped_storage().nbytes()) == ([8, 9, 10, 11], 4)
    part.fill_(7)
    assert whole[7:13].tolist() == [7, 7, 7, 7, 7, 12]


def test_foreign_memory_leaves_nothing_behind() -> None:
    whole = torch.zeros(32, dtype=torch.uint8)
    foreign(whole.data_ptr(), 4, whole.device)
    before = sys.getallocatedblocks()
    for _ in range(1000):
        foreign(whole.data_ptr(), 4, whole.device)
    assert sys.getallocatedblocks() - before < 100
