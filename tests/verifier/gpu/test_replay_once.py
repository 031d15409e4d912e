"""A plan folder, replayed on the host as the tools' child does it on a device."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from verifier.gpu.host_device import HostLauncher, tensor_at
from verifier.gpu.replay_folder import Replay, pack_folder, unpack_folder, write_folder
from verifier.gpu.replay_once import replay
from verifier.loader import parse_problem

PROBLEM = (Path(__file__).parent / "planted" / "at_roof_problem.py").read_text()


@pytest.fixture
def folder(planted: Any, tmp_path: Path) -> Path:
    _, plan_json, blobs = planted
    problem = parse_problem(PROBLEM, file="at_roof.py", name="at_roof")
    return write_folder(tmp_path, plan_json, blobs, Replay(problem=problem, workload="small", seed=3))


def test_a_folder_is_replayed_and_only_the_last_run_is_profiled(folder: Path) -> None:
    profiled, calls = [False], []

    @contextmanager
    def window() -> Any:
        profiled[0] = True
        yield
        profiled[0] = False

    def kernel(launch: Any, addresses: Any) -> None:
        calls.append(profiled[0])
        x, y, out = (tensor_at(a, 3000, torch.float32) for a in addresses[:3])
        torch.add(y, x, alpha=2.0, out=out)

    (output,) = replay(folder, torch.device("cpu"), HostLauncher({"kernel": kernel}), window)
    assert calls == [False, True]
    assert output.shape == (3000,)
    assert float(output.std()) == pytest.approx(5**0.5, rel=0.1)


def test_a_packed_folder_is_the_same_folder_and_equal_ones_are_equal_bytes(
    planted: Any, folder: Path, tmp_path: Path
) -> None:
    _, plan_json, blobs = planted
    asked = Replay.model_validate_json((folder / "request.json").read_text())
    packed = pack_folder(plan_json, blobs, asked)
    assert pack_folder(plan_json, dict(reversed(blobs.items())), asked) == packed
    written = unpack_folder(packed, tmp_path / "again")
    for path in (p.relative_to(written) for p in written.rglob("*") if p.is_file()):
        assert (written / path).read_bytes() == (folder / path).read_bytes()
    with pytest.raises(ValueError, match="no packed plan"):
        unpack_folder(packed[:-30], tmp_path / "torn")


def test_without_a_device_it_ends_with_one_sentence(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    ended = subprocess.run(
        [sys.executable, "-m", "verifier.gpu.replay_once", str(folder)], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr == "there is no NVIDIA GPU here\n"


def test_blobs_stay_in_their_folder(tmp_path: Path) -> None:
    problem = parse_problem(PROBLEM, file="at_roof.py", name="at_roof")
    with pytest.raises(ValueError, match="a blob is named"):
        write_folder(tmp_path, {}, {"../x": b""}, Replay(problem=problem, workload="small", seed=3))
