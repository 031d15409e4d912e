"""Two lists of what `forward` did: equal ones agree, each kind of difference is named, malformed ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import triton

from verifier.plan.agreement import difference, read_calls
from verifier.plan.calllog import CallLog, fingerprint


def launch(
    name: str = "k", code: str = "c", grid: tuple[int, ...] = (4, 1, 1), free: tuple[str, ...] = (), **scalars: str
) -> dict[str, Any]:
    return {"launch": name, "code": code, "ways": [{"grid": list(grid), "scalars": scalars}], "free": list(free)}


def said(plan: list[Any], test: list[Any]) -> str | None:
    return difference(read_calls([plan]), read_calls([test]))


def test_equal_lists_agree() -> None:
    events = [{"op": "empty_like"}, launch(n="7")]
    assert said(events, list(events)) is None


@pytest.mark.parametrize(
    ("plan", "test", "word"),
    [
        ([launch("a")], [launch("b")], "launches `a`"),
        ([launch(code="x")], [launch(code="y")], "another text"),
        ([launch(grid=(1, 1, 1))], [launch(grid=(4, 1, 1))], "grid (1, 1, 1)"),
        ([launch(n="0")], [launch(n="9")], "n=0"),
        ([launch()], [launch(), {"op": "gelu"}], "`torch.gelu` when it is tested"),
        ([{"op": "add"}, launch()], [launch()], "`torch.add` when it is traced"),
    ],
)
def test_differences_are_named(plan: list[Any], test: list[Any], word: str) -> None:
    assert word in str(said(plan, test))


def test_one_of_an_autotuners_configurations_is_enough() -> None:
    plan = launch(B="64")
    plan["ways"] += launch(B="128", grid=(2, 1, 1))["ways"]
    assert said([plan], [launch(B="128", grid=(2, 1, 1))]) is None
    assert said([plan], [launch(B="256")]) is not None


def test_a_dropped_configuration_frees_its_settings_only() -> None:
    plan = launch(B="64", n="9", free=("B",))
    assert said([plan], [launch(B="256", n="9", grid=(1, 1, 1))]) is None
    assert said([plan], [launch(B="256", n="0", grid=(1, 1, 1))]) is not None


@pytest.mark.parametrize("value", [None, [[{"op": 1}]], [[{"op": "x", "more": 1}]], [[launch()] * 5000], [[], [], []]])
def test_malformed_lists_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_calls(value)


def test_fingerprints_follow_globals_and_helpers() -> None:
    def kernel_of(scale: float, body: str) -> Any:
        space: dict[str, Any] = {"S": scale}
        exec(f"def helper(v):\n    return {body}\ndef kernel(x):\n    return helper(x) * S\n", space)
        return space["kernel"]

    one = fingerprint(kernel_of(1.0, "v + 1"))
    assert fingerprint(kernel_of(1.0, "v + 1")) == one
    assert fingerprint(kernel_of(2.0, "v + 1")) != one
    assert fingerprint(kernel_of(1.0, "v - 1")) != one


def test_the_text_of_a_kernel_counts_as_that_of_its_function_does_until_it_is_changed() -> None:
    kernel = _nested(3)
    one = fingerprint(kernel)
    assert fingerprint(kernel.fn) == one != fingerprint(_nested(4))
    kernel.fn.__code__ = _nested(4).fn.__code__
    assert fingerprint(kernel) == one
    kernel._unsafe_update_src(kernel.src.replace("+ half", "- half"))
    assert fingerprint(kernel.fn) == one != fingerprint(kernel)


def _nested(half: int) -> Any:
    if half:

        @triton.jit
        def kernel(
            x,
            n=(lambda: 2)(),  # noqa: B008
        ):
            """Two lines,

            indented."""
            for i in range(n):
                if x > i:
                    pass
            return (
                x + half,
                """
                text""",
            )

    return kernel


def test_a_log_keeps_two_calls_and_leaves_out_what_is_paused() -> None:
    import torch

    log = CallLog()
    for _ in range(3):
        with log.call():
            x = torch.zeros(2)
            x.numel()
            with log.pause():
                x + 1
            x * 2
    assert log.calls == [[{"op": "zeros"}, {"op": "mul"}]] * 2
