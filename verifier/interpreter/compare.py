"""The trusted job that compares a candidate's outputs with the reference's.

Sees a candidate's outputs only as checked bytes, in a fork that never loaded its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifier import numerics
from verifier.interpreter.blobs import unpack, unpack_chosen
from verifier.near import same_bytes
from verifier.problem import Precision
from verifier.specs import SpecError, leaves

Answer = tuple[dict[str, Any], dict[str, bytes]]
OWN = "PyTorch's own result"
Look = Callable[[int, Tensor], numerics.Comparison | None]
"""That tensor `number` of a result is right, None where that cannot be said. Shape and dtype are."""


def compare_job(payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path) -> Answer:
    """Checks of a candidate's outputs.

    payload: {"workload": name, "precision", "draws": [draw of reference_job with "prefix" and the candidate's
    "output": spec], "probe": such a draw or null, "sampled": bool}; blobs of both jobs, the candidate's under
    `d0/out/` and, if only a sample of the programs ran, `d0/mask/`: then the stored elements are compared, and an
    output without any is no check but a sentence in "unseen". Value: {"checks": [OutputCheck], "precision": class
    or null, "unseen": [str]}.
    """
    torch.set_num_threads(1)
    precision = Precision(payload["precision"])
    checks: list[dict[str, Any]] = []
    unseen: dict[str, None] = {}
    for entry in payload["draws"]:
        found = _compare_draw(entry, blobs, payload["sampled"], precision, payload["workload"], unseen)
        checks += found
    return {"checks": checks, "precision": _classify(payload.get("probe"), blobs), "unseen": list(unseen)}, {}


def _compare_draw(
    draw: Mapping[str, Any], blobs: Mapping[str, bytes], sampled: bool, precision: Precision, workload: str,
    unseen: dict[str, None],
) -> list[dict[str, Any]]:  # fmt: skip
    prefix = draw["prefix"]
    native, expected = (unpack(draw[k], blobs, f"{prefix}/{k}") for k in ("native", "expected"))
    rounded = draw.get("yardstick")
    yardstick = native if rounded is None else unpack(rounded, blobs, f"{prefix}/yardstick")
    given = list(leaves(unpack(draw["inputs"], blobs, f"{prefix}/in")))
    try:
        output, masks = _output(draw["output"], blobs, prefix, sampled)
    except SpecError as error:
        malformed = numerics.Comparison(False, f"the answer is malformed: {error}")
        return [_check(workload, draw["name"], 0, malformed)]
    return compare_values(
        output, native, expected, yardstick, precision, given=given, workload=workload, draw=draw["name"],
        second=lambda: unpack(draw["cut"], blobs, f"{prefix}/cut") if draw.get("cut") else None,
        margin=draw["cut_margin"], masks=masks, unseen=unseen,
    )  # fmt: skip


def compare_values(
    output: Any, native: Any, expected: Any, yardstick: Any, precision: Precision, *,
    given: list[Tensor], workload: str, draw: str, second: Callable[[], Any], margin: float,
    masks: list[Tensor] | None = None, unseen: dict[str, None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One OutputCheck for each leaf of `output`, a nested value of tensors that is not trusted. The others are those of
    the reference, of one structure; `given`: the input tensors; `second`: makes another yardstick, by which alone all
    may pass, and `margin` what its error is multiplied by. `masks` and `unseen` as in `compare_job`.
    """

    def by(ruler: Any, times: float) -> list[dict[str, Any]]:
        left = list(masks or ())
        return _checks(output, native, expected, ruler, times, precision, given, workload, draw, left, unseen)

    checks = by(yardstick, numerics.MARGIN)
    if all(c["passed"] for c in checks) or (other := second()) is None:
        return checks
    eased = by(other, margin)
    return eased if all(c["passed"] for c in eased) else checks


