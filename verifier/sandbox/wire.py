"""Bytes between the client, the warm process and a job: framed JSON and blobs, never pickle.

A message is `MAGIC`, the header's length (4 bytes, little-endian), the header (JSON) and the blobs back to
back; the header's `blobs` names them with their sizes. Parsing trusts nothing and raises `FrameError`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

MAGIC = b"wsj1"
MAX_HEADER = 64 << 20
_PREFIX = struct.Struct("<4sI")


class FrameError(ValueError):
    """Bytes that are not one whole message."""


def pack(header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Iterator[bytes]:
    """The message in pieces; TypeError or ValueError when `header` is no JSON or a blob is no bytes."""
    for name, blob in blobs.items():
        if not isinstance(name, str) or not isinstance(blob, bytes):
            raise TypeError(f"a blob maps a name to bytes, not {type(name).__name__} to {type(blob).__name__}")
    sizes = [[name, len(blob)] for name, blob in blobs.items()]
    encoded = json.dumps({**header, "blobs": sizes}).encode()
    if len(encoded) > MAX_HEADER:
        raise ValueError(f"{len(encoded)} bytes of JSON, {MAX_HEADER} allowed: send large data as blobs")
    yield _PREFIX.pack(MAGIC, len(encoded)) + encoded
    yield from blobs.values()


def unpack(data: bytes | bytearray) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header and blobs of one whole message; raises FrameError for anything else."""
    if len(data) < _PREFIX.size:
        raise FrameError(f"{len(data)} bytes are too few for a message")
    magic, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameError("it does not start as a message does")
    if length > min(MAX_HEADER, len(data) - _PREFIX.size):
        raise FrameError("the header is cut off or too long")
    start = _PREFIX.size + length
    found = header(bytes(data[_PREFIX.size : start]))
    return found, _blobs(found.pop("blobs", None), data, start)


def header(encoded: bytes) -> dict[str, Any]:
    """The header from its JSON, with the list of blobs still in it. Raises FrameError."""
    try:
        found = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the header is no JSON: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise FrameError("the header is no JSON object")
    return found


def blob_bytes(header: Mapping[str, Any]) -> int:
    """Bytes that follow a header. Raises FrameError."""
    return sum(size for _, size in _sizes(header.get("blobs")))


def _sizes(listed: object) -> Iterator[tuple[str, int]]:
    if not isinstance(listed, list):
        raise FrameError("the header does not list blobs")
    names: set[str] = set()
    for entry in listed:
        name, size = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(name, str) or type(size) is not int or size < 0 or name in names:
            raise FrameError("the list of blobs is malformed")
        names.add(name)
        yield name, size


def _blobs(listed: object, data: bytes | bytearray, start: int) -> dict[str, bytes]:
    blobs: dict[str, bytes] = {}
    for name, size in _sizes(listed):
        if size > len(data) - start:
            raise FrameError("a blob is cut off")
        blobs[name] = bytes(data[start : start + size])
        start += size
    if start != len(data):
        raise FrameError(f"{len(data) - start} bytes follow the message")
    return blobs
