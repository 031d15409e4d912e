"""Models by name. Importing this package loads none of them; `make_model` imports the one that is asked for.

sampler                  the template sampler; no language model, no key
NAME  NAME:SERVED        a profile (`profiles.toml` or the user's file); SERVED replaces the model's name
batch:NAME               that profile, answered by file or by hand
replay:RUN               the answers of a recorded run folder
package.module:Name      anything that makes a `Model` when called without arguments
an entry point           of the group `warpsmith.models`: the same, by a name
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.errors import UsageError

if TYPE_CHECKING:
    from tools.models.base import Model, ModelProfile

GROUP = "warpsmith.models"


def make_model(spec: str, *, folder: Path | None = None, models_file: Path | None = None) -> Model:
    """The model that `spec` names. `folder` is the run folder, which a batch model needs.

    Raises UsageError for an unknown name (it lists the known ones), a missing key or argument, or a broken
    profile file.
    """
    head, _, argument = spec.strip().partition(":")
    if head in MODELS:
        return MODELS[head](argument, folder, models_file)
    plugins = {point.name: point.value for point in entry_points(group=GROUP)}
    if spec in plugins:
        return _called(plugins[spec], spec)
    profiles = _profiles(models_file)
    if head in profiles:
        return _over_http(_served(profiles[head], argument))
    if argument and "." in head:
        return _called(spec, spec)
    raise UsageError(
        f"there is no model {spec!r}; known: {', '.join(sorted({*MODELS, *profiles, *plugins}))}",
        next_step="Name one of them, a profile of your own file (--models FILE), or package.module:Name.",
    )


def restore_model(spec: str, profile: ModelProfile, folder: Path) -> Model:
    """The model of a recorded run, from its own profile where it has one, so that prices stay pinned."""
    head = spec.strip().partition(":")[0]
    if head == "batch":
        from tools.models.batch import Batch

        return Batch(profile, folder)
    if profile.name == head and profile.base_url and not entry_points(group=GROUP, name=spec):
        return _over_http(profile)
    return make_model(spec, folder=folder)


def model_names(models_file: Path | None = None) -> tuple[str, ...]:
    """Every name that `make_model` knows, sorted."""
    plugins = {point.name for point in entry_points(group=GROUP)}
    return tuple(sorted({*MODELS, *_profiles(models_file), *plugins}))


def _sampler(argument: str, folder: Path | None, models_file: Path | None) -> Model:
    if argument:
        raise UsageError("the model sampler takes no argument")
    return _called("tools.models.sampler:Sampler", "sampler")


def _batch(argument: str, folder: Path | None, models_file: Path | None) -> Model:
    from tools.models.batch import Batch

    if folder is None:
        raise UsageError("a batch model needs a run folder")
    name, _, served = argument.partition(":")
    profiles = _profiles(models_file)
    if name not in profiles:
        raise UsageError(f"batch:NAME needs a profile's name, not {name!r}; known: {', '.join(sorted(profiles))}")
    return Batch(_served(profiles[name], served), folder)


def _replay(argument: str, folder: Path | None, models_file: Path | None) -> Model:
    from tools.models.replay import Replay

    if not argument:
        raise UsageError("replay:RUN needs the folder of a recorded run")
    return Replay(Path(argument))


MODELS: dict[str, Callable[[str, Path | None, Path | None], Model]] = {
    "sampler": _sampler,
    "batch": _batch,
    "replay": _replay,
}
"""Kinds by the first word of a spec; each takes what follows the colon, the run folder, the models file."""


def _over_http(profile: ModelProfile) -> Model:
    from tools.models.openai_compatible import OpenAICompatible

    if not profile.base_url:
        raise UsageError(f"the profile {profile.name} has no base_url", next_step=f"Use --model batch:{profile.name}.")
    return OpenAICompatible(profile)


def _served(profile: ModelProfile, served: str) -> ModelProfile:
    if not (served or profile.model):
        raise UsageError(
            f"the profile {profile.name} does not say which model is served",
            next_step=f"Write {profile.name}:MODEL.",
        )
    return profile.model_copy(update={"model": served}) if served else profile


def _profiles(models_file: Path | None) -> dict[str, ModelProfile]:
    from tools.models.profiles import load_profiles

    return load_profiles(models_file)


def _called(target: str, spec: str) -> Model:
    """Imports `package.module:Name` and calls it."""
    module, _, name = target.partition(":")
    try:
        factory: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the model {spec} cannot be loaded: {error}") from None
    model = factory() if callable(factory) else factory
    if not (hasattr(model, "profile") and callable(getattr(model, "complete", None))):
        raise UsageError(f"the model {spec} is no Model: it lacks profile or complete")
    made: Model = model
    return made
