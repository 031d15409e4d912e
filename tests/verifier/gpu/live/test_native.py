"""What was built for a candidate is taken only where it would be built again in the same way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from tests.verifier.gpu.live.conftest import NATIVE, QUICK, Live
from verifier.gpu.native import arch_list, shortened, take
from verifier.sandbox import wire
from verifier.sandbox.access import for_jobs
from verifier.verdict import Status


def test_code_is_built_again_where_anything_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(cpp_extension, "_run_ninja_build", lambda folder, *rest: built.append(folder))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.chdir(tmp_path)
    take(b"".join(wire.pack({"architectures": "9.0a"}, {"one/code.so": b"code", "one/a.cu": b"a", "two/b.cu": b"b"})))
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    build, one, two = cpp_extension._run_ninja_build, str(tmp_path / "one"), str(tmp_path / "two")
    build(one, False, "")
    assert built == []
    build(two, False, "")
    assert built == [two]
    (tmp_path / "one" / "a.cu").write_text("other")
    build(one, False, "")
    assert built == [two, one]


@pytest.mark.parametrize(("architecture", "named"), [("sm_90a", "9.0a"), ("sm_90", "9.0a"), ("sm_80", "8.0"),
                                                     ("sm_100a", "10.0a")])  # fmt: skip
def test_an_architecture_is_named_with_all_that_it_has(architecture: str, named: str) -> None:
    assert arch_list(architecture) == named


def test_of_a_long_text_the_errors_stay() -> None:
    lines = ["Error building extension", *["noise"] * 2000, "a.cu(3): error: identifier", *["noise"] * 2000]
    text = shortened("\n".join(lines))
    assert len(text) <= 2000
    assert "a.cu(3): error" in text


def test_who_builds_sees_no_gpu() -> None:
    assert not for_jobs([], builds=True).nodes
    assert for_jobs([], builds=True).run
    assert "/sys/devices" not in map(str, for_jobs([], builds=True).read)


def test_code_that_fails_to_build_in_a_visit_says_why(live: Live) -> None:
    visit = live(NATIVE.replace("(2 *", "(missing *"), **QUICK)
    assert visit.status is Status.COMPILE_ERROR, visit.reason
    assert "missing" in visit.reason
