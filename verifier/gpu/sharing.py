"""Signs that others use the GPU, from what every process may ask: its free memory, and its clock as a kernel reads it.

A time that was measured beside other work is off. A verdict says so; nothing is thrown out for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from verifier.verdict import Diagnostic

OWN_BYTES = 5 << 30
"""What the contexts of a judge, its runner and a spare take at most beside the memory that the judge knows of."""
CLOCK_SHARE = 0.55
"""Of the device's highest clock: a spinning kernel that shares the device counts as if it were slower."""


def signs(other_bytes: int, clocks_hz: Sequence[float], highest_hz: float | None) -> list[Diagnostic]:
    """Warnings. `other_bytes`: memory in use that the judge did not take; `clocks_hz`: readings of timed blocks."""
    found = []
    if other_bytes > OWN_BYTES:
        found.append(f"other processes hold {(other_bytes - OWN_BYTES) / 1e9:.1f} GB or more of this GPU's memory")
    if clocks_hz and highest_hz and (seen := median(clocks_hz)) < CLOCK_SHARE * highest_hz:
        found.append(
            f"this GPU's clock reads {seen / 1e9:.2f} GHz of {highest_hz / 1e9:.2f}: others compute on it, or it is "
            "held down"
        )
    return [Diagnostic(severity="warning", code="gpu-in-use", message=f"{said}; times may be off") for said in found]


def runs_on(target: str, architecture: str) -> bool:
    """Whether a device of an architecture (`sm_90`) can run what is compiled for `target` (`sm_90a`, `sm_80`)."""
    (wanted, exact), (has, _) = (_parts(name) for name in (target, architecture))
    return wanted == has if exact else wanted[0] == has[0] and wanted <= has


def _parts(name: str) -> tuple[tuple[int, int], bool]:
    digits = name.removeprefix("sm_").rstrip("af")
    return (int(digits[:-1]), int(digits[-1])), name.endswith("a")
