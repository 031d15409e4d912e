"""The comparison of one GPU with several, on hosts that note what happens to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.fanout import main

made: list[Host] = []


class Host:
    """Of a GPU that does not exist."""

    def __init__(self, device: str) -> None:
        self.device, self.said, self.open = device, list[int](), True
        made.append(self)

    def judge(self, number: int) -> None:
        self.said.append(number)

    def close(self) -> None:
        self.open = False


def test_each_number_of_gpus_has_its_line_and_its_hosts_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs").write_text("".join(f"{json.dumps([n])}\n" for n in range(3)))
    bench = f"{__name__}:Host"
    asked = ["--fleet", "local", "--bench", bench, "--arguments", str(tmp_path / "jobs"), "--candidates", "5"]
    assert main(asked) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("1 GPU: 5 calls in ")
    assert "1.000 x the first" in one
    assert two.startswith("2 GPU: 5 calls in ")
    assert [(host.device, host.open) for host in made] == [("0", False), ("0", False), ("1", False)]
    assert sorted(made[0].said) == [0, 0, 0, 1, 1, 2], "one of them warms"
    assert sum(len(host.said) for host in made[1:]) == 5 + 2


def test_every_gpu_serves_all_that_warms_before_the_clock(tmp_path: Path) -> None:
    made.clear()
    for name, numbers in {"jobs": range(4), "warm": (7, 8)}.items():
        (tmp_path / name).write_text("".join(f"{json.dumps([n])}\n" for n in numbers))
    asked = ["--fleet", "local", "--bench", f"{__name__}:Host", "--candidates", "4", "--gpus", "2"]
    assert main([*asked, "--arguments", str(tmp_path / "jobs"), "--warm", str(tmp_path / "warm")]) == 0
    assert [host.said[:2] for host in made] == [[7, 8], [7, 8]]
    assert sorted(n for host in made for n in host.said[2:]) == [0, 1, 2, 3]
