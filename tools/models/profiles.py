"""Model profiles as data: the built-in TOML and the user's own.

A file has one table for each profile; its keys are the fields of `ModelProfile`, without `name`. The user's
file is the argument, else the one that WARPSMITH_MODELS names.
"""

from __future__ import annotations

import os
import tomllib
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from tools.models.base import ModelProfile
from verifier.errors import UsageError

VARIABLE = "WARPSMITH_MODELS"


def load_profiles(models_file: Path | None = None) -> dict[str, ModelProfile]:
    """All profiles by name; the user's win. Raises UsageError that names file, profile and field."""
    builtin = files("tools.models").joinpath("profiles.toml").read_text(encoding="utf-8")
    profiles = parse_profiles(builtin, "profiles.toml")
    path = models_file or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    return profiles | (parse_profiles(_read(path), str(path)) if path else {})


def parse_profiles(text: str, source: str) -> dict[str, ModelProfile]:
    """The profiles of one TOML text. Messages never quote a value: it could be a key in the wrong place."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not valid TOML: {error}") from None
    return {name: _profile(name, table, source) for name, table in tables.items()}


def _profile(name: str, table: object, source: str) -> ModelProfile:
    if not isinstance(table, dict):
        raise UsageError(f"{source}: {name} stands outside a table; write it under [PROFILE]")
    if "api_key" in table:
        raise UsageError(
            f"{source}: [{name}] holds a key; name its environment variable with api_key_env instead",
            next_step="Remove the key from the file and replace it at its provider.",
        )
    try:
        profile = ModelProfile.model_validate({"name": name, **table})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{source}: [{name}] {field}: {first['msg']}") from None
    _check_url(profile, source)
    return profile


def _check_url(profile: ModelProfile, source: str) -> None:
    url = urlsplit(profile.base_url)
    if profile.base_url and (url.scheme not in ("http", "https") or not url.hostname):
        raise UsageError(f"{source}: [{profile.name}] base_url: it must start with http:// or https:// and name a host")
    if url.username or url.password or url.query:
        raise UsageError(f"{source}: [{profile.name}] base_url: a user, password or query does not belong in it")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"the models file {path} cannot be read: {reason}") from None
