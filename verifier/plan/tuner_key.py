"""The key under which an autotuner keeps its choice, for the trace and for the interpreter. Loads nothing."""

from __future__ import annotations

from typing import Any


def tuning_key(tuner: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The tuning key, as Autotuner.run makes it; `tuner.nargs` holds the positional arguments."""
    if len(tuner.configs) < 2:
        return ()
    named = {k: v for k, v in {**tuner.nargs, **kwargs}.items() if k in tuner.arg_names}
    return (
        *(named[k] for k in tuner.keys if k in named),
        *(str(v.dtype) for v in named.values() if hasattr(v, "dtype")),
    )
