"""Machine code is the same where only its table of source lines is another one."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import triton

from tests.verifier.plan.conftest import Traced
from verifier.plan import elf


@pytest.fixture(scope="module")
def cubin(trace: Callable[..., Traced]) -> bytes:
    traced = trace("class ModelNew(nn.Module):\n    def forward(self, x): return relu(x)\n")
    return next(data for name, data in traced.blobs.items() if name.endswith(".cubin"))


def changed(cubin: bytes, section: str) -> bytes:
    """With another last byte in a section."""
    row = next(row for name, row in elf._rows(cubin) if name.startswith(section))
    end = row[4] + row[5] - 1
    return cubin[:end] + bytes([cubin[end] ^ 1]) + cubin[end + 1 :]


@pytest.mark.parametrize(("section", "same"), [(".debug_line", True), (".text.", False), (".nv.info", False),
                                               (".symtab", False), (".nv.constant0", False)])  # fmt: skip
def test_only_the_table_of_lines_may_differ(cubin: bytes, section: str, same: bool) -> None:
    other = changed(cubin, section)
    assert elf.same_code(cubin, cubin)
    assert elf.same_code(cubin, other) is elf.same_code(other, cubin) is same


def test_a_segment_of_other_bytes_is_other_code(cubin: bytes) -> None:
    table = struct.unpack_from("<Q", cubin, 32)[0]
    code = next(at for at in range(table, table + 10 * 56, 56) if struct.unpack_from("<II", cubin, at) == (1, 5))
    offset = struct.unpack_from("<Q", cubin, code + 8)[0]
    moved = cubin[: code + 8] + struct.pack("<Q", offset + 128) + cubin[code + 16 :]
    assert not elf.same_code(cubin, moved)


def test_what_is_no_cubin_is_the_same_as_nothing_else(cubin: bytes) -> None:
    assert not elf.same_code(cubin, b"")
    assert not elf.same_code(b"a", b"b")
    assert not elf.same_code(cubin, cubin[:-64])


@pytest.mark.parametrize("name", ["a.py", "four.py", "sixteen.py"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_lines_of_a_file_that_is_gone_are_those_of_the_file(target: str, name: str, tmp_path: Path) -> None:
    """The assembler of some Tritons writes the file's time and size where it finds the file."""
    code = f".target {target}\n.address_size 64\n.visible .entry k() {{\n.loc 1 1 0\nret;\n}}\n"
    (tmp_path / "k.ptx").write_text(f'.version 8.0\n{code}.file 1 "{name}"\n')
    made = []
    for there in (True, False):
        (tmp_path / name).write_text("pass") if there else (tmp_path / name).unlink()
        tool = str(triton.knobs.nvidia.ptxas.path)
        subprocess.run([tool, "-lineinfo", f"--gpu-name={target}", "k.ptx", "-o", "k.o"], cwd=tmp_path, check=True)
        made.append((tmp_path / "k.o").read_bytes())
    assert elf.same_code(*made)
