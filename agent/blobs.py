"""Content-addressed store of a run: prompts, completions, sources, verdicts, plans. The name is the SHA-256
of the bytes.

A blob is written under a temporary name and renamed, so a name that exists has the whole content, unless the
power fails before `sync`. Equal contents are one file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from verifier.errors import StorageError


class BlobStore:
    """Blobs of one folder, `AB/CDEF...` by the first two hex digits. `put` makes the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recent = lru_cache(maxsize=64)(self._read)

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:]

    def put(self, content: str | bytes) -> str:
        """Stores the content and returns its digest. Raises StorageError."""
        data = content.encode() if isinstance(content, str) else content
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            write_atomic(path, data)
        return digest

    def sync(self, digests: Iterable[str]) -> None:
        """Waits until the disk has these blobs. Blocks; raises StorageError."""
        for path in map(self.path, digests):
            try:
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            except OSError as error:
                raise _failed(path, error) from error

    def get(self, digest: str) -> bytes:
        """Raises StorageError when there is no such blob or its content does not match its name."""
        return self._recent(digest)

    def text(self, digest: str) -> str:
        return self.get(digest).decode()

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def _read(self, digest: str) -> bytes:
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise StorageError(f"blob {digest} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise StorageError(f"blob {digest} is damaged", next_step="restore the run folder from a copy")
        return data


def write_atomic(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Writes the file under a temporary name and renames it, or raises StorageError and leaves nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _failed(path, error) from error


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {error.strerror}",
        next_step="free space or fix the permissions, then resume",
    )
