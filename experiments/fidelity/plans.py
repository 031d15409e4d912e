"""Plans with their cubins in one zip file, blobs stored once. Written by a trace, read strictly before a replay."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class PlanFile:
    """`plans/<name>.json` and `blobs/<sha>.<kind>` in one archive. Appending is for one process at a time."""

    def __init__(self, path: Path, *, squeeze: bool = False) -> None:
        self._path = path
        self._how = zipfile.ZIP_LZMA if squeeze else zipfile.ZIP_STORED

    def names(self) -> set[str]:
        """Names of the plans; none where there is no file."""
        return {n[6:-5] for n in self._members() if n.startswith("plans/")}

    def add(self, name: str, plan: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Adds a plan and its blobs."""
        there = self._members()
        with zipfile.ZipFile(self._path, "a", self._how) as archive:
            for blob, data in blobs.items():
                if f"blobs/{blob}" not in there:
                    archive.writestr(f"blobs/{blob}", data)
            archive.writestr(f"plans/{name}.json", json.dumps(plan))

    def get(self, name: str) -> tuple[Any, dict[str, bytes]]:
        """JSON value of a plan and the blobs that it names. Raises KeyError."""
        with zipfile.ZipFile(self._path) as archive:
            plan = json.loads(archive.read(f"plans/{name}.json"))
            kernels = plan["kernels"].values()
            wanted = {f"{k[kind]}.{kind}" for k in kernels for kind in ("cubin", "ttir", "ptx") if k[kind]}
            return plan, {blob: archive.read(f"blobs/{blob}") for blob in wanted}

    def _members(self) -> set[str]:
        if not self._path.exists():
            return set()
        with zipfile.ZipFile(self._path) as archive:
            return set(archive.namelist())