def _checks(
    output: Any, native: Any, expected: Any, yardstick: Any, margin: float, precision: Precision, given: list[Tensor],
    workload: str, draw: str, masks: list[Tensor], unseen: dict[str, None] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    if reason := _structure(output, native):
        return [_check(workload, draw, 0, numerics.Comparison(False, reason))]
    rows = zip(_flat(output), _flat(native), _flat(expected), _flat(yardstick), strict=True)
    checks = []
    for i, (o, n, e, y) in enumerate(rows):
        if isinstance(n, Tensor):
            stored = masks.pop(0) if masks and isinstance(o, Tensor) else None
            if stored is not None and stored.numel() and not bool(stored.any()):
                if unseen is not None:
                    unseen[f"the sampled programs stored nothing of output {i}"] = None
                continue
            result = numerics.compare(o, e, n, precision, yardstick=y, inputs=given, stored=stored, margin=margin)
        else:
            result = numerics.Comparison(o in (n, e), "" if o in (n, e) else f"is {o!r}, not {n!r}")
        checks.append(_check(workload, draw, i, result))
    return checks


def quick_values(
    output: Any, native: Any, precision: Precision, look: Look | None = None, *, workload: str, draw: str
) -> list[dict[str, Any]] | None:
    """The checks of an output of which every tensor is PyTorch's own result or right by `look`; None for others."""
    if _structure(output, native):
        return None
    checks, number = [], 0
    for i, (o, n) in enumerate(zip(_flat(output), _flat(native), strict=True)):
        found: numerics.Comparison | None = None
        if not isinstance(n, Tensor):
            found = numerics.Comparison(True) if o == n else None
        elif isinstance(o, Tensor) and (o.shape, o.dtype) == (n.shape, n.dtype):
            if same_bytes(o, n):
                found = numerics.Comparison(True, OWN, 0.0, 0.0, 0.0, numerics.FLOORS[precision], True)
            elif look is not None:
                found = look(number, o)
        if found is None:
            return None
        number += isinstance(n, Tensor)
        checks.append(_check(workload, draw, i, found))
    return checks


def _output(spec: object, blobs: Mapping[str, bytes], prefix: str, sampled: bool) -> tuple[Any, list[Tensor]]:
    """A candidate's output and, if only a sample of the programs ran, which elements of each tensor count."""
    return unpack_chosen(spec, blobs, prefix) if sampled else (unpack(spec, blobs, f"{prefix}/out"), [])


def _check(workload: str, draw: str, index: int, found: numerics.Comparison) -> dict[str, Any]:
    return {
        "workload": workload,
        "draw": draw,
        "output": index,
        "error": _number(found.error),
        "row_error": _number(found.row_error),
        "yardstick": found.yardstick,
        "limit": found.limit,
        "passed": found.passed,
        "reason": found.reason,
        "allclose": found.allclose,
    }


def _number(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is None else min(value, 1e300)


def _structure(output: Any, native: Any) -> str:
    """How the nesting of lists, tuples and dicts differs, in words; a list may stand for a tuple."""
    if isinstance(native, list | tuple):
        if not isinstance(output, list | tuple):
            return f"returns a {type(output).__name__}, not {len(native)} values"
        if len(output) != len(native):
            return f"returns {len(output)} values, not {len(native)}"
        return next(filter(None, (_structure(o, n) for o, n in zip(output, native, strict=True))), "")
    if isinstance(native, dict):
        if not isinstance(output, dict) or list(output) != list(native):
            return f"returns a {type(output).__name__}, not a dict with the keys {list(native)}"
        return next(filter(None, (_structure(output[k], native[k]) for k in native)), "")
    return f"returns a {type(output).__name__}, not one value" if isinstance(output, list | tuple | dict) else ""


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]


def _classify(probe: Mapping[str, Any] | None, blobs: Mapping[str, bytes]) -> str | None:
    if probe is None or "output" not in probe:
        return None
    exact = unpack(probe["expected"], blobs, "probe/expected")
    try:
        output = unpack(probe["output"], blobs, "probe/out")
    except SpecError:
        return None
    if not isinstance(output, Tensor) or output.shape != exact.shape or not output.dtype.is_floating_point:
        return None
    return numerics.precision_class(output, exact)
