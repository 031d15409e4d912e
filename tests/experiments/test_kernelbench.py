"""KernelBench by level and number, on an invented checkout; none of its files is ours to ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.kernelbench import load_kernelbench
from verifier.errors import ProblemError, UsageError

FILE = """\
class Model:
    def forward(self, x):
        return x

def get_inputs():
    return []

def get_init_inputs():
    return []
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for level, names in {1: ("1_A.py", "2_B.py", "19_ReLU.py", "notes.py"), 2: ("3_C.py",)}.items():
        folder = tmp_path / "KernelBench" / f"level{level}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(FILE)
    return tmp_path


@pytest.mark.parametrize("folder", ["", "KernelBench"])
@pytest.mark.parametrize("reference", ["kernelbench:level1/19", "kernelbench:1/19"])
def test_root_and_inner_folder_are_both_accepted(checkout: Path, folder: str, reference: str) -> None:
    problem = load_kernelbench(reference, checkout / folder)
    assert problem.name == "kernelbench:level1/19"
    assert problem.file == str(checkout / "KernelBench" / "level1" / "19_ReLU.py")


@pytest.mark.parametrize(
    ("reference", "message", "step"),
    [
        ("kernelbench:level1/20", "level 1 of KernelBench has no problem 20; it has 1-2, 19", "choose one"),
        ("kernelbench:level7/1", "KernelBench has no level 7; this checkout has 1, 2", "choose one"),
        ("kernelbench:level1", "'kernelbench:level1' does not name", "kernelbench:level1/19"),
        ("kernelbench:level1/1/2", "does not name", "kernelbench:level1/19"),
        ("kernelbench:level-1/2", "does not name", "kernelbench:level1/19"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_next_step(
    checkout: Path, reference: str, message: str, step: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_kernelbench(reference, checkout)
    assert step in caught.value.next_step


@pytest.mark.parametrize(
    ("path", "message"),
    [(None, "needs your checkout"), ("nowhere", "is not a folder"), (".", "has no folders level1")],
)
def test_a_missing_checkout_says_how_to_get_one(tmp_path: Path, path: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_kernelbench("kernelbench:level1/19", None if path is None else tmp_path / path)
    assert "git clone" in caught.value.next_step


def test_a_broken_file_names_itself(checkout: Path) -> None:
    file = checkout / "KernelBench" / "level2" / "3_C.py"
    file.write_text("class Model:\n    pass\n")
    with pytest.raises(ProblemError, match="no method `forward`") as caught:
        load_kernelbench("kernelbench:level2/3", checkout)
    assert (caught.value.file, caught.value.line) == (str(file), 1)
