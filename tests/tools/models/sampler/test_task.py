from __future__ import annotations

from typing import Any

import pytest

from tools.models.sampler.task import read_task


def test_each_family_of_the_suite_is_recognised(kit: Any, family: str) -> None:
    assert kit.task(family).family == family


def test_parameters_come_from_the_constructor(kit: Any) -> None:
    task = kit.task("neighbourhood")
    assert task.init_names == ("height", "width", "window", "dilation")
    assert [p.value for p in task.parameters] == ["self.height", "self.width", "self.window", "self.dilation"]
    assert [(p.name, p.value) for p in kit.task("softcap").parameters] == [("cap", "self.cap")]


def test_sizes_and_types_are_read(kit: Any) -> None:
    assert kit.task("causal").half
    single = kit.source("causal").replace('"float16"', '"float32"')
    found = read_task(single)
    assert found is not None
    assert not found.half


@pytest.mark.parametrize(
    "source",
    [
        "",
        "class Model(",
        "x = 1",
        "class Model:\n    pass",
        "class Model:\n    def forward(self, x):\n        return x.softmax(-1)",
        "class Model:\n    def forward(self, a, b, c):\n        return a @ b + c",
        "(" * 5000,
        "\0",
    ],
)
def test_anything_else_is_no_task(source: str) -> None:
    assert read_task(source) is None


def test_a_soft_cap_that_the_constructor_does_not_give_is_no_task(kit: Any) -> None:
    source = kit.source("softcap").replace("def __init__(self, cap: float)", "def __init__(self)")
    assert read_task(source) is None
