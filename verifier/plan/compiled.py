"""What an earlier trace of the same file has compiled, so that a further one need not compile it again.

All that a file's Python decides of a kernel is in its TTIR and the compiler's options; the rest of the way to machine
code is a function of both, and takes most of a trace's time. As everything that a trace says, this is a claim of the
candidate's process: `rebuild.py` makes the code of the plan that is judged once more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import triton
from triton.backends.nvidia.compiler import CUDABackend, CUDAOptions

from verifier.plan.disguise import NAME

_KEPT = ("ptx", "cubin")
_Stage = Callable[[Any, dict[str, Any]], Any]


class Compilations:
    """Those of one trace. `made`: by key the compiler's options, what metadata it added, and the SHA-256 of PTX and
    cubin."""

    def __init__(self, name: str, known: Mapping[str, Mapping[str, Any]], blobs: Mapping[str, bytes]) -> None:
        """`name` of the traced file and its module; `known` is `made` of the earlier trace, `blobs` has its files."""
        self._name, self._known, self._blobs = name, known, blobs
        self.made: dict[str, dict[str, Any]] = {}

    def install(self) -> None:
        """Triton's compiler in this process asks here first."""
        add_stages = CUDABackend.add_stages

        def wrapped(backend: Any, stages: dict[str, _Stage], *args: Any) -> None:
            add_stages(backend, stages, *args)
            if "ttir" in stages and triton.knobs.runtime.add_stages_inspection_hook is None:
                one = _Compilation(self)
                for kind in list(stages)[list(stages).index("ttir") + 1 :]:
                    stages[kind] = partial(one.stage, kind, stages[kind])

        CUDABackend.add_stages = wrapped

    def key(self, module: Any, metadata: Mapping[str, Any]) -> str:
        """Of TTIR and options, whatever the file is called."""
        options = {name: value for name, value in metadata.items() if name != "hash"}
        text = f"{module}\0{json.dumps(options, default=vars, sort_keys=True)}"
        return hashlib.sha256(text.replace(self._name, NAME).encode()).hexdigest()

    def find(self, key: str) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """Metadata and files of an earlier compilation."""
        known = self._known.get(key, {})
        files = {kind: self._blobs.get(f"{known.get(kind)}.{kind}") for kind in _KEPT}
        if files["ptx"] is None or files["cubin"] is None:
            return None
        return known["metadata"], {**files, "ptx": files["ptx"].decode()}


class _Compilation:
    """One kernel on its way through the compiler."""

    def __init__(self, all_of_them: Compilations) -> None:
        self._all = all_of_them
        self._key = ""
        self._before: dict[str, Any] = {}
        self._files: dict[str, Any] | None = None
        self._hashes: dict[str, str] = {}

    def stage(self, kind: str, make: _Stage, module: Any, metadata: dict[str, Any]) -> Any:
        """The result of one stage; texts in between are empty where the end is known."""
        if not self._key:
            self._key, self._before = self._all.key(module, metadata), dict(metadata)
            if (found := self._all.find(self._key)) is not None:
                metadata.update(found[0])
                self._files = found[1]
        if self._files is not None:
            return self._files.get(kind, "")
        made = make(module, metadata)
        if kind in _KEPT:
            data = made.encode() if isinstance(made, str) else bytes(made)
            self._hashes[kind] = hashlib.sha256(data).hexdigest()
        if len(self._hashes) == len(_KEPT):
            added = {k: v for k, v in metadata.items() if k not in self._before or self._before[k] != v}
            options = {k: v for k, v in self._before.items() if k in CUDAOptions.__dataclass_fields__}
            said = json.loads(json.dumps({"options": options, "metadata": added}, default=vars))
            self._all.made[self._key] = {**said, **self._hashes}
        return made
