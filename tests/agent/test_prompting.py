from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from agent.prompting import DECLARATIONS, FOLDER, Prompts, Shown, shown_reference
from agent.testing import PROBLEM
from strategies.base import Operator
from verifier.problem import LibraryPolicy, Precision

TARGET = {"name": "sm_90a", "facts": {"shared memory per block": "232448 bytes"}}
PARENT = Shown("a0001", "correct, speed-up 1.200x", "# genome: {{ x }}\nclass ModelNew: ...", "Status: correct.")
BARE = Shown("a0002", "unparsable", None, "Status: unparsable.")


def test_the_system_prompt_names_version_limits_and_contract() -> None:
    text = Prompts().system(PROBLEM, TARGET, "3.6.0").content
    for part in (
        "Triton 3.6.0",
        "sm_90a",
        "shared memory per block: 232448 bytes",
        "ModelNew",
        "```python",
        "float64",
    ):
        assert part in text


def test_every_precision_and_library_policy_has_a_sentence() -> None:
    texts = {
        Prompts().system(PROBLEM.model_copy(update={"precision": p, "library": lib}), TARGET, "3").content
        for p in Precision
        for lib in LibraryPolicy
    }
    assert len(texts) == len(Precision) * len(LibraryPolicy)


@pytest.mark.parametrize("operator", Operator)
def test_each_operator_shows_the_task_and_its_parents_as_they_are(operator: Operator) -> None:
    text = Prompts().user(operator, PROBLEM, [PARENT, BARE], [PARENT]).content
    assert "class Model(torch.nn.Module)" in text
    assert "small (small, timed): N = 8" in text
    assert text.count("# genome: {{ x }}") == (1 if operator is Operator.DRAFT else 2)
    assert ("Status: unparsable." in text) == (operator is not Operator.DRAFT)
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize("operator", Operator)
def test_operators_differ_and_render_without_parents(operator: Operator) -> None:
    texts = {Prompts().user(op, PROBLEM).content for op in Operator}
    assert Prompts().user(operator, PROBLEM).content in texts
    assert len(texts) == len(Operator)


def test_the_opening_is_the_problems_own() -> None:
    problem = PROBLEM.model_copy(update={"prompt": "Please write a GPU attention kernel."})
    assert Prompts().user(Operator.DRAFT, problem).content.startswith("Please write a GPU attention kernel.")


def test_held_out_workloads_and_declarations_never_show() -> None:
    names = sorted(DECLARATIONS)
    declared = "\n".join(f"{name} = {{\n    'secret_{name}': 4096,\n}}" for name in names)
    problem = PROBLEM.model_copy(
        update={"source": f"N = 8\n{declared}\nPRECISION: str = 'fp32'\n\nclass Model:\n    pass\n"}
    )
    shown = "".join(Prompts().user(op, problem, [PARENT], [PARENT]).content for op in Operator)
    assert "secret" not in shown
    assert "4096" not in shown
    assert "N = 8" in shown


def test_the_reference_keeps_everything_else() -> None:
    before, after = "import torch\n\nN = 8  # rows\n", '\n\ndef get_inputs():\n    """WORKLOADS = 3"""'
    assert shown_reference(f"{before}WORKLOADS = [\n    1,\n]\n{after}\n") == before + after


def test_an_undefined_name_is_refused(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.j2"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "draft.j2").write_text("{{ problem.opening }} {{ misspelt }}")
    with pytest.raises(jinja2.UndefinedError, match="misspelt"):
        Prompts(tmp_path).user(Operator.DRAFT, PROBLEM)


def test_the_digest_follows_the_templates(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.j2"):
        (tmp_path / path.name).write_text(path.read_text())
    assert Prompts(tmp_path).digest == Prompts().digest
    (tmp_path / "draft.j2").write_text("another")
    assert Prompts(tmp_path).digest != Prompts().digest
