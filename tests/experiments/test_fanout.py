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
