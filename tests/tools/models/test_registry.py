from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.models import make_model, model_names, restore_model
from tools.models.base import ModelProfile, ModelRequest
from tools.models.batch import Batch
from tools.models.openai_compatible import OpenAICompatible
from tools.models.profiles import load_profiles
from verifier.errors import UsageError


class Own:
    """A model of somebody else's package."""

    profile = ModelProfile(name="own")

    async def complete(self, request: ModelRequest) -> None:
        """Answers nothing."""


def write(folder: Path, text: str) -> Path:
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path, '[mine]\nmodel = "m"\nbase_url = "http://h/v1"\n')
    with pytest.raises(UsageError) as caught:
        make_model("gpt", models_file=path)
    for name in ("sampler", "batch", "replay", "deepseek", "openai", "vllm", "sglang", "local", "mine"):
        assert name in str(caught.value)
        assert name in model_names(path)


def test_a_profile_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-000000")
    model = make_model("openai")
    assert isinstance(model, OpenAICompatible)
    assert (model.profile.name, model.quirks.max_tokens_field) == ("openai", "max_completion_tokens")


def test_the_served_model_can_be_named(tmp_path: Path) -> None:
    assert make_model("vllm:Qwen/Qwen3-32B").profile.model == "Qwen/Qwen3-32B"
    assert make_model("batch:vllm:org/m:tag", folder=tmp_path).profile.model == "org/m:tag"
    with pytest.raises(UsageError, match="which model is served"):
        make_model("vllm")


def test_the_user_s_profiles_win_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[deepseek]\nmodel = "own"\nbase_url = "http://127.0.0.1:1/v1"\nprices = {output = 3}\n'
    monkeypatch.setenv("WARPSMITH_MODELS", str(write(tmp_path, text)))
    assert make_model("deepseek").profile.prices.output == 3
    (tmp_path / "other").mkdir()
    given = write(tmp_path / "other", '[deepseek]\nmodel = "argument"\nbase_url = "http://127.0.0.1:1/v1"\n')
    assert make_model("deepseek", models_file=given).profile.model == "argument"


def test_batch_needs_a_profile_and_a_folder_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    model = make_model("batch:deepseek", folder=tmp_path)
    assert isinstance(model, Batch)
    assert (model.profile.name, model.profile.remote) == ("deepseek", False)
    for spec, folder, said in (
        ("batch:hand", None, "run folder"),
        ("batch", tmp_path, "hand"),
        ("batch:x", tmp_path, "hand"),
    ):
        with pytest.raises(UsageError, match=said):
            make_model(spec, folder=folder)


def test_a_model_from_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "somebody.models", sys.modules[__name__])
    assert make_model("somebody.models:Own").profile.name == "own"
    for spec in (
        "somebody.models:Missing",
        "no.such.package:Own",
        "somebody.models:ModelProfile.x",
        "pathlib.x:Path",
    ):
        with pytest.raises(UsageError, match="cannot be loaded"):
            make_model(spec)
    with pytest.raises(UsageError, match="is no Model"):
        make_model("somebody.models:Path")


def test_a_recorded_model_keeps_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, '[mine]\nmodel = "m"\nbase_url = "http://127.0.0.1:1/v1"\nprices = {output = 3}\n')
    monkeypatch.setenv("WARPSMITH_MODELS", str(tmp_path / "models.toml"))
    recorded = {spec: make_model(spec, folder=tmp_path).profile for spec in ("mine", "mine:other", "batch:mine")}
    write(tmp_path, '[mine]\nmodel = "changed"\nbase_url = "http://127.0.0.1:2/v1"\n')
    for spec, profile in recorded.items():
        assert restore_model(spec, profile, tmp_path).profile == profile
    monkeypatch.setitem(sys.modules, "somebody.models", sys.modules[__name__])
    far = ModelProfile(name="own", base_url="http://far/v1")
    assert isinstance(restore_model("somebody.models:Own", far, tmp_path), Own)


def test_a_model_from_an_entry_point(tmp_path: Path) -> None:
    info = tmp_path / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[warpsmith.models]\nplugged = somebody_models:Own\n")
    source = "from tools.models.base import ModelProfile\n\nclass Own:\n    profile = ModelProfile(name='own')\n"
    (tmp_path / "somebody_models.py").write_text(source + "    async def complete(self, request): ...\n")
    code = "from tools.models import *; import tools.models as t; print(t.make_model('plugged').profile.name)"
    environ = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("own\n", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mine", "not valid TOML"),
        ("mine = 3", "outside a table"),
        ("[mine]\nspeed = 3", "speed"),
        ("[mine]\nmax_tokens = 'many'", "max_tokens"),
        ("[mine]\nprices = {output = -1}", r"prices\.output"),
        ("[mine]\nbase_url = 'localhost:8000/v1'", "base_url"),
        ("[mine]\nbase_url = 'https://h/v1?key=x'", "base_url"),
        ("[mine]\nmodel = 'm'", "no base_url"),
    ],
)
def test_a_broken_profile_names_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_model("mine", models_file=write(tmp_path, text))


def test_a_models_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load_profiles(path)
    (tmp_path / "latin.toml").write_bytes(b"\xe9")
    with pytest.raises(UsageError, match="UTF-8"):
        load_profiles(tmp_path / "latin.toml")


def test_built_in_profiles_hold_no_key_and_are_complete() -> None:
    profiles = load_profiles()
    assert {"deepseek", "openai", "vllm", "sglang", "local", "hand"} <= profiles.keys()
    for profile in profiles.values():
        assert profile.api_key_env == "" or profile.base_url.startswith("https://")


def test_naming_a_model_loads_only_that_model() -> None:
    code = (
        "import sys, tools.models as t; t.model_names();"
        "print({'openai', 'httpx2', 'torch', 'langgraph', 'tools.models.batch'} & sys.modules.keys() or [])"
    )
    environ = {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
