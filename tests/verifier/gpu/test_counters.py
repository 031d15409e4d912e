"""The profiler's table, what it means, and a profiler that is missing, refused, late or old. Its binary is a script."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifier.gpu.counters import METRICS, Counted, CounterError, count, diagnose, options, parse, unknown_metrics
from verifier.gpu.replay_folder import find_tool

KEYS = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
        "Device", "CC"]  # fmt: skip
ROOF = {
    "nanoseconds": "195,200", "dram_bytes": "806,912,000", "dram_percent": "91.02", "sm_percent": "12.5",
    "tensor_percent": "0", "warps_percent": "88.1", "l1_hit_percent": "0", "l2_hit_percent": "33.4", "registers": "32",
    "blocks_by_registers": "16", "blocks_by_shared": "32", "stall_long_scoreboard": "40.25",
    "stall_short_scoreboard": "0.01", "stall_barrier": "0", "stall_wait": "2.5",
}  # fmt: skip
UNITS = {"nanoseconds": "ns", "dram_bytes": "byte", "registers": "register/thread"}


def line(cells: list[str]) -> str:
    return ",".join(f'"{c}"' for c in cells)


def log(*rows: dict[str, str], units: dict[str, str] | None = None, names: list[str] | None = None) -> str:
    """As `ncu --csv --page raw --print-units base --log-file` writes it."""
    units = UNITS if units is None else units
    kernels = names or ["kernel"] * len(rows)
    body = [
        line([str(i), "7", "python3", "127.0.0.1", name, "1", "7", "(128, 1, 1)", "(32768, 1, 1)", "0", "9.0",
              *(row.get(k, "") for k in METRICS)])
        for i, (row, name) in enumerate(zip(rows, kernels, strict=True))
    ]  # fmt: skip
    head = line([*KEYS, *METRICS.values()])
    second = line([""] * len(KEYS) + [units.get(k, "%") for k in METRICS])
    before = [
        "==PROF== Connected to process 7 (/usr/bin/python3)",
        '==PROF== Profiling "kernel": 0%....100% - 8 passes',
    ]
    return "\n".join([*before, head, second, *body, "==PROF== Disconnected from process 7"]) + "\n"


def causes(*rows: dict[str, str], least: int = 805_306_368) -> list[str]:
    return [d.code for d in diagnose(Counted(launches=parse(log(*rows))), {"kernel": least}, {"kernel": 9})]


def test_a_table_is_read() -> None:
    (found,) = parse(log(ROOF))
    assert found.kernel == "kernel"
    assert found.values["dram_bytes"] == 806_912_000
    assert found.values["stall_long_scoreboard"] == 40.25
    assert set(found.values) == set(METRICS)


def test_what_could_not_be_read_is_left_out() -> None:
    (found,) = parse(log({**ROOF, "l2_hit_percent": "n/a", "stall_wait": ""}))
    assert set(METRICS) - set(found.values) == {"l2_hit_percent", "stall_wait"}


BROKEN = {
    "no table": ("==PROF== Connected\n", "no table: ==PROF== Connected"),
    "an error": ("==ERROR== The application returned an error code (1).\n", "no table: The application returned"),
    "empty": ("", "it said nothing"),
    "another length": (log(ROOF).replace('"88.1",', ""), "another length"),
    "text for a number": (log({**ROOF, "dram_percent": "1.2.3"}), "gave '1.2.3' for dram__throughput"),
    "code for a number": (log({**ROOF, "registers": "__import__('os')"}), "for launch__registers_per_thread"),
    "another unit": (log(ROOF, units={**UNITS, "dram_bytes": "Gbyte"}), "in 'Gbyte'"),
    "no unit": (log(ROOF, units={}), "in '%'"),
    "too large": (log({**ROOF, "registers": "1e999"}), "gave '1e999'"),
    "a column twice": (log(ROOF).replace('"Host Name"', '"ID"'), "a column twice"),
    "no names": (log(ROOF).replace('"Kernel Name"', '"Kernel"'), "no kernel names"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_one_sentence(name: str) -> None:
    text, said = BROKEN[name]
    with pytest.raises(CounterError, match=re.escape(said)):
        parse(text)


def test_a_table_without_launches_is_empty() -> None:
    assert parse(log()) == ()


SLOW = {**ROOF, "dram_percent": "10", "sm_percent": "30"}
MEANT = {
    "memory-bound": ROOF,
    "re-reading": {**ROOF, "dram_bytes": "2,420,000,000"},
    "compute-bound": {**SLOW, "sm_percent": "93"},
    "low-occupancy-registers": {**SLOW, "warps_percent": "18", "blocks_by_registers": "3"},
    "low-occupancy-shared": {**SLOW, "warps_percent": "18", "blocks_by_shared": "2"},
    "stall-long-scoreboard": SLOW,
    "stall-barrier": {**SLOW, "stall_barrier": "80"},
    "counted": {"nanoseconds": "5"},
}


@pytest.mark.parametrize("cause", MEANT)
def test_counters_name_a_cause(cause: str) -> None:
    assert causes(MEANT[cause]) == [cause]


def test_one_diagnosis_a_kernel_the_slowest_first() -> None:
    text = log(ROOF, {**ROOF, "nanoseconds": "9"}, SLOW | {"nanoseconds": "999,999"}, names=["a", "a", "b"])
    first, second = diagnose(Counted(launches=parse(text)), {"a": 805_306_368}, {"b": 3})
    assert (first.line, second.line) == (3, None)
    assert "kernel `b`" in first.message
    assert "Counted: 195200 ns, 8.07e+08 bytes of DRAM, DRAM 91%" in second.message


Tool = Callable[[str, str], None]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Puts a script with the name of a tool on PATH; `$2` is its log."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_HOME", raising=False)

    def make(name: str, body: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return make


@pytest.fixture
def plan(planted: Any) -> Any:
    return planted[0]


def test_a_missing_profiler_is_an_excuse(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if find_tool("ncu") is None:
        assert count(tmp_path, plan) == Counted(excuse="ncu is not installed here")


def test_a_table_comes_through(plan: Any, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "table").write_text(log(ROOF))
    tool("ncu", f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/table > "$2"')
    assert count(tmp_path, plan).launches == parse(log(ROOF))
    asked = (tmp_path / "asked").read_text()
    assert "--clock-control none --profile-from-start off" in asked
    assert "--kernel-name regex:^(kernel)$" in asked
    assert asked.rstrip().endswith(f"-m verifier.gpu.replay_once {tmp_path}")


REFUSALS = {
    'echo "==ERROR== ERR_NVGPUCTRPERM - The user has no permission" > "$2"; exit 1': "may not read counters here",
    "sleep 30": "ncu did not finish within 0.5 s",
    "echo broken >&2; exit 3": "ncu said nothing; it ended with 3: broken",
    'echo "==ERROR== The application returned an error code (11)." > "$2"; exit 11': "error code (11)",
}


@pytest.mark.parametrize("body", REFUSALS)
def test_a_profiler_that_gives_nothing_is_an_excuse(body: str, plan: Any, tmp_path: Path, tool: Tool) -> None:
    tool("ncu", body)
    found = count(tmp_path, plan, seconds=0.5 if "sleep" in body else 20.0)
    assert found.launches == ()
    assert REFUSALS[body] in found.excuse
    assert "\n" not in found.excuse


def test_metrics_that_the_profiler_does_not_know_are_left_out(plan: Any, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "table").write_text(log(ROOF))
    said = "==ERROR== Failed to find metric regex:^dram__bytes(\\.sum)?$"
    tool("ncu", f'case "$@" in *dram__bytes.sum*) echo \'{said}\' > "$2"; exit 1;; esac; cat {tmp_path}/table > "$2"')
    assert count(tmp_path, plan).launches == parse(log(ROOF))
    assert unknown_metrics(said) == {"dram__bytes.sum"}
    assert unknown_metrics(log(ROOF)) == set()


def test_the_names_are_real_ones(plan: Any) -> None:
    """Each is `unit__counter.rollup[.sub]`, or a fact of the launch; at most 16 are asked for."""
    shape = re.compile(
        r"(dram|gpu|sm|smsp|l1tex|lts)__[a-z0-9_]+(\.(sum|avg))?(\.(pct|ratio|pct_of_peak_sustained_\w+))?"
    )
    for name in METRICS.values():
        assert name.startswith("launch__") or shape.fullmatch(name), name
    assert len(set(METRICS.values())) == len(METRICS) <= 16
    assert options(plan, METRICS)[-1].count(",") == len(METRICS) - 1
