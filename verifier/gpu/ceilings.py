"""What this GPU reaches at best: measured once per device, cached by its UUID and driver.

    copy    bytes read and written per second by a device-to-device copy of 2 GiB
    bf16, fp16, tf32, fp32, fp8   FLOP per second of an 8192 x 8192 x 8192 product on random data (zeros run faster)

Each is the best of five blocks of CUDA events. Power limits make the products 1-3% uncertain.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from verifier.verdict import Ceilings

SIDE = 8192
COPY_BYTES = 2 << 30
_BLOCKS, _CALLS = 5, 4


def ceilings(device: torch.device, cache: Path | None = None) -> Ceilings:
    """Measured or read from `cache` (a folder; the user's cache folder unless given), about 1.4 s and 4.5 GB of memory.

    A cache that cannot be written is none. Raises OutOfMemoryError and what a lost context raises.
    """
    properties = torch.cuda.get_device_properties(device)
    uuid, driver = str(properties.uuid), _driver_version()
    path = (cache or _cache_folder()) / f"ceilings-{uuid}.json"
    if (found := _read(path)) is not None and (found.uuid, found.driver) == (uuid, driver):
        return found
    made = Ceilings(
        device=properties.name, uuid=uuid, driver=driver, copy_rate=_copy_rate(device), flops=_products(device)
    )
    _write(path, made)
    return made


def _copy_rate(device: torch.device) -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / best_seconds(lambda: target.copy_(source))


def _products(device: torch.device) -> dict[str, float]:
    """The flags of fp32 products are put back afterwards."""
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    halves = (("bf16", torch.bfloat16), ("fp16", torch.float16))
    made = {name: _rate(a.to(kind), b.to(kind)) for name, kind in halves}
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for name, allowed in (("tf32", True), ("fp32", False)):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            made[name] = _rate(a, b)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    if torch.cuda.get_device_capability(device) >= (9, 0):
        made["fp8"] = _fp8_rate(a, b)
    return made


def _rate(a: Tensor, b: Tensor) -> float:
    out = torch.empty_like(a)
    return 2 * SIDE**3 / best_seconds(lambda: torch.mm(a, b, out=out))


def _fp8_rate(a: Tensor, b: Tensor) -> float:
    one = torch.ones((), device=a.device)
    left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
    seconds = best_seconds(lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16))
    return 2 * SIDE**3 / seconds


def best_seconds(call: Callable[[], object], blocks: int = _BLOCKS, calls: int = _CALLS) -> float:
    """Least seconds of one call over blocks of `calls` calls, by CUDA events, after one block of warm-up."""
    best = float("inf")
    for block in range(blocks + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        if block:
            best = min(best, start.elapsed_time(end) / 1e3 / calls)
    return best


def _driver_version() -> str:
    from verifier.gpu.cuda import check, driver

    return str(check("driver version", driver().cuDriverGetVersion()))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "warpsmith"


def _read(path: Path) -> Ceilings | None:
    try:
        return Ceilings.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None


def _write(path: Path, made: Ceilings) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(made.model_dump(mode="json"), file)
        os.replace(file.name, path)
