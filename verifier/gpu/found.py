"""Which GPUs this process may use. Loads no CUDA: a context in the wrong process would cost memory and time."""

from __future__ import annotations

import os
from pathlib import Path

from verifier.errors import UsageError

DEVICES = Path("/dev")


def visible_gpus(devices: Path = DEVICES) -> tuple[str, ...]:
    """Values for CUDA_VISIBLE_DEVICES, one for each NVIDIA GPU: indexes, or what that variable already lists."""
    present = sorted(int(p.name[6:]) for p in devices.glob("nvidia[0-9]*") if p.name[6:].isdigit())
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not present or listed is None:
        return tuple(str(i) for i in range(len(present)))
    names = []
    for name in listed.split(","):
        if not name.strip() or name.strip() == "-1":
            break  # the driver ignores what follows
        names.append(name.strip())
    return tuple(names)


def chosen_gpus(wanted: str) -> tuple[str, ...]:
    """Devices for `auto` (all that are visible), `none`, or a list such as `0,1`. Raises UsageError."""
    visible = visible_gpus()
    if wanted in ("auto", "none"):
        return visible if wanted == "auto" else ()
    names = tuple(name.strip() for name in wanted.split(","))
    unknown = [name for name in names if name not in visible]
    if unknown:
        raise UsageError(f"there is no GPU {unknown[0]!r} here; visible are: {', '.join(visible) or 'none'}")
    return names
